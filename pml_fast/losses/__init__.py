"""Losses."""

from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction
from pml_fast.losses.circle_loss import CircleLoss
from pml_fast.losses.contrastive_loss import ContrastiveLoss
from pml_fast.losses.mixins import EmbeddingRegularizerMixin
from pml_fast.losses.multi_similarity_loss import MultiSimilarityLoss
from pml_fast.losses.ntxent_loss import NTXentLoss
from pml_fast.losses.supcon_loss import SupConLoss
from pml_fast.losses.triplet_margin_loss import TripletMarginLoss

__all__ = [
    "BaseMetricLossFunction",
    "CircleLoss",
    "ContrastiveLoss",
    "EmbeddingRegularizerMixin",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
