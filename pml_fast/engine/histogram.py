"""Histograms of all pairs or all triplets of a batch: a sweep of strips folds them, a second one takes the gradient.

Losses that depend on scores through a histogram alone are a few sums over its bins; what a score adds to them is piecewise
linear, so the derivative of the sums by a score is a look-up of its bin. Only pairs that belong to some triplet count: an
anchor needs a positive and a negative. Sums are kept in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.grad_sum import GradSum, strips
from pml_fast.engine.operator import both, define, differentiable, grad_like, refuse_double_backward, shared
from pml_fast.engine.problem import comparable_mask, same_labels
from pml_fast.engine.score import Score
from pml_fast.engine.settings import current, math_precision
from pml_fast.engine.soft_rank import slots
from pml_fast.engine.strips import powered, strip_base

# Numbers that a strip holds for each score.
_WIDTH = 4
# By how much rounding may carry a score out of the bins.
SLACK = 1e-3


@dataclass(frozen=True)
class Bins:
    """``count`` bins of width ``delta`` from ``low`` on; what lies outside belongs to the bin at that end."""

    low: float
    delta: float
    count: int

    @property
    def high(self) -> float:
        """The end of the last bin."""
        return self.low + self.count * self.delta

    def place(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The bin of each value, int64, and how far it is through it, from 0 to 1; a NaN stays one."""
        x = (value - self.low) / self.delta
        inside = x.floor().nan_to_num_().clamp_(0, self.count - 1)
        return inside.long(), (x - inside).clamp_(0, 1)

    def outside(self, value: Tensor) -> Tensor:
        """Which values rounding cannot have carried out of the bins; a NaN is none of them."""
        return (value < self.low - SLACK) | (value > self.high + SLACK)

    def sums(self, value: Tensor, keep: Tensor) -> Tensor:
        """``[3, count]`` float64 of the kept values of each bin: how many, the sum of their parts, the sum of the values.

        The values are a vector; differentiable.
        """
        inside, part = self.place(value)
        wide = torch.stack([torch.ones_like(value), part, value]).double()
        zeros = torch.zeros(3, self.count, dtype=torch.float64, device=value.device)
        return zeros.scatter_add(1, inside.expand(3, -1), torch.where(keep, wide, 0.0))


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
    ordered = y_labels.sort().values
    end = torch.searchsorted(ordered, x_labels, right=True)
    positives = end - torch.searchsorted(ordered, x_labels) - int(itself)
    return (positives > 0) & (positives < len(y_labels) - int(itself))


