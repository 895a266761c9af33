"""Batch easy-hard miner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.engine.lazy import Deferred, RowChoice
from pml_fast.engine.search import just_above, just_below
from pml_fast.miners.base_miner import BaseMiner, Mining
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.checks import check_number
from pml_fast.utils.index_types import PairIndices

Choice = tuple[Tensor, Tensor]  # value and index (-1 for none) of each anchor


class BatchEasyHardMiner(BaseMiner):
    """One positive and one negative an anchor, each the hardest, the easiest, or the semihard one; or all of a side.

    Xuan et al., "Improved Embeddings with Easy Positive Triplet Mining", WACV 2020. ``semihard`` is the hardest that is
    still on
    the right side of the other choice.

    Args:
        pos_strategy: ``"hard"``, ``"semihard"``, ``"easy"`` or ``"all"``.
        neg_strategy: likewise.
        allowed_pos_range: ``(low, high)`` that a chosen positive's distance must lie in (closed), or ``None``.
        allowed_neg_range: likewise for negatives.
    """

    HARD = "hard"
    SEMIHARD = "semihard"
    EASY = "easy"
    ALL = "all"
    all_batch_mining_strategies = (HARD, SEMIHARD, EASY, ALL)

    _no_steps: ClassVar[tuple[str, ...]] = (
        "get_func_for_stats",
        "get_max_per_row",
        "get_min_per_row",
        "get_mine_function",
        "get_negatives",
        "get_positives",
        "get_x_per_row",
        "set_stats",
    )

    def __init__(
        self,
        pos_strategy: str = EASY,
        neg_strategy: str = SEMIHARD,
        allowed_pos_range: tuple[float, float] | None = None,
        allowed_neg_range: tuple[float, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("pos_strategy", pos_strategy), ("neg_strategy", neg_strategy)):
            if value not in self.all_batch_mining_strategies:
                raise ValueError(f"{name} must be one of {', '.join(self.all_batch_mining_strategies)}, got {value!r}")
        if pos_strategy == neg_strategy == self.SEMIHARD:
            raise ValueError("pos_strategy and neg_strategy cannot both be 'semihard': each needs the other's choice")
        if {pos_strategy, neg_strategy} == {self.ALL, self.SEMIHARD}:
            raise ValueError("'semihard' cannot be combined with 'all': it needs the other side's single choice")
        self.pos_strategy = pos_strategy
        self.neg_strategy = neg_strategy
        self.allowed_pos_range = allowed_pos_range
        self.allowed_neg_range = allowed_neg_range
        self._check_ranges()
        self.add_to_recordable_attributes(
            list_of_names=[
                "easiest_triplet",
                "hardest_triplet",
                "easiest_pos_pair",
                "hardest_pos_pair",
                "easiest_neg_pair",
                "hardest_neg_pair",
            ],
            is_stat=True,
        )

    def _check_ranges(self) -> None:
        for name in ("allowed_pos_range", "allowed_neg_range"):
            bounds = getattr(self, name)
            if bounds is None:
                continue
            if not hasattr(bounds, "__len__") or len(bounds) != 2:
                raise ValueError(f"{name} must be None or two numbers (low, high), got {bounds!r}")
            for bound in bounds:
                check_number(name, bound)
            if bounds[0] > bounds[1]:
                raise ValueError(f"{name} must be (low, high) with low <= high, got {bounds!r}: swap them")

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        self._check_ranges()
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        pos, neg = self._choose(mining)
        if self.collect_stats:
            self._set_stats(mining, pos, neg)
        if pos is not None and neg is not None:
            both = (pos[1] >= 0) & (neg[1] >= 0)
            return self._row_choice(pos[1], neg[1], both)
        words = f"{self.pos_strategy} positives and {self.neg_strategy} negatives"
        return Deferred(4, self._one_side(labels, ref_labels, pos, neg), words)

    def _row_choice(self, pos: Tensor, neg: Tensor, both: Tensor) -> RowChoice:
        words = f"{self.pos_strategy} positive and {self.neg_strategy} negative"
        return RowChoice(pos, both, neg, both, False, words)

    @staticmethod
    def _one_side(labels: Tensor, ref_labels: Tensor, pos: Choice | None, neg: Choice | None) -> Callable[[], PairIndices]:
        """All pairs of the sides that have no choice, one an anchor of the side that has."""

        def make() -> PairIndices:
            a1, p, a2, n = lmu.get_all_pairs_indices(labels, ref_labels)
            if pos is not None:
                a1 = torch.nonzero(pos[1] >= 0).squeeze(1)
                p = pos[1][a1]
            if neg is not None:
                a2 = torch.nonzero(neg[1] >= 0).squeeze(1)
                n = neg[1][a2]
            return PairIndices(a1, p, a2, n)

        return make

    def _choose(self, mining: Mining) -> tuple[Choice | None, Choice | None]:
        """The chosen positive and negative of each anchor; ``None`` for a side that keeps all."""
        if self.pos_strategy == self.SEMIHARD:
            hardest = self._negatives(mining, None)
            return self._positives(mining, hardest), hardest
        pos = None if self.pos_strategy == self.ALL else self._positives(mining, None)
        neg = None if self.neg_strategy == self.ALL else self._negatives(mining, pos)
        return pos, neg

    def _positives(self, mining: Mining, neg: Choice | None) -> Choice:
        # The hardest positive is the furthest.
        furthest = self.pos_strategy != self.EASY
        largest = furthest != mining.score.inverted
        return self._extreme(mining, True, largest, self.allowed_pos_range, neg)

    def _negatives(self, mining: Mining, pos: Choice | None) -> Choice:
        closest = self.neg_strategy != self.EASY
        largest = closest == mining.score.inverted
        other = pos if self.neg_strategy == self.SEMIHARD else None
        return self._extreme(mining, False, largest, self.allowed_neg_range, other)

    @staticmethod
    def _extreme(
        mining: Mining, positive: bool, largest: bool, allowed: tuple[float, float] | None, other: Choice | None
    ) -> Choice:
        n, device = mining.rows[0].shape[0], mining.rows[0].device
        low = high = None
        if allowed is not None:
            low = torch.full((n,), allowed[0], dtype=mining.dtype, device=device)
            high = torch.full((n,), allowed[1], dtype=mining.dtype, device=device)
        if other is not None:
            # Semihard: strictly on the near side of the other choice, seen from the extreme that is wanted.
            if largest:
                bound = just_below(other[0])
                high = bound if high is None else torch.minimum(high, bound)
            else:
                bound = just_above(other[0])
                low = bound if low is None else torch.maximum(low, bound)
        return mining.extreme(positive, largest, low, high)

    def _set_stats(self, mining: Mining, pos: Choice | None, neg: Choice | None) -> None:
        positive = self._side_extremes(mining, True, pos)
        negative = self._side_extremes(mining, False, neg)
        nearest, furthest = (1, 0) if mining.score.inverted else (0, 1)
        if pos is not None and neg is not None:
            both = (pos[1] >= 0) & (neg[1] >= 0)
            gap = (pos[0] - neg[0])[both]
            positive, negative = _ends(pos[0][both]), _ends(neg[0][both])
            if len(gap) > 0:
                ends = _ends(gap)
                assert ends is not None
                self.easiest_triplet, self.hardest_triplet = ends[nearest], ends[furthest]
        if positive is not None:
            self.easiest_pos_pair, self.hardest_pos_pair = positive[nearest], positive[furthest]
        if negative is not None:
            self.easiest_neg_pair, self.hardest_neg_pair = negative[furthest], negative[nearest]

    @staticmethod
    def _side_extremes(mining: Mining, positive: bool, choice: Choice | None) -> tuple[float, float] | None:
        if choice is not None:
            return _ends(choice[0][choice[1] >= 0])
        values = [mining.extreme(positive, largest) for largest in (False, True)]
        ends = [_ends(value[index >= 0]) for value, index in values]
        return None if ends[0] is None or ends[1] is None else (ends[0][0], ends[1][1])


def _ends(values: Tensor) -> tuple[float, float] | None:
    """The smallest and the largest value."""
    return (values.min().item(), values.max().item()) if len(values) > 0 else None
