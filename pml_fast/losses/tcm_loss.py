"""Threshold-consistent margin loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.fold import Fold
from pml_fast.engine.plan import Call, Plan, Reduction
from pml_fast.engine.spec import PairSpec
from pml_fast.engine.specs import ThresholdConsistent
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.spec_pair_loss import SpecPairLoss
from pml_fast.utils import common_functions as c_f


class ThresholdConsistentMarginLoss(SpecPairLoss):
    """The mean of ``margin_plus - s`` over positives at or below ``margin_plus``, plus the negatives' share.

    The first mean is taken ``lambda_plus`` times, the mean of ``s - margin_minus`` over negatives ``lambda_minus`` times.

    Zhang et al., "Threshold-Consistent Margin Loss for Open-World Deep Metric Learning", ICLR 2024. A regularizer to add to
    another loss. The loss is one number already: reducers pass it on.

    Args:
        lambda_plus: weight of the positives.
        lambda_minus: weight of the negatives.
        margin_plus: similarity that positives should exceed.
        margin_minus: similarity that negatives should stay below.
    """

    def __init__(
        self,
        lambda_plus: float = 1.0,
        lambda_minus: float = 1.0,
        margin_plus: float = 0.9,
        margin_minus: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.lambda_plus = lambda_plus
        self.lambda_minus = lambda_minus
        self.margin_plus = margin_plus
        self.margin_minus = margin_minus

    def spec(self) -> ThresholdConsistent:
        return ThresholdConsistent(self.lambda_plus, self.lambda_minus, self.margin_plus, self.margin_minus)

    def _reduction(self, spec: PairSpec) -> Reduction:
        # The means of the two sides are part of the loss, whatever the reducer.
        return Reduction([Fold() for _ in spec.terms])

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        return None

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The loss as one number."""
        itself = ref_emb is embeddings and ref_labels is labels
        call = Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, itself)
        loss = super().run_plan(self.plan(call), call)
        if loss is None:
            loss = self._mean_of_parts(super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels), embeddings)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    @staticmethod
    def _mean_of_parts(parts: LossDict, embeddings: Tensor) -> Tensor:
        total = embeddings[:0].sum()
        for part in parts.values():
            if part["indices"] is not None and len(part["losses"]) > 0:
                total = total + part["losses"].mean()
        return total

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
