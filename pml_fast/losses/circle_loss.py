"""Circle loss."""

from __future__ import annotations

from typing import Any, ClassVar

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.specs import Circle
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps
from pml_fast.reducers import AvgNonZeroReducer, BaseReducer
from pml_fast.utils import common_functions as c_f


class CircleLoss(PairLossInSteps):
    """``log(1 + sum_n exp(gamma [s_an + m]_+ (s_an - m)) sum_p exp(-gamma [1 + m - s_ap]_+ (s_ap - 1 + m)))``, one loss an
    anchor.

    Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020, for pair labels. The paper uses
    m = 0.25 and gamma = 256 for faces, 128 for re-identification, and m = 0.4, gamma = 80 for fine-grained retrieval.

    Args:
        m: the relaxation margin.
        gamma: the scale of the similarities, above 0.
    """

    over_matrix: ClassVar[bool] = True

    def __init__(self, m: float = 0.4, gamma: float = 80, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        Circle(m, gamma)  # refuses what it cannot take, as every call does
        self.m = m
        self.gamma = gamma
        self.op = 1 + m
        self.on = -m
        self.delta_p = 1 - m
        self.delta_n = m
        self.add_to_recordable_attributes(list_of_names=["m", "gamma", "op", "on", "delta_p", "delta_n"], is_stat=False)

    def spec(self) -> Circle:
        return Circle(self.m, self.gamma)

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
