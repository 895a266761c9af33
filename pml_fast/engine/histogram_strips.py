"""Histograms of all pairs or triplets in pure torch: a sweep of strips counts them, a second one takes the gradient.

What a score adds to the sums over the bins is piecewise linear, so the derivative of the sums by a score is a look-up of its
bin. Only pairs that belong to some triplet count: an anchor needs a positive and a negative. Sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.grad_sum import GradSum, strips
from pml_fast.engine.positives import count_partners
from pml_fast.engine.problem import HistogramProblem, HistogramSums, comparable_mask, same_labels
from pml_fast.engine.soft_rank import slots
from pml_fast.engine.strips import powered, strip_base

# Numbers that a strip holds for each score.
_WIDTH = 4


def keyed_sums(key: Tensor, weight: Tensor | None, size: int) -> Tensor:
    """Sums of ``weight`` (or numbers of entries) by key, float64 ``[size]``."""
    key = key.flatten()
    if key.device.type == "cpu":
        # bincount reads its largest key on the host.
        return torch.bincount(key, None if weight is None else weight.flatten(), size).double()
    return scattered_sums(key, weight, size)


def scattered_sums(key: Tensor, weight: Tensor | None, size: int) -> Tensor:
    """:func:`keyed_sums` without waiting for an accelerator."""
    values = torch.ones_like(key, dtype=torch.float64) if weight is None else weight.flatten().double()
    return torch.zeros(size, dtype=torch.float64, device=key.device).scatter_add_(0, key.flatten(), values.flatten())


def open_anchors(x_labels: Tensor, y_labels: Tensor, itself: bool) -> Tensor:
    """``[N]``: which rows have a positive and a negative."""
    return (count_partners(x_labels, y_labels, itself) > 0).all(dim=0)


class Sweep:
    """All pairs or triplets of prepared rows, strip by strip."""

    def __init__(self, problem: HistogramProblem) -> None:
        self.x, self.y, self.score = problem.x, problem.y, problem.score
        self.x_labels, self.y_labels = problem.x_labels, problem.y_labels
        self.bins, self.itself, self.shared = problem.spec.bins, problem.itself, problem.shared

    def strips(self) -> Iterator[tuple[int, int]]:
        return strips(self.x.shape[0], _WIDTH * self.y.shape[0])

    # ---- pairs: of a batch against itself each once, the first of the two its row ----

    def _pairs(self, opened: Tensor, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]:
        """Base, key (side and bin; one key more for what is no pair), part, score, pairs that count, first column."""
        start = first if self.itself else 0
        base = strip_base(self.score, self.x[first:last], self.y[start:])
        s = powered(self.score, base)
        same = same_labels(self.x_labels[first:last], self.y_labels[start:])
        used = opened[first:last].unsqueeze(1).expand_as(same)
        if self.itself:
            used = torch.ones_like(same).triu_(1) & (used | opened[start:])
        inside, part = self.bins.place(s)
        key = torch.where(used, inside + self.bins.count * (~same), 2 * self.bins.count)
        return base, key, part, s, used, start

    def pair_sums(self) -> HistogramSums:
        """The sums of both sides, and whether a pair lies outside of the bins."""
        size = 2 * self.bins.count
        total = torch.zeros(2, size + 1, dtype=torch.float64, device=self.x.device)
        outside = torch.zeros((), dtype=torch.bool, device=self.x.device)
        opened = open_anchors(self.x_labels, self.y_labels, self.itself)
        for first, last in self.strips():
            _, key, part, s, used, _ = self._pairs(opened, first, last)
            total[0] += keyed_sums(key, None, size + 1)
            total[1] += keyed_sums(key, torch.where(used, part, 0.0), size + 1)
            outside |= (used & self.bins.outside(s)).any()
        return HistogramSums(total[:, :size].view(2, 2, -1).transpose(0, 1).contiguous(), outside)

    def pair_grads(self, slopes: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
        accumulate = GradSum(self.x, self.y, self.shared, need_x, need_y)
        opened = open_anchors(self.x_labels, self.y_labels, self.itself)
        slope = torch.cat([slopes.flatten(), slopes.new_zeros(1)]).to(self.x.dtype) / self.bins.delta
        for first, last in self.strips():
            base, key, _, _, _, start = self._pairs(opened, first, last)
            accumulate.add(self.score, first, last, base, slope[key], start)
        return accumulate.result()

    # ---- triplets: the score of the positive less that of the negative ----

    def _triplets(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Base, score, negatives, and the table of the positives' columns."""
        base = strip_base(self.score, self.x[first:last], self.y)
        same = same_labels(self.x_labels[first:last], self.y_labels)
        m = self.y.shape[0]
        positive = same & comparable_mask(first, last - first, m, same.device) if self.itself else same
        return base, powered(self.score, base), ~same, *slots(positive)

    def _blocks(
        self, s: Tensor, negative: Tensor, at: Tensor, has: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor, Tensor]]:
        """A few positives at a time: which, and of their triplets ``[rows, block, M]`` value, bin, part and which count."""
        own = s.gather(1, at)
        step = max(1, grad_sum.STRIP_ELEMENTS // (_WIDTH * max(s.numel(), 1)))
        for k in range(0, at.shape[1], step):
            block = slice(k, k + step)
            value = own[:, block].unsqueeze(2) - s.unsqueeze(1)
            keep = has[:, block].unsqueeze(2) & negative.unsqueeze(1)
            yield block, value, *self.bins.place(value), keep

    def triplet_sums(self) -> HistogramSums:
        """The sums; a difference may lie anywhere."""
        size = self.bins.count + 1
        total = torch.zeros(3, size, dtype=torch.float64, device=self.x.device)
        for first, last in self.strips():
            _, *strip = self._triplets(first, last)
            for _, value, inside, part, keep in self._blocks(*strip):
                key = torch.where(keep, inside, self.bins.count)
                for k, weight in enumerate((None, part, value)):
                    total[k] += keyed_sums(key, weight if weight is None else torch.where(keep, weight, 0.0), size)
        return HistogramSums(total[:, :-1].contiguous(), torch.zeros((), dtype=torch.bool, device=self.x.device))

    def triplet_grads(self, slopes: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
        accumulate = GradSum(self.x, self.y, self.shared, need_x, need_y)
        by_part, by_value = (slopes[0] / self.bins.delta).to(self.x.dtype), slopes[1].to(self.x.dtype)
        for first, last in self.strips():
            base, s, negative, at, has = self._triplets(first, last)
            c, d_own = torch.zeros_like(s), s.new_zeros(at.shape)
            for block, value, inside, _, keep in self._blocks(s, negative, at, has):
                # Outside of the bins a value still counts, but its part no longer moves.
                moves = (value >= self.bins.low) & (value <= self.bins.high)
                g = torch.where(moves, by_part[inside], 0.0) + by_value[inside]
                g = torch.where(keep, g, 0.0)
                c -= g.sum(dim=1)
                d_own[:, block] = g.sum(dim=2)
            accumulate.add(self.score, first, last, base, c.scatter_add_(1, at, d_own))
        return accumulate.result()


def histogram_sums(problem: HistogramProblem) -> HistogramSums:
    """The forward sweep."""
    sweep = Sweep(problem)
    return sweep.triplet_sums() if problem.spec.triplets else sweep.pair_sums()


def histogram_grads(
    problem: HistogramProblem, slopes: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The second sweep."""
    sweep = Sweep(problem)
    return (sweep.triplet_grads if problem.spec.triplets else sweep.pair_grads)(slopes, need_x, need_y)
