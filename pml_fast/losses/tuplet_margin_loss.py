"""Tuplet margin loss."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import Call, Plan
from pml_fast.engine.specs import TupletMargin
from pml_fast.losses.pair_loss_in_steps import PairLossInSteps
from pml_fast.losses.pair_stats import mean_of_pairs
from pml_fast.utils import common_functions as c_f


class TupletMarginLoss(PairLossInSteps):
    """``log(1 + sum_n exp(scale (cos(theta_an) - cos(theta_ap - margin))))``, one loss for every anchor-positive pair.

    Yu and Tao, "Deep Metric Learning with Tuplet Margin Loss", ICCV 2019.

    Args:
        margin: the slack of the positive's angle, in degrees; kept in radians.
        scale: the factor of the cosines.
    """

    _no_steps: ClassVar[tuple[str, ...]] = ("set_stats",)

    def __init__(self, margin: float = 5.73, scale: float = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.margin = math.radians(margin)
        self.scale = scale
        self.add_to_recordable_attributes(list_of_names=["margin", "scale"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["avg_pos_angle", "avg_neg_angle"], is_stat=True)

    def spec(self) -> TupletMargin:
        return TupletMargin(self.margin, self.scale)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if self.collect_stats:
            self._set_stats(call)
        return super().run_plan(plan, call)

    def _set_stats(self, call: Call) -> None:
        indices: Any = call.indices
        if isinstance(indices, LazyIndices):
            indices = indices.materialise()
        angles = mean_of_pairs(_angle, self.distance, call, indices)
        # As the loss, the angles are those of a batch that has pairs of both kinds.
        if not any(math.isnan(angle) for angle in angles):
            self.avg_pos_angle, self.avg_neg_angle = angles

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()


def _angle(cosine: Tensor) -> Tensor:
    """In degrees; rounding may leave a cosine beyond 1."""
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
