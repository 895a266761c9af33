"""The hardest share of all positive and of all negative pairs, selected without holding or sorting the pairs.

The threshold is found digit by digit, as in a radix sort: a sweep over the strips counts how often each value of one digit
occurs among the pairs that agree with the digits known so far. float32 scores take two such sweeps, float64 ones four;
one more finds the ties and the neighbours of the threshold. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pml_fast.engine.cpu import score_strips, small
from pml_fast.engine.operator import define
from pml_fast.engine.pair_set import PairSet, ScoreStrip
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.settings import math_precision
from pml_fast.utils.index_types import PairIndices

DIGIT_BITS = 16
DIGITS = 1 << DIGIT_BITS
INT64 = torch.iinfo(torch.int64)


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


class Folds(Protocol):
    """What a sweep takes out of a strip; the tensors handed over are added to, or moved."""

    def count_digits(self, strip: ScoreStrip, shift: int, prefix: Tensor | None, counts: Tensor, total: Tensor) -> None:
        """``counts [2, DIGITS]``: how many pairs of each side have each value of the digit at ``shift`` behind ``prefix [2]``;
        ``total [2]``: how many pairs there are."""
        ...

    def find_neighbours(self, strip: ScoreStrip, key: Tensor, ties: Tensor, below: Tensor, above: Tensor) -> None:
        """Each row's pairs ``ties [2, N]`` that tie with ``key [2]``; the next easier and the next harder key ``[2]``."""
        ...


class TorchFolds:
    """The folds on any device."""

    def __init__(self, pairs: PairSet) -> None:
        self.pairs = pairs

    def _hardness(self, strip: ScoreStrip) -> Tensor:
        """``[2, n, m]``: how hard each pair is as a positive and as a negative one."""
        # Adding 0 makes one zero of the two.
        signed = self.pairs.score.sign * strip.scores + 0.0
        return torch.stack([0.0 - signed, signed])

    def count_digits(self, strip: ScoreStrip, shift: int, prefix: Tensor | None, counts: Tensor, total: Tensor) -> None:
        for part in strip.parts():
            there, hardness = self.pairs.sides(part), self._hardness(part)
            total += there.sum(dim=(1, 2))
            counted = there & ~torch.isnan(hardness)
            digit = _ordered(hardness) >> shift
            if prefix is None:
                # The topmost digit carries the sign.
                digit = digit + DIGITS // 2
            else:
                counted &= (digit >> DIGIT_BITS) == prefix.view(2, 1, 1)
                digit = digit & (DIGITS - 1)
            # One bin too many takes what is not counted; the sides lie one behind the other.
            side = torch.tensor([0, DIGITS + 1], device=digit.device).view(2, 1, 1)
            place = (torch.where(counted, digit, DIGITS) + side).flatten()
            own = torch.zeros(2 * (DIGITS + 1), dtype=torch.int64, device=digit.device)
            own.scatter_add_(0, place, torch.ones(1, dtype=torch.int64, device=digit.device).expand(len(place)))
            counts += own.view(2, -1)[:, :DIGITS]

    def find_neighbours(self, strip: ScoreStrip, key: Tensor, ties: Tensor, below: Tensor, above: Tensor) -> None:
        at = key.view(2, 1, 1)
        for part in strip.parts():
            hardness = self._hardness(part)
            there = self.pairs.sides(part) & ~torch.isnan(hardness)
            keys = _ordered(hardness)
            tied = there & (keys == at)
            ties[:, part.first : part.first + keys.shape[1]] += tied.sum(dim=2)
            if self.pairs.mirrored:
                ties[:, part.column :] += tied.sum(dim=1)
            if keys.shape[2] > 0:
                below.copy_(torch.maximum(below, torch.where(there & (keys < at), keys, INT64.min).amax(dim=(1, 2))))
                above.copy_(torch.minimum(above, torch.where(there & (keys > at), keys, INT64.max).amin(dim=(1, 2))))


