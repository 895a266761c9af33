"""Proxy anchor loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.classes.ops import class_scores
from pml_fast.engine.classes.spec import ClassSpec
from pml_fast.engine.plan import Call
from pml_fast.engine.views import DenseSide, ListedSide, softplus
from pml_fast.losses.base_metric_loss_function import LossDict
from pml_fast.losses.class_loss import ClassLoss, Comparison, check_count, comparison, follow
from pml_fast.losses.mixins import WeightRegularizerMixin
from pml_fast.reducers import BaseReducer, DivisorReducer
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


class ProxyAnchorLoss(WeightRegularizerMixin, ClassLoss):
    """Each proxy as an anchor: ``log(1 + sum_p exp(-alpha (s_p - margin)))`` over the embeddings of its class (``pos_loss``)
    and ``log(1 + sum_n exp(alpha (s_n + margin)))`` over the others (``neg_loss``).

    Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020. Proxies stream in blocks, each reduced over the batch.

    Args:
        num_classes: labels are ``0 .. num_classes - 1``.
        embedding_size: features of an embedding.
        margin: how far beyond the boundary a similarity should lie.
        alpha: the logits' factor.
    """

    swept_settings = ("alpha", "margin")

    joint_anchors: ClassVar[str] = "each proxy compares all rows"

    def __init__(self, num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_count(num_classes=num_classes, embedding_size=embedding_size)
        self.proxies = torch.nn.Parameter(torch.empty(num_classes, embedding_size))
        self.weight_init_func(self.proxies)
        self.num_classes = num_classes
        self.margin = margin
        self.alpha = alpha
        self.add_to_recordable_attributes(list_of_names=["num_classes", "alpha", "margin"], is_stat=False)

    def class_weights(self) -> Tensor:
        return self.proxies

    def cast_types(self, dtype: torch.dtype, device: torch.device) -> None:
        """Bring the proxies to the embeddings' device, and to their type unless that is of half precision."""
        follow(self.proxies, dtype, device)

    def get_default_reducer(self) -> BaseReducer:
        return DivisorReducer()

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def get_default_weight_init_func(self) -> Callable[[Tensor], Any]:
        return c_f.TorchInitWrapper(torch.nn.init.kaiming_normal_, mode="fan_out")

    def _sub_loss_names(self) -> list[str]:
        return ["pos_loss", "neg_loss"]

    def reduction_labels(self, call: Call) -> Tensor:
        """Losses belong to proxies: the classes' numbers."""
        return torch.arange(self.num_classes, device=call.embeddings.device)

    def comparison(self) -> Comparison | str:
        """As the distance compares."""
        return comparison(self.distance, shift_free=False)

    def class_spec(self) -> ClassSpec | str:
        compared = self.comparison()
        if isinstance(compared, str):
            return compared
        return compared.spec(scale=compared.score.sign * float(self.alpha), fold="class_lse")

    def loss_terms(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, spec: ClassSpec | str) -> LossDict:
        """One positive and one negative loss a proxy."""
        if isinstance(spec, str):
            pos, neg = self._dense_terms(embeddings, labels, indices_tuple)
        else:
            pos, neg = self._streamed_terms(embeddings, labels, indices_tuple, spec)
        loss_indices = torch.arange(self.num_classes, device=pos.device)
        present = torch.zeros(self.num_classes, dtype=torch.bool, device=pos.device).index_fill_(0, labels, True).sum()
        shared = {"indices": loss_indices, "reduction_type": "element"}
        loss_dict: LossDict = {
            "pos_loss": {"losses": softplus(pos), "divisor": present, **shared},
            "neg_loss": {"losses": softplus(neg), "divisor": self.num_classes, **shared},
        }
        self.add_weight_regularization_to_loss_dict(loss_dict, self.proxies)
        return loss_dict

    def _bias(self, labels: Tensor, indices_tuple: Any, dtype: torch.dtype) -> Tensor | None:
        """What an index tuple adds to the rows' exponents: nothing for the row that it names most."""
        if indices_tuple is None:
            return None
        return lmu.convert_to_weights(indices_tuple, labels, dtype=dtype).to(dtype) - 1

    def _streamed_terms(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, spec: ClassSpec) -> tuple[Tensor, Tensor]:
        """Log-sum-exps ``[C]`` over each class's own rows and over the others."""
        bias = self._bias(labels, indices_tuple, torch.promote_types(embeddings.dtype, torch.float32))
        found = class_scores(embeddings, self.proxies, labels, spec, bias)
        exponent = (self.margin - found.target) * spec.scale
        exponent = exponent if bias is None else exponent + bias
        pos = ListedSide(exponent, labels, self.num_classes).logsumexp(exponent)
        return pos, found.others + self.margin * spec.scale

    def _dense_terms(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> tuple[Tensor, Tensor]:
        """The same from the whole matrix."""
        mat = self.get_logits(embeddings)
        pos, neg = self.distance.margin(mat, self.margin), self.distance.margin(-self.margin, mat)
        bias = self._bias(labels, indices_tuple, mat.dtype)
        pos, neg = (self.alpha * x if bias is None else self.alpha * x + bias.unsqueeze(1) for x in (pos, neg))
        own = labels == torch.arange(self.num_classes, device=labels.device).unsqueeze(1)
        return DenseSide(pos.T, own).logsumexp(pos.T), DenseSide(neg.T, ~own).logsumexp(neg.T)

    def get_logits(self, embeddings: Tensor) -> Tensor:
        """The similarities ``[N, C]`` to the proxies."""
        logits: Tensor = self.distance(embeddings, self.proxies)
        return logits
