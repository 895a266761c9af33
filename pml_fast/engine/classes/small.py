"""A few scores, where the whole matrix is smaller than a block and an operator's own calls would take longest.

The compiled kernels are called without the operator around them; plain torch takes what they refuse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import dispatch, grad_sum
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores
from pml_fast.engine.operator import refuse_double_backward
from pml_fast.engine.score import dense_scores
from pml_fast.engine.settings import current
from pml_fast.engine.views import DenseSide

NEG_INF = float("-inf")
FEWEST = 1 << 15


def is_small(n: int, m: int, d: int, device: torch.device) -> bool:
    """Whether scores of ``n`` rows against ``m`` weights take no operator under the settings in force."""
    if max(2 * n * m, m * d) > grad_sum.STRIP_ELEMENTS // 4 or device.type not in ("cpu", "cuda"):
        return False
    # Autocast would round the products, a precision or backend that was asked for is the operator's to keep.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type):
        return False
    return current().backend == "auto" and current().precision is None


def is_compiled(problem: ClassProblem) -> bool:
    """Whether the compiled kernels take a small problem: with fewer scores their calls take longer than plain torch."""
    return problem.x.shape[0] * problem.y.shape[0] >= FEWEST and dispatch.select(problem).name == "cpu"


def class_scores(problem: ClassProblem) -> ClassScores:
    """What the operator gives."""
    if not is_compiled(problem):
        return _plain_scores(problem)
    if torch.is_grad_enabled() and (problem.x.requires_grad or problem.y.requires_grad):
        others, target, norms = _Compiled.apply(problem.x, problem.y, problem)
        return ClassScores(others, target, norms, problem.x.new_empty(0))
    found: ClassScores = dispatch.backend("cpu").class_scores(problem, False)
    return found


class _Compiled(torch.autograd.Function):
    """The compiled kernels, differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, problem: ClassProblem) -> tuple[Tensor, Tensor, Tensor]:
        found: ClassScores = dispatch.backend("cpu").class_scores(problem, True)
        ctx.save_for_backward(x, y, problem.target, problem.bias, found.others)
        ctx.spec, ctx.kept = problem.spec, found.kept
        ctx.set_materialize_grads(False)
        return found.others, found.target, found.norms

    @staticmethod
    def backward(
        ctx: Any, d_others: Tensor | None, d_target: Tensor | None, d_norms: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        refuse_double_backward()
        x, y, target, bias, others = ctx.saved_tensors
        grads = ClassGrads(
            torch.zeros_like(others) if d_others is None else d_others,
            x.new_zeros(x.shape[0]) if d_target is None else d_target,
            d_norms if ctx.spec.norms else None,
        )
        state = ClassScores(others, grads.target, others, ctx.kept)
        need_x, need_y = ctx.needs_input_grad[:2]
        problem = ClassProblem(ctx.spec, x, y, target, bias)
        dx, dy = dispatch.backend("cpu").class_grads(problem, state, grads, need_x, need_y)
        return dx, dy, None


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
