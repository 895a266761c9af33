"""Pair margin miner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.engine.lazy import RulePairs
from pml_fast.engine.materialise import mean_scores
from pml_fast.engine.search import just_above, just_below
from pml_fast.miners.base_miner import BaseMiner, Mining
from pml_fast.utils.checks import check_number


class PairMarginMiner(BaseMiner):
    """Positives further than ``pos_margin`` and negatives closer than ``neg_margin`` (both strictly).

    Args:
        pos_margin: for a similarity, positives below it are kept.
        neg_margin: for a similarity, negatives above it are kept.
    """

    _no_steps: ClassVar[tuple[str, ...]] = ("set_stats",)

    def __init__(self, pos_margin: float = 0.2, neg_margin: float = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pos_margin = pos_margin
        self.neg_margin = neg_margin
        self._check_settings()
        self.add_to_recordable_attributes(list_of_names=["pos_margin", "neg_margin"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["pos_pair_dist", "neg_pair_dist"], is_stat=True)

    def _check_settings(self) -> None:
        check_number("pos_margin", self.pos_margin)
        check_number("neg_margin", self.neg_margin)

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        self._check_settings()
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        bound = torch.tensor([self.pos_margin, self.neg_margin], dtype=mining.dtype, device=embeddings.device)
        pos, neg = bound.unsqueeze(1).expand(2, embeddings.shape[0]).unbind(0)
        inf = torch.full_like(pos, float("inf"))
        if mining.score.inverted:
            rule = [-inf, just_below(pos), just_above(neg), inf]
        else:
            rule = [just_above(pos), inf, -inf, just_below(neg)]
        words = f"pair margins {self.pos_margin:g} and {self.neg_margin:g}"
        mined = RulePairs(mining.source, mining.rows, mining.score, torch.stack(rule), words)
        if self.collect_stats:
            self._set_stats(mining)
        return mined

    def _set_stats(self, mining: Mining) -> None:
        self.pos_pair_dist, self.neg_pair_dist = mean_scores(
            mining.labels, mining.ref_labels, mining.rows, mining.score, mining.source.itself
        )
