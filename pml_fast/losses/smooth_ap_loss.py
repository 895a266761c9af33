"""Smooth-AP."""

from __future__ import annotations

from typing import Any

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.specs import SmoothAP
from pml_fast.losses.ranking_loss import RankingLoss
from pml_fast.utils import common_functions as c_f


class SmoothAPLoss(RankingLoss):
    """``1 - average precision`` of each row, with ranks from sums of sigmoids of the differences of similarities.

    Brown et al., "Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval", ECCV 2020. As in PML a row is one of its
    own positives. Memory is O(N P) and a strip, never N x N x N; classes may have any sizes and any order.

    Args:
        temperature: of the sigmoid; small is close to the true rank.

    Raises:
        TypeError: the distance is not :class:`~pml_fast.distances.CosineSimilarity`.
    """

    def __init__(self, temperature: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.temperature = temperature

    def spec(self) -> SmoothAP:
        return SmoothAP(self.temperature)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
