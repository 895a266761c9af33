"""Multi-similarity loss."""

from __future__ import annotations

from typing import Any, ClassVar

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.specs import MultiSimilarity
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps


class MultiSimilarityLoss(PairLossInSteps):
    """``log(1 + sum_p exp(-alpha (s_ap - base)))/alpha + log(1 + sum_n exp(beta (s_an - base)))/beta``, one loss an anchor.

    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019.

    Args:
        alpha: the weight of positive pairs in the exponent, above 0.
        beta: the weight of negative pairs in the exponent, above 0.
        base: the offset of both exponents.
    """

    over_matrix: ClassVar[bool] = True
    compares_margins: ClassVar[bool] = True

    def __init__(self, alpha: float = 2, beta: float = 50, base: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        MultiSimilarity(alpha, beta, base)  # refuses what it cannot take, as every call does
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.add_to_recordable_attributes(list_of_names=["alpha", "beta", "base"], is_stat=False)

    def spec(self) -> MultiSimilarity:
        return MultiSimilarity(self.alpha, self.beta, self.base)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
