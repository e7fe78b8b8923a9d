"""Which columns of a table hold what: those that were named, else told by their names, else by their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cn_clip.data.columns import IMAGE_ID_NAMES, IMAGE_NAMES, TEXT_ID_NAMES, TEXT_NAMES
from cn_clip.data.imports.rows import Columns, Row, Slice, Source, is_image_name
from cn_clip.errors import UserError

SAMPLE = 50  # rows looked at
_IMAGE = (
    *IMAGE_NAMES,
    *(
        "image_path",
        "img_path",
        "image_file",
        "file_name",
        "filename",
        "file_path",
        "filepath",
        "file",
        "path",
        "pic",
    ),
    *("图片", "图像", "图片路径", "图像路径", "图片文件", "文件名", "路径"),
)
_TEXT = (
    *TEXT_NAMES,
    "description",
    "label_name",
    "文本",
    "标题",
    "描述",
    "说明",
    "文字",
    "句子",
    "商品标题",
    "label",
    "cls",
)
_IMAGE_ID = (
    *(name for name in IMAGE_ID_NAMES if name not in ("id", "key", "__key__")),
    "img_id",
    "imageid",
    "图片id",
)
_TEXT_ID = (*TEXT_ID_NAMES, "textid", "文本id")
_SPLIT = ("split", "subset", "划分", "集合")
_GROUP = ("group", "group_id", "分组")


def choose_columns(source: Source, wanted: Columns) -> tuple[Columns, list[str]]:
    """The columns of a source, and a line for each that says where it came from.

    Args:
        source: any; one with columns of its own keeps those that are not named in `wanted`.
        wanted: what the caller named; an empty image, no texts and None stand for "find it".

    Raises:
        UserError: a column that was named is not there, or pictures or captions cannot be told.
    """
    sample = source.sample(SAMPLE if source.layout != "webdataset" else 5)
    if not sample:
        raise UserError(f"{source.parts[0].name}: no row can be read")
    names = list(dict.fromkeys(name for row in sample for name in row.cells))
    flags = [wanted.image, *wanted.texts, wanted.image_id, wanted.text_id, wanted.split, wanted.group]
    for name in flags:
        if name and name not in names:
            raise UserError(f"{source.parts[0].name}: no column {name!r}; the columns are {', '.join(names)}")
    own = source.columns
    image = wanted.image or (own.image if own else _image(names, sample))
    if not image:
        raise _unknown(source, "pictures", "--image-column", names)
    texts = wanted.texts or (own.texts if own else _texts([n for n in names if n != image], sample, source))
    if not texts:
        raise _unknown(source, "captions", "--text-columns", names)
    columns = Columns(
        image,
        texts,
        wanted.image_id or (own.image_id if own else _image_id(names, sample, image)),
        wanted.text_id or (own.text_id if own else _named(names, _TEXT_ID)),
        wanted.split or (own.split if own else _named(names, _SPLIT)),
        wanted.group,
    )
    if columns.text_id and len(texts) > 1:
        if wanted.text_id:
            raise UserError(f"--text-id-column: a row has one id, but {len(texts)} captions ({', '.join(texts)})")
        columns = columns._replace(text_id=None)
    return columns, _describe(columns, wanted, own is not None, names)


def _image(names: list[str], sample: list[Row]) -> str | None:
    named = [name for name in _in_order(names, _IMAGE) if _some(sample, name, lambda v: _picture(v) or _path(v))]
    if named:
        return named[0]
    likely = [name for name in names if _most(sample, name, lambda v: _picture(v) or _path(v))]
    return likely[0] if len(likely) == 1 else None


def _texts(names: list[str], sample: list[Row], source: Source) -> tuple[str, ...]:
    for name in _in_order(names, _TEXT):
        if name in source.names or _some(sample, name, _sentence):
            return (name,)
    likely = [
        name for name in names if _most(sample, name, _sentence) and name not in ("__key__", *_SPLIT, *_GROUP)
    ]
    return tuple(likely) if len(likely) == 1 else ()


def _image_id(names: list[str], sample: list[Row], image: str) -> str | None:
    if name := _named(names, _IMAGE_ID):
        return name
    # A column `id` numbers pictures, or rows: it is taken where every row has another picture.
    pictures = [repr(row.cells.get(image)) for row in sample]
    if len(set(pictures)) < len(pictures):
        return None
    return next(
        (n for n in names if n.lower() == "id" and _most(sample, n, lambda v: type(v) in (int, str))), None
    )


def _named(names: list[str], known: Iterable[str]) -> str | None:
    return next(iter(_in_order(names, known)), None)


def _in_order(names: list[str], known: Iterable[str]) -> list[str]:
    plain = {name.removeprefix("json.").lower(): name for name in reversed(names)}
    return [plain[name] for name in known if name in plain]


def _some(sample: list[Row], name: str, fits: Callable[[Any], bool]) -> bool:
    return any(fits(row.cells[name]) for row in sample if row.cells.get(name) not in (None, "", []))


def _most(sample: list[Row], name: str, fits: Callable[[Any], bool]) -> bool:
    values = [row.cells[name] for row in sample if row.cells.get(name) not in (None, "", [])]
    return bool(values) and sum(map(fits, values)) > 0.5 * len(values)


def _picture(value: Any) -> bool:
    return isinstance(value, (bytes, Slice)) or (isinstance(value, dict) and bool({"bytes", "path"} & set(value)))


def _path(value: Any) -> bool:
    return isinstance(value, str) and is_image_name(value)


def _sentence(value: Any) -> bool:
    """A caption or a list of them: a string that is neither a path nor a number."""
    if isinstance(value, list):
        return any(isinstance(v, str) for v in value) and all(v is None or isinstance(v, str) for v in value)
    return isinstance(value, str) and bool(value.strip()) and not _path(value) and not _number(value)


def _number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _describe(columns: Columns, wanted: Columns, fixed: bool, names: list[str]) -> list[str]:
    rows: list[tuple[str, list[str | None], bool, str]] = [
        ("image", [columns.image], bool(wanted.image), "--image-column"),
        ("captions", list(columns.texts), bool(wanted.texts), "--text-columns"),
        ("image id", [columns.image_id], bool(wanted.image_id), "--image-id-column"),
        ("text id", [columns.text_id], bool(wanted.text_id), "--text-id-column"),
        ("split", [columns.split], bool(wanted.split), "--split-column"),
        ("group", [columns.group], bool(wanted.group), "--group-column"),
    ]
    lines = []
    for what, found, given, flag in rows:
        if found != [None]:
            how = "given" if given else "of this layout" if fixed else f"guessed; {flag} names another"
            lines.append(f"{what}: column {', '.join(map(str, found))} ({how})")
    used = {name for _, found, _, _ in rows for name in found}
    unused = [name for name in names if name not in used]
    return lines + ([f"not used: {', '.join(unused)}"] if unused and not fixed else [])


def _unknown(source: Source, what: str, flag: str, names: list[str]) -> UserError:
    return UserError(
        f"{source.parts[0].name}: cannot tell which column holds the {what}; {flag} names it "
        f"(the columns are {', '.join(names)})"
    )
