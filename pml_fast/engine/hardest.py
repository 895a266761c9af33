"""The hardest share of all positive and of all negative pairs, selected without holding or sorting the pairs.

The threshold is found digit by digit, as in a radix sort: a sweep over the strips counts how often each value of one digit
occurs among the pairs that agree with the digits known so far. float32 scores take two such sweeps, float64 ones four;
one more finds the ties and the neighbours of the threshold. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.cpu import small
from pml_fast.engine.grad_sum import strips
from pml_fast.engine.materialise import prepared_rows
from pml_fast.engine.operator import define
from pml_fast.engine.problem import same_labels
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.engine.strips import powered, strip_base
from pml_fast.utils.index_types import PairIndices

DIGIT_BITS = 16
DIGITS = 1 << DIGIT_BITS
INT64 = torch.iinfo(torch.int64)


@dataclass
class Strip:
    """Rows ``first ..`` against columns ``column ..``: hardness and mask ``[2, n, m]`` of positives and of negatives."""

    first: int
    column: int
    hardness: Tensor
    there: Tensor


@dataclass
class PairSet:
    """All pairs of a batch, in strips.

    A batch against itself under a symmetric score is seen from one side of the diagonal only: a pair and its mirror image
    then tie exactly, however a product rounds.
    """

    x: Tensor
    y: Tensor
    labels: Tensor
    ref_labels: Tensor
    score: Score
    itself: bool

    @property
    def mirrored(self) -> bool:
        """Whether a strip holds one of each two pairs that mirror each other."""
        return self.itself and self.score.symmetric

    @property
    def wide(self) -> torch.dtype:
        """The type of scores."""
        return compute_type(self.x.dtype)

    def strips(self) -> Iterator[Strip]:
        """The strips, computed as they are asked for."""
        x, y = prepared_rows((self.x, self.y), self.score)
        for first, last in strips(x.shape[0], y.shape[0]):
            column = first if self.mirrored else 0
            s = powered(self.score, strip_base(self.score, x[first:last], y[column:]))
            same = same_labels(self.labels[first:last], self.ref_labels[column:])
            there = torch.stack([same, ~same])
            if self.mirrored:
                there = there.triu(1)
            elif self.itself:
                own = torch.arange(first, last, device=s.device).unsqueeze(1) == torch.arange(s.shape[1], device=s.device)
                there = there & ~own
            # Adding 0 makes one zero of the two.
            signed = self.score.sign * s + 0.0
            yield Strip(first, column, torch.stack([0.0 - signed, signed]), there)

    def repeatable(self) -> Iterable[Strip]:
        """The strips for several sweeps: a single one is kept, more are computed again."""
        ranges = strips(self.x.shape[0], self.y.shape[0])
        single = next(ranges, None) is None or next(ranges, None) is None
        return list(self.strips()) if single else _Again(self)


@dataclass
class _Again:
    pairs: PairSet

    def __iter__(self) -> Iterator[Strip]:
        return self.pairs.strips()


# ---- the threshold -----------------------------------------------------------------------------------------------------------


def _ordered(value: Tensor) -> Tensor:
    """Integers in the order of the floats; NaN has no place in it. :func:`_value` is its inverse."""
    if value.dtype == torch.float64:
        bits = value.view(torch.int64)
        return bits ^ ((bits >> 63) & INT64.max)
    bits = value.view(torch.int32).to(torch.int64)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _value(key: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.float64:
        return (key ^ ((key >> 63) & INT64.max)).view(torch.float64)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(torch.int32).view(torch.float32)


def _count_digits(strip: Strip, key: Tensor, shift: int, prefix: Tensor | None) -> Tensor:
    """``[2, DIGITS]``: how many pairs of each side have each value of the digit at ``shift`` behind ``prefix [2]``."""
    counted = strip.there & ~torch.isnan(strip.hardness)
    digit = key >> shift
    if prefix is None:
        # The topmost digit carries the sign.
        digit = digit + DIGITS // 2
    else:
        counted = counted & ((digit >> DIGIT_BITS) == prefix.view(2, 1, 1))
        digit = digit & (DIGITS - 1)
    # One bin too many takes what is not counted; the sides lie one behind the other.
    side = torch.tensor([0, DIGITS + 1], device=key.device).view(2, 1, 1)
    digit = torch.where(counted, digit, DIGITS) + side
    counts = torch.zeros(2 * (DIGITS + 1), dtype=torch.int64, device=key.device)
    counts.scatter_add_(0, digit.flatten(), torch.ones(1, dtype=torch.int64, device=key.device).expand(digit.numel()))
    return counts.view(2, -1)[:, :DIGITS]


@dataclass
class Threshold:
    """The hardness ``key [2]`` of the last pair kept of each side, and how many of those that tie with it are kept."""

    key: Tensor
    ties: Tensor


def _find_threshold(pairs: PairSet, sweeps: Iterable[Strip], share: float) -> Threshold:
    device, wide = pairs.x.device, pairs.wide
    times = 2 if pairs.mirrored else 1
    prefix, left = None, torch.zeros(2, dtype=torch.int64, device=device)
    for shift in range(torch.finfo(wide).bits - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = torch.zeros(2, DIGITS, dtype=torch.int64, device=device)
        total = torch.zeros(2, dtype=torch.int64, device=device)
        for strip in sweeps:
            counts += times * _count_digits(strip, _ordered(strip.hardness), shift, prefix)
            total += times * strip.there.sum(dim=(1, 2))
        if prefix is None:
            # NaN is never mined; it counts among the pairs that the share is of.
            left = torch.minimum(torch.ceil(total.double() * share).to(torch.int64), counts.sum(dim=1))
        # Number of pairs with this digit or a higher one.
        from_here = counts.flip(1).cumsum(1).flip(1)
        digit = (from_here >= left.unsqueeze(1)).sum(dim=1) - 1
        here = counts.gather(1, digit.unsqueeze(1)).squeeze(1)
        left = left - (from_here.gather(1, digit.unsqueeze(1)).squeeze(1) - here)
        prefix = digit - DIGITS // 2 if prefix is None else (prefix << DIGIT_BITS) | digit
    assert prefix is not None
    return Threshold(prefix, left)


def _neighbours(pairs: PairSet, sweeps: Iterable[Strip], key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's pairs that tie with the threshold ``[2, N]``; the next easier and the next harder key ``[2]``."""
    ties = torch.zeros(2, pairs.x.shape[0], dtype=torch.int64, device=key.device)
    below, above = torch.full_like(key, INT64.min), torch.full_like(key, INT64.max)
    at = key.view(2, 1, 1)
    for strip in sweeps:
        there = strip.there & ~torch.isnan(strip.hardness)
        keys = _ordered(strip.hardness)
        tied = there & (keys == at)
        ties[:, strip.first : strip.first + keys.shape[1]] += tied.sum(dim=2)
        if pairs.mirrored:
            ties[:, strip.column :] += tied.sum(dim=1)
        if keys.shape[2] > 0:
            below = torch.maximum(below, torch.where(there & (keys < at), keys, INT64.min).amax(dim=(1, 2)))
            above = torch.minimum(above, torch.where(there & (keys > at), keys, INT64.max).amin(dim=(1, 2)))
    return ties, below, above


