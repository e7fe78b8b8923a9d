"""The committed emoji_cn keeps its promises; what builds it matches, groups and splits as it says."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from collections import defaultdict
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cn_clip import cli
from cn_clip.data import emoji_cn, emoji_sources
from cn_clip.data.emoji_cn import SPLITS
from cn_clip.data.emoji_sources import ARTISTS, OPENMOJI, Emoji
from cn_clip.data.formats import decode_base64, read_images, read_texts
from cn_clip.errors import MissingExtra, UserError

DATA = emoji_cn.dataset_dir()
ROWS = [json.loads(line) for line in (DATA / "emoji.jsonl").read_text(encoding="utf-8").splitlines()]
TABLE = [
    Emoji(*(tuple(row[field]) if field == "keywords" else row[field] for field in Emoji._fields)) for row in ROWS
]
IMAGES = {
    split: {int(row.image_id): decode_base64(row.base64, "") for row in read_images(DATA / f"{split}_imgs.tsv")}
    for split in SPLITS
}
TEXTS = {split: list(read_texts(DATA / f"{split}_texts.jsonl")) for split in SPLITS}
ARTIST = {artist.number: artist.name for artist in ARTISTS}


def emoji(hexcode: str, english: str, number: int = 1, name: str = "", keywords: tuple[str, ...] = ()) -> Emoji:
    return Emoji(number, hexcode, "", name or english, english, "", "", keywords)


# --- the committed files ---------------------------------------------------------------------------------


def test_manifest_lists_every_file_with_its_checksum_and_the_whole_is_small() -> None:
    manifest = json.loads((DATA / "MANIFEST.json").read_text(encoding="utf-8"))
    found = {p.relative_to(DATA).as_posix(): p.read_bytes() for p in DATA.rglob("*") if p.is_file()}
    found.pop("MANIFEST.json")
    assert manifest["files"] == {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in found.items()
    }
    assert sum(map(len, found.values())) < 9_000_000
    assert manifest["parameters"] == {"size": 64, "quality": 75, "oversampling": 4, "seed": emoji_cn.SEED}
    pinned = {k: v for k, v in emoji_sources.PACKAGES.items() if k != OPENMOJI.package}
    assert manifest["packages"] == pinned


def test_manifest_and_readme_tell_the_counts() -> None:
    counts = json.loads((DATA / "MANIFEST.json").read_text(encoding="utf-8"))["counts"]
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for split in SPLITS:
        pairs = sum(len(text.image_ids) for text in TEXTS[split])
        here = (counts[split]["emoji"], len(IMAGES[split]), len(TEXTS[split]), pairs)
        assert tuple(counts[split][k] for k in ("emoji", "images", "texts", "pairs")) == here
        row = next(line for line in readme.splitlines() if line.startswith(f"| {split} |"))
        assert row.endswith(f"| {' | '.join(map(str, here))} |")
    assert 1200 <= counts["newartist"]["emoji"] <= 1300
    assert 150 <= counts["test"]["texts"] <= 170


def test_every_artist_and_source_has_its_licence() -> None:
    licences = DATA / "LICENSES"
    attribution = (licences / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for name, version in emoji_sources.PACKAGES.items():
        if name != OPENMOJI.package:
            assert name in attribution
            assert version in attribution
    for file, words in {
        "Apache-2.0.txt": "Apache License",
        "CC-BY-4.0.txt": "Creative Commons Attribution 4.0 International",
        "fluent-flat-MIT.txt": "Microsoft Corporation",
        "cldr-Unicode-3.0.txt": "UNICODE LICENSE V3",
        "emojibase-MIT.txt": "Miles Johnson",
    }.items():
        assert words in (licences / file).read_text(encoding="utf-8")
        assert file in attribution


def test_every_image_is_a_64_pixel_rgb_picture_that_is_not_blank() -> None:
    for images in IMAGES.values():
        for image_id, data in images.items():
            with Image.open(BytesIO(data)) as image:
                image.load()
                assert (image.format, image.mode, image.size) == ("WEBP", "RGB", (64, 64)), image_id
                assert any(high - low > 4 for low, high in image.getextrema()), image_id


def test_ids_are_unique_and_no_picture_is_in_the_dataset_twice() -> None:
    ids = [image_id for images in IMAGES.values() for image_id in images]
    assert len(set(ids)) == len(ids)
    pictures = [data for images in IMAGES.values() for data in images.values()]
    assert len(set(pictures)) == len(pictures)
    text_ids = [text.text_id for texts in TEXTS.values() for text in texts]
    assert len(set(text_ids)) == len(text_ids)
    for split, texts in TEXTS.items():
        assert len({text.text for text in texts}) == len(texts), split


def test_every_text_has_images_and_every_image_a_text_in_its_own_split() -> None:
    for split, texts in TEXTS.items():
        assert all(text.image_ids for text in texts)
        assert {i for text in texts for i in text.image_ids} == set(IMAGES[split])


def test_artists_of_each_split() -> None:
    trained = {"noto", "noto-v1", "twemoji", "fxemoji"}
    for split, images in IMAGES.items():
        artists = {ARTIST[image_id // 10000] for image_id in images}
        assert artists == ({"fluent-flat"} if split in ("newartist", "newboth") else trained), split


def test_splits_are_disjoint_by_emoji_and_gender_group() -> None:
    splits_of_group = defaultdict(set)
    for row, one in zip(ROWS, TABLE, strict=True):
        splits_of_group[emoji_cn.group_key(one)].add(row["split"])
    assert {len(splits) for splits in splits_of_group.values()} == {1}
    split_of = {row["hexcode"]: row["split"] for row in ROWS}
    for pair in ("1F466 1F467", "1F468-200D-1F373 1F469-200D-1F373", "1F3C3 1F3C3-200D-2640", "1F934 1F478"):
        first, second = pair.split()
        assert split_of[first] == split_of[second]


def test_every_emoji_is_where_its_split_says() -> None:
    home = {"newartist": "train", "newboth": "test"}
    in_split = {image_id: split for split, images in IMAGES.items() for image_id in images}
    listed = set()
    for row in ROWS:
        for artist, image_id in row["image_ids"].items():
            listed.add(image_id)
            assert ARTIST[image_id // 10000] == artist or artist == "noto-v1", row  # noto kept one drawing of it
            assert home.get(in_split[image_id], in_split[image_id]) == row["split"], row
            assert (in_split[image_id] in home) == (artist == "fluent-flat")
    assert listed == set(in_split)


def test_texts_are_the_names_and_in_train_the_keywords() -> None:
    by_name = {row["name"]: row for row in ROWS}
    assert len(by_name) == len(ROWS), "names are unique"
    unseen = {row["name"] for row in ROWS if row["split"] != "train"}
    for split, texts in TEXTS.items():
        for text in texts:
            if split != "train":
                assert set(text.image_ids) <= set(by_name[text.text]["image_ids"].values())
        if split in ("valid", "test"):
            for text in texts:
                assert set(text.image_ids) == {
                    i for artist, i in by_name[text.text]["image_ids"].items() if artist != "fluent-flat"
                }
    train = {text.text: set(text.image_ids) for text in TEXTS["train"]}
    assert not unseen & set(train), "no name of an unseen emoji is read in training"
    expected = defaultdict(set)
    for row in ROWS:
        if row["split"] == "train":
            for text in {row["name"], *row["keywords"]} - unseen:
                expected[text] |= {i for a, i in row["image_ids"].items() if a != "fluent-flat"}
    assert train == expected


def test_flags_and_skin_tones_are_left_out_and_texts_are_chinese() -> None:
    assert not [row for row in ROWS if row["group"] in ("flags", "component")]
    assert not [row for row in ROWS if re.search("1F3F[B-F]", row["hexcode"])]
    chinese = [text for texts in TEXTS.values() for text in texts if re.search("[\u4e00-\u9fff]", text.text)]
    assert len(chinese) > 0.98 * sum(map(len, TEXTS.values()))
    by_english = {row["english"]: row for row in ROWS}
    assert by_english["red apple"]["name"] == "红苹果"
    assert by_english["red apple"]["group"] == "food-drink"


# --- cn-clip data sample ---------------------------------------------------------------------------------


def test_sample_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "emoji_cn"
    assert cli.main(["data", "sample", "--out", str(out)]) == 0
    assert f"train {1326:>11} {4291:>7}" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (out / "train_imgs.tsv.note").write_text("mine")  # files made from the dataset may stand beside it
    assert cli.main(["data", "sample", "--out", str(out)]) == 0
    assert "already there" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for path in DATA.rglob("*"):
        if path.is_file():
            assert (out / path.relative_to(DATA)).read_bytes() == path.read_bytes()


def test_sample_completes_an_interrupted_copy(tmp_path: Path) -> None:
    emoji_cn.sample(tmp_path)
    (tmp_path / "test_imgs.tsv").unlink()
    emoji_cn.sample(tmp_path)
    assert (tmp_path / "test_imgs.tsv").read_bytes() == (DATA / "test_imgs.tsv").read_bytes()


def test_sample_does_not_touch_a_folder_of_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    assert cli.main(["data", "sample", "--out", str(tmp_path)]) == 1
    assert "holds other files" in capsys.readouterr().err
    (tmp_path / "train_imgs.tsv").write_text("1\tAAAA\n")
    assert cli.main(["data", "sample", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "train_imgs.tsv: exists with other content" in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex", "train_imgs.tsv"]


# --- building --------------------------------------------------------------------------------------------


def test_match_names() -> None:
    english = {
        "1F436": "dog face",
        "1F415": "dog",
        "1F4A9": "pile of poo",
        "23-20E3": "keycap: #",
        "1F3AF": "bullseye",
    }
    unicode_names = {"1F3AF": "DIRECT HIT", "1F436": "DOG FACE", "1F1E6": "REGIONAL INDICATOR SYMBOL LETTER A"}
    names = ["direct-hit", "dogface", "dog", "dogside", "keycap-hash", "regionalindicatorsymbollettera", "poo"]
    odd = {"dog": None, "dogside": "1F415"}
    assert emoji_sources.match_names(names, english, unicode_names, odd) == {
        "1F3AF": "direct-hit",
        "1F436": "dogface",
        "1F415": "dogside",
        "23-20E3": "keycap-hash",
    }
    both = emoji_sources.match_names(["direct-hit", "bulls-eye"], english, unicode_names, {})
    assert both == {"1F3AF": "bulls-eye"}, "an English name before a Unicode one"


def test_exceptions_name_real_emoji() -> None:
    known = {row["hexcode"] for row in ROWS}
    for artist in ("fxemoji", "noto-v1", "fluent-flat"):
        table = emoji_sources.exceptions(artist)
        assert table
        assert set(table.values()) - {None} <= known
    assert emoji_sources.exceptions("fxemoji")["catside"] == "1F408"
    assert emoji_sources.exceptions("fxemoji")["pistol"] is None
    assert emoji_sources.exceptions("noto") == {}


def test_strip_variation() -> None:
    assert emoji_sources.strip_variation("2764-fe0f-200d-1f525") == "2764-200D-1F525"


def test_svg_follows_and_mirrors_aliases() -> None:
    icons = {
        "prefix": "set",
        "width": 32,
        "height": 32,
        "icons": {"left": {"body": "<a/>", "height": 33}},
        "aliases": {
            "west": {"parent": "left"},
            "right": {"parent": "west", "hFlip": True},
            "up": {"parent": "left", "rotate": 1},
        },
    }
    assert 'viewBox="0 0 32 33"><a/></svg>' in emoji_sources.svg(icons, "west")
    assert '<g transform="translate(32 0) scale(-1 1)"><a/></g>' in emoji_sources.svg(icons, "right")
    with pytest.raises(UserError, match="set: icon up: cannot apply"):
        emoji_sources.svg(icons, "up")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (emoji("1F468-200D-1F373", "man cook"), emoji("1F9D1-200D-1F373", "cook")),
        (emoji("1F3C3-200D-2640-200D-27A1", "woman running: facing right"), emoji("1F3C3", "person running")),
        (emoji("1F467", "girl"), emoji("1F9D2", "child")),
        (emoji("1F46B", "woman and man holding hands"), emoji("1F46D", "women holding hands")),
        (emoji("1F468-200D-1F466", "family: man, boy"), emoji("1F46A", "family")),
        (emoji("1F57A", "man dancing"), emoji("1F483", "woman dancing")),
    ],
)
def test_group_key_joins_what_differs_in_gender(one: Emoji, other: Emoji) -> None:
    firefighter = emoji("1F468-200D-1F692", "man firefighter")
    assert emoji_cn.group_key(one) == emoji_cn.group_key(other) != emoji_cn.group_key(firefighter)


def test_split_of_depends_on_the_key_alone_and_keeps_the_shares() -> None:
    assert {row["hexcode"]: row["split"] for row in ROWS}["1F34E"] == emoji_cn.split_of("1F34E")
    splits = [emoji_cn.split_of(str(n)) for n in range(20000)]
    for split, share in emoji_cn.SHARES:
        assert abs(splits.count(split) / len(splits) - share) < 0.01


def test_emoji_drawn_alike_share_id_and_split() -> None:
    noto, _, twemoji, _, fluent = ARTISTS
    table = [emoji(f"1F40{n}", f"animal {n}", n + 1) for n in range(10)]
    alone = {e.hexcode: emoji_cn.split_of(e.hexcode) for e in table}
    first = next(e for e in table if alone[e.hexcode] != alone["1F400"])
    pictures = {
        noto: {e.hexcode: e.hexcode.encode() for e in table} | {first.hexcode: b"1F400"},
        twemoji: {"1F405": b"1F405", "1F406": b"other"},
        fluent: {"1F400": b"1F405", "1F401": b"fluent"},
    }
    splits, drawn = emoji_cn.assign(table, pictures)
    assert drawn[first.hexcode]["noto"] == drawn["1F400"]["noto"]
    assert splits[first.hexcode] == splits["1F400"]
    assert drawn["1F405"]["twemoji"].image_id == drawn["1F405"]["noto"].image_id == 10006
    assert drawn["1F406"]["twemoji"].image_id == 30007
    assert "fluent-flat" not in drawn["1F400"], "a held-out drawing that equals a trained one is left out"
    assert drawn["1F401"]["fluent-flat"].image_id == 50002


def test_write_a_tiny_dataset(tmp_path: Path) -> None:
    codes = {split: [] for split, _ in emoji_cn.SHARES}
    for number in range(0x1F400, 0x1F440):
        codes[emoji_cn.split_of(f"{number:X}")].append(f"{number:X}")
    a, b = codes["train"][:2]
    c, d = codes["valid"][0], codes["test"][0]
    table = [
        emoji(a, "a", 1, "甲", ("乙", "丁", "字")),
        emoji(b, "b", 2, "乙", ("字",)),
        emoji(c, "c", 3, "丙", ("字",)),
        emoji(d, "d", 4, "丁"),
    ]
    noto, fluent = ARTISTS[0], ARTISTS[4]
    pictures = {
        artist: {e.hexcode: f"{artist.name}{e.hexcode}".encode() for e in table} for artist in (noto, fluent)
    }
    manifest = emoji_cn.write(tmp_path, table, pictures)
    texts = {split: [tuple(t)[:3] for t in read_texts(tmp_path / f"{split}_texts.jsonl")] for split in SPLITS}
    assert texts == {
        "train": [(10001, "甲", [10001]), (10002, "乙", [10001, 10002]), (100001, "字", [10001, 10002])],
        "valid": [(20003, "丙", [10003])],
        "test": [(30004, "丁", [10004])],
        "newartist": [(40001, "甲", [50001]), (40002, "乙", [50002])],
        "newboth": [(50004, "丁", [50004])],
    }
    images = {split: [row.image_id for row in read_images(tmp_path / f"{split}_imgs.tsv")] for split in SPLITS}
    assert images["newartist"] == ["50001", "50002"]
    assert images["valid"] == ["10003"]
    rows = [json.loads(line) for line in (tmp_path / "emoji.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["image_ids"] for row in rows][2:] == [{"noto": 10003}, {"noto": 10004, "fluent-flat": 50004}]
    train = {"emoji": 2, "images": 2, "texts": 3, "pairs": 5, "by_artist": {"noto": 2}}
    assert manifest["counts"]["train"] == train


# --- from packages ---------------------------------------------------------------------------------------


def archive(folder: Path, package: str, members: dict[str, object], version: str | None = None) -> None:
    """An npm package's archive, named as `npm pack` names it."""
    pinned = emoji_sources.PACKAGES[package]
    name = f"{package.removeprefix('@').replace('/', '-')}-{pinned}.tgz"
    with tarfile.open(folder / name, "w:gz") as tar:
        for member, content in {"package.json": {"version": version or pinned}, **members}.items():
            data = json.dumps(content).encode()
            info = tarfile.TarInfo(f"package/{member}")
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """Small packages in the real layout: a red heart, a blue heart, a flag and a component."""
    folder = tmp_path / "archives"
    folder.mkdir()
    rows = [
        {"hexcode": "2764-FE0F", "emoji": "❤️", "label": "red heart", "group": 0, "subgroup": 14, "order": 1},
        {"hexcode": "1F499", "emoji": "💙", "label": "blue heart", "group": 0, "subgroup": 14, "order": 2},
        {"hexcode": "1F3C1", "emoji": "🏁", "label": "chequered flag", "group": 9, "subgroup": 97, "order": 3},
        {"hexcode": "1F1E6", "emoji": "🇦", "label": "regional indicator A"},
    ]
    groups = {"groups": {"0": "smileys-emotion", "9": "flags"}, "subgroups": {"14": "heart", "97": "flag"}}
    names = {"2764-FE0F": "HEAVY BLACK HEART", "1F499": "BLUE HEART"}
    archive(
        folder,
        emoji_sources.EMOJIBASE,
        {"en/data.json": rows[::-1], "meta/groups.json": groups, "meta/unicode-names.json": names},
    )
    chinese = {"❤": {"default": ["心", "红心", "！"], "tts": ["红心"]}, "🏁": {"tts": ["旗"]}}
    derived = {"💙": {"default": ["心"], "tts": ["蓝心"]}}
    for package, root, entries in (
        (emoji_sources.CLDR, "annotations", chinese),
        (emoji_sources.CLDR_DERIVED, "annotationsDerived", derived),
    ):
        archive(folder, package, {f"{root}/zh/annotations.json": {root: {"annotations": entries}}})
    for artist in (*ARTISTS, OPENMOJI):
        square = '<rect width="{0}" height="{0}" fill="{1}"/>'
        icons = {
            f"{colour}-heart": {"body": square.format(8 + artist.number / 2, colour)} for colour in ("red", "blue")
        }
        by_code = artist.name not in ("noto-v1", "fxemoji")
        characters = {"2764": "red-heart", "1f499": "blue-heart"} if by_code else {}
        members = {"icons.json": {"prefix": artist.name, "icons": icons, "width": 16, "height": 16}}
        archive(folder, artist.package, {**members, "chars.json": characters})
    return folder


