"""The sum of a row's numbers as a penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..utils import common_functions as c_f
from .base_regularizer import BaseRegularizer


class ZeroMeanRegularizer(BaseRegularizer):
    """Penalises each row x by |sum of x|: one element loss a row, averaged by default."""

    def compute_loss(self, embeddings: Tensor) -> dict[str, dict[str, Any]]:
        """One loss for each row of `embeddings` (N, D)."""
        return {
            "loss": {
                "losses": embeddings.sum(dim=1).abs(),
                "indices": c_f.torch_arange_from_size(embeddings),
                "reduction_type": "element",
            }
        }
