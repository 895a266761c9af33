"""FastAP."""

from __future__ import annotations

from typing import Any

from pml_fast.distances import LpDistance
from pml_fast.engine.specs import FastAP
from pml_fast.losses.ranking_loss import RankingLoss
from pml_fast.utils import common_functions as c_f


class FastAPLoss(RankingLoss):
    """``1 - average precision`` of each row that has positives, with ranks from soft histograms of the distances.

    Cakir et al., "Deep Metric Learning to Rank", CVPR 2019. Memory is that of a strip and ``N x num_bins``.

    Args:
        num_bins: bins of the range of the distance, ``[0, 2 ** power]``.

    Raises:
        TypeError, ValueError: the distance is not a Euclidean one of unit vectors.
    """

    def __init__(self, num_bins: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, normalize_embeddings=True, p=2)
        self.num_bins = int(num_bins)
        if self.num_bins < 1:
            raise ValueError(f"num_bins must be at least 1, got {num_bins!r}")
        self.num_edges = self.num_bins + 1
        self.add_to_recordable_attributes(list_of_names=["num_bins"], is_stat=False)

    def spec(self) -> FastAP:
        return FastAP(self.num_bins)

    def get_default_distance(self) -> LpDistance:
        return LpDistance(power=2)
