"""Centers of one class drawn together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import pml_fast.engine.ops  # noqa: F401  (defines the operators)

from ..distances import CosineSimilarity
from ..engine.listed import engine_scorer
from ..engine.materialise import mean_scores
from ..reducers import BaseReducer, DivisorReducer
from ..utils import common_functions as c_f
from .base_regularizer import BaseRegularizer


class SparseCentersRegularizer(BaseRegularizer):
    """Penalises every two centers of a class by sqrt(2 - 2 cos), so that superfluous ones merge.

    Qian et al., "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling", ICCV 2019. Only the pairs of one class are
    scored: num_classes * centers_per_class * (centers_per_class - 1) / 2 of them, never all centers against all.

    The rows of the weights are the centers, those of a class side by side. The sum of the losses is divided by twice their
    number (DivisorReducer).
    """

    same_class_center_sim: float
    diff_class_center_sim: float

    def __init__(self, num_classes: int, centers_per_class: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if centers_per_class < 2:
            raise ValueError(f"centers_per_class must be at least 2, as pairs of centers are compared, got {centers_per_class}")
        c_f.assert_distance_type(self, CosineSimilarity)
        self.set_class_masks(num_classes, centers_per_class)
        self.add_to_recordable_attributes(list_of_names=["num_classes", "centers_per_class"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["same_class_center_sim", "diff_class_center_sim"], is_stat=True)

    def set_class_masks(self, num_classes: int, centers_per_class: int) -> None:
        """Say how many classes there are, and how many centers each has."""
        self.num_classes = num_classes
        self.centers_per_class = centers_per_class

    @property
    def same_class_mask(self) -> Tensor:
        """The pairs that are compared, as a bool matrix (made anew whenever it is asked for)."""
        return torch.block_diag(*[torch.ones(self.centers_per_class, self.centers_per_class)] * self.num_classes).triu(1).bool()

    @property
    def diff_class_mask(self) -> Tensor:
        """The pairs of two classes, as a bool matrix (made anew whenever it is asked for)."""
        return ~torch.block_diag(*[torch.ones(self.centers_per_class, self.centers_per_class)] * self.num_classes).bool()

    def compute_loss(self, weights: Tensor) -> dict[str, dict[str, Any]]:
        """One loss for every two centers of a class among `weights` (num_classes * centers_per_class, D)."""
        centers = self.num_classes * self.centers_per_class
        if len(weights) != centers:
            raise ValueError(
                f"weights must have num_classes * centers_per_class = {centers} rows, got {len(weights)}: "
                "the centers of a class stand side by side"
            )
        sims = self._similarities(weights)
        gap = 2.0 - (2.0 * sims).clamp(max=2)
        # The root's derivative is infinite where two centers have met: there is nothing left to pull.
        met = gap <= 0
        losses = torch.where(met, 0.0, torch.where(met, 1.0, gap).sqrt())
        if self.collect_stats:
            self._set_mean_similarities(weights)
        return {
            "loss": {
                "losses": losses,
                "indices": c_f.torch_arange_from_size(losses),
                "reduction_type": "element",
                "divisor": 2 * len(losses),
            }
        }

    def _similarities(self, weights: Tensor) -> Tensor:
        """Those of every two centers of a class, class by class."""
        first, second = torch.triu_indices(self.centers_per_class, self.centers_per_class, offset=1, device=weights.device)
        start = torch.arange(0, len(weights), self.centers_per_class, device=weights.device).unsqueeze(1)
        i, j = (start + first).flatten(), (start + second).flatten()
        score = self.distance.engine_score()
        if score is None:
            # A subclass's own similarity: one small matrix a class.
            blocks = [self.distance(part)[first, second] for part in weights.split(self.centers_per_class)]
            return torch.cat(blocks)
        rows, cols = self.distance.engine_rows(weights, weights)
        return engine_scorer(rows, cols, score)(i, j)

    def set_stats(self, center_similarities: Tensor) -> None:
        """Record the mean similarities of centers of one class and of two, from the matrix of all."""
        if self.collect_stats:
            with torch.no_grad():
                self.same_class_center_sim = center_similarities[self.same_class_mask].mean().item()
                self.diff_class_center_sim = center_similarities[self.diff_class_mask].mean().item()

    def _set_mean_similarities(self, weights: Tensor) -> None:
        score = self.distance.engine_score()
        if score is None:
            self.set_stats(self.distance(weights))
            return
        classes = torch.arange(len(weights), device=weights.device) // self.centers_per_class
        rows = self.distance.engine_rows(weights.detach(), weights.detach())
        self.same_class_center_sim, self.diff_class_center_sim = mean_scores(classes, classes, rows, score, True)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def get_default_reducer(self) -> BaseReducer:
        return DivisorReducer()
