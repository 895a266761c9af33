"""What each anchor adds to a loss, for losses whose anchors are spread over several calls (processes).

As ``pairwise_loss`` and ``triplet_loss``, but nothing is reduced: the sums and counts of each row come out, differentiable, and
are reduced by the caller together with those of the other calls. The backward sweeps again, with the weights it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import pml_fast.engine.specs  # noqa: F401  (fills the registry the operators look specs up in)
from pml_fast.engine import dispatch, operator
from pml_fast.engine.operator import (
    SETS,
    Rows,
    both,
    define,
    differentiable,
    grad_like,
    prepared,
    refuse_double_backward,
    settled,
    shared,
)
from pml_fast.engine.problem import Backend, PairProblem, TripletProblem
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.spec import TripletSpec, pair_spec

_GRADS = "Tensor w, bool need_x, bool need_y) -> (Tensor, Tensor)"


# ---- pairs -------------------------------------------------------------------------------------------------------------------


def _pairs(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, limits: Sequence[float], levels: Tensor | None,
) -> tuple[Rows, Rows, PairProblem, Backend]:  # fmt: skip
    sc = Score.decode(score)
    rows, cols = both(x, y, itself, sc)
    bounds = list(zip(limits[::2], limits[1::2], strict=True))
    problem = PairProblem(pair_spec(spec, params), sc, rows.x, cols.x, x_labels, y_labels, itself, rule, bounds, levels=levels)
    backend = dispatch.select(problem)
    return rows, cols, prepared(problem, backend, rows, cols), backend


def _anchor_pairs(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, limits: Sequence[float], levels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    with math_precision():
        *_, problem, backend = _pairs(x, y, x_labels, y_labels, rule, spec, params, score, itself, limits, levels)
        state = backend.pair_rows(problem, False, False)
        values, counts = state.rows.unbind(1)
        return values.clone(), counts.clone(), state.exists.to(x.device).clone()


def _anchor_pairs_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, limits: Sequence[float], levels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    values = x.new_empty((len(pair_spec(spec, params).terms), x.shape[0]), dtype=compute_type(x.dtype))
    return values, torch.empty_like(values), x.new_empty(2, dtype=torch.bool)


def _anchor_pairs_grad(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, limits: Sequence[float], levels: Tensor | None,
    w: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with math_precision():
        rows, cols, problem, backend = _pairs(x, y, x_labels, y_labels, rule, spec, params, score, itself, limits, levels)
        need_y = need_y and not shared(itself, score)
        state = backend.pair_rows(problem, need_x, need_y)
        dx, dy = backend.pair_grads(problem, state, w, need_x, need_y)
        return settled(w, rows.back(dx)), settled(w, cols.back(dy))


# ---- triplets ----------------------------------------------------------------------------------------------------------------


def _triplets(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, options: Sequence[float],
    select: str, score: str, itself: bool, limits: Sequence[float],
) -> tuple[Rows, Rows, TripletProblem, Backend]:  # fmt: skip
    sc = Score.decode(score)
    rows, cols = both(x, y, itself, sc)
    margin, smooth, swap, select_margin = options
    spec = TripletSpec(margin, bool(smooth), bool(swap), select, select_margin)
    low, high = limits
    problem = TripletProblem(spec, sc, rows.x, cols.x, x_labels, y_labels, itself, rule, (low, high))
    backend = dispatch.select(problem)
    return rows, cols, prepared(problem, backend, rows, cols), backend


def _anchor_triplets(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, options: Sequence[float],
    select: str, score: str, itself: bool, limits: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with math_precision():
        *_, problem, backend = _triplets(x, y, x_labels, y_labels, rule, options, select, score, itself, limits)
        sums, *_ = backend.triplet_rows(problem, False, False, False)
        # An anchor without a triplet has no loss, whatever its row holds.
        return torch.where(sums[1] > 0, sums[0], 0.0), sums[1].clone()


def _anchor_triplets_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, options: Sequence[float],
    select: str, score: str, itself: bool, limits: Sequence[float],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    values = x.new_empty(x.shape[0], dtype=torch.float64)
    return values, torch.empty_like(values)


def _anchor_triplets_grad(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, rule: Tensor | None, options: Sequence[float],
    select: str, score: str, itself: bool, limits: Sequence[float], w: Tensor, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    with math_precision():
        rows, cols, problem, backend = _triplets(x, y, x_labels, y_labels, rule, options, select, score, itself, limits)
        need_y = need_y and not shared(itself, score)
        dx, dy = backend.triplet_grads(problem, w.to(compute_type(x.dtype)), need_x, need_y)
        return settled(w, rows.back(dx)), settled(w, cols.back(dy))


# ---- both --------------------------------------------------------------------------------------------------------------------


def _grad_fake(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    score, itself, need_x, need_y = rest[5], rest[6], rest[-2], rest[-1]
    return grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


# Where both operators have their score and whether the columns are the rows themselves.
_SCORE, _ITSELF = 7, 8


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.places = [place for place, part in enumerate(inputs) if isinstance(part, Tensor)]
    ctx.save_for_backward(*(inputs[place] for place in ctx.places))
    ctx.rest = [None if isinstance(part, Tensor) else part for part in inputs]
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(name: str) -> Any:
    def backward(ctx: Any, w: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        inputs = list(ctx.rest)
        none = (None,) * (len(inputs) - 2)
        if w is None:
            return None, None, *none
        refuse_double_backward()
        for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
            inputs[place] = tensor
        need_x, need_y = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and not shared(inputs[_ITSELF], inputs[_SCORE])
        dx, dy = operator.call(f"{name}_grad", *inputs, w.contiguous(), need_x, need_y)
        return (dx if need_x else None), (dy if need_y else None), *none

    return backward


_PAIRS = f"({SETS}, str spec, float[] params, str score, bool itself, float[] limits, Tensor? levels"
_TRIPLETS = f"({SETS}, float[] options, str select, str score, bool itself, float[] limits"
define("anchor_pairs", f"{_PAIRS}) -> (Tensor, Tensor, Tensor)", _anchor_pairs, _anchor_pairs_fake)
define("anchor_pairs_grad", f"{_PAIRS}, {_GRADS}", _anchor_pairs_grad, _grad_fake)
differentiable("anchor_pairs", _context, _backward("anchor_pairs"))
define("anchor_triplets", f"{_TRIPLETS}) -> (Tensor, Tensor)", _anchor_triplets, _anchor_triplets_fake)
define("anchor_triplets_grad", f"{_TRIPLETS}, {_GRADS}", _anchor_triplets_grad, _grad_fake)
differentiable("anchor_triplets", _context, _backward("anchor_triplets"))
