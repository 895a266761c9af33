"""The pure-torch backend: strips of rows, linear memory, every device and every score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import bidirectional, grad_sum, histogram_strips, triplet_strips, two_sweeps
from pml_fast.engine.autograd import autograd_enabled
from pml_fast.engine.classes import chunked as class_blocks
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores
from pml_fast.engine.fold import inside
from pml_fast.engine.grad_sum import GradSum, strips
from pml_fast.engine.knn import chunked as knn_strips
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip
from pml_fast.engine.listed_sums import add_at
from pml_fast.engine.problem import (
    ExtremeProblem,
    HistogramProblem,
    HistogramSums,
    Limits,
    PairProblem,
    PairRows,
    TripletProblem,
    comparable_mask,
    same_labels,
)
from pml_fast.engine.score import Score, paired_scores
from pml_fast.engine.spec import Losses, Some, Term
from pml_fast.engine.strips import powered, strip_base
from pml_fast.engine.views import DenseSide, View, dense_view


def _view(problem: PairProblem, first: int, last: int, s: Tensor) -> View:
    m = problem.y.shape[0]
    same = same_labels(problem.x_labels[first:last], problem.y_labels)
    comparable = comparable_mask(first, last - first, m, s.device) if problem.itself else None
    rule = problem.rule[:, first:last] if problem.rule is not None else None
    return dense_view(s, same, comparable, rule)


def _side(view: View, term: Term) -> DenseSide:
    side = view.pos if term.kind == "pos_pair" else view.neg
    assert isinstance(side, DenseSide)
    return side


def term_rows(term: Term, limits: Limits, given: Tensor | Some, view: View) -> tuple[Tensor, Tensor]:
    """Value (differentiable) and count of each row, from what a spec's formula gave for the term."""
    loss, there = given if isinstance(given, Some) else (given, None)
    if term.kind == "element":
        if there is None:
            return loss, torch.ones_like(loss)
        return torch.where(there, loss, 0.0), there.to(loss.dtype)
    mask = _side(view, term).mask
    low, high = limits
    kept = mask & inside(loss, low, high)
    kept = kept if there is None else kept & there
    return torch.where(kept, loss, 0.0).sum(dim=1), kept.sum(dim=1).to(loss.dtype)


def _weighed(problem: PairProblem, w: Tensor, view: View, losses: Losses, first: int, last: int) -> Tensor:
    """The strip's share of ``sum(w[t] * value[t])``."""
    total = w.new_zeros(())
    for t, (term, loss) in enumerate(zip(problem.spec.terms, losses, strict=True)):
        value, _ = term_rows(term, problem.limits[t], loss, view)
        # A row that weighs nothing must not turn an infinite value into NaN.
        total = total + torch.where(w[t, first:last] != 0, value * w[t, first:last], 0.0).sum()
    return total


def _single_strip(problem: PairProblem) -> PairRows:
    """All rows in one strip, whose graph is kept for the gradients that follow."""
    base = strip_base(problem.score, problem.x, problem.y)
    with autograd_enabled():
        s = powered(problem.score, base).detach().requires_grad_()
        view = _view(problem, 0, s.shape[0], s)
        losses = problem.spec_of(0, s.shape[0]).formula(view, problem.score)
        terms = zip(problem.spec.terms, problem.limits, losses, strict=True)
        values, counts = (torch.stack(part) for part in zip(*(term_rows(*term, view) for term in terms), strict=True))
    exists = torch.stack([view.pos.count().any(), view.neg.count().any()])
    rows = torch.stack([values.detach(), counts.detach()], dim=1)
    return PairRows(rows, exists, rows.new_zeros(0), (base, s, values))


