"""Distances and similarities between embeddings."""

from pml_fast.distances.base_distance import BaseDistance
from pml_fast.distances.batched_distance import BatchedDistance
from pml_fast.distances.cosine_similarity import CosineSimilarity
from pml_fast.distances.dot_product_similarity import DotProductSimilarity
from pml_fast.distances.lp_distance import LpDistance
from pml_fast.distances.precomputed_distance import PrecomputedDistance
from pml_fast.distances.snr_distance import SNRDistance

__all__ = [
    "BaseDistance",
    "BatchedDistance",
    "CosineSimilarity",
    "DotProductSimilarity",
    "LpDistance",
    "PrecomputedDistance",
    "SNRDistance",
]
