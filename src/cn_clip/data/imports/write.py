"""The importer's loop: rows are drawn in order, pictures are prepared in threads, results are written in order.

Every few hundred rows all of it is committed (`state.py`); results do not depend on the number of threads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from cn_clip.data.formats import write_texts
from cn_clip.data.imports.items import Item, Mapper, Skip
from cn_clip.data.imports.prepare import Prepared, Storing, prepare
from cn_clip.data.imports.rows import Problem, Row, Source
from cn_clip.data.imports.splits import Splitter
from cn_clip.data.imports.state import Known, State
from cn_clip.parallel import map_in_threads
from cn_clip.progress import progress

REPORT = "import_report.jsonl"
COMMIT_EVERY = 500  # rows


class Importer:
    """Reads a source to its end, from where the state stands."""

    def __init__(
        self, source: Source, mapper: Mapper, splitter: Splitter, storing: Storing, state: State, workers: int
    ) -> None:
        self.source, self.mapper, self.splitter, self.storing = source, mapper, splitter, storing
        self.state, self.workers = state, workers

    def run(self) -> None:
        """Import what is left."""
        totals = [part.total() for part in self.source.parts]
        total = sum(t for t in totals if t) if None not in totals else None
        with progress(total=total, desc="import", unit=" rows") as bar:
            bar.update(sum(t or 0 for t in totals[: self.state.part]) + self.state.row)
            for number in range(self.state.part, len(self.source.parts)):
                part = self.source.parts[number]
                start = self.state.row if number == self.state.part else 0
                rows = part.rows(start)
                while chunk := self._chunk(islice(rows, COMMIT_EVERY), part.split, bar):
                    start += chunk
                    self.state.commit(number, start)
                self.state.commit(number + 1, 0)

    def _chunk(self, rows: Iterator[Row], split: str, bar: Any) -> int:
        """Import some rows; returns how many there were."""
        drawn = 0
        waiting: set[bytes] = set()  # images of this chunk that are being prepared

        def jobs() -> Iterator[tuple[Item | Skip | None, bool]]:
            nonlocal drawn
            for row in rows:
                drawn += 1
                item = self.mapper.item(row, split)
                known = not isinstance(item, Item) or item.key in waiting or self.state.image(item.key) is not None
                if isinstance(item, Item):
                    waiting.add(item.key)
                yield item, known

        def work(job: tuple[Item | Skip | None, bool]) -> tuple[Item | Skip | None, Prepared | None]:
            item, known = job
            return item, prepare(item.image, self.storing) if isinstance(item, Item) and not known else None

        done = (
            map_in_threads(work, jobs(), self.workers, 4 * self.workers) if self.workers > 1 else map(work, jobs())
        )
        for item, prepared in done:
            if isinstance(item, Item):
                self._import(item, prepared)
            elif item is None:
                self.state.counts["not in --splits"] += 1
            else:
                self._skip(item.where, item.name, item.problem)
            bar.update(1)
        return drawn

    def _import(self, item: Item, prepared: Prepared | None) -> None:
        for problem in item.problems:
            self._skip(item.where, item.name, problem)
        known = None if prepared else self.state.image(item.key)
        if known is None:
            self._new(item, prepared or prepare(item.image, self.storing))
        elif known.split is None:
            self._skip(item.where, item.name, Problem("image was skipped", "see its first row"))
        elif known.ref != item.ref:
            detail = f"image id {item.image_id} was given to another picture before"
            self._skip(item.where, item.name, Problem("duplicate image id", detail))
        else:
            self._captions(item, known.id, known.split)

    def _new(self, item: Item, prepared: Prepared) -> None:
        number = self.state.counts["met"]
        image_id = item.image_id if item.image_id is not None else str(number)
        self.state.counts["met"] += 1
        if prepared.problem:
            self.state.add_image(item.key, Known(image_id, None, item.ref))
            self._skip(item.where, item.name, prepared.problem)
            return
        split = item.split
        if self.splitter.weights:
            split = self.splitter.image(prepared.digest, item.texts, item.group)
            if self.splitter.by != "image":
                split = self.state.copy_split(prepared.digest, split)
        if not self._captions(item, image_id, split):
            return  # another row may have a caption for it
        self.state.add_image(item.key, Known(image_id, split, item.ref))
        self.state.see_id(image_id)
        self.state.append(f"{split}_imgs.tsv", image_id.encode() + b"\t", prepared.line)
        self.state.counts[f"{split} images"] += 1
        if prepared.change:
            self.state.counts[f"changed: {prepared.change}"] += 1

    def _captions(self, item: Item, image_id: str, split: str) -> int:
        """Add a row's captions to an image; returns how many were."""
        added = 0
        for text, text_id in item.texts:
            if self.splitter.weights and self.splitter.by == "text" and self.splitter.text(text) != split:
                detail = f"{text!r} belongs to {self.splitter.text(text)}, its image to {split}"
                self._skip(item.where, item.name, Problem("caption of another split", detail))
                continue
            what = f"{split}\0{f'id {text_id}' if text_id is not None else f'text {text}'}"
            key = blake2b(what.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            reason = self.state.add_pair(key, split, text, text_id, image_id)
            if reason:
                detail = f"{text!r} is its caption already" if text_id is None else f"text id {text_id}: {text!r}"
                self._skip(item.where, item.name, Problem(reason, detail))
                continue
            if text_id is not None:
                self.state.see_id(text_id)
            added += 1
        return added

    def _skip(self, where: str, name: str, problem: Problem) -> None:
        self.state.counts[f"skipped: {problem.reason}"] += 1
        row = {"reason": problem.reason, "where": where, "image": name, "detail": " ".join(problem.detail.split())}
        try:
            line = orjson.dumps(row)
        except TypeError:  # a file name that is not UTF-8
            line = json.dumps(row).encode()
        self.state.append(REPORT, line + b"\n")


def splits_of(state: State) -> list[str]:
    """The splits that got images, as they are usually listed."""
    order = {"train": 0, "valid": 1, "test": 2}
    names = [name.removesuffix(" images") for name in state.counts if name.endswith(" images")]
    return sorted(names, key=lambda name: (order.get(name, 3), name))


def finish(state: State, out: Path, summary: dict[str, Any]) -> None:
    """Put the files in place, the report last; called again when it was interrupted.

    Args:
        state: of an import whose source is read to its end.
        out: the folder that the files go to.
        summary: the report's last line.
    """
    if REPORT in state.lengths and not (state.folder / REPORT).exists():  # it was all done but for the clearing up
        state.remove()
        return
    state.append(REPORT, orjson.dumps({"summary": summary}) + b"\n")
    state.close_files()
    for split in splits_of(state):
        write_texts(out / f"{split}_texts.jsonl", state.texts(split))
        grown = state.folder / f"{split}_imgs.tsv"
        if grown.exists():
            grown.replace(out / grown.name)
    (state.folder / REPORT).replace(out / REPORT)
    state.remove()
