"""What emoji_cn is made of: npm packages of drawings and names, which drawing shows which emoji, rendering."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from cn_clip.errors import MissingExtra, UserError

EMOJIBASE, CLDR, CLDR_DERIVED = "emojibase-data", "cldr-annotations-full", "cldr-annotations-derived-full"
PACKAGES = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/openmoji": "1.2.29",
    CLDR: "48.2.0",
    CLDR_DERIVED: "48.2.0",
    EMOJIBASE: "17.0.0",
}

SIZE = 64
OVERSAMPLING = 4  # drawn at 256 pixels and averaged: thin lines stay smoother than when drawn at 64
QUALITY = 75  # of WebP; 64-pixel drawings show no difference from the original


class Artist(NamedTuple):
    """One set of drawings; `number` is the leading digit of its image ids."""

    name: str
    number: int
    package: str
    trained: bool


ARTISTS = (
    Artist("noto", 1, "@iconify-json/noto", True),
    Artist("noto-v1", 2, "@iconify-json/noto-v1", True),
    Artist("twemoji", 3, "@iconify-json/twemoji", True),
    Artist("fxemoji", 4, "@iconify-json/fxemoji", True),
    Artist("fluent-flat", 5, "@iconify-json/fluent-emoji-flat", False),
)
OPENMOJI = Artist("openmoji", 6, "@iconify-json/openmoji", False)


class Emoji(NamedTuple):
    """One emoji: its place in the table (from 1), code points (no U+FE0F, joined by "-"), and what it means."""

    number: int
    hexcode: str
    character: str
    name: str
    english: str
    group: str
    subgroup: str
    keywords: tuple[str, ...]


class Package:
    """An npm package, read from its archive."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def json(self, member: str) -> Any:
        """A JSON file of the package.

        Raises:
            UserError: the archive is damaged, or has no such file.
        """
        try:
            with tarfile.open(self.path) as archive:
                file = archive.extractfile(f"package/{member}")
                return json.load(file) if file else None
        except (tarfile.TarError, KeyError, EOFError, OSError, ValueError) as error:
            raise UserError(f"{self.path}: cannot read {member}: {error}; delete the file and retry") from None


def fetch(names: Iterable[str], folder: Path) -> dict[str, Package]:
    """Open the archives of packages in `folder`, after downloading with `npm pack` those that are not there.

    Raises:
        UserError: npm is missing or fails, or an archive is not the pinned version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    packages = {}
    for name in names:
        version = PACKAGES[name]
        path = folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            _npm_pack(f"{name}@{version}", path)
        packages[name] = Package(path)
        found = packages[name].json("package.json").get("version")
        if found != version:
            raise UserError(f"{path}: version {found} of {name}, expected {version}; delete the file and retry")
    return packages


def _npm_pack(spec: str, path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("npm is not installed: it downloads the drawings (https://nodejs.org)")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        done = subprocess.run(
            [npm, "pack", "--silent", "--pack-destination", folder, spec], capture_output=True, text=True
        )
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            reason = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no archive"]
            raise UserError(f"npm pack {spec} failed: {reason[0]}")
        archives[0].replace(path)


def strip_variation(hexcode: str) -> str:
    """Code points in upper case without U+FE0F, which says "as a picture" and is written or not at will."""
    return "-".join(code for code in hexcode.upper().split("-") if code != "FE0F")


def emoji_table(packages: Mapping[str, Package]) -> list[Emoji]:
    """All emoji with a Chinese name, without flags, components and skin tones, in Unicode's order."""
    groups = packages[EMOJIBASE].json("meta/groups.json")
    chinese: dict[str, Any] = {}
    for package, root in ((CLDR, "annotations"), (CLDR_DERIVED, "annotationsDerived")):
        annotations = packages[package].json(f"{root}/zh/annotations.json")[root]["annotations"]
        chinese |= {key.replace("\ufe0f", ""): value for key, value in annotations.items()}
    rows = [row for row in packages[EMOJIBASE].json("en/data.json") if row.get("group") is not None]
    table: list[Emoji] = []
    for row in sorted(rows, key=lambda row: row["order"]):
        group = groups["groups"][str(row["group"])]
        hexcode = strip_variation(row["hexcode"])
        entry = chinese.get("".join(chr(int(code, 16)) for code in hexcode.split("-")), {})
        if group in ("flags", "component") or not entry.get("tts"):
            continue
        name = entry["tts"][0].strip()
        words = {word.strip() for word in entry.get("default", ())} - {name}
        keywords = tuple(sorted(word for word in words if any(map(str.isalnum, word))))
        subgroup = groups["subgroups"][str(row["subgroup"])]
        character = row["emoji"]
        table.append(Emoji(len(table) + 1, hexcode, character, name, row["label"], group, subgroup, keywords))
    return table


