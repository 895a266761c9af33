"""As many random pairs of each bin of a histogram of scores, drawn without holding the pairs.

Three sweeps over the strips: the ranges, the counts, and the pairs that were drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.cpu import score_strips
from pml_fast.engine.draws import uniform
from pml_fast.engine.pair_set import PART, PairSet, ScoreStrip
from pml_fast.engine.settings import math_precision
from pml_fast.utils.index_types import PairIndices


@dataclass
class Draws:
    """The drawn pairs of one side, bin by bin: in ascending order, number ``rank [K]`` of those of bin ``bin [K]``, row by row.

    ``anchor`` and ``other`` are filled in as the strips go by. ``start [bins + 1]`` is where each bin's draws begin; of each
    bin, ``seen`` counts the pairs in the strips before, and ``next`` is the first draw that a compiled sweep has not found yet.
    """

    bin: Tensor
    rank: Tensor
    start: Tensor
    anchor: Tensor
    other: Tensor
    seen: Tensor
    next: Tensor

    @staticmethod
    def of(bin: Tensor, rank: Tensor, bins: int) -> Draws:
        """Draws in the order of their bins and ranks."""
        size = torch.bincount(bin, minlength=bins)
        start = torch.cat([size.new_zeros(1), size.cumsum(0)])
        return Draws(
            bin, rank, start, torch.zeros_like(rank), torch.zeros_like(rank), torch.zeros_like(size), start[:-1].clone()
        )


class Folds(Protocol):
    """What a sweep takes out of a strip, of positives and negatives; a NaN is no pair."""

    def widen_range(self, strip: ScoreStrip, low: Tensor, high: Tensor) -> None:
        """Move ``low [2]`` and ``high [2]`` to the least and the greatest score."""
        ...

    def count_bins(self, strip: ScoreStrip, edges: Tensor, counts: Tensor) -> None:
        """Add the pairs in each bin to ``counts [2, bins]``; bins lie between ``edges [2, bins + 1]``."""
        ...

    def locate(self, strip: ScoreStrip, edges: Tensor, draws: list[Draws]) -> None:
        """Find the draws of both sides that lie in the strip, the one that follows those of the last call."""
        ...


class TorchFolds:
    """The folds on any device."""

    def __init__(self, pairs: PairSet) -> None:
        self.pairs = pairs

    def _sides(self, part: ScoreStrip) -> Tensor:
        return self.pairs.sides(part) & ~torch.isnan(part.scores)

    def widen_range(self, strip: ScoreStrip, low: Tensor, high: Tensor) -> None:
        for part in strip.parts():
            if part.scores.numel() > 0:
                sides = self._sides(part)
                low.copy_(torch.minimum(low, torch.where(sides, part.scores, torch.inf).amin(dim=(1, 2))))
                high.copy_(torch.maximum(high, torch.where(sides, part.scores, -torch.inf).amax(dim=(1, 2))))

    def count_bins(self, strip: ScoreStrip, edges: Tensor, counts: Tensor) -> None:
        for part in strip.parts():
            for side, edge, count in zip(self._sides(part), edges, counts, strict=True):
                count += torch.bincount(_bins(part.scores[side], edge), minlength=len(count))

    def locate(self, strip: ScoreStrip, edges: Tensor, draws: list[Draws]) -> None:
        # A table [n, bins] is no larger than a part of a strip.
        rows = max(1, grad_sum.STRIP_ELEMENTS // PART // edges.shape[1])
        for part in (short for long in strip.parts() for short in long.split(rows)):
            for side, edge, own in zip(self._sides(part), edges, draws, strict=True):
                if part.scores.shape[1] > 0:
                    _locate(part, torch.where(side, _bins(part.scores, edge), -1), own)


def _bins(s: Tensor, edges: Tensor) -> Tensor:
    """The bin of each score; the last one holds both of its ends."""
    return (torch.bucketize(s, edges, right=True) - 1).clamp_(0, len(edges) - 2)


def _locate(strip: ScoreStrip, bins: Tensor, draws: Draws) -> None:
    """Find the draws that lie in a strip with these bins ``[n, m]`` (-1: none)."""
    num_bins = len(draws.seen)
    row_of = torch.arange(bins.shape[0], device=bins.device).unsqueeze(1).expand_as(bins)
    there = bins >= 0
    table = torch.bincount(row_of[there] * num_bins + bins[there], minlength=bins.shape[0] * num_bins)
    table = table.view(bins.shape[0], num_bins).cumsum(0)
    left = draws.rank - draws.seen[draws.bin]
    mine = torch.nonzero((left >= 0) & (left < table[-1][draws.bin])).squeeze(1)
    for part in mine.split(max(1, grad_sum.STRIP_ELEMENTS // PART // max(bins.shape))):
        which, rank = draws.bin[part], left[part]
        row = torch.searchsorted(table.T[which].contiguous(), rank.unsqueeze(1), right=True).squeeze(1)
        rank = rank - torch.where(row > 0, table[(row - 1).clamp(min=0), which], 0)
        passed = (bins[row] == which.unsqueeze(1)).cumsum(1)
        draws.anchor[part] = row + strip.first
        draws.other[part] = torch.searchsorted(passed, rank.unsqueeze(1), right=True).squeeze(1) + strip.column
    draws.seen += table[-1]


def _edges(pairs: PairSet, folds: Folds, sweeps: Iterable[ScoreStrip], num_bins: int) -> Tensor:
    """``[2, num_bins + 1]`` from the least to the greatest score of either side."""
    device = pairs.x.device
    low, high = (torch.full((2,), end, dtype=pairs.wide, device=device) for end in (torch.inf, -torch.inf))
    for strip in sweeps:
        folds.widen_range(strip, low, high)
    # A side without pairs has no range; its bins stay empty.
    low, high = (torch.where(low <= high, end, 0.0) for end in (low, high))
    edges = [torch.linspace(low[k], high[k], num_bins + 1, dtype=low.dtype, device=device) for k in range(2)]
    # Where a range spans a few floats only, rounding must not put its edges out of order.
    return torch.stack(edges).cummax(dim=1).values


def draw_evenly(pairs: PairSet, num_bins: int, per_bin: tuple[int, int], generator: torch.Generator) -> PairIndices:
    """``per_bin`` random positive and negative pairs of each bin that is not empty, with replacement."""
    device = pairs.x.device
    folds: Folds = score_strips.CompiledFolds(pairs) if score_strips.applies(pairs) else TorchFolds(pairs)
    with math_precision():
        sweeps = pairs.repeatable()
        edges = _edges(pairs, folds, sweeps, num_bins)
        counts = torch.zeros(2, num_bins, dtype=torch.int64, device=device)
        for strip in sweeps:
            folds.count_bins(strip, edges, counts)
        drawn = [_draw(count, times, generator, pairs.mirrored) for count, times in zip(counts, per_bin, strict=True)]
        for strip in sweeps:
            folds.locate(strip, edges, [draws for draws, _ in drawn])
    indices: list[Tensor] = []
    for draws, turned in drawn:
        indices += [torch.where(turned, draws.other, draws.anchor), torch.where(turned, draws.anchor, draws.other)]
    return PairIndices(*indices)


def _draw(count: Tensor, per_bin: int, generator: torch.Generator, mirrored: bool) -> tuple[Draws, Tensor]:
    """Random pairs of each bin, and which of them are turned: of a mirrored pair either row is the anchor as often."""
    ways = 2 if mirrored else 1
    which = torch.nonzero(count > 0).squeeze(1).repeat_interleave(per_bin)
    size = ways * count[which]
    rank = torch.minimum((uniform(len(which), generator, count.device) * size).to(torch.int64), size - 1)
    # As many of each bin: sorting each bin's own is sorting all.
    rank = rank.view(-1, per_bin).sort(dim=1).values.flatten()
    return Draws.of(which, torch.div(rank, ways, rounding_mode="floor"), len(count)), rank % ways == 1
