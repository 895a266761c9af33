"""All triplets of a strip of anchors, exact and never enumerated, in pure torch.

The hinge over sorted positives follows Rust and Hocking, "A Log-linear Gradient Descent Algorithm for
Unbalanced Binary Classification using the All Pairs Squared Hinge Loss" (arXiv 2302.11062): for each
negative a binary search finds the range of positives that form an active triplet with it; a histogram of the
range ends gives each positive its number of active negatives, and those two counts are the loss and its
gradient. Softplus, swap and unusual intervals of losses do not separate and loop over the positives of a
strip instead.

Scores are turned to ``v = -sign * s`` (larger is farther, for every score). Negation is exact, so ``(a - v)
+ margin`` of a positive ``a`` and a negative ``v`` has the very bits of PML's violation, and it is monotone
in ``a``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pml_fast.engine import grad_sum
from pml_fast.engine.fold import inside
from pml_fast.engine.grad_sum import GradSum, strips
from pml_fast.engine.listed_sums import add_at
from pml_fast.engine.problem import TripletProblem, same_labels
from pml_fast.engine.score import Score, paired_scores
from pml_fast.engine.spec import TripletSpec
from pml_fast.engine.strips import powered, strip_base
from pml_fast.engine.views import softplus

INF = float("inf")

# Distances to positives are taken by differences where they are at most this share of all distances.
FEW_POSITIVES = 0.125


def rows_and_grads(
    problem: TripletProblem, w: Tensor | None, need_x: bool, need_y: bool, uniform: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Sum and number of each anchor's counted losses ``[2, N]`` (float64), and the gradients of their
    weighted sum.

    The weights are ``w [N]`` or, where it is ``None`` and ``uniform``, 1; without either no gradient is
    computed. The widths of the strips' tables of positives are read on the host: one synchronisation a call
    on an accelerator.
    """
    wanted = uniform or w is not None
    problem, order_x, order_y = by_class(problem)
    weight = problem.x.new_ones(len(order_x)) if w is None else w[order_x].to(problem.x.dtype)
    grads = GradSum(problem.x, problem.y, problem.shared, need_x and wanted, need_y and wanted)
    rows = torch.zeros(2, len(order_x), dtype=torch.float64, device=problem.x.device)
    start = torch.searchsorted(problem.y_labels, problem.x_labels)
    stop = torch.searchsorted(problem.y_labels, problem.x_labels, right=True)
    ranges = torch.stack([start, stop]).cpu()
    own = places(order_y)[order_x] if problem.itself else None
    for first, last in strips(problem.x.shape[0], problem.y.shape[0]):
        sizes = ranges[1, first:last] - ranges[0, first:last]
        most = int(sizes.max())
        if most == 0:
            continue
        strip = _read(problem, first, last, start[first:last], stop[first:last], most)
        if own is not None:
            strip.has &= strip.at != own[first:last].unsqueeze(1)
        if _separable(problem):
            value, count, c = _hinge(problem, strip)
            c = _weighed(c, weight[first:last])
        else:
            value, count, c = _looped(problem, strip, ranges[:, first:last], weight[first:last], grads)
        rows[0, first:last], rows[1, first:last] = value, count
        if grads.need_rows or grads.need_cols:
            grads.add(problem.score, first, last, strip.base, c)
    dx, dy = grads.result()
    return (
        unsorted(rows, order_x, 1),
        unsorted(dx, order_x, 0) if dx is not None else None,
        unsorted(dy, order_y, 0) if dy is not None else None,
    )


@dataclass
class _Strip:
    """``base [n, M]`` as strip_base gave it; ``a [n, P]`` and ``v [n, M]`` turned scores of the positives
    and of all columns.

    ``at [n, P]`` is the column of each positive, ``has [n, P]`` and ``neg [n, M]`` say which entries are
    pairs in play.
    """

    base: Tensor
    a: Tensor
    at: Tensor
    has: Tensor
    v: Tensor
    neg: Tensor


def _separable(problem: TripletProblem) -> bool:
    spec, (low, high) = problem.spec, problem.limits
    return not spec.smooth and not spec.swap and high == INF and low <= 0


def by_class(problem: TripletProblem) -> tuple[TripletProblem, Tensor, Tensor]:
    """The same problem with rows and columns in the order of their labels, and the two orders."""
    order_x = torch.argsort(problem.x_labels, stable=True)
    # A set that begins with the batch may be larger than it.
    one = problem.itself and len(problem.x_labels) == len(problem.y_labels)
    order_y = order_x if one else torch.argsort(problem.y_labels, stable=True)
    x = problem.x[order_x]
    x_labels = problem.x_labels[order_x]
    ordered = replace(
        problem,
        x=x,
        y=x if problem.shared else problem.y[order_y],
        x_labels=x_labels,
        y_labels=x_labels if one else problem.y_labels[order_y],
        rule=problem.rule[:, order_x] if problem.rule is not None else None,
    )
    return ordered, order_x, order_y


def places(order: Tensor) -> Tensor:
    """Where each one stands in an order."""
    return torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))


