"""The class engine's oracle: the whole matrix of scores, differentiated by autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.autograd import autograd_enabled
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores
from pml_fast.engine.score import dense_scores
from pml_fast.engine.views import DenseSide


def class_scores(problem: ClassProblem, keep: bool) -> ClassScores:
    """All scores at once."""
    others, target, norms = _dense(problem, problem.x, problem.y)
    return ClassScores(others, target, norms, problem.x.new_empty(0))


def class_grads(
    problem: ClassProblem, state: ClassScores, grads: ClassGrads, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Autograd's gradients by the rows and by the weights."""
    with autograd_enabled():
        x, y = problem.x.detach().requires_grad_(), problem.y.detach().requires_grad_()
        others, target, norms = _dense(problem, x, y)
        total = torch.where(grads.others != 0, others * grads.others, 0.0).sum() + (target * grads.target).sum()
        if grads.norms is not None:
            total = total + (norms * grads.norms).sum()
        dx, dy = torch.autograd.grad(total, (x, y), allow_unused=True, materialize_grads=True)
    return (_laid_out_as(x, dx) if need_x else None), (_laid_out_as(y, dy) if need_y else None)


def _laid_out_as(tensor: Tensor, grad: Tensor) -> Tensor:
    """A gradient in the memory order of its tensor, as the operator promises."""
    return torch.empty_like(tensor).copy_(grad)


def _dense(problem: ClassProblem, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    spec, labels = problem.spec, problem.target
    weights = y.to(x.dtype)
    pooled = spec.pooled(dense_scores(spec.score, x, spec.columns(weights)))
    own = labels.unsqueeze(1) == torch.arange(problem.classes, device=labels.device)
    target = pooled.gather(1, labels.unsqueeze(1)).squeeze(1)
    norms = torch.linalg.vector_norm(weights, dim=1)[labels] if spec.norms else x.new_zeros(0)
    if spec.fold == "row_squares":
        return torch.where(own, 0.0, pooled.clamp(-1, 1).square()).sum(dim=1), target, norms
    z = pooled * spec.scale
    if problem.bias is not None:
        z = z + problem.bias.unsqueeze(1)
    if spec.fold == "class_lse":
        z, own = z.T, own.T
    return DenseSide(z, ~own).logsumexp(z), target, norms
