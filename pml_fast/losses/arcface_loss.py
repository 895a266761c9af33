"""ArcFace loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.classes.problem import ClassScores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.losses.class_loss import Comparison, comparison
from pml_fast.losses.large_margin_softmax_loss import LargeMarginSoftmaxLoss


class ArcFaceLoss(LargeMarginSoftmaxLoss):
    """Cross entropy of ``scale cos(theta_c)`` with ``cos(theta + margin)`` in the place of the target's cosine.

    Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019. Beyond ``pi - margin``, where
    the cosine would rise again, the target is ``cos(theta) - margin sin(margin)``.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        margin: the angle added, in degrees; the attribute is in radians.
        scale: the logits' factor.
    """

    def __init__(self, num_classes: int, embedding_size: int, margin: float = 28.6, scale: float = 64, **kwargs: Any) -> None:
        super().__init__(num_classes=num_classes, embedding_size=embedding_size, margin=margin, scale=scale, **kwargs)

    def init_margin(self) -> None:
        """Degrees to radians."""
        self.margin = math.radians(self.margin)

    def modify_cosine_of_target_classes(self, cosine_of_target_classes: Tensor) -> Tensor:
        angles = self.get_angles(cosine_of_target_classes)
        m = self.margin
        drop = m * (torch.sin(m) if torch.is_tensor(m) else math.sin(m))
        return torch.where(angles <= math.pi - m, torch.cos(angles + m), torch.cos(angles) - drop)

    def comparison(self) -> Comparison | str:
        return comparison(self.distance, shift_free=False)

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        return compared if isinstance(compared, str) else compared.spec(scale=float(self.scale))

    def target_logits(self, found: ClassScores, embeddings: Tensor) -> Tensor:
        return self.modify_cosine_of_target_classes(found.target) * self.scale

    def scale_logits(self, logits: Tensor, *_: Any) -> Tensor:
        return logits * self.scale
