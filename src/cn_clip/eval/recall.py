"""Recall@k: in how many of 100 queries one of the right answers is among the first k.

cn-clip recall test_texts.jsonl test_predictions.jsonl output.json
cn-clip recall test_texts.tr.jsonl test_tr_predictions.jsonl output.json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cn_clip.data.formats import IdType, field, parse_json, read_lines
from cn_clip.errors import UserError
from cn_clip.eval.knn import BLOCK, nearest
from cn_clip.files import atomic_open

KS = (1, 5, 10)


class Direction(NamedTuple):
    """The fields of a line of annotations or predictions."""

    query: str
    answers: str


DIRECTIONS = (Direction("text_id", "image_ids"), Direction("image_id", "text_ids"))


def retrieval_recall(
    image_features: np.ndarray,
    text_features: np.ndarray,
    positives: np.ndarray | Sequence[tuple[int, int]],
    ks: Sequence[int] = KS,
    block: int = BLOCK,
    device: str | None = None,
) -> dict[str, dict[str, float]]:
    """Recall in both directions over a whole gallery, every right pair counted.

    Args:
        image_features: [N, D]; the score of a pair is the inner product.
        text_features: [M, D].
        positives: [P, 2], the (text row, image row) of each right pair. A text or an image without a pair
            is in the gallery, and is not a query.
        ks: a query is a hit at k when one of its right answers is among its k nearest (equal scores: the
            earlier row first, as `nearest` has it).
        block: gallery rows compared at a time: memory only.
        device: as for `nearest`.

    Returns:
        {"t2i": {"r1", "r5", "r10", "mean_recall"}, "i2t": {…}}, in percent.

    Raises:
        UserError: no pairs, or a row that does not exist.
    """
    pairs = np.asarray(positives, dtype=np.int64).reshape(-1, 2)
    sizes = np.array([len(text_features), len(image_features)])
    if not len(pairs):
        raise UserError("recall needs at least one right pair of a text and an image")
    if (pairs < 0).any() or (pairs >= sizes).any():
        raise UserError(f"a right pair names a row beyond the {sizes[0]} texts and {sizes[1]} images")
    return {
        "t2i": _one_way(text_features, image_features, pairs, ks, block, device),
        "i2t": _one_way(image_features, text_features, pairs[:, ::-1], ks, block, device),
    }


def recall(
    annotations: Path,
    predictions: Path,
    output: Path,
    /,
    k: tuple[int, ...] = KS,
    skip_unlabelled: bool = False,
) -> None:
    """Recall@k of predictions: the share of queries with one of their right answers among the first k.

    The direction is read from the files: {"text_id", "image_ids"} lines are text to image, {"image_id",
    "text_ids"} image to text. Ids are compared as strings. Predictions of queries that the annotations do
    not have are left out. The result is written as JSON, also when it fails (success is false then).

    Args:
        annotations: the right answers, such as test_texts.jsonl, or test_texts.tr.jsonl for image to text.
        predictions: the predicted answers of each query, best first, from `cn-clip topk`.
        output: the JSON file to write.
        k: how many predictions count.
        skip_unlabelled: leave out queries without a right answer (they are an error otherwise; the
            reference counts them as misses).
    """
    if output.resolve() in (annotations.resolve(), predictions.resolve()):
        raise UserError(f"{output}: the output would replace an input; name another file")
    try:
        scores, report = _evaluate(annotations, predictions, tuple(sorted(set(k))), skip_unlabelled)
    except (UserError, OSError) as error:
        message = str(error) if isinstance(error, UserError) else f"{error.filename}: {error.strerror}"
        failure = {"errorDetail": message, "errorMsg": message, "score": 0, "scoreJson": {}, "success": False}
        _write(output, failure)
        raise
    mean = scores["mean_recall"]
    _write(output, {"success": True, "score": mean, "scoreJson": {"score": mean, **scores}})
    print(report)


def _one_way(
    queries: np.ndarray, gallery: np.ndarray, pairs: np.ndarray, ks: Sequence[int], block: int, device: str | None
) -> dict[str, float]:
    """Recall of the queries that `pairs` [P, 2], (query row, gallery row), name."""
    asked, query = np.unique(pairs[:, 0], return_inverse=True)
    _, found = nearest(np.asarray(queries)[asked], gallery, max(ks), block, device)
    codes = query.reshape(-1) * len(gallery) + pairs[:, 1]
    hits = np.isin(found + np.arange(len(asked))[:, None] * len(gallery), codes)
    return _scores({k: int(hits[:, :k].any(axis=1).sum()) for k in ks}, len(asked))


def _scores(hits: Mapping[int, int], queries: int) -> dict[str, float]:
    """`{"mean_recall", "r1", …}` in percent, by the reference's operations, so that the last digit agrees."""
    shares = {k: count / queries for k, count in hits.items()}
    mean = reduce(add, shares.values()) / len(shares)  # sum() compensates rounding since Python 3.12
    return {"mean_recall": mean * 100, **{f"r{k}": share * 100 for k, share in shares.items()}}


