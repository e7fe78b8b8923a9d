"""emoji_cn, the sample dataset: drawings of emoji by five artists, with Chinese names and keywords.

`cn-clip data sample` writes the built dataset; `cn-clip data build-sample` builds it afresh from npm packages.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from cn_clip.data.emoji_sources import (
    ARTISTS,
    OPENMOJI,
    OVERSAMPLING,
    PACKAGES,
    QUALITY,
    SIZE,
    Artist,
    Emoji,
    drawings,
    emoji_table,
    fetch,
    renderer,
)
from cn_clip.data.formats import Text, write_images, write_texts
from cn_clip.errors import UserError
from cn_clip.files import atomic_open, atomic_path
from cn_clip.progress import progress

SPLITS = ("train", "valid", "test", "newartist", "newboth")
SHARES = (("train", 0.8), ("valid", 0.1), ("test", 0.1))
SEED = 22  # chosen for the sizes it gives, and for keeping the thirty families out of test
_STATIC = ("README.md", "LICENSES")

# Emoji that differ in gender alone but share no code point: they go with the one named here.
_SAME = {
    "1F466": "1F9D2", "1F467": "1F9D2",  # boy, girl: child
    "1F474": "1F9D3", "1F475": "1F9D3",  # old man, old woman: older person
    "1F934": "1FAC5", "1F478": "1FAC5",  # prince, princess: person with crown
    "1F930": "1FAC4", "1FAC3": "1FAC4",  # pregnant woman, man: person
    "1F57A": "1F483",  # man dancing: woman dancing
    "1F385": "1F9D1-200D-1F384", "1F936": "1F9D1-200D-1F384",  # Santa Claus, Mrs. Claus: Mx Claus
    "1F931": "1F9D1-200D-1F37C",  # breast-feeding: person feeding baby
}  # fmt: skip


class Drawing(NamedTuple):
    """One picture: its id, its WebP bytes, and who drew it."""

    image_id: int
    webp: bytes
    artist: Artist


def sample(out: Path) -> None:
    """Write the sample dataset emoji_cn; a second run changes nothing.

    Args:
        out: the folder to write; new, empty, or holding this dataset already.

    Raises:
        UserError: `out` holds other files, or other contents under these names.
    """
    source = dataset_dir()
    manifest = json.loads((source / "MANIFEST.json").read_text(encoding="utf-8"))
    names = [*manifest["files"], "MANIFEST.json"]
    missing = [name for name in names if not (out / name).exists()]
    for name in names:
        if name not in missing and (out / name).read_bytes() != (source / name).read_bytes():
            raise UserError(f"{out / name}: exists with other content; choose another --out or delete it")
    if len(missing) == len(names) and out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: holds other files; choose a new or an empty folder for --out")
    for name in missing:
        with atomic_open(out / name, "wb") as file:
            file.write((source / name).read_bytes())
    print(f"emoji_cn: {out} ({'already there' if not missing else f'{len(missing)} files written'})")
    _print_counts(manifest)


def build(out: Path, *, cache: Path | None = None, openmoji: bool = False) -> None:
    """Build emoji_cn afresh from its npm packages (needs npm and resvg-py; about two minutes).

    Two builds with the same versions of resvg-py and Pillow give the same bytes.

    Args:
        out: the folder to write; an older build in it is replaced.
        cache: folder of package archives: read where they are there, kept where they are downloaded.
        openmoji: add OpenMoji's drawings of all emoji as split `openmoji` (CC-BY-SA: for your own use).

    Raises:
        UserError: npm fails, resvg-py is missing, or `out` holds files of another kind.
    """
    artists = (*ARTISTS, OPENMOJI) if openmoji else ARTISTS
    _check_replaceable(out)
    render = renderer()
    names = [name for name in PACKAGES if openmoji or name != OPENMOJI.package]
    with TemporaryDirectory(prefix="emoji_cn-") if cache is None else nullcontext(cache) as archives:
        packages = fetch(names, Path(archives))
        table = emoji_table(packages)
        svgs = {artist: drawings(artist, packages, table) for artist in artists}
    bar = progress(total=sum(map(len, svgs.values())), desc="draw", unit="img")
    pictures: dict[Artist, dict[str, bytes]] = {}
    for artist, of_artist in svgs.items():
        pictures[artist] = {}
        for hexcode, svg in of_artist.items():
            webp = render(svg)
            if webp is not None:
                pictures[artist][hexcode] = webp
            bar.update()
    bar.close()
    static = dataset_dir()
    with atomic_path(out) as folder:
        folder.mkdir(parents=True)
        for name in _STATIC:
            for path in [static / name] if (static / name).is_file() else sorted((static / name).iterdir()):
                with atomic_open(folder / path.relative_to(static), "wb") as file:
                    file.write(path.read_bytes())
        manifest = write(folder, table, pictures)
        manifest["packages"] = {name: PACKAGES[name] for name in names}
        manifest["renderer"] = {name: version(name) for name in ("resvg-py", "pillow")}
        with atomic_open(folder / "MANIFEST.json") as file:
            file.write(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n")
    print(f"emoji_cn: {out} (built)")
    _print_counts(manifest)


def dataset_dir() -> Path:
    """The built dataset: inside an installed package, else in the checkout.

    Raises:
        UserError: it is in neither place.
    """
    package = Path(str(files("cn_clip")))
    for folder in (package / "assets" / "emoji_cn", package.parents[1] / "datasets" / "emoji_cn"):
        if (folder / _STATIC[0]).is_file():
            return folder
    raise UserError(f"{folder}: the sample dataset is missing; install chinese-clip again")


def group_key(emoji: Emoji) -> str:
    """What emoji that differ in gender, or in the way they face, have in common: they share a split."""
    for word in ("family", "kiss", "couple with heart"):
        if emoji.english == word or emoji.english.startswith(f"{word}:"):
            return word
    if emoji.english.endswith("holding hands"):
        return "holding hands"
    codes = emoji.hexcode
    for suffix in ("-200D-27A1", "-200D-2640", "-200D-2642"):  # facing right, woman, man
        codes = codes.removesuffix(suffix)
    first, *rest = codes.split("-")
    codes = "-".join(["1F9D1" if first in ("1F468", "1F469") else first, *rest])
    return _SAME.get(codes, codes)


def split_of(key: str) -> str:
    """The split of a group of emoji: by a hash of its key, so that it depends on nothing else."""
    point = int.from_bytes(hashlib.sha256(f"emoji_cn:{SEED}:{key}".encode()).digest()[:8], "big") / 2**64
    for split, share in SHARES:
        point -= share
        if point < 0:
            return split
    return SHARES[-1][0]


def assign(
    table: Sequence[Emoji], pictures: Mapping[Artist, Mapping[str, bytes]]
) -> tuple[dict[str, str], dict[str, dict[str, Drawing]]]:
    """Give each emoji a split, and each drawing an id.

    Emoji with the same drawing share its id and their split. A drawing of a held-out artist that equals one of
    another artist is left out: no picture may be in two splits.

    Returns: code points -> split; code points -> name of the artist -> drawing.
    """
    parent = {group_key(emoji): group_key(emoji) for emoji in table}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    owner: dict[bytes, tuple[Drawing, str]] = {}
    drawn: dict[str, dict[str, Drawing]] = {emoji.hexcode: {} for emoji in table}
    for artist, of_artist in pictures.items():
        for emoji in table:
            webp, key = of_artist.get(emoji.hexcode), group_key(emoji)
            if webp is None:
                continue
            first, other = owner.setdefault(
                webp, (Drawing(artist.number * 10000 + emoji.number, webp, artist), key)
            )
            if first.artist != artist and not artist.trained:
                continue
            if artist != OPENMOJI:  # adding it moves no emoji to another split
                low, high = sorted((root(key), root(other)))
                parent[high] = low
            drawn[emoji.hexcode][artist.name] = first
    return {emoji.hexcode: split_of(root(group_key(emoji))) for emoji in table}, drawn


def split_drawings(
    split: str, emoji_split: str, of_emoji: Mapping[str, Drawing], artists: Iterable[Artist] = ARTISTS
) -> list[Drawing]:
    """Which drawings of an emoji (of `emoji_split`) a split holds."""
    if split == OPENMOJI.name:
        return [drawing for name, drawing in of_emoji.items() if name == split]
    held_out = {"newartist": "train", "newboth": "test"}
    if held_out.get(split, split) != emoji_split:
        return []
    names = {artist.name for artist in artists if artist.trained is (split not in held_out)}
    return [drawing for name, drawing in of_emoji.items() if name in names]


def write(folder: Path, table: Sequence[Emoji], pictures: Mapping[Artist, Mapping[str, bytes]]) -> dict[str, Any]:
    """Write all files of the dataset but its manifest, which is returned (without versions).

    Ids are unique over the dataset: image artist × 10000 + emoji number, name split × 10000 + emoji number
    (splits count from 1), keyword 100000 + its place among the sorted keywords.
    """
    splits, drawn = assign(table, pictures)
    names = (*SPLITS, OPENMOJI.name) if OPENMOJI in pictures else SPLITS
    unseen = {emoji.name for emoji in table if splits[emoji.hexcode] != "train"}
    counts: dict[str, dict[str, Any]] = {}
    written: set[int] = set()  # the held-out artist's drawings of valid emoji are in no split
    for number, split in enumerate(names, 1):
        held = {e: split_drawings(split, splits[e.hexcode], drawn[e.hexcode]) for e in table}
        held = {emoji: of_emoji for emoji, of_emoji in held.items() if of_emoji}
        images = {drawing.image_id: drawing for of_emoji in held.values() for drawing in of_emoji}
        texts = _texts(held, number * 10000, unseen if split == "train" else None)
        write_images(folder / f"{split}_imgs.tsv", ((i, b64encode(images[i].webp)) for i in sorted(images)))
        write_texts(folder / f"{split}_texts.jsonl", texts)
        written |= set(images)
        counts[split] = {
            "emoji": len(held),
            "images": len(images),
            "texts": len(texts),
            "pairs": sum(len(text.image_ids) for text in texts),
            "by_artist": Counter(drawing.artist.name for drawing in images.values()),
        }
    with atomic_open(folder / "emoji.jsonl") as file:
        for emoji in table:
            row = emoji._asdict() | {
                "keywords": list(emoji.keywords),
                "split": splits[emoji.hexcode],
                "image_ids": {
                    artist: drawing.image_id
                    for artist, drawing in drawn[emoji.hexcode].items()
                    if drawing.image_id in written
                },
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "name": "emoji_cn",
        "parameters": {"size": SIZE, "quality": QUALITY, "oversampling": OVERSAMPLING, "seed": SEED},
        "counts": counts,
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in paths
        },
    }


def _texts(
    held: Mapping[Emoji, Sequence[Drawing]], first_id: int, not_keywords: Container[str] | None
) -> list[Text]:
    """One text a name, and (unless `not_keywords` is None) one a keyword that is not among `not_keywords`.

    A text that is a name and a keyword, or the name of two emoji, is one text with all their drawings.
    """
    images: dict[str, set[int]] = defaultdict(set)
    ids: dict[str, int] = {}
    for emoji, of_emoji in held.items():
        ids.setdefault(emoji.name, first_id + emoji.number)
        keywords = [] if not_keywords is None else [w for w in emoji.keywords if w not in not_keywords]
        for text in (emoji.name, *keywords):
            images[text] |= {drawing.image_id for drawing in of_emoji}
    for place, keyword in enumerate(sorted(set(images) - set(ids)), 1):
        ids[keyword] = 100000 + place
    return [Text(ids[text], text, sorted(images[text])) for text in sorted(ids, key=lambda text: ids[text])]


def _check_replaceable(out: Path) -> None:
    if out.is_dir():
        ours = {"MANIFEST.json", "emoji.jsonl", *_STATIC}
        ours |= {f"{split}_{part}" for split in (*SPLITS, OPENMOJI.name) for part in ("imgs.tsv", "texts.jsonl")}
        others = sorted(path.name for path in out.iterdir() if path.name not in ours)
        if others:
            raise UserError(f"{out}: holds other files ({others[0]}); choose a new or an empty folder for --out")


def _print_counts(manifest: Mapping[str, Any]) -> None:
    print(f"{'split':10} {'emoji':>6} {'images':>7} {'texts':>6} {'pairs':>7}")
    for split, count in manifest["counts"].items():
        print(f"{split:10} {count['emoji']:6} {count['images']:7} {count['texts']:6} {count['pairs']:7}")
