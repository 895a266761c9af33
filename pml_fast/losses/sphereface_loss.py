"""SphereFace loss."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.classes.problem import ClassScores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.score import NORM_EPS
from pml_fast.losses.class_loss import Comparison
from pml_fast.losses.large_margin_softmax_loss import LargeMarginSoftmaxLoss


class SphereFaceLoss(LargeMarginSoftmaxLoss):
    """Cross entropy of ``scale |x| cos(theta_c)`` with ``(-1)^k cos(m theta) - 2k`` in the place of the target's cosine.

    Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition", CVPR 2017: large-margin softmax with weights of
    unit norm. Arguments as there.
    """

    def comparison(self) -> Comparison | str:
        compared = super().comparison()
        # The embeddings' norms come back in the logits, the weights' do not.
        return compared if isinstance(compared, str) else Comparison(compared.score, False, True, 2.0)

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        return compared if isinstance(compared, str) else compared.spec(scale=float(self.scale))

    def target_logits(self, found: ClassScores, embeddings: Tensor) -> Tensor:
        magnitude = torch.linalg.vector_norm(embeddings, dim=1)
        cosine = found.target / magnitude.clamp(min=NORM_EPS)
        return self.modify_cosine_of_target_classes(cosine) * magnitude * self.scale

    def scale_logits(self, logits: Tensor, embeddings: Tensor) -> Tensor:
        return logits * torch.linalg.vector_norm(embeddings, dim=1).unsqueeze(1) * self.scale
