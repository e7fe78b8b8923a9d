"""Exact nearest neighbours: the k gallery vectors with the largest inner product with each query.

    cn-clip topk --image-feats test_imgs.img_feat.jsonl --text-feats test_texts.txt_feat.jsonl \\
        --output test_predictions.jsonl
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from ctypes import CDLL
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import orjson

from cn_clip.errors import UserError
from cn_clip.eval.features import Features, IdField, iter_features, read_features
from cn_clip.files import atomic_open
from cn_clip.progress import progress

if TYPE_CHECKING:
    import torch

BLOCK = 32768  # gallery rows compared at a time
MARGIN = 8  # candidates beyond k: what rounding may have put in the wrong order
CELLS = 1 << 22  # numbers in a temporary matrix: 16 MB as float32
CACHED = 1 << 18  # the same where it is read again at once, and should still be in the cache


def topk(
    image_feats: Path,
    text_feats: Path,
    output: Path,
    top_k: int = 10,
    eval_batch_size: int = BLOCK,
    direction: Literal["t2i", "i2t"] = "t2i",
) -> None:
    """The k nearest images of each text (t2i), or the k nearest texts of each image (i2t).

    Nearest is by inner product: the cosine for unit vectors, which `cn-clip extract` writes. The result is
    exact; between equal scores the earlier line of the gallery file wins.

    Args:
        image_feats: image features, a line {"image_id": …, "feature": […]} each.
        text_feats: text features, a line {"text_id": …, "feature": […]} each.
        output: predictions to write: {"text_id": …, "image_ids": [best first]} a line, or
            {"image_id": …, "text_ids": […]} with --direction i2t.
        top_k: predictions for each query; all of the gallery where it has fewer.
        eval_batch_size: gallery vectors compared at a time; it bounds the memory, and changes no result.
        direction: t2i, text to image; i2t, image to text.
    """
    if top_k < 1 or eval_batch_size < 1:
        raise UserError("--top-k and --eval-batch-size must be 1 or more")
    if output.resolve() in (image_feats.resolve(), text_feats.resolve()):
        raise UserError(f"{output}: the output would replace the features it is made from; name another file")
    images: tuple[Path, IdField] = (image_feats, "image_id")
    texts: tuple[Path, IdField] = (text_feats, "text_id")
    (query_path, query_field), (gallery_path, gallery_field) = (
        (texts, images) if direction == "t2i" else (images, texts)
    )
    gallery = read_features(gallery_path, gallery_field)
    gallery_ids = np.empty(len(gallery.ids), object)
    gallery_ids[:] = gallery.ids
    index, count = Gallery(gallery.vectors, eval_batch_size), 0
    blocks = _same_width(query_path, query_field, gallery_path, gallery)
    first = next(blocks)  # a wrong file is found before the output's folder is made
    bar = progress(desc="nearest", unit="query")
    with atomic_open(output, "wb") as file:
        for queries, rows in _search(index, chain([first], blocks), top_k):
            for key, found in zip(queries.ids, gallery_ids[rows].tolist(), strict=True):
                file.write(orjson.dumps({query_field: key, f"{gallery_field}s": found}) + b"\n")
            count += len(queries.ids)
            bar.update(len(queries.ids))
    bar.close()
    one, many = ("text", "images") if direction == "t2i" else ("image", "texts")
    print(f"{output}: the {min(top_k, len(gallery.ids))} nearest {many} of each {one}")
    print(f"  {count:,} {one}s, among {len(gallery.ids):,} {many}")
    if top_k > len(gallery.ids):
        print(f"  note: there are only {len(gallery.ids)} {many}, fewer than --top-k {top_k}")


def nearest(
    queries: np.ndarray, gallery: np.ndarray, k: int, block: int = BLOCK, device: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery rows with the largest inner product with each query; see `Gallery.nearest`.

    Args:
        queries: [M, D], any floating type.
        gallery: [N, D].
        k: neighbours of each query; all N where N is smaller.
        block: gallery rows compared at a time: memory only.
        device: "cpu" (faiss), or a torch device; None takes the GPU where there is one.

    Returns:
        Scores, float32 [M, min(k, N)], descending, and gallery rows, int64, of the same shape.
    """
    return Gallery(gallery, block, device).nearest(queries, k)


