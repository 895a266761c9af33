"""The operators: one schema, one fake and one autograd formula an engine, whatever the loss.

A loss is a scalar, so its gradient is known up to one factor when the forward ends: ``*_loss`` operators compute it at once and
their backward only scales it. ``pairwise_rows`` keeps every row's loss differentiable, for reductions that are not folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pml_fast.engine.specs  # noqa: F401  (fills the registry the operators look specs up in)
from pml_fast.engine import dispatch, operator
from pml_fast.engine.cpu import small
from pml_fast.engine.fold import Fold, evenly, reduce_terms
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
from pml_fast.engine.positives import count_partners
from pml_fast.engine.problem import Backend, ExtremeProblem, Limits, PairProblem, PairRows
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.search import Search
from pml_fast.engine.settings import math_precision
from pml_fast.engine.spec import pair_spec
from pml_fast.engine.triton import small as triton_small


def _pair_problem(
    rows: Rows, cols: Rows, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: Score, itself: bool, limits: list[Limits],
) -> PairProblem:  # fmt: skip
    return PairProblem(pair_spec(spec, params), score, rows.x, cols.x, x_labels, y_labels, itself, rule, limits)


def _folds(encoded: Sequence[str]) -> list[Fold]:
    return [Fold.decode(text) for text in encoded]


def _small_pair_loss(
    x: Tensor, labels: Tensor, rule: Tensor | None, spec: str, params: Sequence[float], score: str, folds: Sequence[str],
    need: bool, columns: small.Columns | None, search: Search | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:  # fmt: skip
    """The outputs of ``pairwise_loss``, where its backend has a short cut for a batch as small as this."""
    if small.applies(x, None if columns is None else columns.y):
        how = small.recipe(spec, tuple(params), score, tuple(folds), columns is None)
        if how is not None:
            total, terms, dx, dy, *_ = small.pair_loss(x, labels, rule, how, need, columns, search)
            return total, terms, dx, dy
    if columns is None and triton_small.applies(x):
        plan = triton_small.recipe(spec, tuple(params), score, tuple(folds), x.dtype != torch.float32)
        if plan is None:
            return None
        if search is not None:
            rule = _found_rule(x, x, labels, labels, score, True, search)
        return triton_small.pair_loss(x, labels, rule, plan, need)
    return None


def _found_rule(x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: str, itself: bool, search: Search) -> Tensor:
    """The rule of a search, for a backend whose sweeps do not find it themselves."""

    def extreme(positive: bool, largest: bool) -> tuple[Tensor, Tensor]:
        sets = x, y, x_labels, y_labels
        return _row_extremes(*sets, None, None, score, itself and not search.counts_copies, positive, largest)

    return search.rule(Score.decode(score), extreme)


# ---- pairwise_loss -----------------------------------------------------------------------------------------------------------


def _pairwise_loss(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, row_weights: Tensor | None,
    spec: str, params: Sequence[float], score: str, itself: bool, folds: Sequence[str], need_x: bool, need_y: bool,
    search: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wanted = None if search is None else Search.decode(search)
    if row_weights is None:
        columns = None if itself else small.Columns(y, y_labels, need_y)
        done = _small_pair_loss(x, x_labels, rule, spec, params, score, folds, need_x, columns, wanted)
        if done is not None:
            return done
    sc, reductions = Score.decode(score), _folds(folds)
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        limits = [fold.pair_limits() for fold in reductions]
        problem = _pair_problem(rows, cols, x_labels, y_labels, rule, spec, params, sc, itself, limits)
        problem.uniform = row_weights is None and evenly(reductions, problem.spec.terms)
        problem.search = wanted
        backend = dispatch.select(problem)
        problem = prepared(problem, backend, rows, cols)
        if wanted is not None and not getattr(backend, "searches", False):
            problem.search, problem.rule = None, _found_rule(x, y, x_labels, y_labels, score, itself, wanted)
        state = backend.pair_rows(problem, need_x, need_y)
        partners = partial(count_partners, x_labels, y_labels, itself)
        gate = state.exists.all().to(state.rows.device) if problem.spec.gated else None
        terms, w = reduce_terms(reductions, problem.spec.terms, state.rows, row_weights, gate, partners)
        dx = dy = None
        if need_x or need_y:
            dx, dy = backend.pair_grads(problem, state, w, need_x, need_y)
        losses = terms[0] if terms.ndim > 1 else terms
        on_host = getattr(backend, "on_host", False)
        return losses.sum(), terms, settled(terms, rows.back(dx), on_host), settled(terms, cols.back(dy), on_host)


def _pairwise_loss_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, row_weights: Tensor | None,
    spec: str, params: Sequence[float], score: str, itself: bool, folds: Sequence[str], need_x: bool, need_y: bool,
    search: str | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = compute_type(x.dtype)
    shape = (2, len(folds)) if Fold.decode(folds[0]).kind == "over_triplets" else (len(folds),)
    loss, terms = x.new_empty((), dtype=wide), x.new_empty(shape, dtype=wide)
    return loss, terms, grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


define(
    "pairwise_loss",
    f"({SETS}, Tensor? row_weights, str spec, float[] params, str score, bool itself, str[] folds, "
    "bool need_x, bool need_y, str? search=None) -> (Tensor, Tensor, Tensor, Tensor)",
    _pairwise_loss,
    _pairwise_loss_fake,
)
differentiable("pairwise_loss", loss_context, loss_backward, results=2)


# ---- pairwise_rows -----------------------------------------------------------------------------------------------------------


def _no_limits(spec: str, params: Sequence[float]) -> list[Limits]:
    return [Fold().pair_limits() for _ in pair_spec(spec, params).terms]


def _rows_state(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, need_x: bool,
    need_y: bool,
) -> tuple[Rows, Rows, PairProblem, Backend, PairRows, Tensor]:  # fmt: skip
    sc = Score.decode(score)
    rows, cols = both(x, y, itself, sc)
    limits = _no_limits(spec, params)
    problem = _pair_problem(rows, cols, x_labels, y_labels, rule, spec, params, sc, itself, limits)
    backend = dispatch.select(problem)
    problem = prepared(problem, backend, rows, cols)
    state = backend.pair_rows(problem, need_x, need_y)
    gate = state.exists.all().to(rows.x.device) | (not problem.spec.gated)
    return rows, cols, problem, backend, state, gate


def _pairwise_rows(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with math_precision():
        *_, state, gate = _rows_state(x, y, x_labels, y_labels, rule, spec, params, score, itself, False, False)
        values, counts = state.rows.unbind(1)
        return torch.where(gate, values, 0.0), counts.clone()


def _pairwise_rows_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = len(pair_spec(spec, params).terms), x.shape[0]
    values = x.new_empty(shape, dtype=compute_type(x.dtype))
    return values, torch.empty_like(values)


def _pairwise_rows_grad(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, w: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with math_precision():
        need_y = need_y and not shared(itself, score)
        rows, cols, problem, backend, state, gate = _rows_state(
            x, y, x_labels, y_labels, rule, spec, params, score, itself, need_x, need_y
        )
        dx, dy = backend.pair_grads(problem, state, torch.where(gate, w, 0.0), need_x, need_y)
        values = torch.where(gate, state.rows[:, 0], 0.0)
        return settled(values, rows.back(dx)), settled(values, cols.back(dy))


def _pairwise_rows_grad_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, w: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


def _pairwise_rows_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, y, x_labels, y_labels, rule, *rest = inputs
    ctx.save_for_backward(x, y, x_labels, y_labels, *([] if rule is None else [rule]))
    ctx.rest = rest
    ctx.set_materialize_grads(False)


def _pairwise_rows_backward(ctx: Any, w: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if w is None:
        return (None,) * 9
    refuse_double_backward()
    x, y, x_labels, y_labels, *rule = ctx.saved_tensors
    itself = ctx.rest[3]
    need_x, need_y = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not shared(itself, ctx.rest[2])
    dx, dy = operator.call(
        "pairwise_rows_grad", x, y, x_labels, y_labels, rule[0] if rule else None, *ctx.rest, w, need_x, need_y
    )
    return (dx if need_x else None, dy if need_y else None, *(None,) * 7)


define(
    "pairwise_rows",
    f"({SETS}, str spec, float[] params, str score, bool itself) -> (Tensor, Tensor)",
    _pairwise_rows,
    _pairwise_rows_fake,
)
define(
    "pairwise_rows_grad",
    f"({SETS}, str spec, float[] params, str score, bool itself, Tensor w, bool need_x, bool need_y) -> (Tensor, Tensor)",
    _pairwise_rows_grad,
    _pairwise_rows_grad_fake,
)
differentiable("pairwise_rows", _pairwise_rows_context, _pairwise_rows_backward)


# ---- row_extremes (no gradient) ----------------------------------------------------------------------------------------------


def _row_extremes(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: Tensor | None, high: Tensor | None, score: str,
    itself: bool, positive: bool, largest: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    sc = Score.decode(score)
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        problem = ExtremeProblem(sc, rows.x, cols.x, x_labels, y_labels, itself, positive, largest, low, high)
        backend = dispatch.select(problem)
        return backend.extremes(prepared(problem, backend, rows, cols))


def _row_extremes_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, low: Tensor | None, high: Tensor | None, score: str,
    itself: bool, positive: bool, largest: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n = x.shape[0]
    return x.new_empty(n, dtype=compute_type(x.dtype)), x.new_empty(n, dtype=torch.int64)


define(
    "row_extremes",
    "(Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, Tensor? low, Tensor? high, str score, bool itself, "
    "bool positive, bool largest) -> (Tensor, Tensor)",
    _row_extremes,
    _row_extremes_fake,
)
