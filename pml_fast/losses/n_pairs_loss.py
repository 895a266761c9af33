"""N-pairs loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import DotProductSimilarity
from pml_fast.engine.plan import Call, Plan
from pml_fast.losses.row_softmax import RowSoftmaxLoss, Softmax
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


class NPairsLoss(RowSoftmaxLoss):
    """Cross-entropy of one pair a class: each anchor against the positives of all classes.

    Sohn, "Improved Deep Metric Learning with Multi-class N-pair Loss Objective", NIPS 2016. The pair of a class is its first
    positive pair. A reference set is not supported.
    """

    joint_anchors: ClassVar[str] = "the pair of a class is the first of the batch"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_to_recordable_attributes(name="num_pairs", is_stat=True)

    def comparison(self, call: Call) -> Softmax:
        _check(call)
        assert call.labels is not None
        if call.indices is None:
            anchor, positive = _first_pairs(call.labels)
        else:
            anchor, positive = lmu.convert_to_pos_pairs_with_unique_labels(call.indices, call.labels)
        self.num_pairs = len(anchor)
        target = torch.arange(len(anchor), device=call.embeddings.device)
        return Softmax(call.embeddings[anchor], call.embeddings[positive], target, anchor)

    def plan(self, call: Call) -> Plan:
        _check(call)
        return super().plan(call)

    def words(self) -> str:
        return "the first pair of each class: anchors against positives"

    def get_default_distance(self) -> DotProductSimilarity:
        return DotProductSimilarity()


def _check(call: Call) -> None:
    c_f.labels_required(call.labels)
    c_f.ref_not_supported(call.embeddings, call.labels, call.ref_emb, call.ref_labels)


def _first_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the second row of each class that has two, in order of label."""
    ordered, order = torch.sort(labels, stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    start = torch.nonzero(first).squeeze(1)
    start = start[start + 1 < len(ordered)]
    start = start[ordered[start] == ordered[start + 1]]
    return order[start], order[start + 1]
