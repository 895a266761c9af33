"""What a ranking is worth to its query: sums over the ranks of the positives, strip by strip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.knn.problem import RankStrip


@dataclass
class Retrieval:
    """What the metrics of a ranking are made of, for each query; ranks count from 0.

    Of the ``count`` positives (R) of a query, ``first`` is the rank of the closest (-1 where there is none), and
    ``hits_within_r`` the number of those of rank below R. ``precisions`` is the sum, over the positives, of the share of
    positives among the columns down to each; ``precisions_within_r`` the same over those of rank below R. ``hits[c]`` is the
    number of positives of rank below ``cutoffs[c]``. Of a ranking cut off at some rank only what comes before it is counted.
    """

    count: Tensor  # [N] int64
    first: Tensor  # [N] int64
    hits_within_r: Tensor  # [N] int64
    precisions_within_r: Tensor  # [N] float64
    precisions: Tensor  # [N] float64
    hits: Tensor  # [C, N] int64

    def parts(self) -> tuple[Tensor, ...]:
        """The tensors, in order."""
        return self.count, self.first, self.hits_within_r, self.precisions_within_r, self.precisions, self.hits


def empty_retrieval(n: int, cutoffs: int, device: torch.device) -> Retrieval:
    """Queries without positives."""
    count = torch.zeros(n, dtype=torch.int64, device=device)
    sums = torch.zeros(n, dtype=torch.float64, device=device)
    return Retrieval(
        count, torch.full_like(count, -1), count.clone(), sums, sums.clone(), count.new_zeros(cutoffs, n)
    )  # fmt: skip


def fold_ranks(
    strips: Iterable[RankStrip], n: int, device: torch.device, limit: int | None, cutoffs: Sequence[int]
) -> Retrieval:
    """Fold the ranks of ``n`` queries; those from ``limit`` on are not counted."""
    into = empty_retrieval(n, len(cutoffs), device)
    for strip in strips:
        _fold_strip(strip, into, limit, cutoffs)
    return into


def _fold_strip(strip: RankStrip, into: Retrieval, limit: int | None, cutoffs: Sequence[int]) -> None:
    rows, counts, ranks = strip.rows, strip.counts, strip.ranks
    into.count[rows] = counts
    if not len(ranks):
        return
    begin = counts.cumsum(dim=0) - counts
    row = torch.repeat_interleave(counts, output_size=len(ranks))
    place = torch.arange(len(ranks), device=ranks.device) - begin[row]
    seen = ranks < limit if limit is not None else None
    within_r = ranks < counts[row]
    if seen is not None:
        within_r &= seen
    precision = (place + 1).double() / (ranks + 1)

    def summed(values: Tensor) -> Tensor:
        return torch.segment_reduce(values.double(), "sum", lengths=counts, unsafe=True)

    first = ranks[begin.clamp_max(len(ranks) - 1)]
    there = counts > 0
    if limit is not None:
        there &= first < limit
    into.first[rows] = torch.where(there, first, -1)
    into.hits_within_r[rows] = summed(within_r).long()
    into.precisions_within_r[rows] = summed(torch.where(within_r, precision, 0.0))
    into.precisions[rows] = summed(precision if seen is None else torch.where(seen, precision, 0.0))
    for c, cutoff in enumerate(cutoffs):
        below = cutoff if limit is None else min(cutoff, limit)
        into.hits[c, rows] = summed(ranks < below).long()
