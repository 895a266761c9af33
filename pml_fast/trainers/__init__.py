"""Training loops, configured by dictionaries of models, optimizers, losses and miners."""

from __future__ import annotations

from .base_trainer import BaseTrainer
from .cascaded_embeddings import CascadedEmbeddings
from .deep_adversarial_metric_learning import DeepAdversarialMetricLearning
from .early_stopping import EarlyStopping
from .metric_loss_only import MetricLossOnly
from .train_with_classifier import TrainWithClassifier
from .twostream_metric_loss import TwoStreamMetricLoss

__all__ = [
    "BaseTrainer",
    "CascadedEmbeddings",
    "DeepAdversarialMetricLearning",
    "EarlyStopping",
    "MetricLossOnly",
    "TrainWithClassifier",
    "TwoStreamMetricLoss",
]
