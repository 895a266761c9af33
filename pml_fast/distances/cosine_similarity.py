"""Cosine similarity."""

from __future__ import annotations

from typing import Any

from pml_fast.distances.dot_product_similarity import DotProductSimilarity


class CosineSimilarity(DotProductSimilarity):
    """``x . y / (|x| |y|)``: the inner product of unit vectors, always. Larger is closer."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not self.normalize_embeddings:
            raise ValueError(
                "normalize_embeddings must be True for CosineSimilarity, got False; use DotProductSimilarity instead"
            )
