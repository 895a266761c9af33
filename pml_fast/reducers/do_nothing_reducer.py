"""No reduction."""

from __future__ import annotations

from torch import Tensor

from .base_reducer import BaseReducer, LossDict


class DoNothingReducer(BaseReducer):
    """Returns the dictionary of losses as it is."""

    def forward(self, loss_dict: LossDict, embeddings: Tensor, labels: Tensor | None) -> LossDict:
        return loss_dict

    def fold_refusal(self) -> str:
        return "DoNothingReducer returns every single loss."
