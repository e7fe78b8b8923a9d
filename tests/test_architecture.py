"""Imports run one way: the layers are the list in docs/architecture.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "cn_clip"


def layers() -> dict[str, int]:
    """Part -> its line in the list: 0 is the top."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- layers -->\n```text\n(.*?)```", page, re.S)
    assert block
    return {name: i for i, line in enumerate(block[1].splitlines()) for name in line.split()}


def part(module: str) -> str | None:
    """`cn_clip.data.lmdb` -> `data`; None for other packages and for cn_clip itself."""
    names = module.split(".")
    return names[1] if names[0] == "cn_clip" and len(names) > 1 else None


def imports(file: Path) -> set[str]:
    """The parts that a module imports, in functions too."""
    found: set[str | None] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {part(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            alone = node.module == "cn_clip"
            found |= {alias.name for alias in node.names} if alone else {part(node.module)}
    return {name for name in found if name}


def test_imports_run_downwards() -> None:
    rank = layers()
    modules = [file for file in SOURCE.rglob("*.py") if file != SOURCE / "__init__.py"]
    for file in modules:
        own = file.relative_to(SOURCE).parts[0].removesuffix(".py")
        assert own in rank, f"{own} is not in the list of docs/architecture.md"
        for other in imports(file) - {own}:
            assert rank[own] < rank[other], f"{file.relative_to(SOURCE)} imports {other}, which is not below it"
    assert set(rank) == {file.relative_to(SOURCE).parts[0].removesuffix(".py") for file in modules}


def test_page_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for file in SOURCE.rglob("*.py"):
        if not file.name.startswith("__"):
            assert re.search(rf"\b{file.stem}\b", page), f"docs/architecture.md does not mention {file.name}"


def test_import_is_light() -> None:
    code = "import sys, cn_clip, cn_clip.cli; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "torchvision", "timm", "faiss", "transformers", "numpy", "PIL", "tyro", "lmdb"}
    assert not heavy & set(loaded)
