"""Triplet margin miner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from pml_fast.engine.lazy import SelectedTriplets
from pml_fast.engine.materialise import mean_triplet_scores
from pml_fast.miners.base_miner import BaseMiner, Mining
from pml_fast.utils.checks import check_number

TYPES = ("all", "hard", "semihard", "easy")


class TripletMarginMiner(BaseMiner):
    """Triplets by how much further the negative is than the positive, ``gap``.

    ``all``: ``gap <= margin``; ``hard``: also ``gap <= 0``; ``semihard``: ``0 < gap <= margin`` (Schroff et al.,
    "FaceNet", CVPR
    2015); ``easy``: ``gap > margin``.

    Args:
        margin: in the unit of the distance.
        type_of_triplets: one of ``"all"``, ``"hard"``, ``"semihard"``, ``"easy"``.
    """

    _no_steps: ClassVar[tuple[str, ...]] = ("set_stats",)

    def __init__(self, margin: float = 0.2, type_of_triplets: str = "all", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if type_of_triplets not in TYPES:
            raise ValueError(f"type_of_triplets must be one of {', '.join(TYPES)}, got {type_of_triplets!r}")
        check_number("margin", margin)
        self.margin = margin
        self.type_of_triplets = type_of_triplets
        self.add_to_recordable_attributes(list_of_names=["margin"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["avg_triplet_margin", "pos_pair_dist", "neg_pair_dist"], is_stat=True)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        check_number("margin", self.margin)
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        if self.collect_stats:
            self.pos_pair_dist, self.neg_pair_dist = mean_triplet_scores(
                mining.labels, mining.ref_labels, mining.rows, mining.score, mining.source.itself
            )
            self.avg_triplet_margin = mining.score.sign * (self.pos_pair_dist - self.neg_pair_dist)
        return SelectedTriplets(mining.source, mining.rows, mining.score, self.type_of_triplets, float(self.margin))
