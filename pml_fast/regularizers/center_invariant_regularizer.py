"""Class weights of one length."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..distances import LpDistance
from ..utils import common_functions as c_f
from .base_regularizer import BaseRegularizer


class CenterInvariantRegularizer(BaseRegularizer):
    """Penalises each row by (|w|^2 - mean of all |w|^2)^2 / 4.

    Wu et al., "Deep Face Recognition with Center Invariant Loss", ACM MM Workshops 2017. The norm is the distance's, an
    LpDistance with power=1 and normalize_embeddings=False.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, power=1, normalize_embeddings=False)

    def compute_loss(self, weights: Tensor) -> dict[str, dict[str, Any]]:
        """One loss for each row of `weights` (C, D)."""
        squares = self.distance.get_norm(weights) ** 2
        return {
            "loss": {
                "losses": (squares - squares.mean()) ** 2 / 4,
                "indices": c_f.torch_arange_from_size(weights),
                "reduction_type": "element",
            }
        }

    def get_default_distance(self) -> LpDistance:
        return LpDistance(power=1, normalize_embeddings=False)
