"""SoftTriple loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.classes.ops import class_scores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.losses.class_loss import ClassLoss, Comparison, check_count, comparison, follow, softmax_losses
from pml_fast.losses.mixins import WeightRegularizerMixin
from pml_fast.utils import common_functions as c_f


class SoftTripleLoss(WeightRegularizerMixin, ClassLoss):
    """Cross entropy of ``la (S_c - margin [c = target])``, ``S_c`` the mean of the similarities to the centres of class ``c``
    under the weights ``softmax(s / gamma)``.

    Qian et al., "SoftTriple Loss: Deep Metric Learning Without Triplet Sampling", ICCV 2019. Whole classes stream in blocks;
    the paper's regularizer is ``weight_regularizer=SparseCentersRegularizer(...)``.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        centers_per_class: centres of a class; those of class ``c`` are the columns ``c * centers_per_class ..`` of ``fc``.
        la: the logits' factor.
        gamma: the temperature of the centres' softmax; the attribute is its inverse, as in PML.
        margin: what is taken from the target's similarity.
    """

    swept_settings = ("la", "gamma")

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        centers_per_class: int = 10,
        la: float = 20,
        gamma: float = 0.1,
        margin: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not self.distance.is_inverted:
            raise ValueError(
                f"distance must be a similarity for SoftTripleLoss (larger is closer), got {type(self.distance).__name__}; "
                "pass for example CosineSimilarity()"
            )
        check_count(num_classes=num_classes, embedding_size=embedding_size, centers_per_class=centers_per_class)
        self.la = la
        self.gamma = 1.0 / gamma
        self.margin = margin
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.centers_per_class = centers_per_class
        self.fc = torch.nn.Parameter(torch.empty(embedding_size, num_classes * centers_per_class))
        self.weight_init_func(self.fc)
        self.add_to_recordable_attributes(
            list_of_names=["la", "gamma", "margin", "centers_per_class", "num_classes", "embedding_size"], is_stat=False
        )

    def class_weights(self) -> Tensor:
        return self.fc.t()

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the centres to the embeddings' device, and to their type unless that is of half precision."""
        follow(self.fc, dtype, device)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def get_default_weight_init_func(self) -> Callable[[Tensor], Any]:
        return c_f.TorchInitWrapper(torch.nn.init.kaiming_uniform_, a=math.sqrt(5))

    def comparison(self) -> Comparison | str:
        """As the similarity compares."""
        return comparison(self.distance, shift_free=False)

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        if isinstance(compared, str):
            return compared
        return compared.spec(centers=self.centers_per_class, pool="soft", sharpness=float(self.gamma), scale=float(self.la))

    def streamed_losses(self, embeddings: Tensor, labels: Tensor, spec: ClassSpec) -> Tensor:
        found = class_scores(embeddings, self.class_weights(), labels, spec)
        return softmax_losses(found.others, (found.target - self.margin) * spec.scale)

    def dense_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        similarity = self.get_logits(embeddings)
        own = torch.nn.functional.one_hot(labels.to(torch.int64), self.num_classes)
        return torch.nn.functional.cross_entropy(self.la * (similarity - self.margin * own), labels, reduction="none")

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """The similarities ``[N, C]`` to the classes, without margin and factor."""
        similarity = self.distance(embeddings, self.fc.t()).view(-1, self.num_classes, self.centers_per_class)
        return (torch.softmax(similarity * self.gamma, dim=2) * similarity).sum(dim=2)
