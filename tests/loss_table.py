"""How every loss, miner and regularizer of the public modules is made in the tests that run over all of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pml_fast import losses

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
# Every loss that can be called.
NAMES = sorted(name for name in {*losses.__all__, *LOSS_ARGUMENTS, *WRAPPERS} if name not in NOT_A_LOSS)
# Two views and no labels.
OF_TWO_VIEWS = {"SelfSupervisedLoss", "VICRegLoss"}
# No labels: every draw makes its own; and a row of classes a sample.
WITHOUT_LABELS = {"ManifoldLoss"}
OF_MANY_LABELS = {"MultiSupConLoss"}


def make_loss(module: ModuleType, name: str, **options: Any) -> Any:
    """A loss by its name, with the same parameters every time."""
    torch.manual_seed(11)
    if name in WRAPPERS:
        return WRAPPERS[name](module)
    return getattr(module, name)(*LOSS_ARGUMENTS.get(name, ()), **options)


def loss_inputs(name: str, x: Tensor, labels: Tensor) -> dict[str, Any]:
    """What a loss of that name is called with beside the embeddings, made of a batch with one label a row."""
    if name in OF_TWO_VIEWS:
        return {"ref_emb": x.roll(1, 0) * 0.5 + x}
    if name in WITHOUT_LABELS:
        return {}
    if name in OF_MANY_LABELS:
        return {"labels": torch.nn.functional.one_hot(labels, CLASSES)}
    return {"labels": labels}


def call_loss(loss: Any, x: Tensor, labels: Tensor, name: str | None = None) -> Any:
    """The loss of a batch. Draws are the same every time. A wrapped loss is called by the ``name`` of what is inside."""
    torch.manual_seed(12)
    return loss(x, **loss_inputs(name or type(loss).__name__, x, labels))
