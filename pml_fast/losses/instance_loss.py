"""Instance loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.label_ranks import label_ranks
from pml_fast.engine.plan import FUSED, Call, Plan
from pml_fast.engine.score import compute_type
from pml_fast.engine.soft_targets import soft_target_loss
from pml_fast.engine.specs import LogSumExp, SupCon
from pml_fast.losses.row_softmax import RowSoftmaxLoss, Softmax
from pml_fast.reducers import BaseReducer, MeanReducer
from pml_fast.utils import common_functions as c_f
from pml_fast.utils.checks import check_positive


class InstanceLoss(RowSoftmaxLoss):
    """Cross-entropy of ``gamma`` times the similarities of a row to all rows, itself among them, one loss a row.

    Zheng et al., "Dual-Path Convolutional Image-Text Embeddings with Instance Loss", ACM TOMM 2020. As in PML, the target of a
    row is the sample whose position is the rank of the row's label among the labels of the batch: pass labels 0 .. N-1, one an
    instance, for each row to be its own target. Neither a reference set nor an ``indices_tuple`` is supported.

    Args:
        gamma: the factor of the similarities.
    """

    joint_anchors: ClassVar[str] = "targets are ranks of labels among those of the batch"

    def __init__(self, gamma: float = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.gamma = gamma
        self.add_to_recordable_attributes(list_of_names=["gamma"], is_stat=False)

    settings: ClassVar[tuple[str, ...]] = ("gamma",)

    def scale(self) -> float:
        check_positive("gamma", self.gamma)
        return self.gamma

    def comparison(self, call: Call) -> Softmax:
        _check(call)
        assert call.labels is not None
        rank = label_ranks(call.labels)
        index = torch.arange(len(rank), device=rank.device)
        return Softmax(call.embeddings, call.embeddings, rank, index)

    def plan(self, call: Call) -> Plan:
        _check(call)
        plan = super().plan(call)
        if not plan.folds or not isinstance(plan.spec, SupCon) or plan.folds[0].weighs:
            return plan
        notes = [
            "a score serves both of its rows; targets and, where the batch is large, each row's score with itself are listed",
            "losses are reduced inside the operator; no pair is named",
        ]
        return Plan(FUSED, "pairwise", LogSumExp(plan.spec.temperature), plan.score, plan.folds, notes=notes)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if not isinstance(plan.spec, LogSumExp) or plan.score is None or not plan.folds:
            return super().run_plan(plan, call)
        assert call.labels is not None
        x, _ = self.distance.engine_rows(call.embeddings, call.ref_emb)
        rank = label_ranks(call.labels)
        one = torch.ones(len(x), dtype=compute_type(x.dtype), device=x.device)
        return soft_target_loss(
            x, x, torch.arange(len(x), device=x.device), rank, one, plan.spec.temperature, plan.score, True, plan.folds[0], True
        )  # fmt: skip

    def words(self) -> str:
        return "every row against every row, itself among them"

    def get_default_reducer(self) -> BaseReducer:
        return MeanReducer()

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()


def _check(call: Call) -> None:
    c_f.labels_required(call.labels)
    c_f.indices_tuple_not_supported(call.indices)
    c_f.ref_not_supported(call.embeddings, call.labels, call.ref_emb, call.ref_labels)
