"""cn-clip data check DIR [--splits train,valid]

Reads every line and decodes every image of a dataset, and reports each problem as "file:line: message".
Memory: the ids and a 16-byte digest of each image; images are decoded in several threads.
"""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

from cn_clip.data.formats import IdType, LineError, Text, parse_id, parse_text, read_lines
from cn_clip.data.lmdb import LmdbDataset, close
from cn_clip.data.pictures import look_at
from cn_clip.errors import UserError
from cn_clip.parallel import threads_or_default
from cn_clip.progress import progress
from cn_clip.tokenizer import default_tokenizer

_TEXTS_AT_ONCE = 1000


def check(
    data_dir: Path, /, splits: str = "", context_length: int = 52, max_problems: int = 20, threads: int = 0
) -> int:
    """Check a dataset, print each problem with its file and line, and a summary; exit status 1 if there is any.

    Args:
        data_dir: the folder of {split}_imgs.tsv and {split}_texts.jsonl.
        splits: names of splits, separated by commas; all that are found by default.
        context_length: a text of more word pieces than this (with [CLS] and [SEP]) is too long.
        max_problems: how many problems of each kind are shown; all are counted.
        threads: threads that decode images; by default one a core.
    """
    names = choose_splits(data_dir, splits)
    report = Report(max_problems)
    checker = _Checker(data_dir, context_length, threads_or_default(threads), report)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd metadata
        for name in names:
            checker.split(name)
    print(report.summary())
    return 1 if report.total else 0


def find_splits(data_dir: Path) -> list[str]:
    """The names of a dataset's splits.

    Raises:
        UserError: there is none.
    """
    ends = ("_imgs.tsv", "_texts.jsonl")
    found = {path.name.removesuffix(end) for end in ends for path in data_dir.glob(f"*{end}")}
    if not found:
        raise UserError(
            f"{data_dir}: no dataset here: expected files {{split}}_imgs.tsv and {{split}}_texts.jsonl"
        )
    order = {"train": 0, "valid": 1, "val": 1, "test": 2}
    return sorted(found, key=lambda name: (order.get(name, 3), name))


def choose_splits(data_dir: Path, splits: str) -> list[str]:
    """The splits that a flag names, separated by commas; all of the dataset's when it is empty.

    Raises:
        UserError: the dataset has no such split, or none at all.
    """
    found = find_splits(data_dir)
    names = list(dict.fromkeys(name.strip() for name in splits.split(",") if name.strip())) or found
    unknown = [name for name in names if name not in found]
    if unknown:
        raise UserError(f"{data_dir}: no split {unknown[0]!r}; there are {', '.join(found)}")
    return names


class Report:
    """Prints problems as they are found, up to `shown` of a kind, and counts all of them."""

    def __init__(self, shown: int) -> None:
        self.shown = shown
        self.problems: Counter[str] = Counter()
        self.rows: list[tuple[str, int, int, int, int]] = []  # split, images, texts, pairs, problems
        self.notes: list[str] = []

    @property
    def total(self) -> int:
        """The number of problems."""
        return self.problems.total()

    def add(self, kind: str, message: str) -> None:
        """Count a problem, and print it unless enough of its kind have been shown."""
        from tqdm import tqdm

        self.problems[kind] += 1
        if self.problems[kind] <= self.shown:
            tqdm.write(" ".join(message.split()))  # above the progress bar

    def summary(self) -> str:
        """A table of the splits, then the kinds of problems and what is worth knowing besides."""
        head = ("split", "images", "texts", "pairs", "problems")
        width = max(len(str(row[0])) for row in [head, *self.rows])
        lines = [f"{row[0]:{width}}" + "".join(f"{cell!s:>10}" for cell in row[1:]) for row in [head, *self.rows]]
        lines += [f"note: {note}" for note in self.notes]
        for kind, count in sorted(self.problems.items()):
            hidden = f" ({self.shown} shown; --max-problems shows more)" if count > self.shown else ""
            lines.append(f"{kind}: {count}{hidden}")
        lines.append(f"{self.total} problems" if self.total != 1 else "1 problem")
        return "\n".join(lines if self.total else [*lines[:-1], "no problem found"])


