"""Losses that rank a row's pairs: one loss a row, out of a sweep over strips."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

import pml_fast.engine.ops  # noqa: F401  (defines the operators)
from pml_fast.engine import operator
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import FUSED, MATERIALISED, PARTLY, Call, Plan, learnable, overridden, reduction_of
from pml_fast.engine.problem import comparable_mask, same_labels
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import PairSpec, Some
from pml_fast.engine.views import dense_view
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.joined import joined_pairs, refuse_row_weights
from pml_fast.losses.spec_pair_loss import engine_labels, fused_pair_loss
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


class RankingLoss(BaseMetricLossFunction):
    """A loss for each row that has positives, whose maths is the partial term of a spec. Subclasses say their :meth:`spec`.

    An ``indices_tuple`` chooses no pairs: it weighs each row's loss by how often it names the row.
    """

    def spec(self) -> PairSpec:
        """The maths of this loss with its parameters as they are now."""
        raise NotImplementedError

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        self._check(call.labels, call.ref_labels)
        spec, score = self.spec(), self.distance.engine_score()
        note = self._matrix_needed(spec)
        if note or score is None:
            return Plan(MATERIALISED, "dense", spec, Score(inverted=self.distance.is_inverted), notes=[note])
        rows = "one loss a row comes out of the sweep and is reduced in torch"
        if call.indices is not None:
            return Plan(PARTLY, "pairwise", spec, score, notes=[f"{rows}: the index tuple weighs each row", *_waits(spec)])
        reduction = reduction_of(self.reducer, [spec.terms[0].name])
        if reduction.folds is None:
            return Plan(PARTLY, "pairwise", spec, score, notes=[f"{rows}: {reduction.reason}", *_waits(spec)])
        notes = ["all pairs", "losses are reduced inside the sweep; no pair is named", *_waits(spec)]
        return Plan(FUSED, "pairwise", spec, score, reduction.folds, notes=notes)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if plan.folds is None or plan.score is None or not isinstance(plan.spec, PairSpec):
            return None
        x, y = self.distance.engine_rows(call.embeddings, call.ref_emb)
        return fused_pair_loss(plan.spec, plan.score, plan.folds, None, call, x, y)

    def joined_loss(self, call: Call, copies: bool, everyone: Any) -> Tensor:
        refuse_row_weights(self, call)
        plan = self.plan(call)
        if plan.folds is None or plan.score is None:
            raise ValueError(f"{type(self).__name__} needs all anchors at once here, use objective='global': {plan.notes[0]}")
        assert call.labels is not None and call.ref_labels is not None
        plan.copies = copies
        rows = self.distance.engine_rows(call.embeddings, call.ref_emb)
        return joined_pairs(plan, call, rows, engine_labels(call.labels, call.ref_labels, False), everyone)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: object, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The loss of every row that has one."""
        itself = ref_emb is embeddings and ref_labels is labels
        losses, there = self._rows(embeddings, labels, ref_emb, ref_labels)
        rows = torch.where(there)[0]
        name = self.spec().terms[0].name
        if len(rows) == 0:
            return {name: self.zero_loss()}
        losses = losses[rows]
        if indices_tuple is not None:
            named = indices_tuple.materialise() if isinstance(indices_tuple, LazyIndices) else indices_tuple
            assert labels is not None
            losses = losses * lmu.convert_to_weights(named, labels, losses.dtype, using_ref=not itself)[rows]  # type: ignore[arg-type]
        return {name: {"losses": losses, "indices": rows, "reduction_type": "element"}}

    def _rows(
        self, embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Every row's loss ``[N]``, and which rows have one."""
        self._check(labels, ref_labels)
        assert labels is not None and ref_labels is not None
        itself = ref_emb is embeddings and ref_labels is labels
        spec, score = self.spec(), self.distance.engine_score()
        own, others = engine_labels(labels, ref_labels, itself)
        if score is None or self._matrix_needed(spec):
            return self._matrix_rows(spec, embeddings, own, ref_emb, others, itself)
        x, y = self.distance.engine_rows(embeddings, ref_emb)
        values, counts = operator.call(
            "pairwise_rows", x, y, own, others, None, spec.name, spec.params(), score.encode(), itself
        )
        return values[0], counts[0] > 0

    def _matrix_rows(
        self, spec: PairSpec, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, itself: bool
    ) -> tuple[Tensor, Tensor]:
        matrix = self.distance(embeddings, ref_emb).to(compute_type(embeddings.dtype))
        comparable = comparable_mask(0, len(embeddings), len(ref_emb), matrix.device) if itself else None
        view = dense_view(matrix, same_labels(labels, ref_labels), comparable, None)
        kind, inverted = ("dot" if self.distance.is_inverted else "l2"), self.distance.is_inverted
        (losses,) = spec.formula(view, Score(kind, power=float(self.distance.power), inverted=inverted))
        assert isinstance(losses, Some)
        return losses.loss, losses.there

    def _matrix_needed(self, spec: PairSpec) -> str:
        """Why the matrix must be there, or nothing."""
        trained = learnable(self, [field.name for field in fields(spec)])
        if trained:
            return f"the matrix is materialised: {', '.join(trained)} is trained, and needs its gradient"
        if self.distance.engine_score() is None:
            return f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
        return ""

    @staticmethod
    def _check(labels: Tensor | None, ref_labels: Tensor | None) -> None:
        c_f.labels_required(labels)
        if ref_labels is None:
            raise ValueError("ref_labels must be given with ref_emb, got None; pass the labels of the reference set")


def _waits(spec: PairSpec) -> list[str]:
    where = "once by the Triton kernels, in each strip on chunked"
    return [f"the largest number of positives is read on the host: {where}"] if spec.waits else []
