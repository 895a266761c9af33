"""Ranked list loss."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

from torch import Tensor

from pml_fast.engine.plan import Call, Plan
from pml_fast.engine.specs import RankedList
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.spec_pair_loss import SpecPairLoss
from pml_fast.utils import common_functions as c_f


class RankedListLoss(SpecPairLoss):
    """Weighted means over an anchor's positives beyond ``alpha - margin`` and over its negatives within ``alpha``.

    Wang et al., "Ranked List Loss for Deep Metric Learning", CVPR 2019: ``(1 - imbalance)`` times the mean of
    ``d_ap - (alpha - margin)``, weighted by its exponential at ``Tp``, and ``imbalance`` times that of ``alpha - d_an``, at
    ``Tn``. Neither a reference set nor an ``indices_tuple`` is supported.

    Args:
        margin: between the positives' boundary and the negatives'.
        Tn: temperature of the negatives' weights.
        imbalance: share of the negatives, from 0 to 1.
        alpha: the negatives' boundary; ``None`` for ``1 + margin / 2``.
        Tp: temperature of the positives' weights; 0 weighs them alike.
    """

    joint_anchors: ClassVar[str] = "it takes no reference set"

    def __init__(
        self,
        margin: float,
        Tn: float,
        imbalance: float = 0.5,
        alpha: float | None = None,
        Tp: float = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= imbalance <= 1:
            raise ValueError(f"imbalance must be from 0 (positives only) to 1 (negatives only), got {imbalance!r}")
        self.margin = margin
        self.imbalance = imbalance
        self.alpha = 1 + margin / 2 if alpha is None else alpha
        if Tp > 5 or Tn > 5:
            # As the peer does, which users of small embeddings know: the default recipe of the paper has Tn = 10.
            warnings.warn(f"Tp and Tn above 5 may overflow in half precision, got Tp={Tp} and Tn={Tn}", stacklevel=2)
        self.Tp = Tp
        self.Tn = Tn
        self.add_to_recordable_attributes(list_of_names=["imbalance", "alpha", "margin", "Tp", "Tn"], is_stat=False)

    def spec(self) -> RankedList:
        return RankedList(self.margin, self.Tn, self.imbalance, self.alpha, self.Tp)

    def plan(self, call: Call) -> Plan:
        _check(call)
        return super().plan(call)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """One loss a row, for reducers that need them and for distances that have only a matrix."""
        _check(Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, ref_emb is embeddings and ref_labels is labels))
        return super().compute_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels)


def _check(call: Call) -> None:
    c_f.labels_required(call.labels)
    c_f.ref_not_supported(call.embeddings, call.labels, call.ref_emb, call.ref_labels)
    c_f.indices_tuple_not_supported(call.indices)
