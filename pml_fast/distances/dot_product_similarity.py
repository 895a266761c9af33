"""Inner products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.distances.base_distance import BaseDistance
from pml_fast.engine.score import Score
from pml_fast.utils.checks import check_positive


class DotProductSimilarity(BaseDistance):
    """``x . y``; of unit vectors unless ``normalize_embeddings=False``. Larger is closer."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("is_inverted", True)
        super().__init__(**kwargs)
        check_positive("power", self.power)
        if not self.is_inverted:
            raise ValueError(f"is_inverted must be True for {type(self).__name__} (larger is closer), got False")

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return torch.matmul(query_emb, ref_emb.transpose(-1, -2))

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return torch.sum(query_emb * ref_emb, dim=1)

    def engine_score(self) -> Score | None:
        if not self._is_plain(DotProductSimilarity):
            return None
        inside = self.normalize_embeddings and self.p == 2
        return Score("dot", 2.0, float(self.power), inside, inverted=True, prepared=self._divided_before())

    def engine_rows(self, query_emb: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        return self._rows_divided_before(query_emb, ref_emb)