def _between(low: Tensor, high: Tensor) -> Tensor:
    """A value above ``low`` and not above ``high``: halfway, so that no rounding of a score crosses it."""
    half = low / 2 + high / 2
    return torch.where(half > low, half, high)


# ---- the rule ----------------------------------------------------------------------------------------------------------------


def _hardest_rule(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: str, itself: bool, share: float
) -> tuple[Tensor, Tensor]:
    pairs = PairSet(x, y, x_labels, y_labels, Score.decode(score), itself)
    if itself and small.applies(x) and small.has_kernel(pairs.score):
        return small.hardest(x, x_labels, pairs.score, share)
    with math_precision():
        sweeps = pairs.repeatable()
        threshold = _find_threshold(pairs, sweeps, share)
        ties, below, above = _neighbours(pairs, sweeps, threshold.key)
    wide = pairs.wide
    at = _value(threshold.key, wide)
    any_below, any_above = below != INT64.min, above != INT64.max
    # An empty end keeps out of the arithmetic: no float has its key.
    easier = torch.where(any_below, _between(_value(torch.where(any_below, below, threshold.key), wide), at), -torch.inf)
    harder = _between(at, _value(torch.where(any_above, above, threshold.key), wide))
    # The first rows keep their ties, as many rows as are needed; the others keep what is strictly harder.
    before = ties.cumsum(1) - ties
    wanted = threshold.ties.unsqueeze(1)
    keeps_ties = before < wanted
    bound = torch.where(keeps_ties, easier.unsqueeze(1), harder.unsqueeze(1))
    closed = ~keeps_ties & ~any_above.unsqueeze(1)
    rule = _as_intervals(bound, closed, pairs.score)
    last = torch.where(keeps_ties, torch.arange(x.shape[0], device=x.device), -1)
    row = last.amax(dim=1) if x.shape[0] > 0 else threshold.ties.new_full((2,), -1)
    surplus = torch.where(keeps_ties, ties, 0).sum(dim=1) - threshold.ties
    return rule, torch.stack([row, surplus])


