"""Softmax cross-entropy of rows against columns with several targets a row, which are listed.

The logarithm of each row's sum comes out of the pairwise engine's sweep and the targets' scores out of the indexed engine. The
loss is reduced inside the operator, so that its gradient takes the sweep that the forward has begun.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import dispatch, operator
from pml_fast.engine.cpu import small_targets
from pml_fast.engine.fold import Fold, reduce_rows
from pml_fast.engine.listed_sums import add_at
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
from pml_fast.engine.problem import IndexedProblem, PairProblem
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.spec import Term
from pml_fast.engine.specs import LogSumExp

TERM = Term("loss", "element")


def own_labels(n: int, m: int, itself: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels of ``n`` rows and ``m`` columns that no two share: a row's positives, which take longer, are none."""
    own = torch.arange(n, device=device)
    return own, own if itself else torch.full((m,), n, device=device)


class _Targets:
    """The listed side: targets ``[K]``, their scores, and gradients by these."""

    def __init__(self, score: Score, rows: Rows, cols: Rows, row: Tensor, column: Tensor) -> None:
        self.score, self.rows, self.cols, self.row, self.column = score, rows, cols, row, column
        self.backend = dispatch.select(IndexedProblem(score, rows.x, cols.x, row, column))

    def _sets(self) -> tuple[Tensor, Tensor]:
        # Divided anew, so that no copy of the rows lives through a sweep.
        own = self.rows.unit()
        return own, own if self.cols is self.rows else self.cols.unit()

    def scores(self) -> Tensor:
        return self.backend.listed_scores(self.score, *self._sets(), self.row, self.column)

    def add_gradients(self, grad: Tensor, dx: Tensor | None, dy: Tensor | None) -> None:
        """Add the gradient of ``sum(grad * score)`` to those of the rows and of the columns (or of both, of one set)."""
        one = self.cols is self.rows
        need_x, need_y = dx is not None, dx is not None if one else dy is not None
        by_x, by_y = self.backend.listed_grads(self.score, *self._sets(), self.row, self.column, grad, need_x, need_y)
        for total, part in ((dx, by_x), (dx if one else dy, by_y)):
            if total is not None and part is not None:
                total.add_(part)


def _soft_target_loss(
    x: Tensor, y: Tensor, row: Tensor, column: Tensor, target: Tensor, temperature: float, score: str, itself: bool, own: bool,
    fold: str, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    sc, reduction = Score.decode(score), Fold.decode(fold)
    scale = sc.sign / temperature
    if small_targets.takes(x, None if itself else y, sc, reduction):
        other = None if itself else small_targets.Side(y, need_y)
        targets = small_targets.Targets(row, column, target, scale, own)
        done = small_targets.soft_target_loss(x, other, targets, sc, reduction, need_x)
        if done is not None:
            return done
    with math_precision():
        rows, cols = both(x, y, itself, sc)
        # A row's score with itself is listed behind the targets, and takes its part in the sum from there.
        itself_too = torch.arange(len(x) if own else 0, device=x.device)
        listed = _Targets(sc, rows, cols, torch.cat([row, itself_too]), torch.cat([column, itself_too]))
        s, own_logits = listed.scores().split([len(row), len(itself_too)])
        own_logits = own_logits * scale
        labels = own_labels(len(x), len(y), itself, x.device)
        limits = [Fold().pair_limits()]
        # The list, its scores, and what its losses and their gradients are computed in.
        beside = len(row) * (2 * row.element_size() + 10 * s.element_size())
        spec = LogSumExp(temperature)
        problem = PairProblem(spec, sc, rows.x, cols.x, *labels, itself, None, limits, beside=beside)
        backend = dispatch.select(problem)
        problem = prepared(problem, backend, rows, cols)
        state = backend.pair_rows(problem, need_x, need_y)
        others = state.rows[0, 0]
        log_all = torch.logaddexp(others, own_logits) if own else others
        values = add_at(torch.zeros_like(others), row, target * (log_all[row] - scale * s))
        loss, w = reduce_rows(reduction, TERM, values, torch.ones_like(values), None)
        dx = dy = None
        if need_x or need_y:
            w_all = w * add_at(torch.zeros_like(values), row, target)
            by_listed = -scale * target * w[row]
            if own:
                share = torch.exp(own_logits - log_all)
                by_listed, w_all = torch.cat([by_listed, scale * w_all * share]), w_all * torch.exp(others - log_all)
            dx, dy = backend.pair_grads(problem, state, w_all.unsqueeze(0), need_x, need_y)
            del state
            listed.add_gradients(by_listed, dx, dy)
        on_host = getattr(backend, "on_host", False)
        return loss, settled(loss, rows.back(dx), on_host), settled(loss, cols.back(dy), on_host)


def _soft_target_loss_fake(
    x: Tensor, y: Tensor, row: Tensor, column: Tensor, target: Tensor, temperature: float, score: str, itself: bool, own: bool,
    fold: str, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    loss = x.new_empty((), dtype=compute_type(x.dtype))
    return loss, grad_like(x, need_x), grad_like(y, need_y and not shared(itself, score))


def _context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, score, itself, _, _, need_x, need_y = inputs[5:]
    ctx.needed = need_x, need_y and not shared(itself, score)
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
    return (*((None, None) if grad_loss is None else scaled(ctx, grad_loss)), *(None,) * 10)


define(
    "soft_target_loss",
    "(Tensor x, Tensor y, Tensor row, Tensor column, Tensor target, float temperature, str score, bool itself, bool own, "
    "str fold, bool need_x, bool need_y) -> (Tensor, Tensor, Tensor)",
    _soft_target_loss,
    _soft_target_loss_fake,
)
differentiable("soft_target_loss", _context, _backward, results=1)


def soft_target_loss(
    x: Tensor,
    y: Tensor,
    row: Tensor,
    column: Tensor,
    target: Tensor,
    temperature: float,
    score: Score,
    itself: bool,
    fold: Fold,
    own: bool = False,
) -> Tensor:
    """``sum_k target_k (log sum_j exp(s_ij / t) - s_ik / t)`` of each row, reduced.

    ``row`` (in order), ``column`` and ``target`` are ``[K]``; targets have no gradient. A row without targets has a loss of 0.
    The rows ``x [N, D]`` and columns ``y [M, D]`` are one set where ``itself``; then no row is a column of its own, unless
    ``own`` says that each is.
    """
    need = torch.is_grad_enabled()
    loss, *_ = operator.call(
        "soft_target_loss",
        x, y, row, column, target, temperature, score.encode(), itself, own, fold.encode(), need and x.requires_grad,
        need and y.requires_grad,
    )  # fmt: skip
    return loss
