"""The Lp norm as a penalty."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..utils import common_functions as c_f
from ..utils.checks import check_number
from .base_regularizer import BaseRegularizer


class LpRegularizer(BaseRegularizer):
    """Penalises each row x by ||x||_p ** power: one element loss a row, averaged by default."""

    def __init__(self, p: float = 2, power: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_number("p", p)
        check_number("power", power)
        self.p = p
        self.power = power
        self.add_to_recordable_attributes(list_of_names=["p", "power"], is_stat=False)

    def compute_loss(self, embeddings: Tensor) -> dict[str, dict[str, Any]]:
        """One loss for each row of `embeddings` (N, D)."""
        norms = torch.linalg.vector_norm(embeddings, ord=self.p, dim=1)
        return {
            "loss": {
                "losses": norms if self.power == 1 else norms**self.power,
                "indices": c_f.torch_arange_from_size(embeddings),
                "reduction_type": "element",
            }
        }
