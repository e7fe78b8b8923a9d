"""Images and texts a second from each format that is read directly, against the LMDB and webdataset's own reader.

    python benchmarks/readers.py [--images 20000] [--size 224] [--rounds 3]

Bytes of images are read, not decoded: sequentially in each format's own order, then in a shuffled one; and pairs
(image and text) in a shuffled order. All readers run in turns in each round, on files that are in memory:
what is measured is the readers, not the disk. The memory is what a round adds to the process.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset as wds
from PIL import Image

from cn_clip.data.build_lmdb import build_lmdb
from cn_clip.data.formats import image_to_base64, write_images, write_texts
from cn_clip.data.readers import open_split
from peers import machine


def jpeg(generator: np.random.Generator, size: int) -> bytes:
    """A square picture with some detail, about a tenth of a byte a pixel."""
    noise = generator.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write(folder: Path, count: int, size: int) -> dict[str, str]:
    """The same pictures and captions in every format: its name and path."""
    generator = np.random.default_rng(0)
    images = [jpeg(generator, size) for _ in range(count)]
    captions = [f"第{i}张图片" for i in range(count)]
    write_images(folder / "a_imgs.tsv", ((i, image_to_base64(data)) for i, data in enumerate(images)))
    write_texts(folder / "a_texts.jsonl", [(i, text, [i]) for i, text in enumerate(captions)])
    build_lmdb(folder, "a")
    with wds.ShardWriter(str(folder / "a-%04d.tar"), maxcount=1000, verbose=0) as writer:
        for i, (data, text) in enumerate(zip(images, captions, strict=True)):
            writer.write({"__key__": f"{i:09}", "jpg": data, "txt": text})
    table = pa.table({"image": images, "text": captions})
    pq.write_table(table, folder / "plain.parquet", compression="none", use_dictionary=False)
    pq.write_table(table, folder / "snappy100.parquet", row_group_size=100)
    pq.write_table(table, folder / "snappy.parquet")
    mean = sum(map(len, images)) / count
    print(f"{count} JPEGs of {size}×{size}, {mean / 1000:.1f} kB each")
    return {
        "LMDB": f"{folder}/lmdb/a",
        "TSV": f"{folder}/a",
        "WebDataset": f"{folder}/a-*.tar",
        "Parquet, uncompressed": f"{folder}/plain.parquet",
        "Parquet, snappy, row groups of 100": f"{folder}/snappy100.parquet",
        "Parquet, snappy, one row group": f"{folder}/snappy.parquet",
    }


def rate(function: Callable[[], int]) -> float:
    """Items a second of a function that says how many it read."""
    start = time.perf_counter()
    return function() / (time.perf_counter() - start)


def main() -> None:
    """Time all readers in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    order = np.random.default_rng(1).permutation(args.images).tolist()
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name), args.images, args.size)
        tars = [str(path) for path in sorted(Path(name).glob("a-*.tar"))]
        index, splits, ids = {}, {}, {}
        for kind, path in paths.items():
            start = time.perf_counter()
            splits[kind] = open_split(path)
            index[kind] = args.images / (time.perf_counter() - start)
            ids[kind] = splits[kind].images.ids()
        start_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

        def theirs() -> int:
            return sum(1 for sample in wds.WebDataset(tars, shardshuffle=False) if sample["jpg"])

        def ours(kind: str, rows: list[int], pairs: bool) -> Callable[[], int]:
            images, texts, known = splits[kind].images, splits[kind].pairs, ids[kind]

            def run() -> int:
                for row in rows:
                    image_id = texts[row][0] if pairs else known[row]
                    assert len(images[image_id]) > 0
                return len(rows)

            return run

        runs: dict[tuple[str, str], Callable[[], int]] = {("webdataset's own", "sequential"): theirs}
        for kind in paths:
            slow = order[: min(len(order), 300)] if kind.startswith("Parquet, snappy") else order
            runs[kind, "sequential"] = ours(kind, list(range(args.images)), False)
            runs[kind, "random"] = ours(kind, slow, False)
            runs[kind, "random pairs"] = ours(kind, slow, True)
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
        for i in range(args.rounds + 1):
            for key, function in runs.items():
                found = rate(function)
                if i:
                    rates[key].append(found)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_memory
    print(machine())
    columns = ("sequential", "random", "random pairs")
    print(f"{'reader':36}{'index':>12}" + "".join(f"{column:>24}" for column in columns) + "   items/s (of LMDB)")
    for kind in ["webdataset's own", *paths]:
        cells = []
        for column in columns:
            if (values := rates.get((kind, column))) is None:
                cells.append(f"{'':>24}")
                continue
            ratio = statistics.median(v / b for v, b in zip(values, rates["LMDB", column], strict=True))
            cells.append(f"{statistics.median(values):>14,.0f} ({ratio:6.2f}×)")
        indexed = f"{index[kind]:>12,.0f}" if kind in index and kind != "LMDB" else f"{'':>12}"
        print(f"{kind:36}{indexed}{''.join(cells)}")
    print(
        f"peak memory: {memory / 1024:.0f} MB more than before the first round (decoded row groups, mapped files)"
    )


if __name__ == "__main__":
    sys.exit(main())
