"""Losses."""

from pml_fast.losses.arcface_loss import ArcFaceLoss
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction
from pml_fast.losses.circle_loss import CircleLoss
from pml_fast.losses.contrastive_loss import ContrastiveLoss
from pml_fast.losses.cosface_loss import CosFaceLoss
from pml_fast.losses.instance_loss import InstanceLoss
from pml_fast.losses.large_margin_softmax_loss import LargeMarginSoftmaxLoss
from pml_fast.losses.mixins import EmbeddingRegularizerMixin, WeightMixin, WeightRegularizerMixin
from pml_fast.losses.multi_similarity_loss import MultiSimilarityLoss
from pml_fast.losses.normalized_softmax_loss import NormalizedSoftmaxLoss
from pml_fast.losses.ntxent_loss import NTXentLoss
from pml_fast.losses.p2s_grad_loss import P2SGradLoss
from pml_fast.losses.proxy_anchor_loss import ProxyAnchorLoss
from pml_fast.losses.proxy_losses import ProxyNCALoss
from pml_fast.losses.soft_triple_loss import SoftTripleLoss
from pml_fast.losses.sphereface_loss import SphereFaceLoss
from pml_fast.losses.subcenter_arcface_loss import SubCenterArcFaceLoss
from pml_fast.losses.supcon_loss import SupConLoss
from pml_fast.losses.triplet_margin_loss import TripletMarginLoss

__all__ = [
    "ArcFaceLoss",
    "BaseMetricLossFunction",
    "CircleLoss",
    "ContrastiveLoss",
    "CosFaceLoss",
    "EmbeddingRegularizerMixin",
    "InstanceLoss",
    "LargeMarginSoftmaxLoss",
    "MultiSimilarityLoss",
    "NTXentLoss",
    "NormalizedSoftmaxLoss",
    "P2SGradLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "TripletMarginLoss",
    "WeightMixin",
    "WeightRegularizerMixin",
]
