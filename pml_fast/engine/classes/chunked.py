"""The class engine in pure torch: blocks of classes, an online log-sum-exp, blocks again for the gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.classes.blocks import block_of, class_ranges, is_one_block, row_ranges
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores, add_norm_grads, own_columns, own_norms
from pml_fast.engine.strips import powered

INF = float("inf")


def class_scores(problem: ClassProblem, keep: bool) -> ClassScores:
    """One sweep over the classes; ``keep`` saves the scores for the backward where they are one block."""
    x, y, spec = problem.x, problem.y, problem.spec
    n = x.shape[0]
    keep = keep and is_one_block(n, y.shape[0], y.shape[1], spec.centers)
    others = x.new_full((problem.folded,), 0.0 if spec.fold == "row_squares" else -INF)
    target, kept = x.new_zeros(n), x.new_empty(0)
    for first, last in class_ranges(problem):
        block = block_of(problem, first, last)
        for a, b in row_ranges(n):
            base = block.scores(x[a:b])
            if keep:
                kept = base
            pooled = spec.pooled(powered(spec.score, base))
            column, own = own_columns(problem.target[a:b], first, last)
            target[a:b] = torch.where(own, pooled.gather(1, column), target[a:b].unsqueeze(1)).squeeze(1)
            _fold(problem, others, (first, last), (a, b), pooled, column, own)
    norms = own_norms(problem)[1] if spec.norms else x.new_empty(0)
    return ClassScores(others, target, norms, kept)


def _logits(problem: ClassProblem, a: int, b: int, pooled: Tensor) -> Tensor:
    """``[n, B]``, a tensor of its own."""
    z = pooled * problem.spec.scale
    return z if problem.bias is None else z.add_(problem.bias[a:b].unsqueeze(1))


def _put(values: Tensor, column: Tensor, own: Tensor, new: Tensor | float) -> Tensor:
    """Write ``new`` at each row's own class, where this block has it."""
    return values.scatter_(1, column, torch.where(own, new, values.gather(1, column)))


def _fold(
    problem: ClassProblem, others: Tensor, classes: tuple[int, int], rows: tuple[int, int], pooled: Tensor, column: Tensor,
    own: Tensor,
) -> None:  # fmt: skip
    """Add a block to the fold."""
    a, b = rows
    if problem.spec.fold == "row_squares":
        others[a:b] += _put(pooled.clamp(-1, 1), column, own, 0.0).square_().sum(dim=1)
        return
    z = _put(_logits(problem, a, b, pooled), column, own, -INF)
    dim = 1
    if problem.spec.fold == "class_lse":
        dim, (a, b) = 0, classes
    top = z.amax(dim=dim, keepdim=True)
    shift = torch.where(torch.isinf(top), 0.0, top)
    part = z.sub_(shift).exp_().sum(dim=dim).log_() + shift.squeeze(dim)
    others[a:b] = torch.logaddexp(others[a:b], part)


def class_grads(
    problem: ClassProblem, state: ClassScores, grads: ClassGrads, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients by the rows and by the weights of what ``grads`` are the derivatives of."""
    x, y, spec = problem.x, problem.y, problem.spec
    dx = torch.zeros_like(x) if need_x else None
    # In the memory order of the weights: a parameter takes over such a gradient without a copy.
    dy = torch.empty_like(y) if need_y else None
    for first, last in class_ranges(problem):
        block = block_of(problem, first, last, dy)
        for a, b in row_ranges(x.shape[0]):
            base = state.kept if state.kept.numel() > 0 else block.scores(x[a:b])
            s = powered(spec.score, base)
            pooled = spec.pooled(s)
            column, own = own_columns(problem.target[a:b], first, last)
            c = _derivative(problem, state, grads, (first, last), (a, b), pooled)
            c = _put(c, column, own, grads.target[a:b].unsqueeze(1))
            block.add(x[a:b], None if dx is None else dx[a:b], base, spec.unpooled(c, s))
        if dy is not None:
            block.write()
    if dy is not None and grads.norms is not None:
        add_norm_grads(problem, grads.norms, dy)
    return dx, dy


def _derivative(
    problem: ClassProblem, state: ClassScores, grads: ClassGrads, classes: tuple[int, int], rows: tuple[int, int],
    pooled: Tensor,
) -> Tensor:  # fmt: skip
    """The derivative of the folds by a block of pooled scores, the rows' own classes not yet taken out."""
    a, b = rows
    if problem.spec.fold == "row_squares":
        return torch.where(pooled.abs() <= 1, pooled * (2 * grads.others[a:b]).unsqueeze(1), 0.0)
    dim = 1
    z = _logits(problem, a, b, pooled)
    if problem.spec.fold == "class_lse":
        dim, (a, b) = 0, classes
    lse, weight = state.others[a:b], grads.others[a:b]
    # Without another class there is nothing to share out; what weighs nothing must not overflow.
    shift = torch.where(weight == 0, INF, torch.where(lse == -INF, 0.0, lse))
    return z.sub_(shift.unsqueeze(dim)).exp_().mul_((weight * problem.spec.scale).unsqueeze(dim))
