"""CosFace loss."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from pml_fast.engine.classes.problem import ClassScores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.losses.class_loss import Comparison, comparison
from pml_fast.losses.large_margin_softmax_loss import LargeMarginSoftmaxLoss


class CosFaceLoss(LargeMarginSoftmaxLoss):
    """Cross entropy of ``scale cos(theta_c)`` with ``cos(theta) - margin`` in the place of the target's cosine.

    Wang et al., "CosFace: Large Margin Cosine Loss for Deep Face Recognition", CVPR 2018.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        margin: what is taken from the target's cosine.
        scale: the logits' factor.
    """

    def __init__(self, *args: Any, margin: float = 0.35, scale: float = 64, **kwargs: Any) -> None:
        super().__init__(*args, margin=margin, scale=scale, **kwargs)  # type: ignore[misc]

    def init_margin(self) -> None:
        """The margin is used as it is."""

    def modify_cosine_of_target_classes(self, cosine_of_target_classes: Tensor) -> Tensor:
        if self.collect_stats:
            self.get_angles(cosine_of_target_classes.detach())
        return cosine_of_target_classes - self.margin

    def comparison(self) -> Comparison | str:
        return comparison(self.distance, shift_free=False)

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        return compared if isinstance(compared, str) else compared.spec(scale=float(self.scale))

    def target_logits(self, found: ClassScores, embeddings: Tensor) -> Tensor:
        return self.modify_cosine_of_target_classes(found.target) * self.scale

    def scale_logits(self, logits: Tensor, *_: Any) -> Tensor:
        return logits * self.scale
