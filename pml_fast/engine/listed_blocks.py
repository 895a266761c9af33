"""Sums over lists of triplets that come a block at a time: nothing as long as all of them is held."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.fold import Fold, inside
from pml_fast.engine.operator import refuse_double_backward
from pml_fast.engine.recompute import strip_scores, unit
from pml_fast.engine.score import Score
from pml_fast.utils.index_types import TripletIndices

# The sum of a block's losses, differentiable by the tensors, and how many these are.
Sum = Callable[..., tuple[Tensor, Tensor]]


class _OverBlocks(torch.autograd.Function):
    """A sum has its gradient as soon as a block is there: none is seen twice."""

    @staticmethod
    def forward(ctx: Any, function: Sum, blocks: Iterable[TripletIndices], *tensors: Tensor) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[2:]
        totals = torch.zeros(2, dtype=torch.float64, device=tensors[0].device)
        grads = [torch.zeros_like(part) for part, need in zip(tensors, wanted, strict=True) if need]
        for block in blocks:
            with torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                leaves = [part.detach().requires_grad_(need) for part, need in zip(tensors, wanted, strict=True)]
                value, count = function(block, *leaves)
            totals += torch.stack([value.detach().double(), count.double()])
            if grads:
                own = [leaf for leaf in leaves if leaf.requires_grad]
                for total, more in zip(grads, torch.autograd.grad(value, own), strict=True):
                    total += more
        ctx.wanted = wanted
        ctx.save_for_backward(*grads)
        value, count = totals.to(tensors[0].dtype).unbind()
        ctx.mark_non_differentiable(count)
        return value, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        grads = iter(ctx.saved_tensors)
        return (None, None, *(next(grads) * grad if need else None for need in ctx.wanted))


def triplet_loss_of_blocks(
    blocks: Iterable[TripletIndices], x: Tensor, y: Tensor, score: Score, fold: Fold, margin: float, smooth: bool
) -> Tensor:
    """The triplet margin loss of all blocks, reduced by a fold under which every anchor weighs the same.

    A block's anchors are in ascending order, and few: their scores ``[n, M]`` are computed at once.
    """

    def losses(block: TripletIndices, x: Tensor, *other: Tensor) -> tuple[Tensor, Tensor]:
        a, p, n = block
        first, last = int(a[0]), int(a[-1]) + 1
        s, row = strip_scores(score, x[first:last], other[0] if other else x), a - first
        violation = score.sign * (s[row, n] - s[row, p]) + margin
        loss = torch.nn.functional.softplus(violation) if smooth else torch.relu(violation)
        kept = inside(loss.detach(), *fold.pair_limits())
        return torch.where(kept, loss, 0.0).sum(), kept.sum()

    rows = unit(score, x)
    tensors = (rows,) if y is x else (rows, unit(score, y))
    value, count = _OverBlocks.apply(losses, blocks, *tensors)
    return value if fold.kind == "sum" else value / count.clamp(min=1)
