"""Losses."""

from pml_fast.losses.base_loss_wrapper import BaseLossWrapper
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction
from pml_fast.losses.circle_loss import CircleLoss
from pml_fast.losses.contrastive_loss import ContrastiveLoss
from pml_fast.losses.cross_batch_memory import CrossBatchMemory
from pml_fast.losses.mixins import EmbeddingRegularizerMixin
from pml_fast.losses.multi_similarity_loss import MultiSimilarityLoss
from pml_fast.losses.multiple_losses import MultipleLosses
from pml_fast.losses.ntxent_loss import NTXentLoss
from pml_fast.losses.self_supervised_loss import SelfSupervisedLoss
from pml_fast.losses.supcon_loss import SupConLoss
from pml_fast.losses.triplet_margin_loss import TripletMarginLoss

__all__ = [
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "CircleLoss",
    "ContrastiveLoss",
    "CrossBatchMemory",
    "EmbeddingRegularizerMixin",
    "MultiSimilarityLoss",
    "MultipleLosses",
    "NTXentLoss",
    "SelfSupervisedLoss",
    "SupConLoss",
    "TripletMarginLoss",
]
