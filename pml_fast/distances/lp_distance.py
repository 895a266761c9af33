"""p-norms of differences."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.distances.base_distance import BaseDistance
from pml_fast.engine.score import Score
from pml_fast.utils.checks import check_positive


class LpDistance(BaseDistance):
    """``(sum |x - y|^p)^(power/p)``; of vectors of unit p-norm unless ``normalize_embeddings=False``. Smaller is closer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("power", self.power)
        if self.is_inverted:
            raise ValueError("is_inverted must be False for LpDistance (smaller is closer), got True")

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        wide = torch.promote_types(query_emb.dtype, torch.float32)
        return torch.cdist(query_emb.to(wide), ref_emb.to(wide), p=self.p).to(query_emb.dtype)

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return torch.nn.functional.pairwise_distance(query_emb, ref_emb, p=self.p)

    def engine_score(self) -> Score | None:
        if not self._is_plain(LpDistance):
            return None
        kind = "l2" if self.p == 2 else "lp"
        inside = self.normalize_embeddings and self.p == 2
        return Score(kind, float(self.p), float(self.power), inside, inverted=False, prepared=self._divided_before())

    def engine_rows(self, query_emb: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        return self._rows_divided_before(query_emb, ref_emb)
