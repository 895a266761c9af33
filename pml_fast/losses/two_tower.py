"""Losses of two sets of embeddings that are paired by position or by label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity, DotProductSimilarity
from pml_fast.engine import operator
from pml_fast.engine.fold import Fold
from pml_fast.engine.logit_ops import logit_score
from pml_fast.engine.plan import FUSED, MATERIALISED, PARTLY, Call, Plan, overridden, reduction_of
from pml_fast.engine.recompute import unit
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import PairSpec
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.spec_pair_loss import engine_labels, pair_row_losses, row_weights
from pml_fast.utils import common_functions as c_f


@dataclass(frozen=True)
class Trained:
    """Numbers of the logits ``scale s + bias`` of which one at least is trained: the scale's logarithm, the bias where there is
    one, and the largest scale, beyond which it is held without a gradient."""

    log_scale: Tensor
    bias: Tensor | None = None
    max_scale: float = math.inf

    def on(self, device: torch.device) -> tuple[Tensor, Tensor | None, float]:
        """Those numbers on the embeddings' device."""
        return self.log_scale.to(device), None if self.bias is None else self.bias.to(device), self.max_scale


def logit_pair_loss(
    spec: PairSpec, score: Score, folds: list[Fold], call: Call, x: Tensor, y: Tensor, trained: Trained | None,
    bidirectional: bool = False,
) -> Tensor:  # fmt: skip
    """The reduced loss of the rows ``x`` and columns ``y`` in one operator.

    Of a ``bidirectional`` loss, the mean of both directions, the columns' folds follow the rows'.
    """
    assert call.labels is not None and call.ref_labels is not None
    labels, ref_labels = engine_labels(call.labels, call.ref_labels, call.itself)
    dtype, terms = compute_type(x.dtype), len(spec.terms)
    weights = row_weights(folds[:terms], call.labels, dtype)
    column_weights = row_weights(folds[terms:], call.ref_labels, dtype) if bidirectional else None
    log_scale, bias, max_scale = (None, None, 1.0) if trained is None else trained.on(x.device)
    need = torch.is_grad_enabled()
    loss, *_ = operator.call(
        "logit_loss",
        x, y, labels, ref_labels, log_scale, bias, max_scale, weights, column_weights, spec.name, spec.params(),
        score.encode(), call.itself, [fold.encode() for fold in folds], bidirectional,
        *(need and part is not None and part.requires_grad for part in (x, y, log_scale, bias)),
    )  # fmt: skip
    result: Tensor = loss
    return result


