"""The nearest-neighbour engine over the whole matrix: sort every row, and look."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip, from_order, own_columns, turned
from pml_fast.engine.score import Score, dense_scores


def order_matrix(score: Score, x: Tensor, y: Tensor) -> Tensor:
    """The order ``[N, M]`` in which the rows see the columns."""
    if score.kind == "l2":
        return turned(score, torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_())
    if score.kind == "lp":
        return turned(score, torch.cdist(x, y, p=score.p))
    return turned(score, dense_scores(score, x, y))


def nearest(problem: NearestProblem) -> tuple[Tensor, Tensor]:
    """Scores and columns ``[N, k]``."""
    order = order_matrix(problem.score, problem.x, problem.y)
    column = torch.sort(order, dim=1, stable=True).indices
    if problem.itself:
        n, m = order.shape
        others = ~own_columns(0, n, m, order.device).gather(1, column)
        column = column[others].view(n, m - 1)
    column = column[:, : problem.k]
    return from_order(problem.score, order.gather(1, column)), column.contiguous()


def rank_strips(problem: RankProblem) -> Iterator[RankStrip]:
    """One strip of all rows."""
    n = len(problem.x)
    yield strip_by_sorting(problem, 0, n, order_matrix(problem.score, problem.x, problem.y))


def strip_by_sorting(problem: RankProblem, first: int, last: int, order: Tensor) -> RankStrip:
    """The ranks of some rows, given the order in which they see the columns."""
    column = torch.sort(order, dim=1, stable=True).indices
    hits = problem.positives(first, last).gather(1, column)
    ranks = torch.arange(order.shape[1], device=order.device).expand_as(hits)
    if problem.itself:
        own = own_columns(first, last, order.shape[1], order.device).gather(1, column)
        ranks = ranks - own.cumsum(dim=1)  # candidates behind a row's own sample move up
    return RankStrip(torch.arange(first, last, device=order.device), hits.sum(dim=1), ranks[hits])