class ChunkedBackend:
    """Strips of rows with torch's own kernels; the derivative of a formula is taken by autograd, strip by strip."""

    name = "chunked"

    def available(self) -> str | None:
        return None

    def refuse(self, problem: Any) -> str | None:
        return None

    def pair_rows(self, problem: PairProblem, need_x: bool, need_y: bool) -> PairRows:
        if problem.bidirectional:
            return bidirectional.pair_rows(problem)
        n, m = problem.x.shape[0], problem.y.shape[0]
        if (need_x or need_y) and problem.spec.sweeps == 1 and 0 < problem.spec.width * n * m <= grad_sum.STRIP_ELEMENTS:
            return _single_strip(problem)
        rows = problem.x.new_zeros(len(problem.spec.terms), 2, n)
        exists = torch.zeros(2, dtype=torch.bool, device=rows.device)
        swept = two_sweeps.first_sweep(problem, _view)
        losses_of = two_sweeps.losses_of(problem, swept)
        for first, last in strips(n, problem.spec.width * m):
            s = powered(problem.score, strip_base(problem.score, problem.x[first:last], problem.y))
            view = _view(problem, first, last, s)
            exists |= torch.stack([view.pos.count().any(), view.neg.count().any()])
            losses = losses_of(view, first, last)
            for t, (term, loss) in enumerate(zip(problem.spec.terms, losses, strict=True)):
                rows[t, 0, first:last], rows[t, 1, first:last] = term_rows(term, problem.limits[t], loss, view)
        return PairRows(rows, exists, swept)

    def pair_grads(
        self, problem: PairProblem, state: PairRows, w: Tensor, need_x: bool, need_y: bool, w_columns: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        if w_columns is not None:
            return bidirectional.pair_grads(problem, state, w, w_columns, need_x, need_y)
        accumulate = GradSum(problem.x, problem.y, problem.shared, need_x, need_y)
        if state.scratch is not None:
            base, s, values = state.scratch
            (c,) = torch.autograd.grad(values, s, torch.where(w != 0, w, 0.0))
            accumulate.add(problem.score, 0, s.shape[0], base, c)
            return accumulate.result()
        losses_of = two_sweeps.losses_of(problem, state.saved)
        back = two_sweeps.state_grads(problem, state.saved, _view, lambda *strip: _weighed(problem, w, *strip))
        for first, last in strips(problem.x.shape[0], problem.spec.width * problem.y.shape[0]):
            base = strip_base(problem.score, problem.x[first:last], problem.y)
            with autograd_enabled():
                s = powered(problem.score, base).detach().requires_grad_()
                view = _view(problem, first, last, s)
                total = _weighed(problem, w, view, losses_of(view, first, last), first, last)
                if back is not None:
                    total = total + two_sweeps.state_share(problem, view, back[:, first:last])
                (c,) = torch.autograd.grad(total, s)
            accumulate.add(problem.score, first, last, base, c)
        return accumulate.result()

    def triplet_rows(
        self, problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        return triplet_strips.rows_and_grads(problem, None, need_x, need_y, uniform)

    def triplet_grads(
        self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        _, dx, dy = triplet_strips.rows_and_grads(problem, w, need_x, need_y, True)
        return dx, dy

    def histogram_sums(self, problem: HistogramProblem, keep: bool) -> HistogramSums:
        return histogram_strips.histogram_sums(problem)

    def histogram_grads(
        self, problem: HistogramProblem, state: HistogramSums, slopes: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return histogram_strips.histogram_grads(problem, slopes, need_x, need_y)

    def extremes(self, problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
        n, m = problem.x.shape[0], problem.y.shape[0]
        worst = float("-inf") if problem.largest else float("inf")
        value = problem.x.new_full((n,), worst)
        index = torch.full((n,), -1, dtype=torch.int64, device=value.device)
        if m == 0:
            return value, index
        for first, last in strips(n, m):
            s = powered(problem.score, strip_base(problem.score, problem.x[first:last], problem.y))
            mask = same_labels(problem.x_labels[first:last], problem.y_labels)
            mask = mask if problem.positive else ~mask
            if problem.itself:
                mask &= comparable_mask(first, last - first, m, s.device)
            if problem.low is not None:
                mask &= s >= problem.low[first:last].unsqueeze(1)
            if problem.high is not None:
                mask &= s <= problem.high[first:last].unsqueeze(1)
            s = s.masked_fill_(~mask, worst)
            best, where = s.max(dim=1) if problem.largest else s.min(dim=1)
            value[first:last] = best
            index[first:last] = where.masked_fill(~mask.any(dim=1), -1)
        return value, index

    def nearest(self, problem: NearestProblem) -> tuple[Tensor, Tensor]:
        return knn_strips.nearest(problem)

    def rank_strips(self, problem: RankProblem) -> Iterator[RankStrip]:
        return knn_strips.rank_strips(problem)

    def listed_scores(self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        parts = [paired_scores(score, x[a], y[b]) for a, b in _list_chunks(i, j, x.shape[1])]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def listed_grads(
        self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor, grad: Tensor, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        dx = torch.zeros_like(x) if need_x else None
        dy = torch.zeros_like(y) if need_y else None
        done = 0
        for a, b in _list_chunks(i, j, x.shape[1]):
            with autograd_enabled():
                xa, yb = x[a].detach().requires_grad_(), y[b].detach().requires_grad_()
                s = paired_scores(score, xa, yb)
                ga, gb = torch.autograd.grad(s, (xa, yb), grad[done : done + len(a)])
            done += len(a)
            if dx is not None:
                add_at(dx, a, ga)
            if dy is not None:
                add_at(dy, b, gb)
        return dx, dy

    def class_scores(self, problem: ClassProblem, keep: bool) -> ClassScores:
        return class_blocks.class_scores(problem, keep)

    def class_grads(
        self, problem: ClassProblem, state: ClassScores, grads: ClassGrads, need_x: bool, need_y: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        return class_blocks.class_grads(problem, state, grads, need_x, need_y)


def _list_chunks(i: Tensor, j: Tensor, d: int) -> Iterator[tuple[Tensor, Tensor]]:
    step = max(1, grad_sum.STRIP_ELEMENTS // max(d, 1))
    return zip(i.split(step), j.split(step), strict=True) if len(i) else iter(())
