"""The documentation is true: its commands run, its flags exist, its links resolve, its languages agree."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import traceback
import types
from pathlib import Path
from typing import NamedTuple

import pytest

from cn_clip import cli, cli_docs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "README_zh.md", *sorted((ROOT / "docs").glob("*.md"))]
PAIRS = [(page.with_name(page.name.replace("_zh.md", ".md")), page) for page in PAGES if "_zh" in page.name]
RUN = [
    ROOT / "README.md",
    ROOT / "docs" / "datasets.md",
    ROOT / "docs" / "migrating.md",
    ROOT / "docs" / "import.md",
    ROOT / "docs" / "data-quality.md",
    ROOT / "docs" / "encoder.md",
    ROOT / "docs" / "emoji-tiny.md",
    ROOT / "docs" / "weights.md",  # by tests/weights/test_weights_page.py, which brings a finetuned model
]
REFERENCE_ONLY = re.compile(r"<!-- flags of the reference that are not here: (.*?) -->")


class Block(NamedTuple):
    """One fenced block: `marker` is the HTML comment on the line before it."""

    marker: str
    language: str
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"(?:^<!-- ([^\n]*?) -->\n)?^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [Block(m[1] or "", m[2], m[3], text[: m.start()].count("\n") + 1) for m in found]


def prose_of(text: str) -> str:
    """A text without its fenced blocks; their lines stay, empty."""
    return re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)


def prose(page: Path) -> str:
    return prose_of(page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[tuple[int, str]]:
    return [(len(m[1]), m[2].strip()) for m in re.finditer(r"^(#+) (.*)$", prose(page), re.M)]


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def without_comments(code: str) -> list[str]:
    lines = (re.sub(r"(^|\s)#.*$", "", line).rstrip() for line in code.splitlines())
    return [line for line in lines if line]


def commands(code: str) -> list[list[str]]:
    """The `cn-clip …` commands of a bash block, as words."""
    joined = re.sub(r"\\\n\s*", " ", code)
    return [
        words[1:]
        for words in (shlex.split(line, comments=True) for line in joined.splitlines())
        if words[:1] == ["cn-clip"]
    ]


def verb_of(words: list[str]) -> str | None:
    return next((v for v in (" ".join(words[:2]), " ".join(words[:1])) if v in cli.VERBS), None)


def flags_of(words: list[str]) -> set[str]:
    return {re.match(r"--[\w-]+", word)[0].replace("_", "-") for word in words if re.match(r"--\w", word)}


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """The flags of every verb, as its help has them."""
    return {
        verb: {name for row in cli_docs.arguments(verb) for name in row.names if row.flag} | {"--help"}
        for verb in cli.VERBS
    }


# --- docs/cli.md


def test_command_reference_is_what_the_code_says() -> None:
    assert cli_docs.main(["--check", str(ROOT / "docs" / "cli.md")]) == 0, "run make docs"


def test_command_reference_check_finds_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "cli.md"
    assert cli_docs.main(["--check", str(page)]) == 1
    assert cli_docs.main([str(page)]) == 0
    assert cli_docs.main(["--check", str(page)]) == 0
    page.write_text(page.read_text(encoding="utf-8").replace("--top-k", "--top", 1), encoding="utf-8")
    capsys.readouterr()
    assert cli_docs.main(["--check", str(page)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert cli_docs.main([]) == 2


def test_command_reference_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    page = cli_docs.render()
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli_docs.render() == page
    assert os.environ["COLUMNS"] == "40"


def test_arguments_of_a_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    def toy(source: Path, /, out_dir: Path, count: int = 3, name: str | None = None, fast: bool = False) -> None:
        """Do it.

        Args:
            source: where from, in words enough to fill more than one line of a terminal of any usual width,
                and some more | words.
            out_dir: where to.
        """

    module = types.ModuleType("toy_verb")
    module.__dict__["toy"] = toy
    monkeypatch.setitem(sys.modules, "toy_verb", module)
    monkeypatch.setitem(cli.VERBS, "toy", cli.Verb("toy_verb:toy", "a toy"))
    rows = {row.names[0]: row for row in cli_docs.arguments("toy")}
    assert list(rows) == ["SOURCE", "--out-dir", "--count", "--name", "--fast"]
    assert rows["SOURCE"].value == "PATH"
    assert rows["SOURCE"].help.endswith("and some more | words.")
    assert [rows[name].default for name in rows] == ["", "", "3", "none", "off"]
    assert rows["--count"].value == "INT"
    assert rows["--out-dir"].help == "where to."
    page = cli_docs.render()
    assert "## cn-clip toy\n\nDo it.\n\n```text\ncn-clip toy SOURCE --out-dir PATH [--flags]\n```" in page
    assert "some more \\| words." in page


# --- two languages


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda page: page.name)
def test_languages_have_the_same_structure(english: Path, chinese: Path) -> None:
    assert [level for level, _ in headings(english)] == [level for level, _ in headings(chinese)]
    assert [(b.marker, b.language) for b in blocks(english)] == [(b.marker, b.language) for b in blocks(chinese)]
    for ours, theirs in zip(blocks(english), blocks(chinese), strict=True):
        if ours.language != "text":
            assert without_comments(ours.code) == without_comments(theirs.code), f"{chinese}:{theirs.line}"


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=lambda page: page.name)
def test_languages_have_the_same_tables(english: Path, chinese: Path) -> None:
    def rows(page: Path) -> list[list[str]]:
        return [re.split(r"(?<!\\)\|", line) for line in prose(page).splitlines() if line.startswith("|")]

    ours, theirs = rows(english), rows(chinese)
    assert len(ours) == len(theirs)
    for left, right in zip(ours, theirs, strict=True):
        assert len(left) == len(right), right
        for a, b in zip(left, right, strict=True):
            number = re.fullmatch(r" [\d.,]+ ", a) or re.fullmatch(r" `[^`]*` ", a)
            assert not number or a == b, (a, b)


def test_every_page_is_written_in_its_language() -> None:
    for page in PAGES:
        text = re.sub(r"[`\[(\"][^`\n]*?[`\])\"]", "", prose(page))
        share = len(re.findall(r"[\u4e00-\u9fff]", text)) / len(text)
        assert (share > 0.1) == ("_zh" in page.name), (page.name, share)


# --- links and flags


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in {slug(text) for _, text in headings(file)}, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_exist(page: Path, known: dict[str, set[str]]) -> None:
    text = page.read_text(encoding="utf-8")
    declared = REFERENCE_ONLY.search(text)
    reference_only = flags_of(declared[1].split()) if declared else set()
    assert not reference_only & set().union(*known.values())
    for section in re.split(r"^(?=#+ )", text, flags=re.M):
        spans = re.findall(r"`([^`\n]+)`", prose_of(section))
        code = "\n".join(re.findall(r"^```bash\n(.*?)^```$", section, re.M | re.S))
        asked = commands(code) + [shlex.split(span)[1:] for span in spans if span.startswith("cn-clip ")]
        for words in asked:
            verb = verb_of(words)
            assert verb or not flags_of(words) - {"--help", "--flags"}, f"{page.name}: {words}"
            if verb:
                assert flags_of(words) - {"--flags"} <= known[verb], f"{page.name}: {words}"
        # Elsewhere: in a table, a flag of the commands the section shows; in running text, of any.
        verbs = [verb for words in commands(code) if (verb := verb_of(words))] or list(known)
        for line in prose_of(section).splitlines():
            names = verbs if line.startswith("|") else known
            allowed = set().union(*(known[verb] for verb in names)) | reference_only | {"--flag", "--flags"}
            spans = [span for span in re.findall(r"`([^`]+)`", line) if span.startswith("--")]
            assert flags_of(spans) <= allowed, f"{page.name}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_that_could_run_says_whether_it_does(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("bash", "python"):
            assert block.marker == "run" or re.match(r"not run: \w+", block.marker), f"{page}:{block.line}"


def test_readme_names_every_verb_and_no_other() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "migrating.md"):
        named = re.findall(r"cn-clip ((?:data |weights )?[a-z][\w-]*)", page.read_text(encoding="utf-8"))
        assert set(named) <= set(cli.VERBS), page.name
    everything = "".join(page.read_text(encoding="utf-8") for page in RUN)
    assert all(f"cn-clip {verb}" in everything for verb in cli.VERBS)


# --- the commands run

TINY_VISION = {
    "embed_dim": 32,
    "image_resolution": 32,
    "vision_layers": 1,
    "vision_width": 64,
    "vision_patch_size": 16,
}
TINY_TEXT = {
    "text_hidden_size": 32,
    "text_num_hidden_layers": 1,
    "text_num_attention_heads": 2,
    "text_intermediate_size": 64,
}
SMALL = {  # what makes a documented command small: values replaced where the command has the flag
    "--vision-model": "tiny_vision.json",
    "--text-model": "tiny_text.json",
    "--batch-size": "8",
    "--valid-batch-size": "8",
    "--warmup": "1",
}
EXTRA = {  # flags added where the command has not got them
    "train": ["--max-steps=2", "--batch-size=8", "--num-workers=0", "--valid-num-workers=0", "--device=cpu"]
}


def small(args: list[str]) -> list[str]:
    """A documented command line, made small."""
    args = list(args)
    for i, (flag, equals, _) in enumerate([arg.partition("=") for arg in args]):
        if flag in SMALL:
            if equals:
                args[i] = f"{flag}={SMALL[flag]}"
            else:
                args[i + 1] = SMALL[flag]
    given = {arg.partition("=")[0] for arg in args}
    return args + [arg for arg in EXTRA.get(args[0], []) if arg.partition("=")[0] not in given]


def cut(folder: Path) -> None:
    """Keep the first rows of the sample dataset, in place of all of it."""
    for texts in folder.glob("*_texts.jsonl"):
        rows = [json.loads(line) for line in texts.read_text("utf-8").splitlines()[:24]]
        for row in rows:
            row["image_ids"] = row["image_ids"][:2]
        texts.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        images = {str(image_id) for row in rows for image_id in row["image_ids"]}
        tsv = texts.with_name(texts.name.replace("_texts.jsonl", "_imgs.tsv"))
        lines = tsv.read_text("utf-8").splitlines(keepends=True)
        tsv.write_text("".join(line for line in lines if line.split("\t")[0] in images), "utf-8")


def serve() -> None:
    """Run the commands and Python blocks that a page's shell asks for: one process, which imports torch once.

    A request is a line of arguments with \\x1f between them; the answer is a line with the exit status. What the
    command prints goes to file descriptor 3.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(3, 1)
    for line in sys.stdin:
        args = line.rstrip("\n").split("\x1f")[:-1]
        try:
            if args[0] == "python":
                exec(compile(Path(args[1]).read_text("utf-8"), args[1], "exec"), {"__name__": "__main__"})
                status = 0
            else:
                status = cli.main(small(args))
                if args[:2] == ["data", "sample"]:
                    cut(Path(args[args.index("--out") + 1]))
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        print(status, file=answers, flush=True)


