"""Losses that are a softmax over chosen rows and columns, with one positive column a row: the SupCon spec serves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.engine.plan import FUSED, MATERIALISED, PARTLY, Call, Plan, learnable, overridden, reduction_of
from pml_fast.engine.score import Score
from pml_fast.engine.specs import SupCon
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.spec_pair_loss import fused_pair_loss, pair_row_losses


@dataclass
class Softmax:
    """Rows ``[R, D]`` with the column ``target [R]`` of each, columns ``[C, D]``, and where in the batch the rows are."""

    rows: Tensor
    columns: Tensor
    target: Tensor
    index: Tensor

    def call(self, labels: Tensor) -> Call:
        """The comparison as a call: a row and its target have one label. Class weights are looked up elsewhere."""
        return Call(self.rows, self.target, None, self.columns, torch.arange(len(self.columns), device=labels.device), False)


class RowSoftmaxLoss(BaseMetricLossFunction):
    """``-log softmax`` of a target column, one loss a row. Subclasses say rows, columns and the logits' factor."""

    def comparison(self, call: Call) -> Softmax:
        """What a call compares; checks the call."""
        raise NotImplementedError

    settings: ClassVar[tuple[str, ...]] = ()

    def scale(self) -> float:
        """The factor of the scores; ``settings`` names what it is made of."""
        return 1.0

    def words(self) -> str:
        """What is compared, for the plan."""
        raise NotImplementedError

    def _spec(self) -> SupCon:
        factor: Any = self.scale()
        scale = float(factor.detach() if torch.is_tensor(factor) else factor)
        return SupCon(1 / scale if scale != 0 else float("inf"))

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        score = self.distance.engine_score()
        if score is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", self._spec(), Score(inverted=self.distance.is_inverted), notes=[note])
        trained = learnable(self, self.settings)
        if trained:
            note = f"the whole matrix is materialised: {', '.join(trained)} is trained, and needs its gradient"
            return Plan(MATERIALISED, "dense", self._spec(), score, notes=[note])
        reduction = reduction_of(self.reducer, ["loss"])
        if reduction.folds is None:
            notes = [self.words(), f"one loss a row comes out of the sweep and is reduced in torch: {reduction.reason}"]
            return Plan(PARTLY, "pairwise", self._spec(), score, notes=notes)
        notes = [self.words(), "losses are reduced inside the sweep; no pair is named"]
        return Plan(FUSED, "pairwise", self._spec(), score, reduction.folds, notes=notes)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if plan.folds is None or plan.score is None or plan.engine != "pairwise" or not isinstance(plan.spec, SupCon):
            return None
        part = self.comparison(call)
        assert call.labels is not None
        x, y = self.distance.engine_rows(part.rows, part.columns)
        weighed = call.labels[part.index] if plan.folds[0].weighs else None
        return fused_pair_loss(plan.spec, plan.score, plan.folds, None, part.call(call.labels), x, y, weighed)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """One loss a row, for reducers that need them and for distances that have only a matrix."""
        itself = ref_emb is embeddings and ref_labels is labels
        part = self.comparison(Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, itself))
        if len(part.rows) == 0:
            return self.zero_losses()
        assert labels is not None
        score = self.distance.engine_score()
        if score is None or learnable(self, self.settings):
            mat = self.distance(part.rows, part.columns) * (self.scale() * (1 if self.distance.is_inverted else -1))
            losses = torch.nn.functional.cross_entropy(mat, part.target, reduction="none")
        else:
            x, y = self.distance.engine_rows(part.rows, part.columns)
            losses = pair_row_losses(self._spec(), score, None, part.call(labels), x, y)[0]
        return {"loss": {"losses": losses, "indices": part.index, "reduction_type": "element"}}