def _as_intervals(bound: Tensor, closed: Tensor, score: Score) -> Tensor:
    """``hardness >= bound`` of positives and negatives ``[2, N]`` as the closed intervals of scores that miners hand over."""
    inf = torch.full_like(bound[0], torch.inf)
    rule = []
    for side, flipped in enumerate((score.inverted, not score.inverted)):
        low, high = (-inf, -bound[side]) if flipped else (bound[side], inf)
        rule += [torch.where(closed[side], inf, low), torch.where(closed[side], -inf, high)]
    return torch.stack(rule)


def _hardest_rule_fake(
    x: Tensor, y: Tensor, x_labels: Tensor, y_labels: Tensor, score: str, itself: bool, share: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty((4, x.shape[0]), dtype=compute_type(x.dtype)), x.new_empty((2, 2), dtype=torch.int64)


# The rule ``[4, N]``; and for each side the last row that keeps ties, and how many of them are too many: ``[2, 2]``.
define(
    "hardest_rule",
    "(Tensor x, Tensor y, Tensor x_labels, Tensor y_labels, str score, bool itself, float share) -> (Tensor, Tensor)",
    _hardest_rule,
    _hardest_rule_fake,
)


# ---- index tensors -----------------------------------------------------------------------------------------------------------


def hardest_pairs(pairs: PairSet, rule: Tensor, cut: Tensor) -> PairIndices:
    """The pairs that a rule leaves, without the ties that are too many; by anchor, then by the other."""
    sides: list[Tensor] = []
    found = _found(pairs, rule)
    for (i, j, hardness), (row, surplus) in zip(found, cut.T.tolist(), strict=True):
        order = torch.argsort(i * pairs.y.shape[0] + j)
        i, j, hardness = i[order], j[order], hardness[order]
        if surplus > 0:
            mine = torch.nonzero(i == row).squeeze(1)
            tied = mine[hardness[mine] == hardness[mine].min()]
            keep = torch.ones_like(i, dtype=torch.bool)
            keep[tied[len(tied) - surplus :]] = False
            i, j = i[keep], j[keep]
        sides += [i, j]
    return PairIndices(*sides)


def _found(pairs: PairSet, rule: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Anchors, others and hardness of the positives and of the negatives inside the rule, in no order."""
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[], []]
    with math_precision():
        for strip in pairs.strips():
            s = pairs.score.sign * strip.hardness[1]
            rows, cols = slice(strip.first, strip.first + s.shape[0]), slice(strip.column, None)
            for side in (0, 1):
                low, high = rule[2 * side], rule[2 * side + 1]
                seen = [((s >= low[rows, None]) & (s <= high[rows, None]), False)]
                if pairs.mirrored:
                    seen.append(((s >= low[cols]) & (s <= high[cols]), True))
                for inside, mirror in seen:
                    i, j = torch.nonzero(inside & strip.there[side], as_tuple=True)
                    hardness = strip.hardness[side][i, j]
                    i, j = i + strip.first, j + strip.column
                    parts[side].append((j, i, hardness) if mirror else (i, j, hardness))
    none = torch.empty(0, dtype=torch.int64, device=pairs.x.device)
    start = (none, none, torch.empty(0, dtype=pairs.wide, device=pairs.x.device))
    return [tuple(torch.cat(column) for column in zip(start, *side, strict=True)) for side in parts]  # type: ignore[misc]
