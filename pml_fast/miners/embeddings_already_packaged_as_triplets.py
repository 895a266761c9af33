"""Triplets by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pml_fast.miners.base_miner import BaseMiner
from pml_fast.utils.index_types import TripletIndices


class EmbeddingsAlreadyPackagedAsTriplets(BaseMiner):
    """Rows 3k, 3k + 1 and 3k + 2 of a batch are a triplet's anchor, positive and negative; labels are not read.

    ``ValueError`` unless the batch size is a multiple of 3.
    """

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        n = embeddings.shape[0]
        if n % 3 != 0:
            raise ValueError(
                f"embeddings must have a multiple of 3 rows (anchor, positive, negative by turns), got {n}; "
                "drop the incomplete triplet"
            )
        return TripletIndices(*torch.arange(n, device=embeddings.device).view(-1, 3).unbind(1))
