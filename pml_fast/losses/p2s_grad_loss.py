"""P2SGrad loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.classes.ops import class_scores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.classes.unit import make_unit
from pml_fast.engine.plan import Call
from pml_fast.engine.score import Score
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.class_loss import ClassLoss, check_count, follow
from pml_fast.utils import common_functions as c_f

# Unit rows against weights whose columns a call has made unit vectors: both roles of the cosine, one of them constant.
SPEC = ClassSpec(Score(normalize=False, symmetric=False), unit_rows=True, fold="row_squares")


class P2SGradLoss(ClassLoss):
    """Mean over the batch and all classes of ``(cos(theta_ic) - [c = label_i])^2``.

    Zhang et al., "P2SGrad: Refined Gradients for Optimizing Deep Face Models", CVPR 2019: the squared error whose gradient is
    the paper's. Each call first makes the columns of ``weight`` unit vectors, in place. Classes stream in blocks.

    Args:
        descriptors_dim: features of an embedding.
        num_classes: labels are ``0 .. num_classes - 1``.
    """

    def __init__(self, descriptors_dim: int, num_classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_count(descriptors_dim=descriptors_dim, num_classes=num_classes)
        self.descriptors_dim = descriptors_dim
        self.num_classes = num_classes
        self.weight = torch.nn.Parameter(torch.empty(descriptors_dim, num_classes).uniform_(-1, 1))
        self._make_unit()

    def _make_unit(self) -> None:
        # The data alone: backward passes of earlier calls may still need the values, which change by rounding only.
        make_unit(self.weight.data.t())

    def class_weights(self) -> Tensor:
        return self.weight.t()

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the weights to the embeddings' device, and to their type unless that is of half precision."""
        follow(self.weight, dtype, device)

    def class_spec(self) -> ClassSpec | str:
        return SPEC

    def check_call(self, labels: Tensor | None, indices_tuple: Any, itself: bool) -> None:
        super().check_call(labels, indices_tuple, itself)
        c_f.indices_tuple_not_supported(indices_tuple)

    def row_sums(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Each row's squared errors, summed over classes."""
        self._make_unit()
        found = class_scores(embeddings, self.class_weights(), labels, SPEC)
        missing = found.target.clamp(-1, 1) - 1
        return torch.addcmul(found.others, missing, missing)

    def mean_loss(self, sums: Tensor) -> LossDict:
        """The mean squared error, one number."""
        loss = sums.sum() / max(len(sums) * self.num_classes, 1)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def loss_terms(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, spec: ClassSpec | str) -> LossDict:
        return self.mean_loss(self.row_sums(embeddings, labels))

    def joined_loss(self, call: Call, copies: bool, everyone: Any) -> Tensor:
        self.check_call(call.labels, call.indices, call.itself)
        assert call.labels is not None
        sums = everyone.rows(self.row_sums(call.embeddings, self.targets(call.embeddings, call.labels)))
        return self.reducer(self.mean_loss(sums), everyone.embeddings, everyone.labels)
