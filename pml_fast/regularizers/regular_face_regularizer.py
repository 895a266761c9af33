"""The closest other class weight as a penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..distances import CosineSimilarity
from ..engine.listed import closest_scores
from ..utils import common_functions as c_f
from .base_regularizer import BaseRegularizer


class RegularFaceRegularizer(BaseRegularizer):
    """Penalises each row by its similarity to the closest other row.

    Zhao, Xu and Cheng, "RegularFace: Deep Face Recognition via Exclusive Regularization", CVPR 2019. One streaming sweep finds
    the closest rows, and only those C pairs are scored with a gradient; the C x C matrix is built for a similarity of your own
    alone.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.distance.is_inverted:
            raise ValueError(
                f"distance of RegularFaceRegularizer must be a similarity (is_inverted=True), got "
                f"{type(self.distance).__name__}; pass for example CosineSimilarity()"
            )

    def compute_loss(self, weights: Tensor) -> dict[str, dict[str, Any]]:
        """One loss for each row of `weights` (C, D)."""
        score = self.distance.engine_score()
        if score is None:
            losses = self._matrix_losses(weights)
        else:
            losses = closest_scores(self.distance.engine_rows(weights, weights)[0], score)
        return {
            "loss": {
                "losses": losses,
                "indices": c_f.torch_arange_from_size(weights),
                "reduction_type": "element",
            }
        }

    def _matrix_losses(self, weights: Tensor) -> Tensor:
        mat = self.distance(weights)
        others = mat.detach().clone().fill_diagonal_(float("-inf"))
        closest = self.distance.smallest_dist(others, dim=1)[1]
        return mat.gather(1, closest.unsqueeze(1)).squeeze(1)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()
