"""Instance loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.plan import Call
from pml_fast.losses.class_loss import ClassLoss, Comparison, comparison, softmax_losses, sweep
from pml_fast.reducers import BaseReducer, MeanReducer
from pml_fast.utils import common_functions as c_f


class InstanceLoss(ClassLoss):
    """Cross entropy of ``gamma cos(x_i, x_j)`` over the rows ``j`` of the batch, row ``i``'s class being the rank of its label.

    Zheng et al., "Dual-Path Convolutional Image-Text Embeddings with Instance Loss", ACM TOMM 2020, in PML's form: the row
    whose *number* is the label's rank among the batch's labels is the target. The batch streams against itself in blocks.

    Args:
        gamma: the logits' factor.
    """

    swept_settings = ("gamma",)

    def __init__(self, gamma: float = 64, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        self.gamma = gamma
        self.add_to_recordable_attributes(list_of_names=["gamma"], is_stat=False)

    def get_default_reducer(self) -> BaseReducer:
        return MeanReducer()

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def columns_for(self, embeddings: Tensor) -> Tensor:
        return embeddings

    def class_spec(self) -> ClassSpec | str:
        compared = comparison(self.distance, shift_free=False)
        return compared if isinstance(compared, str) else compared.spec(scale=float(self.gamma))

    def check_call(self, labels: Tensor | None, indices_tuple: Any, itself: bool) -> None:
        super().check_call(labels, indices_tuple, itself)
        c_f.indices_tuple_not_supported(indices_tuple)

    def targets(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return label_ranks(labels)

    def plan_notes(self, call: Call, spec: ClassSpec) -> list[str]:
        return ["the rows of the batch are the classes, streamed in blocks: one loss a row is reduced in torch"]

    def streamed_losses(self, embeddings: Tensor, labels: Tensor, spec: ClassSpec) -> Tensor:
        compared = comparison(self.distance, shift_free=False)
        assert isinstance(compared, Comparison)
        found = sweep(compared, embeddings, embeddings, labels, spec)
        return softmax_losses(found.others, found.target * spec.scale)

    def dense_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(self.distance(embeddings) * self.gamma, labels, reduction="none")


def label_ranks(labels: Tensor) -> Tensor:
    """Each label's rank among the distinct labels, int64, without a size that depends on the data."""
    if len(labels) == 0:
        return labels.to(torch.int64)
    ordered, order = torch.sort(labels)
    steps = torch.zeros_like(order)
    steps[1:] = ordered[1:] != ordered[:-1]
    return torch.empty_like(order).scatter_(0, order, steps.cumsum(0))