# Stands before a page's blocks: `cn-clip` and `run-python` are functions that ask the process of `serve`.
SHELL = """set -euo pipefail
exec 3>&1
coproc SERVER {{ exec {python} -c 'import test_docs; test_docs.serve()'; }}
ask() {{
    local status
    printf '%s\x1f' "$@" >&"${{SERVER[1]}}"
    echo >&"${{SERVER[1]}}"
    read -r status <&"${{SERVER[0]}}"
    return "$status"
}}
cn-clip() {{ ask "$@"; }}
run-python() {{ ask python "$1"; }}
"""


def write_weights(path: Path, vision: str, text: str) -> None:
    """Random weights in the published layout (float16, as some of the published files are)."""
    import torch

    from cn_clip.config import model_config
    from cn_clip.models.clip import CLIP

    with torch.device("meta"):
        shapes = CLIP(model_config(vision, text)).state_dict()
    pool = (torch.randn(2**20 - 3, generator=torch.Generator().manual_seed(0)) / 50).half()  # drawn once
    state = {
        f"module.{key}": pool.repeat(value.numel() // len(pool) + 1)[: value.numel()].reshape(value.shape)
        for key, value in shapes.items()
    }
    state["module.logit_scale"] = torch.tensor(4.6052)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"epoch": 1, "step": 1, "name": "random", "state_dict": state}, path)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with what the pages ask the reader to bring: pictures, pretrained weights."""
    from PIL import Image

    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for number, name in enumerate(("tote.jpg", "cat.jpg", "dog.jpg")):
        Image.effect_noise((64, 48), 40 + number).convert("RGB").save(tmp_path / name)
    vision, text = tmp_path / "tiny_vision.json", tmp_path / "tiny_text.json"
    vision.write_text(json.dumps(TINY_VISION))
    text.write_text(json.dumps(TINY_TEXT))
    write_weights(tmp_path / "datapath/pretrained_weights/clip_cn_vit-b-16.pt", str(vision), str(text))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    return tmp_path


def run_page(page: Path, folder: Path, prepare: str = "") -> str:
    """Run a page's blocks marked `run`, in order and in one shell; returns what they print."""
    script = [SHELL.format(python=shlex.quote(sys.executable)), prepare]
    for block in blocks(page):
        if block.marker != "run":
            continue
        script += [f"echo '--- {page.name}:{block.line}'"]
        if block.language == "python":
            (folder / f"block_{block.line}.py").write_text(block.code, "utf-8")
            script += [f"run-python block_{block.line}.py"]
        else:
            script += [block.code]
    # One thread: the models are tiny, and threads that wait for a busy core are what takes time.
    more = {"PYTHONPATH": str(ROOT / "tests"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


PREPARED = """DATAPATH=datapath dataset_name=emoji_cn
cn-clip data sample --out ${DATAPATH}/datasets/${dataset_name}
"""


def test_readme_runs(workplace: Path) -> None:
    big = workplace / "clip_cn_vit-b-16.pt"
    write_weights(big, "ViT-B-16", "RoBERTa-wwm-ext-base-chinese")
    printed = run_page(ROOT / "README.md", workplace)
    big.unlink()  # 376 MB that pytest would keep
    # The API example prints what its comment says, and a distribution over its four labels.
    promised = re.search(r"^# (Available models: .*)$", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert promised
    assert promised[1] in printed
    probabilities = re.search(r"Label probs: \[\[(.*?)\]\]", printed, re.S)
    assert probabilities
    values = [float(value) for value in probabilities[1].split()]
    assert len(values) == 4
    assert sum(values) == pytest.approx(1, abs=1e-5)
    # The tutorial ends with two scores.
    for name in ("output.json", "output_tr.json"):
        result = json.loads((workplace / name).read_text("utf-8"))
        assert result["success"] is True
        assert set(result["scoreJson"]) == {"score", "mean_recall", "r1", "r5", "r10"}
    features = workplace / "datapath" / "datasets" / "emoji_cn" / "test_texts.txt_feat.jsonl"
    vector = json.loads(features.read_text("utf-8").splitlines()[0])["feature"]
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)
    assert (workplace / "datapath" / "experiments" / "finetune" / "checkpoints" / "epoch_latest.pt").is_file()


def test_datasets_page_runs(workplace: Path) -> None:
    run_page(ROOT / "docs" / "datasets.md", workplace)
    lmdb = workplace / "datasets" / "mine" / "lmdb" / "train"
    assert (lmdb / "imgs").exists()
    assert (lmdb / "pairs").exists()


def test_import_page_runs(workplace: Path) -> None:
    printed = run_page(ROOT / "docs" / "import.md", workplace)
    promised = [b.code for b in blocks(ROOT / "docs" / "import.md") if b.language == "text"]
    assert promised[0] in printed
    report = (workplace / "datasets" / "pets" / "import_report.jsonl").read_text("utf-8").splitlines()
    assert json.loads(report[0]) == json.loads(promised[1].splitlines()[0])
    assert (workplace / "datasets" / "pets" / "lmdb" / "train" / "pairs").exists()


@pytest.mark.parametrize("name", ["data-quality.md", "encoder.md", "emoji-tiny.md"])
def test_page_runs(workplace: Path, name: str) -> None:
    run_page(ROOT / "docs" / name, workplace)


def test_migrating_page_runs(workplace: Path) -> None:
    run_page(ROOT / "docs" / "migrating.md", workplace, PREPARED)
    assert json.loads((workplace / "output.json").read_text("utf-8"))["success"] is True
