"""A miner's rule that an engine may find in the very sweep that folds the pairs it leaves.

The multi-similarity miner keeps what lies beyond its anchor's hardest pair of the other side, give or take an epsilon. The
hardest positive is known before a sweep over the negatives, and the hardest negative after it, so no sweep has to search first
(Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019, equations 7 and 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.score import Score

# Value and index (-1 for none) of each row's largest or smallest score over its positives or its negatives.
Extreme = Callable[[bool, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Search:
    """The rule to be found.

    Args:
        epsilon: the slack of both comparisons, in the unit of the score.
        counts_copies: whether a row's own sample among the columns, which is no pair, bounds the negatives all the same.
    """

    epsilon: float
    counts_copies: bool = False

    def encode(self) -> str:
        """The search as the string an operator's schema carries."""
        return f"{self.epsilon!r};{int(self.counts_copies)}"

    @staticmethod
    def decode(text: str) -> Search:
        """The inverse of :meth:`encode`."""
        epsilon, counts_copies = text.split(";")
        return Search(float(epsilon), bool(int(counts_copies)))

    def rule(self, score: Score, extreme: Extreme) -> Tensor:
        """Closed intervals ``[4, N]`` (positive low, high; negative low, high), by a search of both extremes."""
        inverted, inf = score.inverted, float("inf")
        hardest_pos, pos = extreme(True, not inverted)
        hardest_neg, neg = extreme(False, inverted)
        everything, nothing = torch.full_like(hardest_neg, inf), torch.full_like(hardest_neg, -inf)
        if inverted:
            # s_ap - epsilon < hardest negative, s_an + epsilon > hardest positive
            rule = [nothing, just_below(hardest_neg + self.epsilon), just_above(hardest_pos - self.epsilon), everything]
        else:
            rule = [just_above(hardest_neg - self.epsilon), everything, nothing, just_below(hardest_pos + self.epsilon)]
        # An anchor without one side keeps nothing of the other.
        both = (pos >= 0) & (neg >= 0)
        closed = [everything, nothing, everything, nothing]
        return torch.stack([torch.where(both, bound, none) for bound, none in zip(rule, closed, strict=True)])


def just_below(value: Tensor) -> Tensor:
    """The closed bound that means ``<``."""
    return torch.nextafter(value, torch.full_like(value, float("-inf")))


def just_above(value: Tensor) -> Tensor:
    """The closed bound that means ``>``."""
    return torch.nextafter(value, torch.full_like(value, float("inf")))
