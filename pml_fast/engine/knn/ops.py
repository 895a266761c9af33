"""The operators of the nearest-neighbour engine. Neighbours and ranks have no gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pml_fast.engine import dispatch
from pml_fast.engine.knn.fold import Retrieval, empty_retrieval, fold_ranks
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip, Relation
from pml_fast.engine.operator import both, define, prepared
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision


def _nearest(x: Tensor, y: Tensor, k: int, score: str, itself: bool) -> tuple[Tensor, Tensor]:
    sc = Score.decode(score)
    with math_precision():
        rows, cols = both(x, y, itself and len(x) == len(y), sc)
        problem = NearestProblem(sc, rows.x, cols.x, k, itself)
        backend = dispatch.select(problem)
        return backend.nearest(prepared(problem, backend, rows, cols))


def _nearest_fake(x: Tensor, y: Tensor, k: int, score: str, itself: bool) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], k
    return x.new_empty(shape, dtype=compute_type(x.dtype)), x.new_empty(shape, dtype=torch.int64)


define("nearest", "(Tensor x, Tensor y, int k, str score, bool itself) -> (Tensor, Tensor)", _nearest, _nearest_fake)


def _rank_strips(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: Score, itself: bool, relation: Relation | None = None
) -> Iterator[RankStrip]:
    """The ranks of all positives, some queries at a time; labels are int64.

    Raises ``ValueError`` where ``itself`` and the labels of ``y`` do not begin with those of ``x``.
    """
    if itself and relation is None and not torch.equal(x_labels, y_labels[: len(x_labels)]):
        raise ValueError("the labels of the reference set must begin with those of the queries that it begins with")
    with torch.no_grad(), math_precision(), torch._C._DisableAutocast():
        rows, cols = both(x, y, itself and len(x) == len(y), score)
        problem = RankProblem(score, rows.x, cols.x, x_labels, y_labels, itself, relation)
        backend = dispatch.select(problem)
        yield from backend.rank_strips(prepared(problem, backend, rows, cols))


def _retrieval(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: str, itself: bool, limit: int | None,
    cutoffs: Sequence[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    return retrieval(x, y, x_labels, y_labels, Score.decode(score), itself, limit, cutoffs).parts()


def _retrieval_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: str, itself: bool, limit: int | None,
    cutoffs: Sequence[int],
) -> tuple[Tensor, ...]:  # fmt: skip
    return empty_retrieval(x.shape[0], len(cutoffs), x.device).parts()


define(
    "retrieval",
    "(Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, str score, bool itself, int? limit, int[] cutoffs) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _retrieval,
    _retrieval_fake,
)


def retrieval(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: Score, itself: bool, limit: int | None,
    cutoffs: Sequence[int], relation: Relation | None = None,
) -> Retrieval:  # fmt: skip
    """What the metrics of each query are made of; memory is that of one strip of rows."""
    strips = _rank_strips(x, y, x_labels, y_labels, score, itself, relation)
    return fold_ranks(strips, len(x), x.device, limit, cutoffs)


def positive_ranks(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: Score, itself: bool
) -> tuple[Tensor, Tensor]:
    """How many positives each row has ``[N]``, and their ranks, row by row and ascending."""
    found = list(_rank_strips(x, y, x_labels, y_labels, score, itself))
    none = x_labels.new_empty(0)
    counts = torch.zeros_like(x_labels)
    for strip in found:
        counts[strip.rows] = strip.counts
    ranks = torch.cat([none, *(strip.ranks for strip in found)])
    # Backends may take the rows in an order of their own.
    rows = torch.cat([none, *(torch.repeat_interleave(strip.rows, strip.counts) for strip in found)])
    return counts, ranks[torch.argsort(rows, stable=True)]
