"""PNP."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.fold import Fold
from pml_fast.engine.plan import FUSED, Call, Plan
from pml_fast.engine.specs import PNP
from pml_fast.engine.specs.pnp import VARIANTS
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.ranking_loss import RankingLoss, _waits
from pml_fast.losses.spec_pair_loss import fused_pair_loss
from pml_fast.utils import common_functions as c_f


class PNPLoss(RankingLoss):
    """A penalty of the negatives that rank before a row's positives, softly counted; the mean over rows with positives.

    Li et al., "Rethinking the Optimization of Average Precision", AAAI 2022. As in PML a row is one of its own positives, and
    the mean is taken whatever the reducer. Memory is O(N P) and a strip, never N x N x N.

    Args:
        b: slope of the variant ``"Ib"``.
        alpha: exponent of the variant ``"Dq"``.
        anneal: temperature of the sigmoid.
        variant: ``"Ds"``, ``"Dq"``, ``"Iu"``, ``"Ib"`` or ``"O"``.

    Raises:
        TypeError: the distance is not :class:`~pml_fast.distances.CosineSimilarity`.
        ValueError: an unknown ``variant``, or (when called) an ``indices_tuple``.
    """

    VARIANTS: ClassVar[list[str]] = list(VARIANTS)

    _no_steps: ClassVar[tuple[str, ...]] = ("sigmoid",)

    def __init__(self, b: float = 2, alpha: float = 1, anneal: float = 0.01, variant: str = "O", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        if variant not in self.VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(self.VARIANTS)}, got {variant!r}")
        if variant == "Ib" and b <= 0:
            raise ValueError(f"b must be above 0 for the variant 'Ib', got {b!r}")
        self.b = b
        self.alpha = alpha
        self.anneal = anneal
        self.variant = variant

    def spec(self) -> PNP:
        return PNP(self.b, self.alpha, self.anneal, VARIANTS.index(self.variant))

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        c_f.indices_tuple_not_supported(call.indices)
        plan = super().plan(call)
        if plan.engine != "pairwise":
            return plan
        notes = ["all pairs", "the mean over rows is taken inside the sweep, whatever the reducer", *_waits(self.spec())]
        return Plan(FUSED, "pairwise", plan.spec, plan.score, [Fold()], notes=notes)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        # The reducer sees a loss that is already reduced.
        return None

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: object, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The mean loss of the rows that have positives."""
        c_f.indices_tuple_not_supported(indices_tuple)  # type: ignore[arg-type]
        self._check(labels, ref_labels)
        spec, score = self.spec(), self.distance.engine_score()
        if score is None or self._matrix_needed(spec):
            losses, there = self._rows(embeddings, labels, ref_emb, ref_labels)
            loss = losses.masked_fill(~there, 0.0).sum() / there.sum().clamp(min=1)
        else:
            itself = ref_emb is embeddings and ref_labels is labels
            call = Call(embeddings, labels, None, ref_emb, ref_labels, itself)
            loss = fused_pair_loss(spec, score, [Fold()], None, call, *self.distance.engine_rows(embeddings, ref_emb))
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}
