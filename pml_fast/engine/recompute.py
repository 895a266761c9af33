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

from pml_fast.engine import grad_sum
from pml_fast.engine.operator import define, differentiable, grad_like, refuse_double_backward
from pml_fast.engine.score import NORM_EPS, Score, _powered, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.strips import strip_base, strip_grads


def unit(score: Score, x: Tensor) -> Tensor:
    """Rows as a score compares them, differentiable."""
    wide = x.to(compute_type(x.dtype))
    return torch.nn.functional.normalize(wide, dim=1, eps=NORM_EPS) if score.normalize else wide


def strip_scores(score: Score, x: Tensor, y: Tensor) -> Tensor:
    """Scores ``[n, M]`` of prepared rows, differentiable, with a gradient of 0 at a distance of 0."""
    plain = Score(score.kind, score.p, 1.0, False, score.inverted, score.symmetric)
    return _powered(score, torch.ops.pml_fast.strip_base(x, y, plain.encode()))


def over_rows(function: Callable[[int, int], Tensor], n: int, width: int) -> Tensor:
    """``function(first, last)`` over ranges of ``n`` rows whose strips have ``width`` columns, joined along the last dimension.

    What the function computes is not kept for the backward, but computed again there.
    """
    step = max(1, grad_sum.STRIP_ELEMENTS // max(width, 1))
    ranges = [(first, min(n, first + step)) for first in range(0, n, step)] or [(0, 0)]
    parts = [_recomputed(function, first, last) for first, last in ranges]
    return torch.cat(parts, dim=-1)


def _recomputed(function: Callable[[int, int], Tensor], first: int, last: int) -> Tensor:
    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        if not torch.is_grad_enabled():
            return function(first, last)
        options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
        result: Tensor = checkpoint(function, first, last, **options)
        return result


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
    dx, dy = torch.ops.pml_fast.strip_base_grad(*ctx.saved_tensors, grad.contiguous(), ctx.score, need_x, need_y)
    return (dx if need_x else None), (dy if need_y else None), None


define("strip_base", "(Tensor x, Tensor y, str score) -> Tensor", _strip_base, _strip_base_fake)
define(
    "strip_base_grad",
    "(Tensor x, Tensor y, Tensor base, Tensor grad, str score, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _strip_base_grad,
    _strip_base_grad_fake,
)
differentiable("strip_base", _context, _backward)
