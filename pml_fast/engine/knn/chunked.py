"""The nearest-neighbour engine in pure torch: strips of rows.

The order of a column and its index make one int64, so that ties are settled by the comparison itself. Ranks need no sort of the
columns: each is looked up among its row's sorted positives and counted where it stands, O(N M (D + log P)).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.grad_sum import strips
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip, from_order, own_columns, turned
from pml_fast.engine.knn.reference import strip_by_sorting
from pml_fast.engine.score import Score
from pml_fast.engine.strips import powered, strip_base, strip_squares

BEHIND_ALL = torch.iinfo(torch.int64).max


def strip_order(score: Score, x: Tensor, y: Tensor) -> Tensor:
    """The order ``[n, M]`` in which some rows see the columns."""
    if score.kind == "l2":
        return turned(score, strip_squares(x, y, exact=True))
    base = strip_base(score, x, y)
    return turned(score, powered(score, base) if score.kind == "dot" else base)


def _keys(order: Tensor) -> Tensor:
    """Distinct int64 ``[n, M]`` that sort as float32 orders do, and by column where these are equal."""
    bits = (order + 0.0).view(torch.int32)  # -0 becomes 0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(torch.int64) << 32) | torch.arange(order.shape[1], device=order.device)


def nearest(problem: NearestProblem) -> tuple[Tensor, Tensor]:
    """Scores and columns ``[N, k]``."""
    n, m = len(problem.x), len(problem.y)
    order = problem.x.new_empty(n, problem.k)
    column = torch.empty(n, problem.k, dtype=torch.int64, device=order.device)
    for first, last in strips(n, m):
        seen = strip_order(problem.score, problem.x[first:last], problem.y)
        where = _closest(problem, first, last, seen)
        column[first:last] = where
        torch.gather(seen, 1, where, out=order[first:last])
    return from_order(problem.score, order), column


def _closest(problem: NearestProblem, first: int, last: int, order: Tensor) -> Tensor:
    own = own_columns(first, last, order.shape[1], order.device) if problem.itself else None
    if order.dtype == torch.float32:
        keys = _keys(order)
        if own is not None:
            keys.masked_fill_(own, BEHIND_ALL)
        return torch.topk(keys, problem.k, dim=1, largest=False, sorted=True).values & 0xFFFFFFFF
    column = torch.sort(order, dim=1, stable=True).indices
    if own is not None:
        column = column[~own.gather(1, column)].view(len(order), -1)
    return column[:, : problem.k]


def rank_strips(problem: RankProblem) -> Iterator[RankStrip]:
    """Strips of rows, in order."""
    n, m = len(problem.x), len(problem.y)
    for first, last in strips(n, m):
        order = strip_order(problem.score, problem.x[first:last], problem.y)
        if order.dtype == torch.float32:
            yield _strip_by_counting(problem, first, last, _keys(order))
        else:
            yield strip_by_sorting(problem, first, last, order)


def _strip_by_counting(problem: RankProblem, first: int, last: int, keys: Tensor) -> RankStrip:
    positive = problem.positives(first, last)
    counts = positive.sum(dim=1)
    # How many positives the fullest row has decides the table's size: reading it waits for the device.
    width = int(counts.max()) if counts.numel() else 0
    place = positive.cumsum(dim=1) - 1
    table = keys.new_full((len(keys), width + 1), BEHIND_ALL)
    table.scatter_(1, torch.where(positive, place, width), torch.where(positive, keys, BEHIND_ALL))
    table = torch.sort(table, dim=1).values
    candidate = ~positive
    if problem.itself:
        candidate &= ~own_columns(first, last, keys.shape[1], keys.device)
    before = torch.searchsorted(table, keys).masked_fill_(~candidate, width)
    seen = torch.zeros_like(table).scatter_add_(1, before, torch.ones_like(before))
    own_place = torch.arange(width, device=keys.device)
    ranks = seen[:, :width].cumsum(dim=1) + own_place
    return RankStrip(torch.arange(first, last, device=keys.device), counts, ranks[own_place < counts.unsqueeze(1)])
