"""VICReg's terms of two views of a batch, and their gradient in one product a view."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import operator
from pml_fast.engine.operator import define, differentiable, refuse_double_backward
from pml_fast.engine.score import compute_type
from pml_fast.engine.settings import math_precision


def _vicreg_terms(
    x: Tensor, y: Tensor, invariance: float, variance: float, covariance: float, eps: float
) -> tuple[Tensor, ...]:
    n, d = x.shape
    freedom = n - 1 if n > 1 else float("nan")
    with math_precision():
        z = torch.stack([x, y]).to(compute_type(x.dtype))
        apart = (z[0] - z[1]).square_().mean(dim=1).mul_(invariance)
        spread, mean = torch.var_mean(z, dim=1, keepdim=True)
        z -= mean
        deviation = spread.squeeze(1).add_(eps).sqrt_()
        lack = torch.relu(1 - deviation).mul_(variance / 2)
        # By the centred rows: slope times a row is the variance's part of the gradient.
        slope = (deviation < 1) * (-variance / (2 * freedom)) / deviation
        products = z.mT @ z
        products.diagonal(dim1=1, dim2=2).zero_()
        scale = covariance / (freedom**2 * d)
        flat = products.view(-1)
        total = torch.dot(flat, flat).mul_(scale)
        return apart, lack[0].clone(), lack[1].clone(), total, z, products.mul_(4 * scale), slope


def _vicreg_terms_fake(
    x: Tensor, y: Tensor, invariance: float, variance: float, covariance: float, eps: float
) -> tuple[Tensor, ...]:
    (n, d), wide = x.shape, compute_type(x.dtype)
    shapes: list[tuple[int, ...]] = [(n,), (d,), (d,), (), (2, n, d), (2, d, d), (2, d)]
    return tuple(x.new_empty(shape, dtype=wide) for shape in shapes)


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, invariance = inputs[:3]
    ctx.invariance = invariance
    ctx.save_for_backward(x, y, *output[4:])
    ctx.mark_non_differentiable(*output[4:])


def _backward(ctx: Any, by_apart: Tensor, by_first: Tensor, by_second: Tensor, by_total: Tensor, *_: Any) -> tuple[Any, ...]:
    refuse_double_backward()
    x, y, z, products, slope = ctx.saved_tensors
    with math_precision():
        h = products * by_total
        h.diagonal(dim1=1, dim2=2).copy_(slope * torch.stack([by_first, by_second]))
        apart = (x.to(z.dtype) - y.to(z.dtype)).mul_(by_apart.mul(2 * ctx.invariance / x.shape[1]).unsqueeze(1))
        grads = [
            torch.addmm(apart, z[side], h[side], beta=sign).to(view.dtype) if needed else None
            for side, sign, view, needed in ((0, 1, x, ctx.needs_input_grad[0]), (1, -1, y, ctx.needs_input_grad[1]))
        ]
    return (*grads, None, None, None, None)


define(
    "vicreg_terms",
    "(Tensor x, Tensor y, float invariance, float variance, float covariance, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _vicreg_terms,
    _vicreg_terms_fake,
)
differentiable("vicreg_terms", _context, _backward)


def vicreg_terms(
    x: Tensor, y: Tensor, invariance: float, variance: float, covariance: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The terms of two views ``[N, D]``, times their weights.

    Returns the squared differences of the samples' views ``[N]``, what the features' standard deviations lack of 1 in either
    view ``[D]`` and ``[D]``, and the squared covariances of different features of both views, one number. With ``Z`` centred,
    the gradient of a view is ``Z (k C + diag(v))``: ``C`` holds the covariances, ``v`` what each variance asks for.
    """
    return operator.call("vicreg_terms", x, y, invariance, variance, covariance, eps)[:4]