class TwoTowerLoss(BaseMetricLossFunction):
    """Compares ``embeddings`` with ``ref_emb``, row ``i`` with row ``i`` where there are no labels. Subclasses say what of it.

    A factor and a summand of the scores that are trained go into the rows: ``scale x`` and a further feature ``bias`` against
    1. The engines then give their gradients as parts of those of the rows.
    """

    joint_anchors: ClassVar[str] = "both sets are anchors"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, DotProductSimilarity)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def sides(self, call: Call) -> list[tuple[str, Call, float]]:
        """The comparisons that make up the loss: the sub-loss's name, rows and columns, and its share."""
        return [("loss", call, 1.0)]

    def spec(self, trained: bool) -> PairSpec:
        """The maths over the scores, or over scores that hold the trained numbers already."""
        raise NotImplementedError

    def trained(self) -> Trained | None:
        """Factor and summand of the scores where either is trained."""
        raise NotImplementedError

    def paired(self, call: Call) -> Call:
        """The call with labels: positions where none were given."""
        if call.labels is not None:
            return call
        self.check_paired(call)
        position = torch.arange(len(call.embeddings), device=call.embeddings.device)
        return Call(call.embeddings, position, None, call.ref_emb, position, False)

    def check_paired(self, call: Call) -> None:
        """``ValueError`` unless there are labels, or two sets of one size."""
        if call.labels is not None:
            return
        if call.itself:
            raise ValueError("ref_emb must be given where there are no labels, got None; pass the other set, or labels")
        if len(call.embeddings) != len(call.ref_emb):
            raise ValueError(
                f"ref_emb must have as many rows as embeddings where there are no labels, {len(call.embeddings)}, got "
                f"{len(call.ref_emb)}; pass labels and ref_labels"
            )

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The loss, a scalar.

        Args:
            embeddings: ``[N, D]``, the one set.
            labels: ``[N]``, or ``None`` to pair by position.
            indices_tuple: not supported.
            ref_emb: ``[M, D]``, the other set.
            ref_labels: ``[M]``.
        """
        return super().forward(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        c_f.indices_tuple_not_supported(call.indices)
        self.check_paired(call)
        score = self.distance.engine_score()
        if score is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", notes=[note])
        trained = self.trained() is not None
        notes = ["trained numbers are a factor and a feature of the rows, and get their gradient with them"] if trained else []
        score = logit_score(score, trained)
        names = self._sub_loss_names()
        reduction = reduction_of(self.reducer, names)
        if reduction.folds is None:
            notes.append(f"one loss a row comes out of the sweep and is reduced in torch: {reduction.reason}")
            return Plan(PARTLY, "pairwise", self.spec(trained), score, notes=notes)
        notes.append("losses are reduced inside the sweep; no pair is named")
        bidirectional = len(names) > 1 and not call.itself
        if bidirectional:
            notes.append("rows and columns are the anchors of one operator, each score in both directions")
        elif len(names) > 1:
            notes.append("both directions of one set are two comparisons; what is counted is one of them")
        return Plan(FUSED, "pairwise", self.spec(trained), score, reduction.folds, notes=notes, bidirectional=bidirectional)

    def _rows(self, score: Score, call: Call) -> tuple[Tensor, Tensor]:
        """Rows and columns that hold what is trained, for one loss a row: differentiable."""
        x, y = self.distance.engine_rows(call.embeddings, call.ref_emb)
        numbers = self.trained()
        if numbers is None:
            return x, y
        log_scale, bias, max_scale = numbers.on(x.device)
        x, y = unit(score, x), unit(score, y)
        x = x * log_scale.to(x.dtype).exp().clamp(max=max_scale)
        if bias is None:
            return x, y
        return (
            torch.cat([x, bias.to(x.dtype).reshape(1, 1).expand(len(x), 1)], dim=1),
            torch.cat([y, torch.ones_like(y[:, :1])], dim=1),
        )

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if plan.engine != "pairwise" or plan.folds is None:
            return None
        score = self.distance.engine_score()
        assert score is not None
        assert isinstance(plan.spec, PairSpec)
        call = self.paired(call)
        x, y = self.distance.engine_rows(call.embeddings, call.ref_emb)
        trained = self.trained()
        if plan.bidirectional:
            return logit_pair_loss(plan.spec, score, plan.folds, call, x, y, trained, bidirectional=True)
        parts = [
            (share, logit_pair_loss(plan.spec, score, [fold], side, x, y, trained))
            for (_, side, share), fold in zip(self.sides(call), plan.folds, strict=True)
        ]
        first, *more = (loss if share == 1.0 else share * loss for share, loss in parts)
        return sum(more, first)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """One loss a row of each comparison."""
        c_f.indices_tuple_not_supported(indices_tuple)
        itself = ref_emb is embeddings and ref_labels is labels
        call = self.paired(Call(embeddings, labels, None, ref_emb, ref_labels, itself))
        score = self.distance.engine_score()
        if score is None:
            raise ValueError(
                f"distance must be CosineSimilarity or DotProductSimilarity itself for {type(self).__name__}, "
                f"got {type(self.distance).__name__}: {self.distance.engine_refusal()}"
            )
        losses: LossDict = {}
        for name, side, share in self.sides(call):
            x, y = self._rows(score, side)
            spec = self.spec(self.trained() is not None)
            seen = logit_score(score, self.trained() is not None)
            values = share * pair_row_losses(spec, seen, None, side, x, y)[0]
            index = torch.arange(len(values), device=values.device)
            losses[name] = {"losses": values, "indices": index, "reduction_type": "element"}
        return losses
