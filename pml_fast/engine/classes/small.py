"""A few scores, where the whole matrix is smaller than a block and an operator's own calls would take longest.

Two compiled calls, one each way, take a batch from its rows to their gradients; plain torch takes what they refuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine import grad_sum
from pml_fast.engine.classes.problem import ClassProblem, ClassScores
from pml_fast.engine.classes.spec import ClassSpec, prepared_rows
from pml_fast.engine.cpu import small_classes
from pml_fast.engine.operator import are_plain, refuse_double_backward
from pml_fast.engine.score import dense_scores
from pml_fast.engine.settings import current
from pml_fast.engine.views import DenseSide

NEG_INF = float("-inf")


def is_small(n: int, m: int, d: int, device: torch.device) -> bool:
    """Whether scores of ``n`` rows against ``m`` weights take no operator under the settings in force."""
    if max(2 * n * m, m * d) > grad_sum.STRIP_ELEMENTS // 4 or device.type not in ("cpu", "cuda"):
        return False
    # Autocast would round the products, a precision or backend that was asked for is the operator's to keep.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type):
        return False
    return current().backend == "auto" and current().precision is None


def is_compiled(n: int, device: torch.device, spec: ClassSpec) -> bool:
    """Whether compiled calls take ``n`` rows of a small problem."""
    if n == 0 or device.type != "cpu" or _extension.load() is None:
        return False
    return small_classes.takes(spec)


def class_scores(x: Tensor, y: Tensor, target: Tensor, spec: ClassSpec, bias: Tensor | None) -> ClassScores:
    """What the operator gives for rows ``x`` in the type that is computed in, not yet prepared."""
    if are_plain(x, y) and is_compiled(x.shape[0], x.device, spec):
        others, own, norms = _OneCall.apply(x, y.to(x.dtype), target, bias, spec)
        return ClassScores(others, own, norms, norms[:0])
    return _plain_scores(ClassProblem(spec, prepared_rows(x, spec), y, target, bias))


class _OneCall(torch.autograd.Function):
    """The compiled calls, differentiable."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None, spec: ClassSpec
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, target = x.contiguous(), target.contiguous()
        bias = None if bias is None else bias.to(x.dtype).contiguous()
        others, own, norms, state = small_classes.scores(spec, x, y, target, bias)
        ctx.save_for_backward(x, y, target, bias, others, state)
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        return others, own, norms

    @staticmethod
    def backward(ctx: Any, d_others: Tensor | None, d_own: Tensor | None, d_norms: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        x, y, target, bias, others, state = ctx.saved_tensors
        spec = ctx.spec
        dx, dy = small_classes.grads(
            spec, x, y, target, bias, state, others,
            torch.zeros_like(others) if d_others is None else d_others,
            x.new_zeros(x.shape[0]) if d_own is None else d_own,
            d_norms if spec.norms else None, *ctx.needs_input_grad[:2],
        )  # fmt: skip
        return dx, dy, None, None, None


def _plain_scores(problem: ClassProblem) -> ClassScores:
    """By autograd's own graph."""
    spec, x = problem.spec, problem.x
    weights = problem.y.to(x.dtype)
    pooled = spec.pooled(dense_scores(spec.score, x, spec.columns(weights)))
    own = problem.target.unsqueeze(1)
    target = pooled.gather(1, own).squeeze(1)
    norms = torch.linalg.vector_norm(weights[problem.target], dim=1) if spec.norms else x.new_empty(0)
    return ClassScores(_others(problem, pooled, own), target, norms, x.new_empty(0))


def _others(problem: ClassProblem, pooled: Tensor, own: Tensor) -> Tensor:
    spec = problem.spec
    if spec.fold == "row_squares":
        return pooled.clamp(-1, 1).square().scatter(1, own, 0.0).sum(dim=1)
    z = pooled * spec.scale
    if problem.bias is not None:
        z = z + problem.bias.unsqueeze(1)
    if spec.fold == "row_lse" and problem.classes > 1:
        return torch.logsumexp(z.scatter(1, own, NEG_INF), dim=1)
    # Sums that may be empty.
    other = torch.ones_like(z, dtype=torch.bool).scatter_(1, own, False)
    z, other = (z.T, other.T) if spec.fold == "class_lse" else (z, other)
    return DenseSide(z, other).logsumexp(z)
