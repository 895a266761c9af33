"""A matrix that is there already."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.distances.base_distance import BaseDistance


class PrecomputedDistance(BaseDistance):
    """Hands a loss or a miner the matrix ``mat [N, M]`` in the place of a comparison of embeddings.

    The embeddings that a loss is called with say only how many rows and columns there are; gradients go to ``mat``. Assign
    :attr:`mat` anew for every batch::

        loss = losses.ContrastiveLoss(distance=distances.PrecomputedDistance())
        loss.distance.mat = scores
        loss(embeddings, labels).backward()

    Args:
        mat: the matrix of distances, or of similarities where ``is_inverted=True``; it is used as it is.
    """

    def __init__(self, mat: Tensor | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("normalize_embeddings", False)
        super().__init__(**kwargs)
        self.mat = mat

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        """:attr:`mat`; ``ValueError`` where it does not have a row for each query and a column for each reference."""
        if not torch.is_tensor(self.mat):
            raise TypeError(f"mat of PrecomputedDistance must be a tensor, got {type(self.mat).__name__}; assign it first")
        expected = (query_emb.shape[0], (query_emb if ref_emb is None else ref_emb).shape[0])
        if tuple(self.mat.shape) != expected:
            raise ValueError(f"mat of PrecomputedDistance must have shape {expected}, got {tuple(self.mat.shape)}")
        return self.mat if self.power == 1 else self.mat**self.power

    def engine_refusal(self) -> str:
        return "it was given to PrecomputedDistance, not computed"
