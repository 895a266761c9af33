"""The operators of the triplet and the indexed engine (see :mod:`pml_fast.engine.ops` for how they are built)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import dispatch, operator
from pml_fast.engine.cpu import small
from pml_fast.engine.fold import Fold, inside, reduce_rows
from pml_fast.engine.listed_sums import add_at
from pml_fast.engine.operator import (
    SETS,
    Rows,
    both,
    define,
    differentiable,
    grad_like,
    loss_backward,
    loss_context,
    prepared,
    refuse_double_backward,
    settled,
    shared,
)
from pml_fast.engine.problem import IndexedProblem, TripletProblem
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.spec import Term, TripletSpec

TERM = Term("loss", "triplet")


def _triplet_loss(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, row_weights: Tensor | None,
    options: Sequence[float], select: str, score: str, itself: bool, fold: str, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sc, reduction = Score.decode(score), Fold.decode(fold)
    if itself and row_weights is None and small.applies(x):
        done = small.triplet_loss(x, x_labels, rule, options, select, sc, reduction, need_x)
        if done is not None:
            return done
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        margin, smooth, swap, select_margin = options
        spec = TripletSpec(margin, bool(smooth), bool(swap), select, select_margin)
        problem = TripletProblem(spec, sc, rows.x, cols.x, x_labels, y_labels, itself, rule, reduction.pair_limits())
        backend = dispatch.select(problem)
        problem = prepared(problem, backend, rows, cols)
        uniform, need = reduction.even(TERM), need_x or need_y
        sums, dx, dy = backend.triplet_rows(problem, need_x, need_y, uniform and need)
        own = None if row_weights is None else row_weights.to(sums.dtype)
        # An anchor without a triplet has no loss, whatever its row holds.
        value = torch.where(sums[1] > 0, sums[0], 0.0)
        loss, w = reduce_rows(reduction, TERM, value, sums[1], own)
        wide = compute_type(x.dtype)
        if need and uniform:
            scale = w[:1].to(wide) if len(w) else 0.0
            dx, dy = (None if g is None else g * scale for g in (dx, dy))
        elif need:
            dx, dy = backend.triplet_grads(problem, w.to(wide), need_x, need_y)
        loss = loss.to(wide)
        return loss, loss.reshape(1).clone(), settled(loss, rows.back(dx)), settled(loss, cols.back(dy))


def _triplet_loss_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, row_weights: Tensor | None,
    options: Sequence[float], select: str, score: str, itself: bool, fold: str, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss = x.new_empty((), dtype=compute_type(x.dtype))
    return loss, loss.new_empty(1), grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


define(
    "triplet_loss",
    f"({SETS}, Tensor? row_weights, float[] options, str select, str score, bool itself, str fold, "
    "bool need_x, bool need_y) -> (Tensor, Tensor, Tensor, Tensor)",
    _triplet_loss,
    _triplet_loss_fake,
)
differentiable("triplet_loss", loss_context, loss_backward, results=2)


# ---- listed_triplet_loss -----------------------------------------------------------------------------------------------------


def _listed_triplet_loss(
    x: Tensor, y: Tensor, a: Tensor, p: Tensor, n: Tensor, keep: Tensor | None, row_weights: Tensor | None,
    options: Sequence[float], score: str, itself: bool, fold: str, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    sc, reduction = Score.decode(score), Fold.decode(fold)
    margin, smooth = options
    if itself and row_weights is None and small.applies(x):
        done = small.listed_triplet_loss(x, a, p, n, keep, options, sc, reduction, need_x)
        if done is not None:
            return done
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        i, j = torch.cat([a, a]), torch.cat([p, n])
        backend = dispatch.select(IndexedProblem(sc, rows.x, cols.x, i, j))
        own = rows.unit()
        other = own if cols is rows else cols.unit()
        s_ap, s_an = backend.listed_scores(sc, own, other, i, j).split(len(a))
        violation = sc.sign * (s_an - s_ap) + margin
        losses = torch.nn.functional.softplus(violation) if smooth else torch.relu(violation)
        kept = inside(losses, *reduction.pair_limits())
        kept = kept if keep is None else kept & keep
        sums = add_at(losses.new_zeros(x.shape[0]), a, torch.where(kept, losses, 0.0))
        counts = add_at(torch.zeros_like(sums), a, kept.to(sums.dtype))
        loss, w = reduce_rows(reduction, TERM, sums, counts, row_weights)
        dx = dy = None
        if need_x or need_y:
            slope = torch.sigmoid(violation) if smooth else (violation > 0).to(losses.dtype)
            c = torch.where(kept, slope * w[a], 0.0) * sc.sign
            shares = cols is rows
            roles = (need_x, need_x) if shares else (need_x, need_y)
            dx, dy = backend.listed_grads(sc, own, other, i, j, torch.cat([-c, c]), *roles)
            if shares and dx is not None and dy is not None:
                dx, dy = dx.add_(dy), None
        return loss, loss.reshape(1).clone(), settled(loss, rows.back(dx)), settled(loss, cols.back(dy))


def _listed_triplet_loss_fake(
    x: Tensor, y: Tensor, a: Tensor, p: Tensor, n: Tensor, keep: Tensor | None, row_weights: Tensor | None,
    options: Sequence[float], score: str, itself: bool, fold: str, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    loss = x.new_empty((), dtype=compute_type(x.dtype))
    return loss, loss.new_empty(1), grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


define(
    "listed_triplet_loss",
    "(Tensor x, Tensor y, Tensor a, Tensor p, Tensor n, Tensor? keep, Tensor? row_weights, float[] options, str score, "
    "bool itself, str fold, bool need_x, bool need_y) -> (Tensor, Tensor, Tensor, Tensor)",
    _listed_triplet_loss,
    _listed_triplet_loss_fake,
)
differentiable("listed_triplet_loss", loss_context, loss_backward, results=2)


# ---- listed_scores -----------------------------------------------------------------------------------------------------------


def _listed_scores(x: Tensor, y: Tensor, i: Tensor, j: Tensor, score: str) -> Tensor:
    sc = Score.decode(score)
    rows, cols = Rows.of(x, sc), Rows.of(y, sc)
    problem = IndexedProblem(sc, rows.x, cols.x, i, j)
    return dispatch.select(problem).listed_scores(sc, rows.unit(), cols.unit(), i, j)


def _listed_scores_fake(x: Tensor, y: Tensor, i: Tensor, j: Tensor, score: str) -> Tensor:
    return x.new_empty(i.shape[0], dtype=compute_type(x.dtype))


def _listed_grads(
    x: Tensor, y: Tensor, i: Tensor, j: Tensor, score: str, grad: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor]:
    sc = Score.decode(score)
    rows, cols = Rows.of(x, sc), Rows.of(y, sc)
    problem = IndexedProblem(sc, rows.x, cols.x, i, j)
    dx, dy = dispatch.select(problem).listed_grads(sc, rows.unit(), cols.unit(), i, j, grad, need_x, need_y)
    return settled(grad, rows.back(dx)), settled(grad, cols.back(dy))


def _listed_grads_fake(
    x: Tensor, y: Tensor, i: Tensor, j: Tensor, score: str, grad: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor, Tensor]:
    return grad_like(x, need_x), grad_like(y, need_y)


def _listed_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.score = inputs[4]


def _listed_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    refuse_double_backward()
    need_x, need_y = ctx.needs_input_grad[:2]
    dx, dy = operator.call("listed_grads", *ctx.saved_tensors, ctx.score, grad.contiguous(), need_x, need_y)
    return (dx if need_x else None), (dy if need_y else None), None, None, None


define("listed_scores", "(Tensor x, Tensor y, Tensor i, Tensor j, str score) -> Tensor", _listed_scores, _listed_scores_fake)
define(
    "listed_grads",
    "(Tensor x, Tensor y, Tensor i, Tensor j, str score, Tensor grad, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _listed_grads,
    _listed_grads_fake,
)
differentiable("listed_scores", _listed_context, _listed_backward)
