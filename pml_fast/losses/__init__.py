"""Losses."""

from pml_fast.losses.angular_loss import AngularLoss
from pml_fast.losses.arcface_loss import ArcFaceLoss
from pml_fast.losses.base_loss_wrapper import BaseLossWrapper
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction
from pml_fast.losses.circle_loss import CircleLoss
from pml_fast.losses.clip_loss import CLIPLoss
from pml_fast.losses.contrastive_loss import ContrastiveLoss
from pml_fast.losses.cosface_loss import CosFaceLoss
from pml_fast.losses.cross_batch_memory import CrossBatchMemory
from pml_fast.losses.dynamic_soft_margin_loss import DynamicSoftMarginLoss
from pml_fast.losses.fast_ap_loss import FastAPLoss
from pml_fast.losses.generic_pair_loss import GenericPairLoss
from pml_fast.losses.histogram_loss import HistogramLoss
from pml_fast.losses.instance_loss import InstanceLoss
from pml_fast.losses.intra_pair_variance_loss import IntraPairVarianceLoss
from pml_fast.losses.large_margin_softmax_loss import LargeMarginSoftmaxLoss
from pml_fast.losses.lifted_structure_loss import GeneralizedLiftedStructureLoss, LiftedStructureLoss
from pml_fast.losses.manifold_loss import ManifoldLoss
from pml_fast.losses.margin_loss import MarginLoss
from pml_fast.losses.mixins import EmbeddingRegularizerMixin, WeightMixin, WeightRegularizerMixin
from pml_fast.losses.multi_similarity_loss import MultiSimilarityLoss
from pml_fast.losses.multi_supcon_loss import MultiSupConLoss
from pml_fast.losses.multiple_losses import MultipleLosses
from pml_fast.losses.n_pairs_loss import NPairsLoss
from pml_fast.losses.nca_loss import NCALoss
from pml_fast.losses.normalized_softmax_loss import NormalizedSoftmaxLoss
from pml_fast.losses.ntxent_loss import NTXentLoss
from pml_fast.losses.p2s_grad_loss import P2SGradLoss
from pml_fast.losses.pnp_loss import PNPLoss
from pml_fast.losses.proxy_anchor_loss import ProxyAnchorLoss
from pml_fast.losses.proxy_losses import ProxyNCALoss
from pml_fast.losses.ranked_list_loss import RankedListLoss
from pml_fast.losses.self_supervised_loss import SelfSupervisedLoss
from pml_fast.losses.siglip_loss import SigLIPLoss
from pml_fast.losses.signal_to_noise_ratio_losses import SignalToNoiseRatioContrastiveLoss
from pml_fast.losses.smooth_ap_loss import SmoothAPLoss
from pml_fast.losses.soft_triple_loss import SoftTripleLoss
from pml_fast.losses.sphereface_loss import SphereFaceLoss
from pml_fast.losses.subcenter_arcface_loss import SubCenterArcFaceLoss
from pml_fast.losses.supcon_loss import SupConLoss
from pml_fast.losses.tcm_loss import ThresholdConsistentMarginLoss
from pml_fast.losses.triplet_margin_loss import TripletMarginLoss
from pml_fast.losses.tuplet_margin_loss import TupletMarginLoss
from pml_fast.losses.vicreg_loss import VICRegLoss

__all__ = [
    "AngularLoss",
    "BaseLossWrapper",
    "ArcFaceLoss",
    "BaseMetricLossFunction",
    "CLIPLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "EmbeddingRegularizerMixin",
    "GeneralizedLiftedStructureLoss",
    "GenericPairLoss",
    "InstanceLoss",
    "IntraPairVarianceLoss",
    "LiftedStructureLoss",
    "MarginLoss",
    "DynamicSoftMarginLoss",
    "FastAPLoss",
    "HistogramLoss",
    "ManifoldLoss",
    "CosFaceLoss",
    "LargeMarginSoftmaxLoss",
    "MultiSimilarityLoss",
    "MultiSupConLoss",
    "NCALoss",
    "NPairsLoss",
    "NTXentLoss",
    "RankedListLoss",
    "SigLIPLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "MultipleLosses",
    "SelfSupervisedLoss",
    "PNPLoss",
    "SmoothAPLoss",
    "NormalizedSoftmaxLoss",
    "P2SGradLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "SphereFaceLoss",
    "SubCenterArcFaceLoss",
    "SupConLoss",
    "ThresholdConsistentMarginLoss",
    "TripletMarginLoss",
    "TupletMarginLoss",
    "VICRegLoss",
    "WeightMixin",
    "WeightRegularizerMixin",
]