def unsorted(values: Tensor, order: Tensor, dim: int) -> Tensor:
    return torch.empty_like(values).index_copy_(dim, order, values)


def _read(problem: TripletProblem, first: int, last: int, start: Tensor, stop: Tensor, most: int) -> _Strip:
    x, y, score = problem.x[first:last], problem.y, problem.score
    base = strip_base(score, x, y)
    at = start.unsqueeze(1) + torch.arange(most, device=y.device)
    has = at < stop.unsqueeze(1)
    at = at.clamp_(max=y.shape[0] - 1)
    if score.kind == "l2" and y.device.type != "cpu" and most <= FEW_POSITIVES * y.shape[0]:
        _exact_positives(score, x, y, base, at)
    s = powered(score, base)
    pos = s.gather(1, at)
    neg = ~same_labels(problem.x_labels[first:last], problem.y_labels)
    if problem.rule is not None:
        pos_low, pos_high, neg_low, neg_high = problem.rule[:, first:last].unsqueeze(2).unbind(0)
        has &= (pos >= pos_low) & (pos <= pos_high)
        neg &= (s >= neg_low) & (s <= neg_high)
    return _Strip(base, pos * -score.sign, at, has, s * -score.sign, neg)


def _exact_positives(score: Score, x: Tensor, y: Tensor, base: Tensor, at: Tensor) -> None:
    """Distances to positives by differences, in place (strip_base does so itself on the CPU)."""
    n, d = x.shape
    plain = replace(score, power=1.0)
    for part in at.split(max(1, grad_sum.STRIP_ELEMENTS // max(n * d, 1)), dim=1):
        rows = x.repeat_interleave(part.shape[1], dim=0)
        base.scatter_(1, part, paired_scores(plain, rows, y[part.flatten()]).view(part.shape))


def _first_true(key: Tensor, guess: Tensor, predicate: Callable[[Tensor], Tensor]) -> Tensor:
    """First position of each row of ``key`` (ascending) where a monotone predicate of the key holds, else
    its length.

    ``guess`` may be wrong by rounding: it is walked to the place where the predicate itself turns.
    """
    p = key.shape[1]
    while True:
        holds = predicate(key.gather(1, guess.clamp(max=p - 1))) | (guess == p)
        before = predicate(key.gather(1, (guess - 1).clamp_(min=0))) & (guess > 0)
        if not bool((before | ~holds).any()):
            return guess
        guess = guess + (~holds).to(guess.dtype) - before.to(guess.dtype)


def _within(key: Tensor, v: Tensor, margin: float) -> Tensor:
    """First positive whose triplet margin ``v - a`` is at most ``margin``."""
    return _first_true(key, torch.searchsorted(key, v - margin), lambda a: v - a <= margin)


def _selected(spec: TripletSpec, key: Tensor, v: Tensor, pads: Tensor) -> tuple[Tensor, Tensor | None]:
    """Range of the sorted positives that the miner's rule leaves each negative; the end is ``None`` for all
    the rest.
    """
    whole = pads.unsqueeze(1).expand_as(v)
    if spec.select == "every":
        return whole, None
    if spec.select == "easy":
        return whole, _within(key, v, spec.select_margin)
    if spec.select == "hard":
        return _within(key, v, min(spec.select_margin, 0.0)), None
    low = _within(key, v, spec.select_margin)
    return low, _within(key, v, 0.0) if spec.select == "semihard" else None


def _hinge(problem: TripletProblem, strip: _Strip) -> tuple[Tensor, Tensor, Tensor]:
    spec, p = problem.spec, strip.a.shape[1]
    live = strip.has & ~strip.a.isnan()
    ok = strip.neg & ~strip.v.isnan()
    # What is not in play is put where no predicate holds: positives infinitely near, negatives infinitely
    # far.
    key, order = strip.a.masked_fill(~live, -INF).sort(dim=1)
    v = strip.v.masked_fill(~ok, INF)
    low, high = _selected(spec, key, v, (~live).sum(dim=1))
    guess = torch.searchsorted(key, v - spec.margin, right=True)
    enter = _first_true(key, guess, lambda a: (a - v) + spec.margin > 0)
    enter = torch.maximum(enter, low)
    if high is not None:
        enter = torch.minimum(enter, high)
    active = (p if high is None else high) - enter
    per_positive = _range_counts(enter, high, p)

    number = active.sum(dim=1).double()
    near = torch.where(per_positive > 0, key, 0.0).double() * per_positive
    far = torch.where(active > 0, v, 0.0).double() * active
    value = near.sum(dim=1) - far.sum(dim=1) + spec.margin * number
    if problem.limits[0] < 0:
        chosen = ((p if high is None else high) - low).clamp_(min=0)
        number = torch.where(ok, chosen, 0).sum(dim=1).double()
    if spec.select == "every":
        value, number = _with_nans(strip, live, ok, value, number)

    sign = problem.score.sign
    c = active.to(v.dtype).mul_(sign)
    c.scatter_add_(1, strip.at.gather(1, order), per_positive.to(c.dtype).mul_(-sign))
    return value, number, c


def _range_counts(enter: Tensor, high: Tensor | None, p: int) -> Tensor:
    """How many of the ranges ``enter..high`` hold each of ``p`` positions."""
    ends = torch.zeros(enter.shape[0], p + 1, dtype=torch.int32, device=enter.device)
    one = torch.ones((), dtype=torch.int32, device=enter.device)
    ends.scatter_add_(1, enter, one.expand_as(enter))
    if high is not None:
        ends.scatter_add_(1, high, (-one).expand_as(high))
    return ends[:, :p].cumsum(dim=1)


def _with_nans(strip: _Strip, live: Tensor, ok: Tensor, value: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """A triplet with a NaN has a NaN loss, which every interval keeps (a miner's rule drops it)."""
    every = strip.has.sum(dim=1) * strip.neg.sum(dim=1)
    broken = every - live.sum(dim=1) * ok.sum(dim=1)
    for infinity in (INF, -INF):
        # The difference of two equal infinities is a NaN, too.
        broken = broken + (live & (strip.a == infinity)).sum(dim=1) * (ok & (strip.v == infinity)).sum(dim=1)
    return value.masked_fill(broken > 0, float("nan")), number + broken


def _weighed(c: Tensor, w: Tensor) -> Tensor:
    w = w.unsqueeze(1)
    # An anchor that weighs nothing must not turn an infinite or NaN coefficient into NaN.
    return torch.where(w != 0, c * w, 0.0)


def _chosen(spec: TripletSpec, margin: Tensor) -> Tensor | bool:
    """Which triplet margins a TripletMarginMiner's rule leaves."""
    if spec.select == "every":
        return True
    if spec.select == "easy":
        return margin > spec.select_margin
    kept = margin <= spec.select_margin
    if spec.select == "hard":
        kept &= margin <= 0
    elif spec.select == "semihard":
        kept &= margin > 0
    return kept


def _blocks(problem: TripletProblem, ranges: Tensor) -> Iterator[tuple[int, int, range]]:
    """Ranges of the columns that are some anchor's positives, and which positives of the anchors can lie in
    each.

    With swap each needs a strip of scores of its own, so they are no longer than the strip of anchors.
    """
    begin, end, last_start = int(ranges[0, 0]), int(ranges[1, -1]), int(ranges[0, -1])
    most = int((ranges[1] - ranges[0]).max())
    step = ranges.shape[1] if problem.spec.swap else end - begin
    for first in range(begin, end, step):
        last = min(end, first + step)
        yield first, last, range(max(0, first - last_start), min(most, last - begin))


def _looped(problem: TripletProblem, strip: _Strip, ranges: Tensor, w: Tensor, grads: GradSum) -> tuple[Tensor, Tensor, Tensor]:
    """Triplets of the strip, one positive of every anchor at a time. Gradients of positive-negative scores
    are added here.
    """
    spec, score, sign = problem.spec, problem.score, problem.score.sign
    value = torch.zeros(strip.v.shape[0], dtype=torch.float64, device=strip.v.device)
    count = torch.zeros_like(value)
    c_neg = torch.zeros_like(strip.v)
    c_pos = torch.zeros_like(strip.a)
    for first, last, ks in _blocks(problem, ranges):
        if spec.swap:
            base = strip_base(score, problem.y[first:last], problem.y)
            between = powered(score, base).mul(-sign)
            c_between = torch.zeros_like(between)
        # Positives lie side by side: the k-th one of every anchor is a column of ``at``.
        for k in ks:
            here = strip.has[:, k] & (strip.at[:, k] >= first) & (strip.at[:, k] < last)
            a, at = strip.a[:, k : k + 1], (strip.at[:, k] - first).clamp(0, last - first - 1)
            valid = strip.neg & here.unsqueeze(1) & _chosen(spec, strip.v - a)
            far = torch.minimum(strip.v, between[at]) if spec.swap else strip.v
            violation = (a - far) + spec.margin
            loss = softplus(violation) if spec.smooth else torch.relu(violation)
            kept = valid & inside(loss, *problem.limits)
            value += torch.where(kept, loss, 0.0).sum(dim=1, dtype=torch.float64)
            count += kept.sum(dim=1)
            slope = torch.sigmoid(violation) if spec.smooth else (~(violation <= 0)).to(a.dtype)
            slope = _weighed(torch.where(kept, slope, 0.0), w)
            c_pos[:, k] += slope.sum(dim=1)
            if spec.swap:
                # Ties share the gradient, as in torch.minimum.
                nearer = (strip.v < between[at]).to(a.dtype) + 0.5 * (strip.v == between[at]).to(a.dtype)
                add_at(c_between, at, slope * (1 - nearer))
                slope = slope * nearer
            c_neg += slope
        if spec.swap:
            grads.add_among_columns(score, first, last, base, c_between.mul_(sign))
    c = c_neg.mul_(sign).scatter_add_(1, strip.at, c_pos.mul_(-sign))
    return value, count, c
