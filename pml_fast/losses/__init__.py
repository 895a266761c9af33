"""Losses."""

from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction
from pml_fast.losses.circle_loss import CircleLoss
from pml_fast.losses.contrastive_loss import ContrastiveLoss
from pml_fast.losses.dynamic_soft_margin_loss import DynamicSoftMarginLoss
from pml_fast.losses.fast_ap_loss import FastAPLoss
from pml_fast.losses.histogram_loss import HistogramLoss
from pml_fast.losses.manifold_loss import ManifoldLoss
from pml_fast.losses.mixins import EmbeddingRegularizerMixin
from pml_fast.losses.multi_similarity_loss import MultiSimilarityLoss
from pml_fast.losses.ntxent_loss import NTXentLoss
from pml_fast.losses.pnp_loss import PNPLoss
from pml_fast.losses.smooth_ap_loss import SmoothAPLoss
from pml_fast.losses.supcon_loss import SupConLoss
from pml_fast.losses.triplet_margin_loss import TripletMarginLoss
from pml_fast.losses.vicreg_loss import VICRegLoss

__all__ = [
    "BaseMetricLossFunction",
    "CircleLoss",
    "ContrastiveLoss",
    "DynamicSoftMarginLoss",
    "EmbeddingRegularizerMixin",
    "FastAPLoss",
    "HistogramLoss",
    "ManifoldLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "PNPLoss",
    "SmoothAPLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "VICRegLoss",
]
