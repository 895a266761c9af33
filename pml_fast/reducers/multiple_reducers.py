"""A reducer for each named loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .base_reducer import BaseReducer, LossDict
from .fold import Fold
from .mean_reducer import MeanReducer


class MultipleReducers(BaseReducer):
    """Reduces each named loss with its own reducer, or `default_reducer` (MeanReducer), and adds the results.

    The sum has the widest dtype among the reduced losses.
    """

    def __init__(
        self,
        reducers: Mapping[str, torch.nn.Module],
        default_reducer: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.reducers = torch.nn.ModuleDict(reducers)
        self.default_reducer = MeanReducer() if default_reducer is None else default_reducer

    def forward(self, loss_dict: LossDict, embeddings: Tensor, labels: Tensor | None) -> Any:
        """The sum of the reduced losses."""
        self.reset_stats()
        values = [
            _scalar(name, self._reducer_of(name)({name: info}, embeddings, labels), embeddings)
            for name, info in loss_dict.items()
        ]
        # cat rather than stack, as it promotes mixed dtypes.
        reduced = torch.cat(values) if values else embeddings.new_zeros(0)
        return self.sub_loss_reduction(reduced, embeddings, labels)

    def sub_loss_reduction(self, sub_losses: Tensor, embeddings: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """The sum of the reduced losses, one for each name."""
        return torch.sum(sub_losses)

    def _reducer_of(self, loss_name: str) -> torch.nn.Module:
        # A ModuleDict has no get().
        if loss_name in self.reducers:
            return self.reducers[loss_name]
        return self.default_reducer

    def fold_refusal(self) -> str:
        return "MultipleReducers reduces each named loss on its own: ask for the fold of one loss by name."

    def fold_for(self, loss_name: str) -> Fold | None:
        """The fold of the reducer of `loss_name`; the engine adds the results of the names."""
        if self._refusal():
            return None
        reducer = self._reducer_of(loss_name)
        return reducer.fold() if isinstance(reducer, BaseReducer) else None

    def fold_refusal_for(self, loss_name: str) -> str:
        """Why `fold_for` returns None, in one sentence; empty where it does not."""
        own = self._refusal()
        if own:
            return own
        reducer = self._reducer_of(loss_name)
        if not isinstance(reducer, BaseReducer):
            return f"{type(reducer).__name__} is no BaseReducer and needs every single loss."
        return reducer.fold_refusal()

    def _refusal(self) -> str:
        """Why none of the losses can be folded."""
        if type(self) is not MultipleReducers:
            return f"{type(self).__name__} is a subclass of MultipleReducers and needs the reduced losses."
        if self._forward_hooks or self._forward_pre_hooks:
            return "MultipleReducers has forward hooks, which need every single loss."
        return ""


def _scalar(loss_name: str, value: Any, embeddings: Tensor) -> Tensor:
    """A reduced loss as a tensor of shape (1,)."""
    if not isinstance(value, (Tensor, int, float)):
        raise TypeError(
            f"the reducer of {loss_name} must return one number, got {type(value).__name__}: "
            "use DoNothingReducer in place of MultipleReducers, not inside it"
        )
    return torch.as_tensor(value, device=embeddings.device).reshape(1)
