"""How every loss, miner and regularizer of the public modules is made in the tests that run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CLASSES, DIMENSION = 5, 16

# Arguments of what cannot be made without any.
LOSS_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "ArcFaceLoss": (CLASSES, DIMENSION),
    "CosFaceLoss": (CLASSES, DIMENSION),
    "LargeMarginSoftmaxLoss": (CLASSES, DIMENSION),
    "ManifoldLoss": (DIMENSION, CLASSES),
    "NormalizedSoftmaxLoss": (CLASSES, DIMENSION),
    "P2SGradLoss": (DIMENSION, CLASSES),
    "ProxyAnchorLoss": (CLASSES, DIMENSION),
    "ProxyNCALoss": (CLASSES, DIMENSION),
    "RankedListLoss": (0.4, 1.0),
    "SoftTripleLoss": (CLASSES, DIMENSION),
    "SphereFaceLoss": (CLASSES, DIMENSION),
    "SubCenterArcFaceLoss": (CLASSES, DIMENSION),
}
REGULARIZER_ARGUMENTS: dict[str, tuple[Any, ...]] = {"SparseCentersRegularizer": (5, 2)}
# Bases, and losses that ask for a function or for other losses.
NOT_A_LOSS = {
    "BaseLossWrapper",
    "BaseMetricLossFunction",
    "EmbeddingRegularizerMixin",
    "GenericPairLoss",
    "WeightMixin",
    "WeightRegularizerMixin",
}
WRAPPERS: dict[str, Callable[[ModuleType], Any]] = {
    "CrossBatchMemory": lambda m: m.CrossBatchMemory(m.ContrastiveLoss(), DIMENSION, 64),
    "MultipleLosses": lambda m: m.MultipleLosses([m.ContrastiveLoss(), m.SupConLoss()], weights=[0.5, 2.0]),
    "SelfSupervisedLoss": lambda m: m.SelfSupervisedLoss(m.NTXentLoss()),
}
# Two views and no labels.
OF_TWO_VIEWS = {"SelfSupervisedLoss", "VICRegLoss"}


def make_loss(module: ModuleType, name: str, **options: Any) -> Any:
    """A loss by its name, with the same parameters every time."""
    torch.manual_seed(11)
    if name in WRAPPERS:
        return WRAPPERS[name](module)
    return getattr(module, name)(*LOSS_ARGUMENTS.get(name, ()), **options)


def call_loss(loss: Any, x: Tensor, labels: Tensor, **options: Any) -> Any:
    """The loss of a batch; of two views of it where the loss takes two. Draws are the same every time."""
    torch.manual_seed(12)
    if type(loss).__name__ in OF_TWO_VIEWS:
        return loss(x, ref_emb=x.roll(1, 0) * 0.5 + x, **options)
    return loss(x, labels, **options)
