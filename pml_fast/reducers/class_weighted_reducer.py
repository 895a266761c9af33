"""The mean of the losses, weighted by class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..engine.fold import check_classes
from ..utils import common_functions as c_f
from .base_reducer import BaseReducer
from .fold import Fold


class ClassWeightedReducer(BaseReducer):
    """The mean of loss * weights[label]: the label of the element, or of the anchor of a pair or triplet.

    `weights` is a 1D tensor with one weight for each label 0, 1, ...; it keeps its dtype and follows the
    losses from device to device. The mean is taken over all losses and is not divided by the weights' sum.
    """

    def __init__(self, weights: Tensor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not torch.is_tensor(weights):
            raise TypeError(f"weights must be a tensor with one weight a class, got {type(weights).__name__}")
        if weights.ndim != 1:
            raise ValueError(f"weights must be 1D, one weight a class, got shape {tuple(weights.shape)}")
        self.weights = weights

    def element_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, loss_indices, labels)

    def pos_pair_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, loss_indices[0], labels)

    def neg_pair_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, loss_indices[0], labels)

    def triplet_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        return self.element_reduction_helper(losses, loss_indices[0], labels)

    def element_reduction_helper(self, losses: Tensor, indices: Tensor, labels: Tensor | None) -> Tensor:
        """The weighted mean, `indices` naming the sample of `labels` that each loss belongs to."""
        if labels is None:
            raise ValueError("ClassWeightedReducer needs labels, got None: pass labels to the loss")
        if losses.numel() == 0:
            return losses.sum()
        classes = labels[indices]
        check_classes(classes, len(self.weights))
        dtype = c_f.accumulation_dtype(losses.dtype)
        weights = self._weights_on(losses.device)[classes].to(dtype)
        return (losses.to(dtype) * weights).mean().to(losses.dtype)

    def _weights_on(self, device: torch.device) -> Tensor:
        moved = self.weights.to(device)
        if moved is not self.weights and not isinstance(self.weights, torch.nn.Parameter):
            self.weights = moved
        return moved

    def fold_refusal(self) -> str:
        refusal = super().fold_refusal()
        if not refusal and self.weights.requires_grad:
            return "ClassWeightedReducer has weights that need a gradient, which needs every single loss."
        return refusal

    def _fold_rule(self) -> Fold:
        return Fold("class_weighted", weights=self.weights)
