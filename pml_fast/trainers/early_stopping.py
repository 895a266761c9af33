"""Ends training when a metric no longer improves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from pml_fast.utils import common_functions as c_f


class EarlyStopping:
    """An `end_of_epoch_hook`: training ends after more than `patience` epochs without a better `metric`.

    Its state is in the trainer's checkpoints. `best_epoch` and `best` tell where the metric was best.

    Args:
        metric: the number to watch, of the trainer.
        patience: epochs without a better number that are borne.
        mode: "max" where more is better, "min" where less is.
        min_delta: how much better counts.
        hook: another hook to call first; where it returns False training ends too.
    """

    def __init__(
        self,
        metric: Callable[[Any], float],
        patience: int,
        mode: str = "max",
        min_delta: float = 0.0,
        hook: Callable[[Any], Any] | None = None,
    ) -> None:
        if mode not in ("max", "min"):
            raise ValueError(f'mode must be "max" or "min", got {mode!r}')
        if patience < 0:
            raise ValueError(f"patience must not be negative, got {patience}")
        self.metric = metric
        self.patience = patience
        self.mode = mode
        self.min_delta = min_delta
        self.hook = hook
        self.best_epoch: int | None = None
        self.best = -math.inf if mode == "max" else math.inf

    def __call__(self, trainer: Any) -> bool:
        if self.hook is not None and self.hook(trainer) is False:
            return False
        value = float(self.metric(trainer))
        gain = value - self.best if self.mode == "max" else self.best - value
        if self.best_epoch is None or gain > self.min_delta:
            self.best_epoch, self.best = trainer.epoch, value
        if trainer.epoch - self.best_epoch <= self.patience:
            return True
        c_f.LOGGER.info("No better than %g of epoch %d for %d epochs: training ends", self.best, self.best_epoch, self.patience)
        return False

    def state_dict(self) -> dict[str, Any]:
        """The best number and its epoch."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
