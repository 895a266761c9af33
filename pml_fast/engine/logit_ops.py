"""The pairwise engine over logits: scores times a scale and plus a bias that may be trained, with rows or both sets as anchors.

``logit_loss`` is ``pairwise_loss`` (:mod:`pml_fast.engine.ops`) with what losses of two towers have besides. The scale, given
by its logarithm and held at ``max_scale``, is a factor of the rows, and the bias a further feature of theirs against 1, so that
every backend gives their gradients: they are parts of those of the rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import dispatch
from pml_fast.engine.bidirectional import softmax_spec
from pml_fast.engine.cpu import small
from pml_fast.engine.fold import Fold, evenly, reduce_terms
from pml_fast.engine.operator import (
    Rows,
    both,
    define,
    differentiable,
    grad_like,
    prepared,
    scaled,
    settled,
    shared,
)
from pml_fast.engine.problem import PairProblem
from pml_fast.engine.score import ROWS_AT_ONCE, Score, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.spec import pair_spec

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def logit_score(score: Score, trained: bool) -> Score:
    """The score the engine sees: rows that hold trained numbers are prepared already, and differ from the columns."""
    return Score("dot", 2.0, score.power, normalize=False, symmetric=False) if trained else score


class Scaled:
    """Rows and columns that hold a trained scale, and a bias where there is one, and the way back to both."""

    def __init__(self, rows: Rows, cols: Rows, log_scale: Tensor, bias: Tensor | None, max_scale: float) -> None:
        self.rows, self.cols, self.bias = rows, cols, bias
        scale = log_scale.to(rows.x.dtype).exp()
        self.held, self.scale = scale > max_scale, scale.clamp(max=max_scale)
        # Divided by this, the rows are the scaled ones: a backend that divides takes no copy of them.
        norm = rows.x.new_ones(len(rows.x), 1) if rows.norm is None else rows.norm
        self.norm = norm / self.scale
        self.scaled = Rows(rows.x, self.norm, rows.dtype)

    def seen(self) -> tuple[Rows, Rows]:
        """What the engine compares."""
        if self.bias is None:
            return self.scaled, self.cols
        bias = self.bias.to(self.rows.x.dtype).reshape(1, 1)
        x, y = self.scaled.unit(), self.cols.unit()
        x = torch.cat([x, bias.expand(len(x), 1)], dim=1)
        return Rows(x, None, self.rows.dtype), Rows(torch.cat([y, torch.ones_like(y[:, :1])], dim=1), None, self.cols.dtype)

    def rows_back(self, dx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From the gradient by the rows that the engine compared to those by the divided ones, by the scale's logarithm and by
        the bias."""
        by_bias = dx.new_empty(0) if self.bias is None else dx[:, -1].sum()
        dx = self.cols_back(dx)
        parts = zip(*(part.split(ROWS_AT_ONCE) for part in (dx, self.rows.x, self.norm)), strict=True)
        sums = torch.stack([((grad * x).sum(dim=1, keepdim=True) / norm).sum() for grad, x, norm in parts])
        return dx.mul_(self.scale), torch.where(self.held, 0.0, sums.sum()), by_bias

    def cols_back(self, dy: Tensor) -> Tensor:
        """From the gradient by the columns that the engine compared to that by the divided ones."""
        return dy if self.bias is None else dy[:, :-1].contiguous()


def _small(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, log_scale: Tensor | None, bias: Tensor | None,
    max_scale: float, spec: str, params: Sequence[float], score: str, folds: Sequence[str], bidirectional: bool,
    need: Sequence[bool],
) -> Outputs | None:  # fmt: skip
    """The outputs, where the batch is small enough for one compiled call."""
    if not small.applies(x, y):
        return None
    how = small.recipe(spec, tuple(params), score, tuple(folds), False, bidirectional, log_scale is not None)
    if how is None:
        return None
    trained: tuple[float, ...] = ()
    held = False
    if log_scale is not None:
        # More would leave a double.
        scale = math.exp(min(float(log_scale), 700.0))
        held = scale > max_scale
        trained = (min(scale, max_scale),) if bias is None else (min(scale, max_scale), float(bias))
    columns = small.Columns(y, y_labels, need[1], trained, need[2], need[3])
    *sums, by_log_scale, by_bias = small.pair_loss(x, x_labels, None, how, need[0], columns)
    if held and need[2]:
        by_log_scale.zero_()
    total, terms, dx, dy = sums
    return total, terms, dx, dy, _number(by_log_scale, log_scale, need[2]), _number(by_bias, bias, need[3])


def _number(grad: Tensor, of: Tensor | None, needed: bool) -> Tensor:
    return grad.to(of.dtype).reshape(of.shape) if of is not None and needed else grad.new_empty(0)