class Gallery:
    """Vectors to search among, and what is computed once for all queries."""

    def __init__(self, vectors: np.ndarray, block: int = BLOCK, device: str | None = None) -> None:
        self.vectors, self.norms = _matrix(vectors, "gallery")
        self.norm = float(self.norms.max(initial=0))
        self.block = block
        self.device = _gpu() if device is None else device

    def nearest(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k rows with the largest score for each query, best first, equal scores in order of row.

        The score of a query and a row is the float32 nearest to their inner product summed in float64 in a
        fixed order: it depends on the two vectors alone, so that identical rows have identical scores
        wherever they stand, and blocks, devices and other queries change nothing. A float32 matrix product
        (faiss on a CPU, torch on a GPU), which promises none of this, only proposes candidates; where the
        bound of its error does not exclude all other rows, they are looked at too. So the result is exact.

        Raises:
            UserError: vectors of other widths, not finite, or so large that a product overflows float32.
        """
        queries, norms = _matrix(queries, "query")
        if len(queries) and len(self.vectors) and queries.shape[1] != self.vectors.shape[1]:
            raise UserError(
                f"queries have {queries.shape[1]} numbers, the gallery {self.vectors.shape[1]}: "
                "both must come from one model"
            )
        k = min(k, len(self.vectors))
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        if not len(queries) or not k:
            return scores, rows
        if norms.max() * self.norm > 1e37:
            raise UserError("the vectors are too long: their inner products overflow float32")
        width = queries.shape[1]
        # Any order of summation errs by at most D·u/(1 - D·u)·|q||g|, u = 2^-24 (Higham, Accuracy and Stability
        # of Numerical Algorithms, 3.1), and by underflow; two more u for rounding the exact score.
        error = norms * (self.norm * (width + 2) * 2.0**-24 * 1.01) + width * 2.0**-125
        count = min(k + MARGIN, len(self.vectors))
        rough, candidates = self._propose(queries, count)
        step = max(1, CACHED // (count * width))
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            order = np.sort(candidates[part], axis=1)
            exact = _scores(queries[part], self.vectors[order])
            best = np.argsort(-exact, axis=1, kind="stable")[:, :k]
            scores[part] = np.take_along_axis(exact, best, 1)
            rows[part] = np.take_along_axis(order, best, 1)
        if count < len(self.vectors):
            unsettled = np.flatnonzero(rough.min(axis=1) + error >= scores[:, -1])
            for start in range(0, len(unsettled), 1024):
                some = unsettled[start : start + 1024]
                scores[some], rows[some] = self._scan(queries[some], scores[some, -1] - error[some], k)
        return scores, rows

    def _propose(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores with float32 rounding, and rows, of the `count` best: [M, count] each, in any order."""
        if self.device == "cpu":
            import faiss

            scores, rows = faiss.knn(queries, self.vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
            return scores, rows
        return _propose_torch(queries, self.vectors, count, self.block, self.device)

    def _scan(self, queries: np.ndarray, floor: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The exact k best among all rows whose float32 score reaches the query's `floor`; few queries."""
        query = row = np.empty(0, np.int64)
        score = np.empty(0, np.float32)
        step = max(1, min(self.block, CELLS // len(queries)))
        for start in range(0, len(self.vectors), step):
            rough = queries @ self.vectors[start : start + step].T
            new_query, new_row = np.nonzero(rough >= floor[:, None])
            new_row += start
            query, row = np.append(query, new_query), np.append(row, new_row)
            score = np.append(score, self._pair_scores(queries, new_query, new_row))
            order = np.lexsort((row, -score, query))
            query, row, score = query[order], row[order], score[order]
            rank = np.arange(len(query)) - np.searchsorted(query, query)
            query, row, score = query[rank < k], row[rank < k], score[rank < k]
        return score.reshape(len(queries), k), row.reshape(len(queries), k)

    def _pair_scores(self, queries: np.ndarray, query: np.ndarray, row: np.ndarray) -> np.ndarray:
        scores = np.empty(len(query), np.float32)
        step = max(1, CACHED // queries.shape[1])
        for start in range(0, len(query), step):
            part = slice(start, start + step)
            scores[part] = _scores(queries[query[part]], self.vectors[row[part], None])[:, 0]
        return scores


def _scores(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The scores of `queries` [n, D] with their `rows` [n, c, D]: float32 [n, c].

    einsum sums along the contiguous axis in one order for each pair; a product of two float32 is exact in
    float64.
    """
    return np.einsum("md,mkd->mk", queries.astype(np.float64), rows.astype(np.float64)).astype(np.float32)


def _propose_torch(
    queries: np.ndarray, gallery: np.ndarray, count: int, block: int, device: str
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    asked = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TF32 would break the bound of the error
    try:
        scores, rows = _torch_blocks(torch.from_numpy(queries), gallery, count, block, torch.device(device))
    finally:
        torch.set_float32_matmul_precision(asked)
    return scores.cpu().numpy(), rows.cpu().numpy()


def _torch_blocks(
    queries: torch.Tensor, gallery: np.ndarray, count: int, block: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    queries = queries.to(device)
    scores = torch.empty((len(queries), 0), device=device)
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for start in range(0, len(gallery), block):
        part = torch.from_numpy(gallery[start : start + block]).to(device)
        found = [
            (some @ part.T).topk(min(count, len(part))) for some in queries.split(max(1, 16 * CELLS // len(part)))
        ]
        scores = torch.cat([scores, torch.cat([values for values, _ in found])], 1)
        rows = torch.cat([rows, torch.cat([indices for _, indices in found]) + start], 1)
        scores, best = scores.topk(min(count, scores.shape[1]))
        rows = rows.gather(1, best)
    return scores, rows


def _matrix(vectors: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The vectors as contiguous float32 [N, D], and their lengths, float64 [N]."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if vectors.ndim != 2:
        raise UserError(f"{name} vectors must be a matrix [rows, numbers], not of shape {list(vectors.shape)}")
    squares = np.empty(len(vectors))
    for start in range(0, len(vectors), 4096):
        part = vectors[start : start + 4096]
        squares[start : start + 4096] = np.einsum("nd,nd->n", part, part, dtype=np.float64)
    if not np.isfinite(squares).all():
        raise UserError(f"{name} vector {int(np.argmin(np.isfinite(squares)))} has a NaN or an infinity")
    return vectors, np.sqrt(squares)


def _same_width(path: Path, id_field: IdField, gallery_path: Path, gallery: Features) -> Iterator[Features]:
    width = gallery.vectors.shape[1]
    for block in iter_features(path, id_field):
        if block.vectors.shape[1] != width:
            raise UserError(
                f"{path}: features of {block.vectors.shape[1]} numbers, {gallery_path} has {width}: "
                "both must come from one model"
            )
        yield block


def _search(index: Gallery, blocks: Iterable[Features], k: int) -> Iterator[tuple[Features, np.ndarray]]:
    """Each block and its nearest rows: a block is read, and the one before it written, while one is searched."""
    with ThreadPoolExecutor(1) as worker:
        before: tuple[Features, Future[tuple[np.ndarray, np.ndarray]]] | None = None
        for block in blocks:
            searching = worker.submit(index.nearest, block.vectors, k)
            if before:
                yield before[0], before[1].result()[1]
            before = block, searching
        if before:
            yield before[0], before[1].result()[1]


def _gpu() -> str:
    """ "cuda" where torch can use it; torch (seconds to import) is asked only where a driver is installed."""
    if "torch" not in sys.modules:
        try:
            CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        except OSError:
            return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
