"""Multi-similarity miner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.lazy import RulePairs
from pml_fast.miners.base_miner import BaseMiner, Mining, just_above, just_below
from pml_fast.utils.checks import check_number


class MultiSimilarityMiner(BaseMiner):
    """Negatives closer than the furthest positive, and positives further than the closest negative, give or take ``epsilon``.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019. One sweep finds each
    anchor's two extremes; the rule they give is all that is kept.

    Args:
        epsilon: the slack of both comparisons, in the unit of the distance.
    """

    def __init__(self, epsilon: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("epsilon", epsilon)
        self.epsilon = epsilon
        self.add_to_recordable_attributes(name="epsilon", is_stat=False)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        check_number("epsilon", self.epsilon)
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        inverted, inf = mining.score.inverted, float("inf")
        hardest_pos, pos = mining.extreme(positive=True, largest=not inverted)
        hardest_neg, neg = mining.extreme(positive=False, largest=inverted)
        everything, nothing = torch.full_like(hardest_neg, inf), torch.full_like(hardest_neg, -inf)
        if inverted:
            # s_ap - epsilon < hardest negative, s_an + epsilon > hardest positive
            rule = [nothing, just_below(hardest_neg + self.epsilon), just_above(hardest_pos - self.epsilon), everything]
        else:
            rule = [just_above(hardest_neg - self.epsilon), everything, nothing, just_below(hardest_pos + self.epsilon)]
        # An anchor without one side keeps nothing of the other.
        both = (pos >= 0) & (neg >= 0)
        closed = [everything, nothing, everything, nothing]
        rule = [torch.where(both, bound, none) for bound, none in zip(rule, closed, strict=True)]
        words = f"multi-similarity, epsilon {self.epsilon:g}"
        return RulePairs(mining.source, mining.rows, mining.score, torch.stack(rule), words)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