def _logit_loss(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, log_scale: Tensor | None,
    bias: Tensor | None, max_scale: float, row_weights: Tensor | None, column_weights: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, folds: Sequence[str], bidirectional: bool, need_x: bool, need_y: bool,
    need_scale: bool, need_bias: bool,
) -> Outputs:  # fmt: skip
    need = need_x, need_y, need_scale, need_bias
    sc = Score.decode(score)
    if log_scale is not None and sc.kind != "dot":
        raise ValueError(f"score must be an inner product where it has a trained scale, got kind {sc.kind!r}")
    if row_weights is None and column_weights is None and not itself:
        done = _small(
            x, y, x_labels, y_labels, log_scale, bias, max_scale, spec, params, score, folds, bidirectional, need
        )  # fmt: skip
        if done is not None:
            return done
    maths = pair_spec(spec, params)
    reductions = [Fold.decode(text) for text in folds]
    by_row, by_column = reductions[: len(maths.terms)], reductions[len(maths.terms) :]
    with math_precision():
        rows, cols = both(x, y, itself, sc if log_scale is None else replace(sc, symmetric=False))
        trained = None if log_scale is None else Scaled(rows, cols, log_scale, bias, max_scale)
        seen_x, seen_y = (rows, cols) if trained is None else trained.seen()
        limits = [fold.pair_limits() for fold in by_row]
        problem = PairProblem(
            maths, logit_score(sc, trained is not None), seen_x.x, seen_y.x, x_labels, y_labels, itself, None, limits,
            bidirectional=bidirectional, uniform=row_weights is None and evenly(by_row, maths.terms),
        )  # fmt: skip
        if bidirectional:
            softmax_spec(problem)
        backend = dispatch.select(problem)
        problem = prepared(problem, backend, seen_x, seen_y)
        need_rows = need_x or need_scale or need_bias
        state = backend.pair_rows(problem, need_rows, need_y)
        gate = state.exists.all().to(state.rows.device) if maths.gated else None
        share = 0.5 if bidirectional else 1.0
        terms, w = (share * part for part in reduce_terms(by_row, maths.terms, state.rows, row_weights, gate))
        w_columns = None
        if state.columns is not None:
            more, back = reduce_terms(by_column, maths.terms, state.columns, column_weights, gate)
            terms, w_columns = torch.cat([terms, share * more]), share * back
        dx = dy = None
        if need_rows or need_y:
            dx, dy = backend.pair_grads(problem, state, w, need_rows, need_y, w_columns)
        by_log_scale = by_bias = terms.new_empty(0)
        if trained is not None and dx is not None:
            dx, by_log_scale, by_bias = trained.rows_back(dx)
        if trained is not None and dy is not None:
            dy = trained.cols_back(dy)
        numbers = _number(by_log_scale, log_scale, need_scale), _number(by_bias, bias, need_bias)
        on_host = getattr(backend, "on_host", False)
        grads = rows.back(dx if need_x else None), cols.back(dy), *numbers
        by_x, by_y, by_log_scale, by_bias = (settled(terms, grad, on_host) for grad in grads)
        return terms.sum(), terms, by_x, by_y, by_log_scale, by_bias


def _one_owner(log_scale: Tensor | None, itself: bool, score: str) -> bool:
    """Whether the gradient of both roles goes to ``x``: a scale makes rows of columns that they are not."""
    return log_scale is None and shared(itself, score)


def _logit_loss_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, log_scale: Tensor | None,
    bias: Tensor | None, max_scale: float, row_weights: Tensor | None, column_weights: Tensor | None, spec: str,
    params: Sequence[float], score: str, itself: bool, folds: Sequence[str], bidirectional: bool, need_x: bool, need_y: bool,
    need_scale: bool, need_bias: bool,
) -> Outputs:  # fmt: skip
    wide = compute_type(x.dtype)
    loss, terms = x.new_empty((), dtype=wide), x.new_empty(len(folds), dtype=wide)
    by_log_scale = torch.empty_like(log_scale) if log_scale is not None and need_scale else loss.new_empty(0)
    by_bias = torch.empty_like(bias) if bias is not None and need_bias else loss.new_empty(0)
    own_y = need_y and not _one_owner(log_scale, itself, score)
    return loss, terms, grad_like(x, need_x), grad_like(y, own_y), by_log_scale, by_bias


# Positions of the tensors that have a gradient, and of others, among a call's arguments.
_INPUTS, _LOG_SCALE, _SCORE, _ITSELF, _COUNT = (0, 1, 4, 5), 4, 11, 12, 19


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    need_x, need_y, *need_numbers = inputs[-4:]
    ctx.needed = need_x, need_y and not _one_owner(inputs[_LOG_SCALE], inputs[_ITSELF], inputs[_SCORE]), *need_numbers
    ctx.save_for_backward(*output[2:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    found: list[Tensor | None] = [None] * _COUNT
    if grad_loss is not None:
        for place, grad in zip(_INPUTS, scaled(ctx, grad_loss), strict=True):
            found[place] = grad
    return tuple(found)


define(
    "logit_loss",
    "(Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, Tensor? log_scale, Tensor? bias, float max_scale, "
    "Tensor? row_weights, Tensor? column_weights, str spec, float[] params, str score, bool itself, str[] folds, "
    "bool bidirectional, bool need_x, bool need_y, bool need_scale, bool need_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _logit_loss,
    _logit_loss_fake,
)
differentiable("logit_loss", _context, _backward, results=2)
