"""The signal-to-noise ratio distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.distances.base_distance import BaseDistance
from pml_fast.engine.score import Score
from pml_fast.utils.checks import check_positive


class SNRDistance(BaseDistance):
    """``var(x - y) / var(x)`` over the features (Yuan et al., "Signal-to-noise Ratio", CVPR 2019). Smaller is closer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive("power", self.power)
        if self.is_inverted:
            raise ValueError("is_inverted must be False for SNRDistance (smaller is closer), got True")

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        rows, cols = self._as_inner_product(query_emb, ref_emb)
        return rows @ cols.T

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return torch.var(query_emb - ref_emb, dim=1) / torch.var(query_emb, dim=1)

    def engine_score(self) -> Score | None:
        if not self._is_plain(SNRDistance):
            return None
        divided = f", divided by their {float(self.p)!r}-norms" if self.normalize_embeddings else ""
        prepared = f"noise to signal as an inner product{divided}"
        return Score("dot", 2.0, float(self.power), normalize=False, inverted=False, symmetric=False, prepared=prepared)

    def engine_rows(self, query_emb: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        query = self.maybe_normalize(query_emb)
        return self._as_inner_product(query, query if ref_emb is query_emb else self.maybe_normalize(ref_emb))

    @staticmethod
    def _as_inner_product(query: Tensor, ref: Tensor) -> tuple[Tensor, Tensor]:
        # With centred rows a and b: |a - b|^2 / |a|^2 = 1 + (|b|^2 - 2 a.b) / |a|^2, an inner product of D + 2 features.
        a, b = (x - x.mean(dim=1, keepdim=True) for x in (query, ref))
        inverse = a.square().sum(dim=1, keepdim=True).reciprocal()
        ones = torch.ones_like(inverse)
        rows = torch.cat([a * (-2.0 * inverse), inverse, ones], dim=1)
        square = b.square().sum(dim=1, keepdim=True)
        return rows, torch.cat([b, square, torch.ones_like(square)], dim=1)
