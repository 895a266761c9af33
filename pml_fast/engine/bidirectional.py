"""Rows and columns as anchors of one matrix of scores, in pure torch: a strip of rows is read in both directions.

A strip has all scores of its rows, and some of every column's: what a column's softmax needs is summed over the strips
(:class:`pml_fast.engine.spec.SoftmaxSums`). Then ``dL/dscore`` is a row's share and a column's share, known from the sums of
both, and a strip is multiplied into the gradients once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pml_fast.engine.autograd import autograd_enabled
from pml_fast.engine.grad_sum import GradSum, strips
from pml_fast.engine.problem import PairProblem, PairRows, same_labels
from pml_fast.engine.spec import SoftmaxSpec, SoftmaxSums, Some
from pml_fast.engine.strips import powered, strip_base
from pml_fast.engine.views import NEG_INF, dense_view

Grads = tuple[Tensor | None, Tensor | None]
# SoftmaxSums that the losses have a derivative by.
_SMOOTH = 3


def softmax_spec(problem: PairProblem) -> SoftmaxSpec:
    """The spec of a bidirectional problem; ``ValueError`` unless that can be one."""
    spec = problem.spec
    if not isinstance(spec, SoftmaxSpec):
        raise ValueError(f"spec must be a SoftmaxSpec where columns are anchors as well as rows, got {spec.name!r}")
    if problem.itself or problem.rule is not None:
        raise ValueError("columns can be anchors as well as rows only of two sets without a rule of pairs")
    return spec


def _strips(problem: PairProblem) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Ends of a strip, its base and its scores, and which labels are equal."""
    n, m = problem.x.shape[0], problem.y.shape[0]
    for first, last in strips(n, m):
        base = strip_base(problem.score, problem.x[first:last], problem.y)
        same = same_labels(problem.x_labels[first:last], problem.y_labels)
        yield first, last, base, powered(problem.score, base), same


def _no_pairs(count: int, like: Tensor) -> SoftmaxSums:
    none, zero = like.new_full((count,), NEG_INF), like.new_zeros(count)
    return SoftmaxSums(none, none, zero, zero, zero)


def _values(spec: SoftmaxSpec, sums: SoftmaxSums) -> tuple[Tensor, Tensor]:
    """Losses ``[T, N]``, and 1 where there is one."""
    values, there = [], []
    for given in spec.row_losses(sums):
        loss, some = given if isinstance(given, Some) else (given, None)
        values.append(loss)
        there.append(torch.ones_like(loss) if some is None else some.to(loss.dtype))
    return torch.stack(values), torch.stack(there)


def pair_rows(problem: PairProblem) -> PairRows:
    """One sweep: losses of rows and of columns, and as ``saved`` their sums ``[5, N + M]``."""
    spec, m = softmax_spec(problem), problem.y.shape[0]
    scale = spec.scale(problem.score)
    own, columns = [_no_pairs(0, problem.x)], _no_pairs(m, problem.x)
    for _, _, _, s, same in _strips(problem):
        own.append(SoftmaxSums.of(dense_view(s, same, None, None), scale))
        columns = columns.merged(SoftmaxSums.of(dense_view(s.T, same.T, None, None), scale))
    rows = SoftmaxSums(*(torch.cat(parts) for parts in zip(*own, strict=True)))
    exists = torch.stack([rows.positives.any(), rows.negatives.any()])
    saved = torch.cat([torch.stack(rows), torch.stack(columns)], dim=1)
    by_row, by_column = (torch.stack(_values(spec, sums), dim=1) for sums in (rows, columns))
    return PairRows(by_row, exists, saved, columns=by_column)


def pair_grads(problem: PairProblem, state: PairRows, w: Tensor, w_columns: Tensor, need_x: bool, need_y: bool) -> Grads:
    """The second sweep: gradients of ``sum(w * row value) + sum(w_columns * column value)``."""
    spec, n = softmax_spec(problem), problem.x.shape[0]
    scale = spec.scale(problem.score)
    sums = state.saved[:, :n], state.saved[:, n:]
    rows, columns = (_Share.of(spec, part, weight) for part, weight in zip(sums, (w, w_columns), strict=True))
    accumulate = GradSum(problem.x, problem.y, False, need_x, need_y)
    for first, last, base, s, same in _strips(problem):
        logits = s * scale
        c = rows.part(first, last).of_strip(logits, same)
        c += columns.of_strip(logits.T, same.T).T
        accumulate.add(problem.score, first, last, base, c.mul_(scale))
    return accumulate.result()


class _Share:
    """What anchors of one direction add to ``dL/dlogit``, given their sums ``[5, N]`` and the derivative by them ``[3, N]``."""

    def __init__(self, sums: Tensor, back: Tensor) -> None:
        self.sums, self.back = sums, back

    @staticmethod
    def of(spec: SoftmaxSpec, sums: Tensor, w: Tensor) -> _Share:
        with autograd_enabled():
            leaf = sums[:_SMOOTH].detach().requires_grad_()
            values, _ = _values(spec, SoftmaxSums(*leaf, *sums[_SMOOTH:]))
            # A row that weighs nothing must not turn an infinite value into NaN.
            total = torch.where(w != 0, values * w, 0.0).sum()
            (back,) = torch.autograd.grad(total, leaf)
        return _Share(sums, back)

    def part(self, first: int, last: int) -> _Share:
        return _Share(self.sums[:, first:last], self.back[:, first:last])

    def of_strip(self, logits: Tensor, same: Tensor) -> Tensor:
        log_pos, log_neg = (part.unsqueeze(1) for part in self.sums[:2])
        by_pos, by_neg, by_total = (part.unsqueeze(1) for part in self.back)
        weight = torch.where(same, by_pos, by_neg)
        share = (logits - torch.where(same, log_pos, log_neg)).exp_().mul_(weight).masked_fill_(weight == 0, 0.0)
        return share.add_(torch.where(same, by_total, 0.0))
