"""NCA loss."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from pml_fast.distances import LpDistance
from pml_fast.engine.fold import reduce_rows
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import PARTLY, Call, Plan
from pml_fast.engine.specs import NCA
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.joined import refuse_row_weights
from pml_fast.losses.spec_pair_loss import SpecPairLoss, pair_rows
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.checks import ref_labels_required


class NCALoss(SpecPairLoss):
    """``-log(sum over positives of exp(-c d_ap) / sum over all others of exp(-c d_aj))``, one loss an anchor with a positive.

    Goldberger et al., "Neighbourhood Components Analysis", NIPS 2004. An ``indices_tuple`` does not select pairs: it weighs
    each anchor by how often the tuple names it.

    Args:
        softmax_scale: the factor ``c`` of the distances in the softmax.
    """

    _no_steps: ClassVar[tuple[str, ...]] = ("nca_computation",)

    def __init__(self, softmax_scale: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.softmax_scale = softmax_scale
        self.add_to_recordable_attributes(list_of_names=["softmax_scale"], is_stat=False)

    def spec(self) -> NCA:
        return NCA(self.softmax_scale)

    def plan(self, call: Call) -> Plan:
        c_f.labels_required(call.labels)
        ref_labels_required(call.ref_labels)
        plan = super().plan(_all_pairs(call))
        if call.indices is not None and plan.engine == "pairwise":
            plan.mode = PARTLY
            plan.notes = ["one loss a row comes out of the sweep and is weighed by how often the tuple names its row"]
        return plan

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if call.indices is None or plan.engine != "pairwise":
            return super().run_plan(plan, call) if call.indices is None else None
        if plan.folds is None or plan.score is None:
            return None
        x, y = self.distance.engine_rows(call.embeddings, call.ref_emb)
        spec = self.spec()
        values, counts = pair_rows(spec, plan.score, None, call, x, y)
        weighed = values[0] * _weights(call, values.dtype)
        fold = plan.folds[0]
        return reduce_rows(fold, spec.terms[0], weighed, counts[0], fold.row_weights(call.labels, values.dtype))[0]

    def joined_loss(self, call: Call, copies: bool, everyone: Any) -> Tensor:
        refuse_row_weights(self, call)
        return super().joined_loss(call, copies, everyone)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """One loss for each row with a positive, for reducers that need them and for distances that have only a matrix."""
        c_f.labels_required(labels)
        losses = super().compute_loss(embeddings, labels, None, ref_emb, ref_labels)
        entry = losses["loss"]
        if indices_tuple is not None and entry["indices"] is not None:
            itself = ref_emb is embeddings and ref_labels is labels
            call = Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, itself)
            entry["losses"] = entry["losses"] * _weights(call, entry["losses"].dtype)[entry["indices"]]
        return losses

    def get_default_distance(self) -> LpDistance:
        return LpDistance(power=2)


def _all_pairs(call: Call) -> Call:
    return Call(call.embeddings, call.labels, None, call.ref_emb, call.ref_labels, call.itself)


def _weights(call: Call, dtype: Any) -> Tensor:
    """How often the tuple names each row, as a share of the most named one."""
    indices: Any = call.indices
    assert call.labels is not None
    if isinstance(indices, LazyIndices):
        indices = indices.materialise()
    return lmu.convert_to_weights(indices, call.labels, dtype=dtype, using_ref=call.ref_emb is not call.embeddings)
