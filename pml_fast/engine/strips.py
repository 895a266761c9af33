"""Scores of a strip of rows in pure torch, and the way back from dL/dscore to the rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.score import Score

# |x|^2 + |y|^2 - 2xy loses digits near zero: below this share of the norms the distance is taken again by differences.
NEAR = 1e-2


def strip_base(score: Score, x: Tensor, y: Tensor) -> Tensor:
    """Inner products or distances ``[n, M]`` of prepared rows, before the score's power; without a graph."""
    if score.kind == "dot":
        return x @ y.T
    if score.kind == "l2":
        # Data-dependent size: fine on the CPU, a host synchronisation on a GPU.
        return strip_squares(x, y, exact=x.device.type == "cpu").sqrt_()
    return torch.cdist(x, y, p=score.p)


def powered(score: Score, base: Tensor) -> Tensor:
    """The score of a base."""
    return base if score.power == 1 else base**score.power


def strip_squares(x: Tensor, y: Tensor, exact: bool) -> Tensor:
    """Squared Euclidean distances ``[n, M]``; ``exact`` takes the small ones again by differences, whose number is read."""
    norms = x.square().sum(dim=1, keepdim=True) + y.square().sum(dim=1)
    square = torch.addmm(norms, x, y.T, alpha=-2.0).clamp_(min=0)
    if exact:
        i, j = torch.nonzero(square < norms.mul_(NEAR), as_tuple=True)
        for part_i, part_j in zip(i.split(65536), j.split(65536), strict=True):
            square[part_i, part_j] = (x[part_i] - y[part_j]).square().sum(dim=1)
    return square


def strip_grads(
    score: Score, x: Tensor, y: Tensor, base: Tensor, c: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by the strip's rows ``x`` and by all columns ``y`` of ``sum(c * score)``."""
    if score.power != 1:
        c = torch.where(base != 0, c * score.power * base ** (score.power - 1), 0.0)
    if score.kind == "dot":
        return (c @ y if need_x else None), (c.T @ x if need_y else None)
    if score.kind == "l2":
        h = torch.where(base != 0, c / base, 0.0)
        dx = torch.addmm(h.sum(dim=1, keepdim=True) * x, h, y, alpha=-1.0) if need_x else None
        dy = torch.addmm(h.sum(dim=0).unsqueeze(1) * y, h.T, x, alpha=-1.0) if need_y else None
        return dx, dy
    back = torch.ops.aten._cdist_backward
    dx = back(c.contiguous(), x.contiguous(), y.contiguous(), score.p, base.contiguous()) if need_x else None
    dy = back(c.T.contiguous(), y.contiguous(), x.contiguous(), score.p, base.T.contiguous()) if need_y else None
    return dx, dy