def letters(name: str) -> str:
    """A name in lower-case letters and digits alone: packages write spaces, hyphens, case as they like."""
    spelled = name.lower().replace("&", "and").replace("#", "hash").replace("*", "asterisk")
    return re.sub(r"[^a-z0-9]", "", spelled)


def match_names(
    names: Iterable[str],
    english: Mapping[str, str],
    unicode_names: Mapping[str, str],
    exceptions: Mapping[str, str | None],
) -> dict[str, str]:
    """Which drawing shows which emoji, by the drawing's name.

    Args:
        names: names of drawings; of two for one emoji, the earlier wins, an English name before a Unicode one.
        english: code points -> CLDR English short name.
        unicode_names: code points -> name of the Unicode character.
        exceptions: name of a drawing -> its code points, or None: it shows no emoji, or misleads.

    Returns: code points -> name of the drawing.
    """
    by_english = {letters(name): code for code, name in english.items()}
    by_unicode = {letters(name): code for code, name in unicode_names.items() if code in english}
    found: dict[str, tuple[int, str]] = {}
    for name in names:
        key = letters(name)
        if name in exceptions:
            rank, code = 0, exceptions[name]
        elif key in by_english:
            rank, code = 1, by_english[key]
        else:
            rank, code = 2, by_unicode.get(key)
        if code is not None and (code not in found or rank < found[code][0]):
            found[code] = rank, name
    return {code: name for code, (_, name) in found.items()}


def exceptions(artist: str) -> dict[str, str | None]:
    """The drawings of an artist whose name misleads (assets/emoji_matches.tsv).

    Returns: name of the drawing -> code points of the emoji that it shows, None: leave it out.
    """
    table: dict[str, str | None] = {}
    text = (files("cn_clip") / "assets" / "emoji_matches.tsv").read_text(encoding="utf-8")
    for line in text.splitlines():
        if not line.startswith("#"):
            who, name, code = line.split("\t")[:3]
            if who == artist:
                table[name] = None if code == "-" else code
    return table


def drawings(artist: Artist, packages: Mapping[str, Package], table: Iterable[Emoji]) -> dict[str, str]:
    """The SVG of each emoji that an artist drew: by code points where the package has them, else by name.

    Returns: code points -> SVG text.
    """
    icons = packages[artist.package].json("icons.json")
    characters = packages[artist.package].json("chars.json")
    english = {emoji.hexcode: emoji.english for emoji in table}
    unicode_names = packages[EMOJIBASE].json("meta/unicode-names.json")
    unicode_names = {strip_variation(code): name for code, name in unicode_names.items()}
    names = [*icons["icons"], *icons.get("aliases", {})]
    odd = exceptions(artist.name)
    found = match_names(names, english, unicode_names, odd)
    found |= {strip_variation(code): name for code, name in characters.items() if odd.get(name, code)}
    return {code: svg(icons, found[code]) for code in english if code in found}


def svg(icons: Mapping[str, Any], name: str) -> str:
    """One icon of an Iconify set as an SVG document; aliases are followed, mirrored ones mirrored.

    Raises:
        UserError: the icon is turned in another way than a horizontal mirror.
    """
    mirrored = False
    while name not in icons["icons"]:
        alias = icons["aliases"][name]
        if set(alias) - {"parent", "hFlip", "hidden"}:
            raise UserError(f"{icons['prefix']}: icon {name}: cannot apply {', '.join(sorted(alias))}")
        mirrored ^= bool(alias.get("hFlip"))
        name = alias["parent"]
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = icon["body"]
    if mirrored:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{body}</svg>'
    )


def renderer() -> Callable[[str], bytes | None]:
    """A function from SVG text to the bytes of a WebP of SIZE × SIZE RGB on white; None for a blank picture.

    Raises:
        MissingExtra: resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise MissingExtra("resvg-py", "sample", "building the sample dataset") from None
    from PIL import Image

    big = SIZE * OVERSAMPLING

    def render(svg: str) -> bytes | None:
        png = resvg_py.svg_to_bytes(
            svg_string=svg, width=big, height=big, background="#ffffff", skip_system_fonts=True
        )
        with Image.open(BytesIO(bytes(png))) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        if all(high - low < 8 for low, high in small.getextrema()):
            return None
        file = BytesIO()
        small.save(file, "WEBP", quality=QUALITY, method=6)
        return file.getvalue()

    return render
