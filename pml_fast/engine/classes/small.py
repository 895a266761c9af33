"""A few scores in plain torch: where the whole matrix is smaller than a block, an operator's own calls would take longest."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.classes.problem import ClassProblem, ClassScores
from pml_fast.engine.score import dense_scores
from pml_fast.engine.settings import current
from pml_fast.engine.views import DenseSide

NEG_INF = float("-inf")


def is_small(n: int, m: int, d: int, device: torch.device) -> bool:
    """Whether plain torch takes the scores of ``n`` rows against ``m`` weights under the settings in force."""
    if max(2 * n * m, m * d) > grad_sum.STRIP_ELEMENTS // 4 or device.type not in ("cpu", "cuda"):
        return False
    # Autocast would round the products, a precision or backend that was asked for is the operator's to keep.
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type):
        return False
    return current().backend == "auto" and current().precision is None


def class_scores(problem: ClassProblem) -> ClassScores:
    """What the operator gives, by autograd's own graph."""
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
