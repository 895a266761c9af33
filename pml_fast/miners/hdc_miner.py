"""Hard-aware miner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine import operator
from pml_fast.engine.lazy import HardestPairs
from pml_fast.engine.listed import engine_scorer
from pml_fast.miners.base_miner import BaseMiner, Mining
from pml_fast.miners.settings import check_within
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.index_types import IndicesTuple, PairIndices


class HDCMiner(BaseMiner):
    """The hardest share of all positive pairs and the hardest share of all negative pairs.

    Yuan, Yang and Zhang, "Hard-Aware Deeply Cascaded Embedding", ICCV 2017. ``ceil(filter_percentage * pairs)`` of each kind
    are kept. A few sweeps over the batch find the threshold; the rule it gives is all that is kept.

    Args:
        filter_percentage: the share to keep, in (0, 1].
    """

    def __init__(self, filter_percentage: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_within("filter_percentage", filter_percentage, 0, 1, "(]")
        self.filter_percentage = filter_percentage
        self.add_to_recordable_attributes(list_of_names=["filter_percentage"], is_stat=False)
        self.a1: Any
        self.p: Any
        self.a2: Any
        self.n: Any
        self.reset_idx()

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        share = check_within("filter_percentage", self.filter_percentage, 0, 1, "(]")
        mining = Mining(self, embeddings, labels, ref_emb, ref_labels)
        if self.was_set_externally:
            return self._mine_external(mining)
        rule, cut = operator.call(
            "hardest_rule", *mining.rows, mining.labels, mining.ref_labels, mining.score.encode(), mining.source.itself, share
        )
        words = f"hardest {100 * share:g} % of all pairs"
        return HardestPairs(mining.source, mining.rows, mining.score, rule, cut, words)

    def _mine_external(self, mining: Mining) -> PairIndices:
        scores = engine_scorer(*mining.rows, mining.score)
        for name, (anchor, other) in {"pos": (self.a1, self.p), "neg": (self.a2, self.n)}.items():
            if len(anchor) > 0:
                k = math.ceil(self.filter_percentage * len(anchor))
                largest = self.should_select_largest(name)
                self.filter_original_indices(name, torch.topk(scores(anchor, other), k=k, largest=largest)[1])
        return PairIndices(self.a1, self.p, self.a2, self.n)

    def should_select_largest(self, name: str) -> bool:
        """Whether the hardest pairs of ``"pos"`` or ``"neg"`` are those with the largest values."""
        return (name == "pos") != self.distance.is_inverted

    def set_idx(self, labels: Tensor, ref_labels: Tensor) -> None:
        """Take all pairs of the labels as candidates, unless they were set from outside."""
        if not self.was_set_externally:
            self.a1, self.p, self.a2, self.n = lmu.get_all_pairs_indices(labels, ref_labels)

    def set_idx_externally(self, external_indices_tuple: IndicesTuple, labels: Tensor) -> None:
        """Take these pairs (or the pairs of these triplets) as candidates of the calls that follow, each call those that the
        one before has left; :meth:`reset_idx` ends it."""
        self.a1, self.p, self.a2, self.n = lmu.convert_to_pairs(external_indices_tuple, labels)
        self.was_set_externally = True

    def reset_idx(self) -> None:
        """Take all pairs of the batch as candidates again."""
        self.a1 = self.p = self.a2 = self.n = None
        self.was_set_externally = False

    def filter_original_indices(self, name: str, idx: Tensor) -> None:
        """Keep the candidates ``idx`` of ``"pos"`` or ``"neg"``."""
        if name == "pos":
            self.a1, self.p = self.a1[idx], self.p[idx]
        else:
            self.a2, self.n = self.a2[idx], self.n[idx]
