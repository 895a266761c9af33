"""The reference backend: dense, readable, differentiated by autograd. Every other backend is tested against
it.

It holds the whole ``[N, M]`` score matrix, and every triplet (``[N, M, M]``) at once: clarity over speed and
memory. It computes in the dtype of its inputs; tests hand it float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.autograd import autograd_enabled
from pml_fast.engine.classes import reference as class_matrix
from pml_fast.engine.classes.problem import ClassGrads, ClassProblem, ClassScores
from pml_fast.engine.fold import inside
from pml_fast.engine.knn import reference as sorted_rows
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip
from pml_fast.engine.problem import (
    ExtremeProblem,
    HistogramProblem,
    HistogramSums,
    IndexedProblem,
    PairProblem,
    PairRows,
    TripletProblem,
    comparable_mask,
    same_labels,
)
from pml_fast.engine.score import Score, dense_scores, paired_scores
from pml_fast.engine.spec import Some, Term
from pml_fast.engine.views import DenseSide, View, dense_view, softplus

# Elements of the largest tensor that is worth holding.
MOST_ELEMENTS = 1 << 31

Problem = PairProblem | TripletProblem | ExtremeProblem | HistogramProblem
Grads = tuple[Tensor | None, Tensor | None]


class ReferenceBackend:
    """Dense tensors of all pairs or triplets; the derivative of everything is autograd's."""

    name = "reference"

    def available(self) -> str | None:
        return None

    def refuse(self, problem: Any) -> str | None:
        if isinstance(problem, IndexedProblem):
            return None
        n, m = problem.x.shape[0], problem.y.shape[0]
        triplets = isinstance(problem, TripletProblem) or (isinstance(problem, HistogramProblem) and problem.spec.triplets)
        elements = n * m * m if triplets else n * m
        if elements <= MOST_ELEMENTS:
            return None
        what = "triplets (N*M*M)" if triplets else "pairs (N*M)"
        return f"the reference backend holds all {what}: {elements} elements are more than {MOST_ELEMENTS}"

    def pair_rows(self, problem: PairProblem, need_x: bool, need_y: bool) -> PairRows:
        scores = dense_scores(problem.score, problem.x, problem.y)
        view = _view(problem, scores)
        rows = _all_rows(problem, view)
        exists = torch.stack([view.pos.count().sum() > 0, view.neg.count().sum() > 0])
        columns = _all_rows(problem.back, _view(problem.back, scores.T)) if problem.bidirectional else None
        return PairRows(rows, exists, rows.new_zeros(0), columns=columns)

    def pair_grads(
        self, problem: PairProblem, state: PairRows, w: Tensor, need_x: bool, need_y: bool, w_columns: Tensor | None = None
    ) -> Grads:
        def total(x: Tensor, y: Tensor) -> Tensor:
            scores = dense_scores(problem.score, x, y)
            loss = _weighed(problem, scores, w)
            return loss if w_columns is None else loss + _weighed(problem.back, scores.T, w_columns)

        return _gradients(total, problem, need_x, need_y)

    def triplet_rows(
        self, problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        loss, kept = _triplet_losses(problem, problem.x, problem.y)
        value = torch.where(kept, loss, 0.0).sum(dim=(1, 2), dtype=torch.float64)
        rows = torch.stack([value, kept.sum(dim=(1, 2)).double()])
        if not uniform:
            return rows, None, None
        dx, dy = self.triplet_grads(problem, problem.x.new_ones(problem.x.shape[0]), need_x, need_y)
        return rows, dx, dy

    def triplet_grads(self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool) -> Grads:
        weight = w.to(problem.x.dtype)

        def total(x: Tensor, y: Tensor) -> Tensor:
            loss, kept = _triplet_losses(problem, x, y)
            kept = kept & (weight != 0)[:, None, None]
            return torch.where(kept, loss * weight[:, None, None], 0.0).sum()

        return _gradients(total, problem, need_x, need_y)

    def histogram_sums(self, problem: HistogramProblem, keep: bool) -> HistogramSums:
        value, *sides = _histogram_values(problem, problem.x, problem.y)
        sums = [problem.spec.bins.sums(value, side) for side in sides]
        if problem.spec.triplets:
            return HistogramSums(sums[0], torch.zeros((), dtype=torch.bool, device=value.device))
        outside = torch.stack([(side & problem.spec.bins.outside(value)).any() for side in sides]).any()
        return HistogramSums(torch.stack(sums)[:, :2], outside)

    def histogram_grads(
        self, problem: HistogramProblem, state: HistogramSums, slopes: Tensor, need_x: bool, need_y: bool
    ) -> Grads:
        def total(x: Tensor, y: Tensor) -> Tensor:
            value, *sides = _histogram_values(problem, x, y)
            sums = [problem.spec.bins.sums(value, side) for side in sides]
            parts = sums[0][1:] if problem.spec.triplets else torch.stack([side[1] for side in sums])
            return (parts * slopes).sum()

        return _gradients(total, problem, need_x, need_y)

    def extremes(self, problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
        n, m = problem.x.shape[0], problem.y.shape[0]
        s = dense_scores(problem.score, problem.x, problem.y)
        mask = _positive_mask(problem) if problem.positive else _negative_mask(problem)
        if problem.low is not None:
            mask = mask & (s >= problem.low.unsqueeze(1))
        if problem.high is not None:
            mask = mask & (s <= problem.high.unsqueeze(1))
        worst = float("-inf") if problem.largest else float("inf")
        value, index = s.new_full((n,), worst), torch.full((n,), -1, device=s.device)
        if m == 0:
            return value, index
        s = torch.where(mask, s, worst)
        value, index = s.max(dim=1) if problem.largest else s.min(dim=1)
        return value, torch.where(mask.any(dim=1), index, -1)

    def nearest(self, problem: NearestProblem) -> tuple[Tensor, Tensor]:
        return sorted_rows.nearest(problem)

    def rank_strips(self, problem: RankProblem) -> Iterator[RankStrip]:
        return sorted_rows.rank_strips(problem)

    def listed_scores(self, score: Score, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return paired_scores(score, x[i], y[j])

    def listed_grads(
        self,
        score: Score,
        x: Tensor,
        y: Tensor,
        i: Tensor,
        j: Tensor,
        grad: Tensor,
        need_x: bool,
        need_y: bool,
    ) -> Grads:
        with autograd_enabled():
            x_leaf, y_leaf = x.detach().requires_grad_(), y.detach().requires_grad_()
            s = paired_scores(score, x_leaf[i], y_leaf[j])
            dx, dy = torch.autograd.grad(s, (x_leaf, y_leaf), grad)
        return (dx if need_x else None), (dy if need_y else None)

    def class_scores(self, problem: ClassProblem, keep: bool) -> ClassScores:
        return class_matrix.class_scores(problem, keep)

    def class_grads(self, problem: ClassProblem, state: ClassScores, grads: ClassGrads, need_x: bool, need_y: bool) -> Grads:
        return class_matrix.class_grads(problem, state, grads, need_x, need_y)


def _gradients(total: Callable[[Tensor, Tensor], Tensor], problem: Problem, need_x: bool, need_y: bool) -> Grads:
    """Derivative of ``total(x, y)``; for a batch against itself both roles are one leaf."""
    with autograd_enabled():
        x = problem.x.detach().requires_grad_()
        y = x if problem.shared else problem.y.detach().requires_grad_()
        leaves = (x,) if problem.shared else (x, y)
        grads = torch.autograd.grad(total(x, y), leaves, allow_unused=True, materialize_grads=True)
    dx = grads[0] if need_x else None
    dy = grads[1] if need_y and not problem.shared else None
    return dx, dy


def _positive_mask(problem: Problem) -> Tensor:
    """``[N, M]``: equal labels, without the self pairs of a batch against itself."""
    n, m = problem.x.shape[0], problem.y.shape[0]
    same = same_labels(problem.x_labels, problem.y_labels)
    return same & comparable_mask(0, n, m, same.device) if problem.itself else same


def _negative_mask(problem: Problem) -> Tensor:
    return ~same_labels(problem.x_labels, problem.y_labels)


def _view(problem: PairProblem, s: Tensor) -> View:
    n, m = problem.x.shape[0], problem.y.shape[0]
    comparable = comparable_mask(0, n, m, s.device) if problem.itself else None
    return dense_view(s, same_labels(problem.x_labels, problem.y_labels), comparable, problem.rule)


def _all_rows(problem: PairProblem, view: View) -> Tensor:
    """``[T, 2, N]``: each term's value and count a row."""
    return torch.stack([torch.stack(_term_rows(problem, view, t)) for t in range(len(problem.spec.terms))])


def _weighed(problem: PairProblem, s: Tensor, w: Tensor) -> Tensor:
    """``sum(w[t] * value[t])`` over the rows of ``s``."""
    value = _all_rows(problem, _view(problem, s))[:, 0]
    return torch.where(w != 0, value * w, 0.0).sum()


def _term_rows(problem: PairProblem, view: View, t: int) -> tuple[Tensor, Tensor]:
    """Value and count of each row for one term."""
    term: Term = problem.spec.terms[t]
    given = problem.spec_of(0, problem.x.shape[0]).formula(view, problem.score)[t]
    loss, there = given if isinstance(given, Some) else (given, None)
    if term.kind == "element":
        there = torch.ones_like(loss, dtype=torch.bool) if there is None else there
        return torch.where(there, loss, 0.0), there.to(loss.dtype)
    side = view.pos if term.kind == "pos_pair" else view.neg
    assert isinstance(side, DenseSide)
    kept = side.mask & inside(loss, *problem.limits[t])
    kept = kept if there is None else kept & there
    return torch.where(kept, loss, 0.0).sum(dim=1), kept.sum(dim=1).to(loss.dtype)


def _triplet_losses(problem: TripletProblem, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of every (anchor, positive, negative) ``[N, M, M]`` and the mask of those that count."""
    spec, score = problem.spec, problem.score
    s = dense_scores(score, x, y)
    pos, neg = _positive_mask(problem), _negative_mask(problem)
    if problem.rule is not None:
        pos_low, pos_high, neg_low, neg_high = problem.rule.unsqueeze(2).unbind(0)
        pos = pos & (s >= pos_low) & (s <= pos_high)
        neg = neg & (s >= neg_low) & (s <= neg_high)
    s_ap, s_an = s[:, :, None], s[:, None, :]
    kept = pos[:, :, None] & neg[:, None, :] & _selected(problem, s_ap, s_an)
    if spec.swap:
        s_pn = dense_scores(score, y, y)[None, :, :]
        s_an = torch.maximum(s_an, s_pn) if score.inverted else torch.minimum(s_an, s_pn)
    violation = (s_an - s_ap if score.inverted else s_ap - s_an) + spec.margin
    loss = softplus(violation) if spec.smooth else torch.relu(violation)
    return loss, kept & inside(loss, *problem.limits)


def _selected(problem: TripletProblem, s_ap: Tensor, s_an: Tensor) -> Tensor:
    """The triplets a TripletMarginMiner leaves."""
    spec = problem.spec
    margin = s_ap - s_an if problem.score.inverted else s_an - s_ap
    if spec.select == "every":
        return torch.ones_like(margin, dtype=torch.bool)
    if spec.select == "easy":
        return margin > spec.select_margin
    kept = margin <= spec.select_margin
    if spec.select == "hard":
        return kept & (margin <= 0)
    if spec.select == "semihard":
        return kept & (margin > 0)
    return kept


def _histogram_values(problem: HistogramProblem, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """What is counted, flat, and masks of those that count: of all triplets; or of the positive and of the negative pairs."""
    s, pos, neg = dense_scores(problem.score, x, y), _positive_mask(problem), _negative_mask(problem)
    if problem.spec.triplets:
        kept = pos[:, :, None] & neg[:, None, :]
        return (s[:, :, None] - s[:, None, :]).flatten(), kept.flatten()
    opened = (pos.any(dim=1) & neg.any(dim=1)).unsqueeze(1).expand_as(s)
    if problem.itself:
        opened = torch.ones_like(opened).triu_(1) & (opened | opened.T)
    return s.flatten(), (opened & pos).flatten(), (opened & neg).flatten()
