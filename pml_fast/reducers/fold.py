"""What a reducer asks of an engine that never holds the single losses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

KINDS = ("mean", "sum", "threshold", "class_weighted", "per_anchor")


@dataclass(frozen=True, eq=False)
class Fold:
    """A reduction that can be accumulated as losses stream by.

    kind:
      mean            sum of the losses / their number
      sum             sum of the losses
      threshold       mean of the losses with low < loss < high; an infinite bound is not tested
      class_weighted  mean of loss * weights[label of its anchor]
      per_anchor      for each row of the batch the mean of its losses (0 for a row without any), then
                      `inner` over all rows as elements; a pair listed more than once counts once;
                      element losses go straight to `inner`; triplets cannot be reduced so

    Every reduction of no losses at all is a differentiable zero.
    """

    kind: str
    low: float = -math.inf
    high: float = math.inf
    weights: torch.Tensor | None = None
    inner: Fold | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if (self.weights is not None) != (self.kind == "class_weighted"):
            raise ValueError(
                f"weights belong to kind 'class_weighted' and to no other, got kind {self.kind!r}"
            )
        if (self.inner is not None) != (self.kind == "per_anchor"):
            raise ValueError(f"inner belongs to kind 'per_anchor' and to no other, got kind {self.kind!r}")

    # Weights compare by identity: comparing their values would wait for the device.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fold):
            return NotImplemented
        same_numbers = (self.kind, self.low, self.high) == (other.kind, other.low, other.high)
        return same_numbers and self.weights is other.weights and self.inner == other.inner

    def __hash__(self) -> int:
        return hash((self.kind, self.low, self.high, id(self.weights), self.inner))