def _evaluate(
    annotations: Path, predictions: Path, ks: tuple[int, ...], skip_unlabelled: bool
) -> tuple[dict[str, float], str]:
    """The scores, and the table to print."""
    if not ks or ks[0] < 1:
        raise UserError("--k takes numbers of 1 or more")
    truth, unlabelled, direction = dict[str, set[str]](), dict[str, str](), DIRECTIONS[0]
    for direction, where, key, answers in _read(annotations):
        if answers:
            truth[key] = set(answers)
        else:
            unlabelled[key] = f"{where}: {direction.query} {key} has no {direction.answers}"
    if unlabelled and not skip_unlabelled:
        more = f" (nor have {len(unlabelled) - 1} other queries)" if len(unlabelled) > 1 else ""
        raise UserError(f"{next(iter(unlabelled.values()))}{more}: add them, or give --skip-unlabelled")
    if not truth:
        raise UserError(f"{annotations}: no query has a right answer")
    hits, predicted, unknown = dict.fromkeys(ks, 0), set[str](), 0
    for found, where, key, answers in _read(predictions):
        if found != direction:
            raise UserError(
                f"{where}: {found.query} with {found.answers}, but {annotations} has {direction.query} with "
                f"{direction.answers}; `cn-clip data invert` turns annotations round"
            )
        if key not in truth:
            unknown += key not in unlabelled
            continue
        predicted.add(key)
        _check_predictions(answers, ks[-1], direction, f"{where}: {direction.query} {key}")
        rank = next((i for i, answer in enumerate(answers) if answer in truth[key]), len(answers))
        for k in ks:
            hits[k] += rank < k
    missing = [key for key in truth if key not in predicted]
    if missing:
        few = ", ".join(missing[:5]) + (", …" if len(missing) > 5 else "")
        raise UserError(f"{predictions}: {len(missing)} queries have no prediction: {direction.query} {few}")
    scores = _scores(hits, len(truth))
    lines = [f"{'text to image' if direction is DIRECTIONS[0] else 'image to text'}, {len(truth):,} queries"]
    if unlabelled:
        lines.append(f"  left out: {len(unlabelled):,} queries without a right answer")
    if unknown:
        lines.append(f"  left out: predictions of {unknown:,} queries that {annotations} does not have")
    lines += [f"  {f'R@{k}':12}{scores[f'r{k}']:6.2f}" for k in ks]
    return scores, "\n".join([*lines, f"  {'mean recall':12}{scores['mean_recall']:6.2f}"])


def _read(path: Path) -> Iterator[tuple[Direction, str, str, list[str]]]:
    """Yield (direction, "FILE:LINE", query id, ids of its answers) of each line; all have one direction."""
    types, seen = IdType(), set[str]()
    direction: Direction | None = None
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        row = parse_json(line, where)
        if direction is None:
            direction = next((d for d in DIRECTIONS if d.query in row and d.answers in row), None)
        if direction is None:
            names = ", ".join(row) or "none"
            raise UserError(f"{where}: expected text_id and image_ids, or image_id and text_ids; found {names}")
        key = str(types.check(field(row, direction.query, where), direction.query, where))
        answers = field(row, direction.answers, where)
        if not isinstance(answers, list):
            raise UserError(f"{where}: {direction.answers} must be a list of ids")
        if key in seen:
            raise UserError(f"{where}: {direction.query} {key} stands on an earlier line already")
        seen.add(key)
        yield direction, where, key, [str(types.check(a, f"an id in {direction.answers}", where)) for a in answers]
    if direction is None:
        raise UserError(f"{path}: there are no queries in this file")


def _check_predictions(answers: Sequence[str], k: int, direction: Direction, where: str) -> None:
    if len(answers) < k:
        raise UserError(f"{where} has {len(answers)} {direction.answers}, and recall@{k} needs {k} (see --k)")
    if len(set(answers)) < len(answers):
        twice = next(a for i, a in enumerate(answers) if a in answers[:i])
        raise UserError(f"{where} has {twice} twice in {direction.answers}")


def _write(output: Path, result: Mapping[str, object]) -> None:
    with atomic_open(output) as file:
        json.dump(result, file, ensure_ascii=False)
