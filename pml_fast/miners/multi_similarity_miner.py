"""Multi-similarity miner."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.lazy import RulePairs
from pml_fast.engine.search import Search
from pml_fast.miners.base_miner import BaseMiner, Mining
from pml_fast.utils.checks import check_number


class MultiSimilarityMiner(BaseMiner):
    """Negatives closer than the furthest positive, and positives further than the closest negative, give or take ``epsilon``.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019. The rule is
    two bounds an anchor; a loss with a kernel for it finds them in its own sweep, anything else by a search.

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
        mining, search = Mining(self, embeddings, labels, ref_emb, ref_labels), Search(self.epsilon)
        rule = partial(search.rule, mining.score, mining.extreme)
        words = f"multi-similarity, epsilon {self.epsilon:g}"
        return RulePairs(mining.source, mining.rows, mining.score, rule, words, search)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
