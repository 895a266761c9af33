"""Instance loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.fold import reduce_rows
from pml_fast.engine.label_ranks import label_ranks
from pml_fast.engine.listed import engine_scorer
from pml_fast.engine.plan import PARTLY, Call, Plan, reduction_of
from pml_fast.engine.score import Score
from pml_fast.engine.spec import Term
from pml_fast.engine.specs import LogSumExp, SupCon
from pml_fast.losses.row_softmax import RowSoftmaxLoss, Softmax
from pml_fast.losses.spec_pair_loss import pair_row_losses
from pml_fast.reducers import BaseReducer, MeanReducer
from pml_fast.utils import common_functions as c_f

TERM = Term("loss", "element")
# Rows from which on a sweep that reads each score once for both of its rows is worth a list of the targets.
LARGE = 512


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
        if not plan.folds or not isinstance(plan.spec, SupCon) or len(call.embeddings) < LARGE:
            return plan
        notes = [
            "the log-sum-exp over the other rows comes out of the sweep, in which a score serves both of its rows",
            "targets and each row's score with itself are listed; one loss a row is reduced in torch",
        ]
        return Plan(PARTLY, "pairwise", LogSumExp(plan.spec.temperature), plan.score, notes=notes)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if not isinstance(plan.spec, LogSumExp) or plan.score is None:
            return super().run_plan(plan, call)
        folds = reduction_of(self.reducer, ["loss"]).folds
        assert folds is not None
        losses = self._listed_targets(plan.spec, plan.score, call)
        weights = folds[0].row_weights(call.labels, losses.dtype)
        return reduce_rows(folds[0], TERM, losses, torch.ones_like(losses), weights)[0]

    def _listed_targets(self, spec: LogSumExp, score: Score, call: Call) -> Tensor:
        """One loss a row."""
        assert call.labels is not None
        x, _ = self.distance.engine_rows(call.embeddings, call.ref_emb)
        # Every row is a class of its own, so that all others are its negatives.
        own = torch.arange(len(x), device=x.device)
        others = pair_row_losses(spec, score, None, Call(call.embeddings, own, None, call.embeddings, own, True), x, x)[0]
        scores = engine_scorer(x, x, score)(torch.cat([own, own]), torch.cat([own, label_ranks(call.labels)]))
        itself, target = (scores * (score.sign / spec.temperature)).split(len(x))
        return torch.logaddexp(others, itself) - target

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
