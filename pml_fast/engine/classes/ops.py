"""The operator of the class engine: one schema, one fake and one autograd formula for every class loss.

It gives, for each row (or class), the fold over all pairs of different classes and the score of each row's own class. A loss is
a function of these N (or C) numbers, written in torch: margins, miners' weights and reducers act on them and are
differentiated by autograd; the matrix of scores is known to the operator alone, block by block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import dispatch, operator
from pml_fast.engine.classes import small
from pml_fast.engine.classes.blocks import is_one_block, kept_classes
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores
from pml_fast.engine.classes.spec import ClassSpec, prepared_rows
from pml_fast.engine.operator import define, differentiable, refuse_double_backward
from pml_fast.engine.score import compute_type
from pml_fast.engine.settings import math_precision

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def _class_scores(x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None, spec: str, keep: bool) -> Outputs:
    problem = ClassProblem(ClassSpec.decode(spec), x, y, target, bias)
    with math_precision():
        found = dispatch.select(problem).class_scores(problem, keep)
    return found.others, found.target, found.norms, found.kept


def _class_scores_fake(x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None, spec: str, keep: bool) -> Outputs:
    problem = ClassProblem(ClassSpec.decode(spec), x, y, target, bias)
    n, m, centers = x.shape[0], y.shape[0], problem.spec.centers
    chosen = dispatch.select(problem).name
    kept: int | tuple[int, int] = 0
    if keep and chosen == "cpu":
        kept = n * centers * kept_classes(problem)
    elif keep and chosen == "chunked" and is_one_block(n, m, y.shape[1], centers):
        kept = (n, m)
    return (
        x.new_empty(problem.folded),
        x.new_empty(n),
        x.new_empty(n if problem.spec.norms else 0),
        x.new_empty(kept),
    )


def _class_grads(
    x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None, spec: str, others: Tensor, kept: Tensor, d_others: Tensor,
    d_target: Tensor, d_norms: Tensor | None, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    problem = ClassProblem(ClassSpec.decode(spec), x, y, target, bias)
    state = ClassScores(others, d_target, others.new_empty(0), kept)
    grads = ClassGrads(d_others, d_target, d_norms if problem.spec.norms else None)
    with math_precision():
        dx, dy = dispatch.select(problem).class_grads(problem, state, grads, need_x, need_y)
    return x.new_empty(0) if dx is None else dx, y.new_empty(0) if dy is None else dy


def _class_grads_fake(
    x: Tensor, y: Tensor, target: Tensor, bias: Tensor | None, spec: str, others: Tensor, kept: Tensor, d_others: Tensor,
    d_target: Tensor, d_norms: Tensor | None, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return (torch.empty_like(x) if need_x else x.new_empty(0)), (torch.empty_like(y) if need_y else y.new_empty(0))


def _context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
    x, y, target, bias, spec, _ = inputs
    ctx.save_for_backward(x, y, target, bias, output[0], output[3])
    ctx.spec = spec
    ctx.mark_non_differentiable(output[3])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_others: Tensor | None, d_target: Tensor | None, d_norms: Tensor | None, _: Any) -> tuple[Any, ...]:
    if d_others is None and d_target is None and d_norms is None:
        return (None,) * 6
    refuse_double_backward()
    x, y, target, bias, others, kept = ctx.saved_tensors
    d_others = torch.zeros_like(others) if d_others is None else d_others
    d_target = x.new_zeros(x.shape[0]) if d_target is None else d_target
    need_x, need_y = ctx.needs_input_grad[:2]
    dx, dy = operator.call(
        "class_scores_grad", x, y, target, bias, ctx.spec, others, kept, d_others, d_target, d_norms, need_x, need_y
    )
    return (dx if need_x else None), (dy if need_y else None), None, None, None, None


define(
    "class_scores",
    "(Tensor x, Tensor y, Tensor target, Tensor? bias, str spec, bool keep) -> (Tensor, Tensor, Tensor, Tensor)",
    _class_scores,
    _class_scores_fake,
)
define(
    "class_scores_grad",
    "(Tensor x, Tensor y, Tensor target, Tensor? bias, str spec, Tensor others, Tensor kept, Tensor d_others, "
    "Tensor d_target, Tensor? d_norms, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _class_grads,
    _class_grads_fake,
)
differentiable("class_scores", _context, _backward)


def class_scores(x: Tensor, y: Tensor, target: Tensor, spec: ClassSpec, bias: Tensor | None = None) -> ClassScores:
    """The fold, the rows' own scores and norms, differentiable by the rows ``x [N, D]`` and the weights ``y``.

    A few scores take a shorter way (:mod:`pml_fast.engine.classes.small`), all
    others the operator.
    """
    x = x.to(compute_type(torch.promote_types(x.dtype, y.dtype)))
    if small.is_small(x.shape[0], y.shape[0], y.shape[1], x.device):
        return small.class_scores(x, y, target, spec, bias)
    x = prepared_rows(x, spec)
    keep = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)
    others, own, norms, kept = operator.call("class_scores", x, y, target, bias, spec.encode(), keep)
    return ClassScores(others, own, norms, kept)
