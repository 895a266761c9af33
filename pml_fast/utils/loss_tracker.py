"""The losses of a training step, their weights and their sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["LossTracker"]


class LossTracker:
    """`losses` and `loss_weights` by name; `total_loss`, which is added to `loss_names`, is the weighted sum."""

    def __init__(self, loss_names: list[str]) -> None:
        if "total_loss" not in loss_names:
            loss_names.append("total_loss")
        self.losses: dict[str, Any] = dict.fromkeys(loss_names, 0)
        self.loss_weights: dict[str, float] = dict.fromkeys(loss_names, 1)

    def weight_the_losses(self, exclude_loss: Sequence[str] = ("total_loss",)) -> None:
        """Multiply each loss by its weight."""
        for name in self._all_but(exclude_loss):
            self.losses[name] = self.losses[name] * self.loss_weights[name]

    def get_total_loss(self, exclude_loss: Sequence[str] = ("total_loss",)) -> None:
        """Let `total_loss` be the sum of the others."""
        self.losses["total_loss"] = sum((self.losses[name] for name in self._all_but(exclude_loss)), start=0)

    def set_loss_weights(self, loss_weight_dict: Mapping[str, float]) -> None:
        """Take these weights; losses without one weigh 1."""
        for name in self.losses:
            self.loss_weights[name] = loss_weight_dict.get(name, 1.0)

    def update(self, loss_weight_dict: Mapping[str, float]) -> None:
        """Weigh the losses and sum them."""
        self.set_loss_weights(loss_weight_dict)
        self.weight_the_losses()
        self.get_total_loss()

    def _all_but(self, excluded: Sequence[str]) -> list[str]:
        return [name for name in self.losses if name not in excluded]
