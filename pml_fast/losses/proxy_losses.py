"""Proxy-NCA loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import LpDistance
from pml_fast.engine.classes.ops import class_scores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.class_loss import ClassLoss, Comparison, check_count, comparison, follow, softmax_losses
from pml_fast.losses.mixins import WeightRegularizerMixin
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


class ProxyNCALoss(WeightRegularizerMixin, ClassLoss):
    """Cross entropy of ``-softmax_scale d(x, proxy_c)``: neighbourhood components analysis with one proxy a class.

    Movshovitz-Attias et al., "No Fuss Distance Metric Learning using Proxies", ICCV 2017; the target's proxy is part of the
    sum, as in PML. Proxies stream in blocks.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        softmax_scale: the distances' factor.
    """

    swept_settings = ("softmax_scale",)

    def __init__(self, num_classes: int, embedding_size: int, softmax_scale: float = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_count(num_classes=num_classes, embedding_size=embedding_size)
        self.softmax_scale = softmax_scale
        self.num_classes = num_classes
        self.proxies = torch.nn.Parameter(torch.empty(num_classes, embedding_size))
        self.weight_init_func(self.proxies)
        self.proxy_labels = torch.arange(num_classes)
        self.add_to_recordable_attributes(list_of_names=["softmax_scale", "num_classes"], is_stat=False)

    def class_weights(self) -> Tensor:
        return self.proxies

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the proxies to the embeddings' device, and to their type unless that is of half precision."""
        follow(self.proxies, dtype, device)

    def get_default_distance(self) -> LpDistance:
        return LpDistance(power=2)

    def comparison(self) -> Comparison | str:
        """As the distance compares."""
        return comparison(self.distance, shift_free=True)

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        return compared if isinstance(compared, str) else compared.spec(scale=compared.score.sign * float(self.softmax_scale))

    def streamed_losses(self, embeddings: Tensor, labels: Tensor, spec: ClassSpec) -> Tensor:
        found = class_scores(embeddings, self.proxies, labels, spec)
        return softmax_losses(found.others, found.target * spec.scale)

    def weigh(self, losses: Tensor, labels: Tensor, indices_tuple: Any) -> Tensor:
        """Losses times how often their rows are anchors: what is compared with are the proxies."""
        if indices_tuple is None:
            return losses
        return losses * lmu.convert_to_weights(indices_tuple, labels, dtype=losses.dtype, using_ref=True)

    def dense_losses(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        proxy_labels = c_f.to_device(self.proxy_labels, labels)
        entry = self.nca_computation(embeddings, self.proxies, labels, proxy_labels, None)["loss"]
        losses: Tensor = entry["losses"]
        return losses

    def nca_computation(
        self, query: Tensor, reference: Tensor, query_labels: Tensor, reference_labels: Tensor, indices_tuple: Any
    ) -> LossDict:
        """The losses of ``query`` against any labelled ``reference``, from their matrix; rows without a match have none."""
        mat = self.distance(query, reference)
        logits = self.softmax_scale * (mat if self.distance.is_inverted else -mat)
        same = query_labels.unsqueeze(1) == reference_labels.unsqueeze(0)
        rows = torch.nonzero(same.any(dim=1)).squeeze(1)
        logits = logits[rows]
        matching = torch.logsumexp(logits.masked_fill(~same[rows], float("-inf")), dim=1)
        losses = torch.logsumexp(logits, dim=1) - matching
        if indices_tuple is not None:
            weights = lmu.convert_to_weights(indices_tuple, query_labels, dtype=losses.dtype, using_ref=query is not reference)
            losses = losses * weights[rows]
        return {"loss": {"losses": losses, "indices": rows, "reduction_type": "element"}}

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """The distances ``[N, C]`` from the proxies, as PML's."""
        logits: Tensor = self.distance(embeddings, self.proxies)
        return logits
