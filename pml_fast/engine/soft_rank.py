"""How many pairs of a row rank above one of its positives, softly: without a tensor of rows x positives x columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.views import DenseSide, Side, View

# Numbers that a block holds for each positive and column.
_WIDTH = 4


def dense_mask(side: Side) -> Tensor:
    """The mask of a side that is a strip of the matrix."""
    if not isinstance(side, DenseSide):
        raise TypeError(f"this formula reads strips of the score matrix, got a {type(side).__name__}")
    return side.mask


def with_self(view: View) -> Tensor:
    """``[rows, M]``: the positives and, of a batch against itself, each row itself."""
    mask = dense_mask(view.pos)
    return mask if view.comparable is None else mask | ~view.comparable


def slots(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The columns that are marked in each row as a table ``[rows, P]``, and which of its entries are there.

    ``P``, the most that a row has, is read on the host: one synchronisation on an accelerator.
    """
    count = mask.sum(dim=1)
    row, column = mask.nonzero(as_tuple=True)
    width = int(count.max()) if len(count) else 0
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    at = column.new_zeros(len(count), width)
    at[row, place] = column
    return at, torch.arange(width, device=row.device) < count.unsqueeze(1)


def soft_rank(z: Tensor, at: Tensor, has: Tensor, mask: Tensor) -> Tensor:
    """``sum over k in mask of sigmoid(z_ik - z_ij)`` for each ``j`` of ``at``: ``[rows, P]``, 0 where ``has`` is not.

    ``z`` is ``[rows, M]``, differentiable. Sums and derivatives are taken for a few positives at a time, about as much
    memory as a strip; the derivative computes the sigmoids again.
    """
    result: Tensor = _SoftRank.apply(z, at, has, mask)
    return result


def _blocks(z: Tensor, at: Tensor) -> Iterator[slice]:
    step = max(1, grad_sum.STRIP_ELEMENTS // (_WIDTH * max(z.numel(), 1)))
    return (slice(k, k + step) for k in range(0, at.shape[1], step))


def _above(z: Tensor, own: Tensor, block: slice) -> Tensor:
    """``[rows, block, M]``: how far each column ranks above each positive, from 0 to 1."""
    return (z.unsqueeze(1) - own[:, block].unsqueeze(2)).sigmoid_()


class _SoftRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, at: Tensor, has: Tensor, mask: Tensor) -> Tensor:
        # The sigmoid of -inf is 0, and so is its derivative: what is masked needs no other care.
        kept, own = z.masked_fill(~mask, float("-inf")), z.gather(1, at)
        rank = z.new_zeros(at.shape)
        for block in _blocks(z, at):
            rank[:, block] = _above(kept, own, block).sum(dim=2)
        ctx.save_for_backward(kept, own, at, has)
        return rank.masked_fill_(~has, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kept, own, at, has = ctx.saved_tensors
        grad = torch.where(has, grad, 0.0)
        dz, d_own = torch.zeros_like(kept), torch.zeros_like(own)
        for block in _blocks(kept, at):
            above = _above(kept, own, block)
            slope = above.addcmul_(above, above, value=-1.0).mul_(grad[:, block].unsqueeze(2))
            dz += slope.sum(dim=1)
            d_own[:, block] = slope.sum(dim=2)
        return dz.scatter_add_(1, at, d_own.neg_()), None, None, None
