"""Angular miner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from pml_fast.distances import LpDistance
from pml_fast.engine.angles import AngleStats, AngularTriplets
from pml_fast.engine.lazy import Source
from pml_fast.miners.base_miner import BaseMiner
from pml_fast.miners.settings import check_within
from pml_fast.utils import common_functions as c_f


class AngularMiner(BaseMiner):
    """Triplets whose angle at the negative, as the angular loss sees it, exceeds ``angle``.

    With ``c`` halfway between anchor and positive, the angle is ``atan(|a - p| / (2 |n - c|))`` of the embeddings as they are
    (Wang et al., "Deep Metric Learning with Angular Loss", ICCV 2017).

    The tuple is lazy, but no loss folds it: the angle joins three distances, of which the one between positive and negative is
    none of the anchor's row, so neither a pair's score nor a range of the sorted positives decides it.

    Args:
        angle: in degrees, in (0, 180).
    """

    _no_steps: ClassVar[tuple[str, ...]] = ("set_stats",)

    def __init__(self, angle: float = 20, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, p=2, power=1, normalize_embeddings=True)
        self.angle = math.radians(check_within("angle", angle, 0, 180, "()"))
        self.add_to_recordable_attributes(list_of_names=["angle"], is_stat=False)
        self.add_to_recordable_attributes(
            list_of_names=[
                "average_angle",
                "average_angle_above_threshold",
                "average_angle_below_threshold",
                "min_angle",
                "max_angle",
                "std_of_angle",
            ],
            is_stat=True,
        )

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        itself = ref_emb is embeddings and ref_labels is labels
        source = Source.of(embeddings, labels, ref_emb, ref_labels, itself)
        plain = type(self.distance).pairwise_distance is LpDistance.pairwise_distance
        mined = AngularTriplets(source, None if plain else self.distance.pairwise_distance, self.angle)
        if self.collect_stats:
            stats = AngleStats(self.angle)
            for block in mined.all_blocks():
                stats.add(block.angle)
            for name, value in stats.named().items():
                setattr(self, name, math.degrees(value))
        return mined
