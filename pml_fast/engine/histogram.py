"""Losses that depend on scores through histograms of all pairs or of all triplets of a batch alone.

Such a loss is computed of a few sums over the bins. A sweep of the scores takes them; the loss's slopes by them are then known,
and a second sweep gives each score the slope of its bin. Sums and loss are kept in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import dispatch
from pml_fast.engine.autograd import autograd_enabled
from pml_fast.engine.bins import Bins, HistogramSpec
from pml_fast.engine.cpu import small_histogram
from pml_fast.engine.operator import (
    both,
    define,
    differentiable,
    grad_like,
    loss_backward,
    loss_context,
    prepared,
    settled,
    shared,
)
from pml_fast.engine.problem import HistogramProblem
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision

# ---- the losses of the sums -------------------------------------------------------------------------------------------------


def overlap(pos: Tensor, neg: Tensor) -> Tensor:
    """``sum over nodes of (share of negatives at the node) * (share of positives up to it)``; 0 without pairs of both kinds.

    ``pos`` and ``neg`` are ``[2, count]``: numbers and parts of the pairs in each bin. Differentiable.
    """
    density, some = [], torch.ones((), dtype=torch.bool, device=pos.device)
    for count, part in (pos, neg):
        # What a pair has passed of its bin is its share of the bin's upper node.
        nodes = torch.nn.functional.pad(count - part, (0, 1)) + torch.nn.functional.pad(part, (1, 0))
        density.append(nodes / count.sum().clamp(min=1))
        some = some & (count.sum() > 0)
    return torch.where(some, (density[1] * density[0].cumsum(0)).sum(), 0.0)


def dynamic_soft_margin(sums: Tensor, before: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    """The mean of the differences, each weighted by the cumulative histogram at its bin (0 for none), and that histogram.

    ``sums`` are ``[3, count]``: numbers, parts and values of the triplets in each bin; ``before`` is the running histogram,
    which no gradient passes. Differentiable.
    """
    count, part, value = sums
    # What a difference has passed of its bin belongs to the next one; there is none after the last.
    added = count - part + torch.cat([part.new_zeros(1), part[:-1]])
    added = torch.cat([added[:-1], added[-1:] + part[-1:]])
    before = before.detach().to(device=sums.device, dtype=sums.dtype)
    weight = torch.where(before.sum() != 0, before.new_full((), momentum), before.new_ones(()))
    after = (1 - weight) * before + weight * added
    after = after / after.sum()
    total = count.sum()
    some = total > 0
    # Neither an empty batch nor one that is not finite may spoil what was learnt.
    kept = torch.where(some & after.isfinite().all(), after.detach(), before)
    after = torch.where(some, after, before)
    return torch.where(some, (after.cumsum(0) * value).sum() / total.clamp(min=1), 0.0), kept


def refuse_outside(outside: Tensor, bins: Bins) -> None:
    """``ValueError`` where a score lies outside of the bins."""
    message = f"distance must give values from {bins.low:g} to {bins.high:g}, the range of the histogram"
    if outside.is_cuda:
        # Reading the answer would stop the queue.
        torch._assert_async(~outside, message)
    elif outside:
        raise ValueError(f"{message}, got values outside of it; use CosineSimilarity, or scale the distance")


def _loss_of(sums: Tensor, before: Tensor | None, momentum: float) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the histogram to keep (empty for pairs), and the slopes ``[2, count]`` by the parts of either side's pairs, or
    by the parts and the values of the triplets."""
    with autograd_enabled():
        leaf = sums.detach().requires_grad_()
        loss, after = (overlap(*leaf), sums[:0, 0, 0]) if before is None else dynamic_soft_margin(leaf, before, momentum)
        (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), after, grad[:, 1] if before is None else grad[1:]


# ---- the operator ------------------------------------------------------------------------------------------------------------


def _histogram_loss(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, before: Tensor | None, low: float, delta: float, count: int,
    score: str, itself: bool, momentum: float, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sc, wide = Score.decode(score), compute_type(x.dtype)
    spec = HistogramSpec(Bins(low, delta, count), before is not None)
    if itself and small_histogram.applies(x, sc):
        outside, loss, after, dx = small_histogram.loss(x, x_labels, spec, sc, before, momentum, need_x)
        refuse_outside(outside, spec.bins)
        return loss, after, dx if loss else settled(loss, dx), x.new_empty(0)
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        problem = HistogramProblem(spec, sc, rows.x, cols.x, x_labels, y_labels, itself)
        backend = dispatch.select(problem)
        problem = prepared(problem, backend, rows, cols)
        state = backend.histogram_sums(problem, need_x or need_y)
        refuse_outside(state.outside, spec.bins)
        value, after, slopes = _loss_of(state.sums, before, momentum)
        loss, after = value.to(wide), after.to(wide)
        by_x = by_y = None
        if need_x or need_y:
            by_x, by_y = backend.histogram_grads(problem, state, slopes, need_x, need_y and not shared(itself, score))
        return loss, after, settled(loss, rows.back(by_x)), settled(loss, cols.back(by_y))


def _histogram_loss_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, before: Tensor | None, low: float, delta: float, count: int,
    score: str, itself: bool, momentum: float, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss, after = (x.new_empty(shape, dtype=compute_type(x.dtype)) for shape in ((), (0 if before is None else count,)))
    return loss, after, grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    loss_context(ctx, inputs, output)
    # The running histogram is a constant to later batches.
    ctx.mark_non_differentiable(output[1])


define(
    "histogram_loss",
    "(Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, Tensor? before, float low, float delta, int count, str score, "
    "bool itself, float momentum, bool need_x, bool need_y) -> (Tensor, Tensor, Tensor, Tensor)",
    _histogram_loss,
    _histogram_loss_fake,
)
differentiable("histogram_loss", _context, loss_backward, results=2)
