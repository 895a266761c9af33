"""The sum of the losses, divided by a number that the loss gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base_reducer import BaseReducer, LossInfo, sum_of


class DivisorReducer(BaseReducer):
    """The sum of the losses over the "divisor" of their loss info; a differentiable zero where that is 0."""

    divisor: float | Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_to_recordable_attributes(name="divisor", is_stat=True)

    def unpack_loss_info(self, loss_info: LossInfo) -> tuple[Any, Any, str, dict[str, Any]]:
        """As in every reducer, with the divisor among the arguments."""
        losses, loss_indices, reduction_type, kwargs = super().unpack_loss_info(loss_info)
        if reduction_type != "already_reduced":
            if "divisor" not in loss_info:
                raise ValueError(
                    "DivisorReducer needs a loss that gives a divisor, and this one gives none: use another "
                    'reducer, or add a "divisor" to the loss info'
                )
            kwargs = {"divisor": loss_info["divisor"]}
            self.divisor = kwargs["divisor"]
        return losses, loss_indices, reduction_type, kwargs

    def sum_and_divide(self, losses: Tensor, embeddings: Tensor, divisor: float | Tensor) -> Tensor:
        """sum(losses) / divisor, without waiting for the device where the divisor is a tensor."""
        if isinstance(divisor, Tensor):
            is_zero = divisor == 0
            quotient = sum_of(losses) / torch.where(is_zero, 1, divisor)
            return torch.where(is_zero, self.zero_loss(embeddings), quotient).to(losses.dtype)
        if divisor == 0:
            return self.zero_loss(embeddings)
        return (sum_of(losses) / divisor).to(losses.dtype)

    def element_reduction(
        self,
        losses: Tensor,
        loss_indices: Any,
        embeddings: Tensor,
        labels: Tensor | None,
        divisor: float | Tensor = 1,
    ) -> Tensor:
        return self.sum_and_divide(losses, embeddings, divisor)

    def pos_pair_reduction(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.element_reduction(*args, **kwargs)

    def neg_pair_reduction(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.element_reduction(*args, **kwargs)

    def triplet_reduction(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.element_reduction(*args, **kwargs)

    def fold_refusal(self) -> str:
        return "DivisorReducer divides by a number that the loss computes from its single losses."
