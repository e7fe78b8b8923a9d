"""WebDataset shards as a split: an index of their members, so that each is read by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from cn_clip.data.blobs import Blobs, FileState
from cn_clip.data.formats import Id, IdType
from cn_clip.data.index import Array, open_index
from cn_clip.data.samples import SampleBuilder, SampleImages
from cn_clip.data.shards import Member, captions, image_member, sample_json, tar_samples
from cn_clip.errors import UserError
from cn_clip.progress import progress

ADVICE = "expected a member .txt, or a .json with a field caption or text (?text=EXTENSION or ?text=json.FIELD)"


def open_shards(path: str, files: Sequence[FileState], options: dict[str, str]) -> SampleImages:
    """The pictures of shards, in their order, with an index of the captions, too.

    A sample's image id is the field `image_id` of its JSON where there is one (samples with one image id are one
    picture with several captions), else its key; the ids of captions are `text_id` (a list: `text_ids`) of the
    JSON, else their numbers.

    Raises:
        UserError: compressed, cut short or damaged shards, a sample without a picture, or a repeated key.
    """
    blobs = Blobs(files)
    index = open_index("tars", files, options, partial(_build, blobs, options))
    return SampleImages(path, index, blobs)


def _build(blobs: Blobs, options: dict[str, str]) -> tuple[dict[str, Array], dict[str, Any]]:
    builder = SampleBuilder(blobs.files, "sample", ADVICE)
    ids, told = IdType(), 0
    with progress(total=sum(state.size for state in blobs.files), desc="index of shards", unit="B") as bar:
        for number, state in enumerate(blobs.files):
            where, at = str(state.path), 0

            def read(member: Member, number: int = number) -> bytes:
                return blobs.read(number, member.offset, member.size)

            for sample in tar_samples(state.path):
                image = image_member(sample, where, options.get("image"))
                fields = sample_json(sample, read, where)
                texts = captions(sample, fields, read, where, options.get("text"))
                image_id = _field(fields, [options.get("image_id", "image_id")])
                name = f"{where}: sample {sample.key}: image_id"
                told += image_id is not None
                ids.check(sample.key if image_id is None else image_id, "image_id", name)
                place = (number, image.offset, image.size)
                builder.add(
                    sample.key if image_id is None else image_id, place, texts, _text_ids(fields, options, name)
                )
                bar.update(image.offset - at)
                at = image.offset
    if told and told != len(builder.ids):
        raise UserError(
            f"{blobs.files[0].path}: {told} of {len(builder.ids)} samples have an image_id; all or none"
        )
    return builder.finish(repeats=told > 0)


def _field(fields: dict[str, Any], names: list[str]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _text_ids(fields: dict[str, Any], options: dict[str, str], where: str) -> list[Id] | None:
    names = [options["text_id"]] if "text_id" in options else ["text_id", "text_ids"]
    value = _field(fields, names)
    if value is None:
        return None
    ids = IdType()
    return [ids.check(text_id, "text_id", where) for text_id in (value if isinstance(value, list) else [value])]
