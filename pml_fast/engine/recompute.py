"""Strips that autograd recomputes in the backward: for losses whose maths no operator's schema can carry.

A spec with tensors among its parameters, or pairs of another shape than rows against columns, is written as a function of a
range of rows. Its strips live one at a time, in the forward as in the backward, and every tensor it reads gets its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pml_fast.engine import grad_sum, operator
from pml_fast.engine.operator import define, differentiable, grad_like, refuse_double_backward
from pml_fast.engine.score import NORM_EPS, Score, _powered, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.strips import strip_base, strip_grads

# Scores up to which a single range is kept for the backward: computing it again would take longer than it takes memory.
KEPT_ELEMENTS = 1 << 16

# A number of each row of a range ``[.., last - first]``, given the range and the tensors.
Rowwise = Callable[..., Tensor]


def unit(score: Score, x: Tensor) -> Tensor:
    """Rows as a score compares them, differentiable."""
    wide = x.to(compute_type(x.dtype))
    return torch.nn.functional.normalize(wide, dim=1, eps=NORM_EPS) if score.normalize else wide


def strip_scores(score: Score, x: Tensor, y: Tensor) -> Tensor:
    """Scores ``[n, M]`` of prepared rows, differentiable, with a gradient of 0 at a distance of 0."""
    plain = Score(score.kind, score.p, 1.0, False, score.inverted, score.symmetric)
    return _powered(score, operator.call("strip_base", x, y, plain.encode()))


def over_rows(function: Rowwise, n: int, width: int, *tensors: Tensor) -> Tensor:
    """``function(first, last, *tensors)`` over ranges of ``n`` rows, joined along the last dimension.

    The strips of a range have ``width`` columns. What the function computes is not kept for the backward, but computed again
    there, unless it is little. ``tensors`` are those it is to be differentiated by.
    """
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        if n * width <= KEPT_ELEMENTS and len(_ranges(n, width)) == 1:
            return function(0, n, *tensors)
        if not torch.compiler.is_compiling():
            result: Tensor = _OverRows.apply(function, n, width, *tensors)
            return result
        # A traced graph knows checkpoints, and no gradients taken inside of a formula.
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(function, *ends, *tensors, **options) for ends in _ranges(n, width)], dim=-1)


def _ranges(n: int, width: int) -> list[tuple[int, int]]:
    step = max(1, grad_sum.STRIP_ELEMENTS // max(width, 1))
    return [(first, min(n, first + step)) for first in range(0, n, step)] or [(0, 0)]


class _OverRows(torch.autograd.Function):
    """One node for all ranges: a node a range would leave the allocator a pinned hole after each strip."""

    @staticmethod
    def forward(ctx: Any, function: Rowwise, n: int, width: int, *tensors: Tensor) -> Tensor:
        ctx.function, ctx.ranges = function, _ranges(n, width)
        ctx.save_for_backward(*tensors)
        joined: Tensor | None = None
        for first, last in ctx.ranges:
            part = function(first, last, *tensors)
            joined = part.new_empty(*part.shape[:-1], n) if joined is None else joined
            joined[..., first:last] = part
        assert joined is not None
        return joined

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        refuse_double_backward()
        # Read once: a checkpoint around the loss hands each tensor out one time.
        wanted, tensors = ctx.needs_input_grad[3:], ctx.saved_tensors
        sums = [torch.zeros_like(part) if need else None for part, need in zip(tensors, wanted, strict=True)]
        for first, last in ctx.ranges:
            with torch.enable_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
                leaves = [part.detach().requires_grad_(need) for part, need in zip(tensors, wanted, strict=True)]
                part = ctx.function(first, last, *leaves)
            own = [leaf for leaf in leaves if leaf.requires_grad]
            found = torch.autograd.grad(part, own, grad[..., first:last], allow_unused=True)
            for total, more in zip([total for total in sums if total is not None], found, strict=True):
                if more is not None:
                    total += more
        return (None, None, None, *sums)


def _strip_base(x: Tensor, y: Tensor, score: str) -> Tensor:
    with math_precision():
        return strip_base(Score.decode(score), x, y)


def _strip_base_fake(x: Tensor, y: Tensor, score: str) -> Tensor:
    return x.new_empty(x.shape[0], y.shape[0])


def _strip_base_grad(
    x: Tensor, y: Tensor, base: Tensor, grad: Tensor, score: str, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor]:
    with math_precision():
        dx, dy = strip_grads(Score.decode(score), x, y, base, grad, need_x, need_y)
    return x.new_empty(0) if dx is None else dx, y.new_empty(0) if dy is None else dy


def _strip_base_grad_fake(
    x: Tensor, y: Tensor, base: Tensor, grad: Tensor, score: str, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor]:
    return grad_like(x, need_x), grad_like(y, need_y)


def _context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output)
    ctx.score = inputs[2]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    refuse_double_backward()
    need_x, need_y = ctx.needs_input_grad[:2]
    dx, dy = operator.call("strip_base_grad", *ctx.saved_tensors, grad.contiguous(), ctx.score, need_x, need_y)
    return (dx if need_x else None), (dy if need_y else None), None


define("strip_base", "(Tensor x, Tensor y, str score) -> Tensor", _strip_base, _strip_base_fake)
define(
    "strip_base_grad",
    "(Tensor x, Tensor y, Tensor base, Tensor grad, str score, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _strip_base_grad,
    _strip_base_grad_fake,
)
differentiable("strip_base", _context, _backward)