@dataclass
class Sweep:
    """All pairs or triplets of prepared rows, strip by strip."""

    x: Tensor
    y: Tensor
    x_labels: Tensor
    y_labels: Tensor
    score: Score
    bins: Bins
    itself: bool

    @property
    def shared(self) -> bool:
        return self.itself and self.score.symmetric

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

    def pair_sums(self) -> Tensor:
        """``[2, 2, count]`` of the positive and the negative pairs: how many are in each bin, and the sum of their parts."""
        size = 2 * self.bins.count
        total = torch.zeros(2, size + 1, dtype=torch.float64, device=self.x.device)
        outside = torch.zeros((), dtype=torch.bool, device=self.x.device)
        opened = open_anchors(self.x_labels, self.y_labels, self.itself)
        for first, last in self.strips():
            _, key, part, s, used, _ = self._pairs(opened, first, last)
            total[0] += keyed_sums(key, None, size + 1)
            total[1] += keyed_sums(key, torch.where(used, part, 0.0), size + 1)
            outside |= (used & self.bins.outside(s)).any()
        refuse_outside(outside, self.bins)
        return total[:, :size].view(2, 2, -1).transpose(0, 1).contiguous()

    def pair_grads(self, grad: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
        accumulate = GradSum(self.x, self.y, self.shared, need_x, need_y)
        opened = open_anchors(self.x_labels, self.y_labels, self.itself)
        slope = torch.cat([grad[:, 1].flatten(), grad.new_zeros(1)]).to(self.x.dtype) / self.bins.delta
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

    def triplet_sums(self) -> Tensor:
        """``[3, count]``: how many triplets are in each bin, the sum of their parts and of their values."""
        size = self.bins.count + 1
        total = torch.zeros(3, size, dtype=torch.float64, device=self.x.device)
        for first, last in self.strips():
            _, *strip = self._triplets(first, last)
            for _, value, inside, part, keep in self._blocks(*strip):
                key = torch.where(keep, inside, self.bins.count)
                for k, weight in enumerate((None, part, value)):
                    total[k] += keyed_sums(key, weight if weight is None else torch.where(keep, weight, 0.0), size)
        return total[:, :-1].contiguous()

    def triplet_grads(self, grad: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
        accumulate = GradSum(self.x, self.y, self.shared, need_x, need_y)
        by_part, by_value = (grad[1] / self.bins.delta).to(self.x.dtype), grad[2].to(self.x.dtype)
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


def refuse_outside(outside: Tensor, bins: Bins) -> None:
    """``ValueError`` where a score lies outside of the bins."""
    message = f"distance must give values from {bins.low:g} to {bins.high:g}, the range of the histogram"
    if outside.is_cuda:
        # Reading the answer would stop the queue.
        torch._assert_async(~outside, message)
    elif outside:
        raise ValueError(f"{message}, got values outside of it; use CosineSimilarity, or scale the distance")


# ---- the operators -----------------------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, float low, float delta, int count, str score, bool itself, "
    "bool triplets"
)


def _check_backend() -> None:
    if current().backend not in ("auto", "chunked"):
        raise ValueError(
            f"backend {current().backend!r} cannot run this: {REFUSAL}; choose backend='chunked', or backend='auto'"
        )


REFUSAL = "histograms of all pairs or triplets have strips of torch only"


def _histogram(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: float, delta: float, count: int, score: str, itself: bool,
    triplets: bool,
) -> Tensor:  # fmt: skip
    _check_backend()
    sc = Score.decode(score)
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        unit = rows.unit()
        sweep = Sweep(unit, unit if cols is rows else cols.unit(), x_labels, y_labels, sc, Bins(low, delta, count), itself)
        return sweep.triplet_sums().unsqueeze(0) if triplets else sweep.pair_sums()


def _histogram_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: float, delta: float, count: int, score: str, itself: bool,
    triplets: bool,
) -> Tensor:  # fmt: skip
    return x.new_empty((1, 3, count) if triplets else (2, 2, count), dtype=torch.float64)


def _histogram_grad(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: float, delta: float, count: int, score: str, itself: bool,
    triplets: bool, grad: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check_backend()
    sc = Score.decode(score)
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        unit = rows.unit()
        sweep = Sweep(unit, unit if cols is rows else cols.unit(), x_labels, y_labels, sc, Bins(low, delta, count), itself)
        need_y = need_y and not shared(itself, score)
        dx, dy = sweep.triplet_grads(grad[0], need_x, need_y) if triplets else sweep.pair_grads(grad, need_x, need_y)
        return rows.back(dx), cols.back(dy)


def _histogram_grad_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: float, delta: float, count: int, score: str, itself: bool,
    triplets: bool, grad: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[4:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 10
    refuse_double_backward()
    score, itself = ctx.rest[3], ctx.rest[4]
    need_x, need_y = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not shared(itself, score)
    dx, dy = torch.ops.pml_fast.histogram_grad(*ctx.saved_tensors, *ctx.rest, grad, need_x, need_y)
    return (dx if need_x else None, dy if need_y else None, *(None,) * 8)


define("histogram", f"({_ARGUMENTS}) -> Tensor", _histogram, _histogram_fake)
define(
    "histogram_grad",
    f"({_ARGUMENTS}, Tensor grad, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _histogram_grad,
    _histogram_grad_fake,
)
differentiable("histogram", _context, _backward)