def test_emoji_table_and_drawings(archives: Path) -> None:
    packages = emoji_sources.fetch(emoji_sources.PACKAGES, archives)
    table = emoji_sources.emoji_table(packages)
    assert table == [
        Emoji(1, "2764", "❤️", "红心", "red heart", "smileys-emotion", "heart", ("心",)),
        Emoji(2, "1F499", "💙", "蓝心", "blue heart", "smileys-emotion", "heart", ("心",)),
    ]
    for artist in ARTISTS:
        svgs = emoji_sources.drawings(artist, packages, table)
        assert set(svgs) == {"2764", "1F499"}
        assert 'fill="red"' in svgs["2764"]


def test_build_twice_gives_the_same_bytes(archives: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        arguments = ["data", "build-sample", "--out", str(tmp_path / folder), "--cache", str(archives)]
        assert cli.main([*arguments, "--openmoji"]) == 0
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / f).rglob("*.*")} for f in ("one", "two"))
    assert one == two
    assert {"openmoji_imgs.tsv", "train_imgs.tsv", "ATTRIBUTION.md", "README.md", "MANIFEST.json"} <= set(one)
    pictures = {}
    for split in (*SPLITS, "openmoji"):
        for row in read_images(tmp_path / "one" / f"{split}_imgs.tsv"):
            with Image.open(BytesIO(decode_base64(row.base64, ""))) as image:
                pictures[row.image_id] = image.convert("RGB")
    assert {"10001", "10002", "60001", "60002"} <= set(pictures)
    red = pictures["10001"]  # a red square over the first 8.5/16 of width and height, on white
    assert red.size == (64, 64)
    for point, colour in {(16, 16): (255, 0, 0), (16, 56): (255, 255, 255), (56, 56): (255, 255, 255)}.items():
        assert all(abs(a - b) < 12 for a, b in zip(red.getpixel(point), colour, strict=True)), point


