"""Large-margin softmax loss, and the frame of the losses with a margin on the target's angle."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.classes.ops import class_scores
from pml_fast.engine.classes.problem import ClassScores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.score import NORM_EPS
from pml_fast.losses.class_loss import ClassLoss, Comparison, check_count, comparison, follow, softmax_losses
from pml_fast.losses.mixins import WeightRegularizerMixin
from pml_fast.utils import common_functions as c_f


class LargeMarginSoftmaxLoss(WeightRegularizerMixin, ClassLoss):
    """Cross entropy of ``scale |x| |w_c| cos(theta_c)`` with ``(-1)^k cos(m theta) - 2k`` in the place of the target's cosine,
    ``k = floor(m theta / pi)``.

    Liu et al., "Large-Margin Softmax Loss for Convolutional Neural Networks", ICML 2016. Classes stream in blocks; the margin
    acts on the N target cosines alone.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        margin: the factor ``m`` of the angle, an integer.
        scale: the logits' factor.
    """

    swept_settings = ("scale",)
    outside_the_sweep: ClassVar[frozenset[str]] = ClassLoss.outside_the_sweep | {
        "modify_cosine_of_target_classes",
        "get_cos_with_margin",
        "get_angles",
        "init_margin",
    }

    def __init__(self, num_classes: int, embedding_size: int, margin: float = 4, scale: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, CosineSimilarity)
        check_count(num_classes=num_classes, embedding_size=embedding_size)
        self.margin: Any = margin
        self.num_classes = num_classes
        self.scale = scale
        self.add_to_recordable_attributes(list_of_names=["num_classes", "margin", "scale"], is_stat=False)
        self.add_to_recordable_attributes(name="avg_angle", is_stat=True)
        self.init_margin()
        self.W = torch.nn.Parameter(torch.empty(embedding_size, num_classes))
        self.weight_init_func(self.W)
        self.cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")

    def init_margin(self) -> None:
        """Bring the margin into the form that is computed with."""
        self.margin = int(self.margin)
        if self.margin < 1:
            raise ValueError(f"margin must be a positive integer, the factor of the angle, got {self.margin}")

    def class_weights(self) -> Tensor:
        return self.W.t()

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the weights to the embeddings' device, and to their type unless that is of half precision."""
        follow(self.W, dtype, device)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    # ---- the margin, on the cosines of the N targets ----

    def get_cos_with_margin(self, cosine: Tensor) -> Tensor:
        """``cos(margin * theta)`` as a polynomial of ``cos(theta)``."""
        before, now = torch.ones_like(cosine), cosine
        for _ in range(self.margin - 1):
            before, now = now, 2 * cosine * now - before
        return now

    def get_angles(self, cosine_of_target_classes: Tensor) -> Tensor:
        """The angles in radians."""
        angles = torch.acos(torch.clamp(cosine_of_target_classes, -1, 1))
        if self.collect_stats:
            self.avg_angle = math.degrees(angles.detach().mean().item()) if len(angles) > 0 else 0.0
        return angles

    def modify_cosine_of_target_classes(self, cosine_of_target_classes: Tensor) -> Tensor:
        """What stands in the place of the targets' cosines ``[N]``."""
        cos_with_margin = self.get_cos_with_margin(cosine_of_target_classes)
        with torch.no_grad():
            k = (self.get_angles(cosine_of_target_classes) * (self.margin / math.pi)).floor()
            sign = 1 - 2 * (k % 2)
        return sign * cos_with_margin - 2 * k

    # ---- streamed ----

    def comparison(self) -> Comparison | str:
        """Cosines are compared as plain inner products: their logits are multiplied by both norms again."""
        compared = comparison(self.distance, shift_free=False)
        if isinstance(compared, str) or (compared.score.power == 1 and compared.p == 2):
            return Comparison(compared.score, False, False, 2.0) if isinstance(compared, Comparison) else compared
        return "all logits are materialised: norms other than Euclidean, or powers, do not cancel in the logits"

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        return compared if isinstance(compared, str) else compared.spec(scale=float(self.scale), norms=True)

    def streamed_losses(self, embeddings: Tensor, labels: Tensor, spec: ClassSpec) -> Tensor:
        found = class_scores(embeddings, self.class_weights(), labels, spec)
        return softmax_losses(found.others, self.target_logits(found, embeddings.to(found.target.dtype)))

    def target_logits(self, found: ClassScores, embeddings: Tensor) -> Tensor:
        """The logits ``[N]`` of the rows' own classes, margin and all."""
        magnitude = torch.linalg.vector_norm(embeddings, dim=1) * found.norms
        cosine = found.target / magnitude.clamp(min=NORM_EPS)
        return self.modify_cosine_of_target_classes(cosine) * magnitude * self.scale

    # ---- the whole matrix ----

    def get_cosine(self, embeddings: Tensor) -> Tensor:
        """The cosines ``[N, C]``."""
        return self.distance(embeddings, self.W.t())

    def get_target_mask(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """``[N, C]``: 1 at each row's class, else 0."""
        mask = embeddings.new_zeros(labels.shape[0], self.num_classes)
        return mask.scatter_(1, labels.to(torch.int64).unsqueeze(1), 1)

    def scale_logits(self, logits: Tensor, embeddings: Tensor) -> Tensor:
        """Cosines as logits."""
        magnitude = self.distance.get_norm(embeddings).unsqueeze(1) * self.distance.get_norm(self.W, dim=0)
        return logits * magnitude * self.scale

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """The logits ``[N, C]`` without margin, for inference."""
        return self.scale_logits(self.get_cosine(embeddings), embeddings)

    def dense_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        mask = self.get_target_mask(embeddings, labels)
        cosine = self.get_cosine(embeddings)
        own = cosine[mask == 1]
        difference = self.modify_cosine_of_target_classes(own) - own
        logits = self.scale_logits(cosine + mask * difference.unsqueeze(1), embeddings)
        losses: Tensor = self.cross_entropy(logits, labels)
        return losses
