"""Rows that stand for pairs: their inner product with a negative is the exponent of the angular loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.cpu import indexed
from pml_fast.engine.listed_sums import add_at
from pml_fast.engine.operator import Rows, both, refuse_double_backward
from pml_fast.engine.score import Score


def pair_exponents(
    x: Tensor, y: Tensor, negatives: Tensor, slope: Tensor, i: Tensor, j: Tensor, normalize: bool, itself: bool
) -> tuple[Tensor, Tensor]:
    """``4 s (a + p)`` and ``2 (1 + s) a . p`` of each pair ``[K, D + 1]``, and the columns ``(n, -1)`` ``[M, D + 1]``.

    ``a`` and ``p`` are the rows ``i`` of ``x`` and ``j`` of ``y``, divided by their norms where ``normalize``, ``n`` those of
    ``negatives`` and ``s`` the ``slope``. The gradient goes to all four; where ``y`` is ``x`` ``itself``, to ``x`` alone.
    """
    rows, columns = _PairExponents.apply(x, y, negatives, slope, i, j, normalize, itself)
    return rows, columns


class _PairExponents(torch.autograd.Function):
    """The unit rows are taken again for the backward: as many as there are pairs are not kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, negatives: Tensor, slope: Tensor, i: Tensor, j: Tensor, normalize: bool, itself: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, y, slope, i, j)
        ctx.normalize, ctx.itself = normalize, itself
        ctx.set_materialize_grads(False)
        if indexed.takes(x, y, slope):
            rows = indexed.pair_exponents(indexed.Exponents(x, None if itself else y, i, j, float(slope), normalize))
        else:
            rows = _rows(x, y, slope, i, j, normalize, itself)
        return rows, torch.nn.functional.pad(negatives, (0, 1), value=-1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, by_columns: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        x, y, slope, i, j = ctx.saved_tensors
        need_x, need_y, need_negatives, need_slope = ctx.needs_input_grad[:4]
        need_y = need_y and not ctx.itself
        dx = dy = by_slope = None
        if grad is None or not (need_x or need_y or need_slope):
            pass
        elif indexed.takes(x, y, slope):
            pairs = indexed.Exponents(x, None if ctx.itself else y, i, j, float(slope), ctx.normalize)
            dx, dy, sum_ = indexed.pair_exponent_grads(pairs, grad, need_x, need_y)
            by_slope = torch.full_like(slope, sum_) if need_slope else None
        else:
            dx, dy, by_slope = _grads(x, y, slope, i, j, ctx.normalize, ctx.itself, grad, need_x, need_y)
        by_negatives = by_columns[:, :-1] if need_negatives and by_columns is not None else None
        return dx, dy, by_negatives, by_slope, None, None, None, None


def _gathered(x: Tensor, y: Tensor, i: Tensor, j: Tensor, normalize: bool, itself: bool) -> tuple[Rows, Rows, Tensor, Tensor]:
    """Both sets, and the unit rows of each pair."""
    anchors, positives = both(x, y, itself, Score("dot", normalize=normalize))
    unit = anchors.unit()
    return anchors, positives, unit.index_select(0, i), (unit if itself else positives.unit()).index_select(0, j)


def _rows(x: Tensor, y: Tensor, slope: Tensor, i: Tensor, j: Tensor, normalize: bool, itself: bool) -> Tensor:
    *_, a, p = _gathered(x, y, i, j, normalize, itself)
    closeness = (a * p).sum(dim=1, keepdim=True)
    return torch.cat([a.add_(p).mul_(4 * slope), closeness.mul_(2 * (1 + slope))], dim=1)


def _grads(
    x: Tensor, y: Tensor, slope: Tensor, i: Tensor, j: Tensor, normalize: bool, itself: bool, grad: Tensor, need_x: bool,
    need_y: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:  # fmt: skip
    anchors, positives, a, p = _gathered(x, y, i, j, normalize, itself)
    by_sum, by_product = grad[:, :-1], grad[:, -1:]
    by_slope = (4 * (by_sum * (a + p)) + 2 * by_product * (a * p)).sum()
    by_sum, by_product = by_sum * (4 * slope), by_product * (2 * (1 + slope))
    dx = add_at(torch.zeros_like(x), i, torch.addcmul(by_sum, by_product, p)) if need_x else None
    dy = torch.zeros_like(y) if need_y else None
    total = dx if itself else dy
    if total is not None:
        add_at(total, j, torch.addcmul(by_sum, by_product, a))
    return None if dx is None else anchors.back(dx), None if dy is None else positives.back(dy), by_slope
