"""Normalised softmax loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import DotProductSimilarity
from pml_fast.engine.classes.ops import class_scores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.losses.class_loss import ClassLoss, Comparison, check_count, comparison, follow, softmax_losses
from pml_fast.losses.mixins import WeightRegularizerMixin


class NormalizedSoftmaxLoss(WeightRegularizerMixin, ClassLoss):
    """Cross entropy of ``s(x, w_c / |w_c|) / temperature`` (a distance is negated).

    Zhai and Wu, "Classification is a Strong Baseline for Deep Metric Learning", BMVC 2019. Classes stream in blocks.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        temperature: what the scores are divided by.
    """

    swept_settings = ("temperature",)

    def __init__(self, num_classes: int, embedding_size: int, temperature: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_count(num_classes=num_classes, embedding_size=embedding_size)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.temperature = temperature
        self.W = torch.nn.Parameter(torch.empty(embedding_size, num_classes))
        self.weight_init_func(self.W)
        self.cross_entropy = torch.nn.CrossEntropyLoss(reduction="none")
        self.add_to_recordable_attributes(list_of_names=["embedding_size", "num_classes", "temperature"], is_stat=False)

    def class_weights(self) -> Tensor:
        return self.W.t()

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the weights to the embeddings' device, and to their type unless that is of half precision."""
        follow(self.W, dtype, device)

    def get_default_distance(self) -> DotProductSimilarity:
        return DotProductSimilarity()

    def comparison(self) -> Comparison | str:
        """As the distance compares, with weights that are divided by their norms whatever it says."""
        compared = comparison(self.distance, shift_free=True)
        return compared if isinstance(compared, str) else replace(compared, unit_columns=True)

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        return compared if isinstance(compared, str) else compared.spec(scale=compared.score.sign / float(self.temperature))

    def streamed_losses(self, embeddings: Tensor, labels: Tensor, spec: ClassSpec) -> Tensor:
        found = class_scores(embeddings, self.class_weights(), labels, spec)
        return softmax_losses(found.others, found.target * spec.scale)

    def dense_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        losses: Tensor = self.cross_entropy(self.get_logits(embeddings), labels)
        return losses

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """The logits ``[N, C]``."""
        logits: Tensor = self.distance(embeddings, self.distance.normalize(self.W, dim=0).t()) / self.temperature
        return logits if self.distance.is_inverted else -logits