def test_build_keeps_other_files(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "lmdb").write_text("x")
    assert cli.main(["data", "build-sample", "--out", str(tmp_path / "out"), "--cache", str(archives)]) == 1
    assert "holds other files (lmdb)" in capsys.readouterr().err
    assert (tmp_path / "out" / "lmdb").read_text() == "x"


def test_missing_renderer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtra, match=r"resvg-py: pip install .chinese-clip\[sample\]"):
        emoji_sources.renderer()


def test_a_blank_picture_is_none() -> None:
    draw = emoji_sources.renderer()
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><rect width="8" height="8" fill="{}"/></svg>'
    assert draw(svg.format("#fdfdfd")) is None
    assert draw(svg.format("#fdfdfd").replace('width="8"', 'width="4"').replace("#fdfdfd", "#000")) is not None


def test_another_version_or_a_damaged_archive_is_refused(archives: Path) -> None:
    noto = ARTISTS[0].package
    archive(archives, noto, {}, version="0.0.1")
    with pytest.raises(UserError, match=r"version 0\.0\.1 of @iconify-json/noto, expected"):
        emoji_sources.fetch([noto], archives)
    next(archives.glob("iconify-json-noto-1*")).write_bytes(b"not an archive")
    with pytest.raises(UserError, match=r"cannot read package\.json"):
        emoji_sources.fetch([noto], archives)


def test_npm_missing_or_failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(UserError, match="npm is not installed"):
        emoji_sources.fetch([emoji_sources.CLDR], tmp_path / "cache")
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error 404 not found' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(UserError, match=r"npm pack cldr-annotations-full@48\.2\.0 failed: npm error 404"):
        emoji_sources.fetch([emoji_sources.CLDR], tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