class _Checker:
    def __init__(self, data_dir: Path, context_length: int, threads: int, report: Report) -> None:
        self.data_dir = data_dir
        self.context_length = context_length
        self.threads = threads
        self.report = report
        self.id_type = IdType()  # of the whole dataset
        self.pictures: dict[bytes, tuple[str, int]] = {}  # digest -> split and line where it was first seen

    def split(self, split: str) -> None:
        """Check one split and add its row to the summary."""
        before = self.report.total
        tsv, jsonl = self.data_dir / f"{split}_imgs.tsv", self.data_dir / f"{split}_texts.jsonl"
        images: dict[str, int] = {}  # id -> line
        texts = pairs = 0
        for path in (tsv, jsonl):
            if not path.is_file():
                self.report.add("missing file", f"{path}: no such file; a split has images and texts")
        if tsv.is_file():
            self._images(tsv, split, images)
        if jsonl.is_file():
            texts, pairs = self._texts(jsonl, split, images, tsv)
        if (self.data_dir / "lmdb" / split).is_dir():
            self._lmdb(split, len(images), pairs)
        self.report.rows.append((split, len(images), texts, pairs, self.report.total - before))

    def _images(self, tsv: Path, split: str, images: dict[str, int]) -> None:
        modes: Counter[str] = Counter()
        repeated = 0
        for look in look_at(tsv, self.threads):
            where = f"{tsv}:{look.line}"
            if look.image_id in images:
                first = images[look.image_id]
                message = f"{where}: image id {look.image_id} stands at line {first} already"
                self.report.add("duplicate image id", message)
                continue
            if look.image_id:
                images[look.image_id] = look.line
            if look.problem:
                self.report.add(*look.problem)
                continue
            modes[look.unusual] += 1
            other, line = self.pictures.setdefault(look.digest, (split, look.line))
            if other != split:
                self.report.add(
                    "picture in two splits",
                    f"{where}: image {look.image_id} is the same picture as line {line} of {other}_imgs.tsv",
                )
            elif line != look.line:
                repeated += 1
        del modes[""]
        notes = [
            f"{count} {mode} image{'s' * (count > 1)}, which is fine: read as 8-bit RGB, the first frame"
            for mode, count in sorted(modes.items())
        ]
        notes += [f"{repeated} pictures that the split holds under another id already"] if repeated else []
        self.report.notes += [f"{split}: {note}" for note in notes]

    def _texts(self, jsonl: Path, split: str, images: dict[str, int], tsv: Path) -> tuple[int, int]:
        seen: dict[str, int] = {}  # text id -> line
        used: set[str] = set()
        batch: list[Text] = []
        pairs = unlabelled = 0
        for number, line in progress(read_lines(jsonl), desc=jsonl.name, unit=" texts"):
            where = f"{jsonl}:{number}"
            try:
                text = parse_text(line, where, self.id_type)._replace(line=number)
            except LineError as error:
                self.report.add(error.kind, str(error))
                continue
            first = seen.setdefault(str(text.text_id), number)
            if first != number:
                self.report.add(
                    "duplicate text id", f"{where}: text id {text.text_id} stands at line {first} already"
                )
            ids = [str(image_id) for image_id in text.image_ids]
            for image_id in ids:
                if image_id not in images:
                    message = f"{where}: image id {image_id} of text {text.text_id} has no image in {tsv.name}"
                    self.report.add("id without an image", message)
            for image_id, count in Counter(ids).items():
                if count > 1:
                    self.report.add("duplicate image id", f"{where}: image_ids names {image_id} {count} times")
            used.update(ids)
            pairs += len(ids)
            unlabelled += not ids
            batch.append(text)
            if len(batch) == _TEXTS_AT_ONCE:
                self._lengths(jsonl, batch)
                batch = []
        self._lengths(jsonl, batch)
        if unlabelled:
            self.report.notes.append(f"{split}: {unlabelled} texts without images (image_ids is empty)")
        self._unused(tsv, images, used, labelled=pairs > 0)
        return len(seen), pairs

    def _lengths(self, jsonl: Path, texts: list[Text]) -> None:
        lengths = default_tokenizer().encode([text.text for text in texts], None).lengths.tolist()
        for text, length in zip(texts, lengths, strict=True):
            where = f"{jsonl}:{text.line}: text {text.text_id}"
            if length == 2:  # [CLS] [SEP]
                self.report.add("empty text", f"{where} is empty")
            elif length > self.context_length:
                self.report.add(
                    "over-long text",
                    f"{where} has {length} word pieces with [CLS] and [SEP]; those after "
                    f"{self.context_length} are cut off",
                )

    def _unused(self, tsv: Path, images: dict[str, int], used: set[str], labelled: bool) -> None:
        for image_id, line in images.items():
            if self.id_type.type is int and type(parse_id(image_id)) is str:
                message = f"{tsv}:{line}: image id {image_id!r} is not an integer, but the ids of the texts are"
                self.report.add("mixed id types", message)
            elif labelled and image_id not in used:
                self.report.add("image without a text", f"{tsv}:{line}: image {image_id} has no text")

    def _lmdb(self, split: str, images: int, pairs: int) -> None:
        path = self.data_dir / "lmdb" / split
        try:
            built = LmdbDataset(path)
            if len(built.pairs):
                built.images.base64(built.pairs[0][0])
            counts = (len(built.images), built.images.num_images, len(built.pairs))
            if counts != (images, images, pairs):
                raise UserError(
                    f"{path}: {counts[0]} images (num_images {counts[1]}) and {counts[2]} pairs, but the files "
                    f"of {split} have {images} and {pairs}; build it anew with cn-clip data build-lmdb"
                )
        except UserError as error:
            self.report.add("stale or broken LMDB", str(error))
        finally:
            close(path / "imgs")
            close(path / "pairs")
