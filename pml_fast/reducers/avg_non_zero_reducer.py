"""The mean of the losses above zero."""

from __future__ import annotations

from typing import Any

from .fold import Fold
from .threshold_reducer import ThresholdReducer


class AvgNonZeroReducer(ThresholdReducer):
    """The mean of the losses above zero: those that still teach something."""

    _given = ("low",)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(low=0, **kwargs)

    # Stated anew because a rule is not inherited: see BaseReducer.fold_refusal.
    def _fold_rule(self) -> Fold:
        return super()._fold_rule()