@dataclass
class Threshold:
    """The hardness ``key [2]`` of the last pair kept of each side, and how many of those that tie with it are kept."""

    key: Tensor
    ties: Tensor


def _find_threshold(pairs: PairSet, folds: Folds, sweeps: Iterable[ScoreStrip], share: float) -> Threshold:
    device, wide = pairs.x.device, pairs.wide
    times = 2 if pairs.mirrored else 1
    prefix, left = None, torch.zeros(2, dtype=torch.int64, device=device)
    for shift in range(torch.finfo(wide).bits - DIGIT_BITS, -1, -DIGIT_BITS):
        counts = torch.zeros(2, DIGITS, dtype=torch.int64, device=device)
        total = torch.zeros(2, dtype=torch.int64, device=device)
        for strip in sweeps:
            folds.count_digits(strip, shift, prefix, counts, total)
        counts *= times
        if prefix is None:
            # NaN is never mined; it counts among the pairs that the share is of.
            left = torch.minimum(torch.ceil((times * total).double() * share).to(torch.int64), counts.sum(dim=1))
        # Number of pairs with this digit or a higher one.
        from_here = counts.flip(1).cumsum(1).flip(1)
        digit = (from_here >= left.unsqueeze(1)).sum(dim=1) - 1
        here = counts.gather(1, digit.unsqueeze(1)).squeeze(1)
        left = left - (from_here.gather(1, digit.unsqueeze(1)).squeeze(1) - here)
        prefix = digit - DIGITS // 2 if prefix is None else (prefix << DIGIT_BITS) | digit
    assert prefix is not None
    return Threshold(prefix, left)


def _neighbours(pairs: PairSet, folds: Folds, sweeps: Iterable[ScoreStrip], key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's pairs that tie with the threshold ``[2, N]``; the next easier and the next harder key ``[2]``."""
    ties = torch.zeros(2, pairs.x.shape[0], dtype=torch.int64, device=key.device)
    below, above = torch.full_like(key, INT64.min), torch.full_like(key, INT64.max)
    for strip in sweeps:
        folds.find_neighbours(strip, key, ties, below, above)
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
    # Its one call computes every score twice, as those of two sets.
    if itself and small.applies(x, x) and small.has_kernel(pairs.score):
        return small.hardest(x, x_labels, pairs.score, share)
    with math_precision():
        sweeps = pairs.repeatable()
        folds: Folds = score_strips.CompiledFolds(pairs) if score_strips.applies(pairs) else TorchFolds(pairs)
        threshold = _find_threshold(pairs, folds, sweeps, share)
        ties, below, above = _neighbours(pairs, folds, sweeps, threshold.key)
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
        for strip in (part for whole in pairs.strips() for part in whole.parts()):
            s, there = strip.scores + 0.0, pairs.sides(strip)
            rows, cols = slice(strip.first, strip.first + s.shape[0]), slice(strip.column, None)
            for side in (0, 1):
                low, high = rule[2 * side], rule[2 * side + 1]
                seen = [((s >= low[rows, None]) & (s <= high[rows, None]), False)]
                if pairs.mirrored:
                    seen.append(((s >= low[cols]) & (s <= high[cols]), True))
                for inside, mirror in seen:
                    i, j = torch.nonzero(inside & there[side], as_tuple=True)
                    # Hard positives have small scores, signed as similarities are, hard negatives large ones.
                    hardness = (pairs.score.sign if side == 1 else -pairs.score.sign) * s[i, j]
                    i, j = i + strip.first, j + strip.column
                    parts[side].append((j, i, hardness) if mirror else (i, j, hardness))
    none = torch.empty(0, dtype=torch.int64, device=pairs.x.device)
    start = (none, none, torch.empty(0, dtype=pairs.wide, device=pairs.x.device))
    return [tuple(torch.cat(column) for column in zip(start, *side, strict=True)) for side in parts]  # type: ignore[misc]
