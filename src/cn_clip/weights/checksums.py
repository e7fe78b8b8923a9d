"""Checksums: of a file's bytes, and of the weights in it whatever it is stored as.

cn-clip weights verify clip_cn_vit-b-16.pt --sha256 5a4…        against a checksum that you were given
cn-clip weights verify clip_cn_vit-b-16.pt --write              write clip_cn_vit-b-16.pt.sha256
cn-clip weights verify clip_cn_vit-b-16.pt                      against clip_cn_vit-b-16.pt.sha256
cn-clip weights verify checksums.sha256                         every file that it lists

The files are those of `sha256sum`, which may check them too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cn_clip.errors import UserError
from cn_clip.files import atomic_open
from cn_clip.progress import progress

_BLOCK = 4 << 20
_LINE = re.compile(r"^\\?([0-9a-fA-F]{64}) [ *](.+)$")  # as sha256sum writes it


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        progress(total=path.stat().st_size >> 20, desc=path.name, unit="MB") as bar,
    ):
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block) >> 20)
    return digest.hexdigest()


def content_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of the weights themselves: names, dtypes, shapes and numbers, in the order of the names.

    The same weights have the same one in a `.pt`, a `.safetensors` and a Hugging Face folder, with and without
    `module.` before their names. In another precision they have another.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        kind = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{kind}\0{','.join(map(str, tensor.shape))}\0".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sidecar(path: Path) -> Path:
    """The file with another file's checksum: `clip.pt` -> `clip.pt.sha256`."""
    return path.with_name(f"{path.name}.sha256")


def write_checksum(path: Path) -> Path:
    """Write `<file>.sha256` in the form of `sha256sum`, atomically; returns its path."""
    checksum = file_sha256(path)
    with atomic_open(sidecar(path)) as file:
        file.write(f"{checksum}  {path.name}\n")
    return sidecar(path)


def read_checksums(path: Path) -> dict[str, str]:
    """File name -> SHA-256 in lower case, of a file in the form of `sha256sum`.

    Raises:
        UserError: a line that has another form, or no line at all.
    """
    found: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a file of checksums: expected lines of text") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.match(line)
        if match is None:
            raise UserError(f"{path}:{number}: expected 64 hexadecimal digits, two spaces and a file's name")
        found[match[2]] = match[1].lower()
    if not found:
        raise UserError(f"{path}: holds no checksum")
    return found


def verify(file: Path, /, sha256: str | None = None, write: bool = False) -> None:
    """Check that a file is what it should be, byte by byte; a file that is not ends with status 1.

    Args:
        file: a file, with its checksum in FILE.sha256 unless --sha256 gives it; or a list of checksums as
            sha256sum writes it (its name ends in .sha256 or is checksums.txt), with the files beside it.
        sha256: the checksum that the file should have.
        write: write FILE.sha256 (after checking --sha256, if given).
    """
    listed = file.suffix == ".sha256" or file.name in ("checksums", "checksums.txt", "SHA256SUMS")
    if listed and (sha256 or write):
        raise UserError(f"{file}: a list of checksums; --sha256 and --write are for one file")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if listed:
        expected = {file.parent / name: checksum for name, checksum in read_checksums(file).items()}
    elif sha256 is not None:
        if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
            raise UserError(f"--sha256 takes 64 hexadecimal digits, not {sha256!r}")
        expected = {file: sha256.lower()}
    elif write:
        expected = {}
    else:
        if not (beside := sidecar(file)).is_file():
            raise UserError(f"{beside}: no such file; give --sha256, or --write to make it")
        known = read_checksums(beside)
        if file.name not in known:
            raise UserError(f"{beside}: has no line for {file.name}")
        expected = {file: known[file.name]}
    wrong = []
    for path, checksum in expected.items():
        if not path.is_file():
            wrong.append(f"{path}: no such file")
        elif (own := file_sha256(path)) != checksum:
            wrong.append(f"{path}: its SHA-256 is {own}, not {checksum}: copy or download it again")
        else:
            print(f"{path}: OK")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(wrong[0] + more)
    if write:
        print(f"{write_checksum(file)}: written")
