"""VICReg."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.engine.cost import vicreg
from pml_fast.engine.covariance import vicreg_terms
from pml_fast.engine.plan import FUSED, MATERIALISED, Call, Plan, learnable, overridden
from pml_fast.engine.score import compute_type
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.utils import common_functions as c_f

SETTINGS = "invariance_lambda", "variance_mu", "covariance_v", "eps"


class VICRegLoss(BaseMetricLossFunction):
    """``lambda s(Z, Z') + mu (v(Z) + v(Z')) + nu (c(Z) + c(Z'))``: invariance, variance and covariance of two views.

    Bardes, Ponce and LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", ICLR 2022.
    Called as ``loss(embeddings, ref_emb=ref_emb)``; row ``i`` of both is one sample. No pair of rows is compared: memory is
    ``N x D`` and ``D x D``.

    Args:
        invariance_lambda: weight of the mean squared difference of the views.
        variance_mu: weight of the hinge at 1 of each feature's standard deviation.
        covariance_v: weight of the squared covariances of different features.
        eps: added to the variances.

    Raises:
        ValueError: a ``distance`` or a regularizer is given; when called, labels or an ``indices_tuple``, or views of different
            sizes.
    """

    joint_anchors: ClassVar[str] = "variances and covariances are those of the batch"

    def __init__(
        self,
        invariance_lambda: float = 25,
        variance_mu: float = 25,
        covariance_v: float = 1,
        eps: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        for name in ("distance", "embedding_regularizer"):
            if name in kwargs:
                raise ValueError(f"{name} is not used by VICRegLoss, which compares no rows; leave it out")
        super().__init__(**kwargs)
        self.invariance_lambda = invariance_lambda
        self.variance_mu = variance_mu
        self.covariance_v = covariance_v
        self.eps = eps

    def _sub_loss_names(self) -> list[str]:
        return ["invariance_loss", "variance_loss1", "variance_loss2", "covariance_loss"]

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        trained = learnable(self, SETTINGS)
        if trained:
            return Plan(MATERIALISED, "dense", notes=[f"autograd goes through the terms: {', '.join(trained)} is trained"])
        d = call.embeddings.shape[1]
        note = f"no rows are compared: a covariance matrix of {d} x {d} features for each view, once forward and once backward"
        return Plan(FUSED, "covariance", notes=[note], cost=vicreg)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The four terms."""
        c_f.indices_tuple_not_supported(indices_tuple)
        c_f.labels_not_supported(labels, ref_labels)
        if ref_emb.shape != embeddings.shape:
            raise ValueError(
                f"ref_emb must have the shape of the embeddings, {tuple(embeddings.shape)}, a row for the other view of each, "
                f"got {tuple(ref_emb.shape)}"
            )
        if len(embeddings) == 0:
            return self.zero_losses()
        weights = self.invariance_lambda, self.variance_mu, self.covariance_v
        if overridden(self) or learnable(self, SETTINGS):
            with torch.autocast(embeddings.device.type, enabled=False):
                views = [z.to(compute_type(z.dtype)) for z in (embeddings, ref_emb)]
                parts = self.invariance_loss(*views), *self.variance_loss(*views), self.covariance_loss(*views)
            factors = weights[0], weights[1], *weights[1:]
            invariance, variance1, variance2, covariance = (k * part for k, part in zip(factors, parts, strict=True))
        else:
            invariance, variance1, variance2, covariance = vicreg_terms(embeddings, ref_emb, *map(float, (*weights, self.eps)))
        return {
            "invariance_loss": _element(invariance),
            "variance_loss1": _element(variance1),
            "variance_loss2": _element(variance2),
            "covariance_loss": {"losses": covariance, "indices": None, "reduction_type": "already_reduced"},
        }

    def invariance_loss(self, emb: Tensor, ref_emb: Tensor) -> Tensor:
        """The mean squared difference of each sample's views, ``[N]``."""
        return (emb - ref_emb).square().mean(dim=1)

    def variance_loss(self, emb: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        """Half of what each feature's standard deviation lacks of 1, ``[D]`` for each view."""
        first, second = (torch.relu(1 - torch.sqrt(z.var(dim=0) + self.eps)) / 2 for z in (emb, ref_emb))
        return first, second

    def covariance_loss(self, emb: Tensor, ref_emb: Tensor) -> Tensor:
        """The squared covariances of different features over ``D``, of both views."""
        return _off_diagonal(emb) + _off_diagonal(ref_emb)


def _element(losses: Tensor) -> dict[str, Any]:
    return {"losses": losses, "indices": torch.arange(len(losses), device=losses.device), "reduction_type": "element"}


def _off_diagonal(z: Tensor) -> Tensor:
    n, d = z.shape
    centred = z - z.mean(dim=0)
    covariance = centred.T @ centred / (n - 1)
    same = torch.eye(d, dtype=torch.bool, device=z.device)
    return covariance.masked_fill(same, 0.0).square().sum() / d
