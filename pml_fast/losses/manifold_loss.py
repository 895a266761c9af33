"""Manifold loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine.cost import manifold
from pml_fast.engine.plan import MATERIALISED, Call, Plan, overridden
from pml_fast.engine.score import compute_type
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict, prepare_call
from pml_fast.utils import common_functions as c_f

# The smallest norm a row of the manifold's matrix is divided by.
_NORM_EPS = 1e-8


class ManifoldLoss(BaseMetricLossFunction):
    """Pulls each embedding to one of ``K`` trained proxies along the data's manifold, a random walk between all of them.

    Aziere and Todorovic, "Ensemble Deep Manifold Similarity Learning Using Hard Proxies", CVPR 2019. Called as
    ``loss(embeddings)``: each embedding gets a proxy at random, each proxy at least one embedding; or as
    ``loss(embeddings, indices_tuple=meta_classes)`` with the proxy of each embedding, ``[N]`` integers from 0 to ``K - 1``. The
    walk's limit is the inverse of a matrix of ``N + K`` rows, which is held.

    Args:
        l: the length of an embedding.
        K: number of proxies.
        lambdaC: weight of the context loss; 0 for the intrinsic loss alone, infinity for the context loss alone.
        alpha: the share of similarity that a node passes on, between 0 and 1.
        margin: of both losses.
        seed: (keyword) draws proxies for embeddings from a generator of this loss's own; ``None``: from torch's.

    Raises:
        ValueError: an argument is out of its range; when called, fewer than ``K`` embeddings, or labels or ``ref_emb``.
    """

    drawn: Tensor

    joint_anchors: ClassVar[str] = "the random walk goes over the whole batch"

    def __init__(
        self,
        l: int,  # noqa: E741
        K: int = 50,
        lambdaC: float = 1.0,
        alpha: float = 0.8,
        margin: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        self.seed = kwargs.pop("seed", None)
        super().__init__(**kwargs)
        if not lambdaC >= 0:
            raise ValueError(f"lambdaC must not be negative, got {lambdaC!r}")
        if l < 1 or K < 1:
            raise ValueError(f"l and K must be at least 1, got l={l!r} and K={K!r}")
        self.K = K
        self.l = l
        self.proxies = torch.nn.Parameter(torch.randn(K, l))
        self.lambdaC = lambdaC
        self.alpha = alpha
        self.margin = margin
        if self.seed is not None:
            # How often proxies were drawn: with the seed, all the state of the generator.
            self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.add_to_recordable_attributes(list_of_names=["K", "l", "lambdaC", "alpha", "margin"], is_stat=False)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        note = f"{type(self).__name__} replaces {', '.join(own)}" if own else "a random walk's limit is the inverse of a matrix"
        rows = len(call.embeddings) + self.K
        notes = [note, f"the matrix of {rows} x {rows} embeddings and proxies is held, and its inverse"]
        return Plan(MATERIALISED, "dense", notes=notes[:1] if own else notes, cost=None if own else manifold(self.K))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Tensor | Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The loss, a scalar. ``indices_tuple`` is no tuple here but the proxy of each embedding, ``[N]``."""
        self.reset_stats()
        call = prepare_call(embeddings, labels, None, ref_emb, ref_labels)
        loss_dict = self.compute_loss(embeddings, call.labels, indices_tuple, call.ref_emb, call.ref_labels)
        self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        return self.reducer(loss_dict, embeddings, call.labels)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The loss, a scalar."""
        c_f.ref_not_supported(embeddings, labels, ref_emb, ref_labels)
        c_f.labels_not_supported(labels, ref_labels)
        n = len(embeddings)
        if embeddings.shape[1] != self.l:
            raise ValueError(f"embeddings must have rows of length l={self.l}, got {embeddings.shape[1]}")
        proxy = self._drawn_proxies(n) if indices_tuple is None else self._given_proxies(indices_tuple, n)
        proxy = proxy.to(embeddings.device)
        with torch.autocast(embeddings.device.type, enabled=False):
            walk = self._walk(embeddings)
            loss = walk.new_zeros(())
            if self.lambdaC != math.inf:
                loss = self._gap_loss(walk[:n, n:], proxy)
            if self.lambdaC != 0:
                weight = 1.0 if self.lambdaC == math.inf else self.lambdaC
                loss = loss + weight * self._gap_loss(_cosines(walk[:n], walk[n:]), proxy)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def _walk(self, embeddings: Tensor) -> Tensor:
        """``(1 - alpha) (I - alpha S)^-1`` with the normalised similarities ``S`` of embeddings and proxies, ``[N+K, N+K]``."""
        dtype = compute_type(torch.promote_types(embeddings.dtype, self.proxies.dtype))
        nodes = torch.cat([embeddings.to(dtype), self.proxies.to(device=embeddings.device, dtype=dtype)])
        similar = torch.exp(self.distance(nodes, nodes).clamp(min=0) / 0.5)
        similar = similar.masked_fill(torch.eye(len(nodes), dtype=torch.bool, device=nodes.device), 0.0)
        scale = similar.sum(dim=1).rsqrt()
        similar = similar * scale.unsqueeze(1) * scale
        one = torch.eye(len(nodes), dtype=dtype, device=nodes.device)
        return (1 - self.alpha) * torch.linalg.inv(one - self.alpha * similar)

    def _gap_loss(self, score: Tensor, proxy: Tensor) -> Tensor:
        """Mean of ``log(1 + sum of exp(gap))`` over the other proxies whose gap to an embedding's own is not negative."""
        own = score.gather(1, proxy.unsqueeze(1))
        gap = score - own + self.margin
        # Written so that a NaN stays.
        out = (gap < 0).scatter(1, proxy.unsqueeze(1), True)
        return torch.log1p(torch.where(out, 0.0, gap.masked_fill(out, 0.0).exp()).sum(dim=1)).mean()

    def _drawn_proxies(self, n: int) -> Tensor:
        """A proxy for each embedding, each proxy at least once, in random order."""
        if n < self.K:
            raise ValueError(
                f"embeddings must have at least K={self.K} rows, one for each proxy, got {n}; "
                "pass the proxies' numbers as indices_tuple, or make K smaller"
            )
        generator = None
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed + int(self.drawn))
            self.drawn += 1
        more = torch.randint(0, self.K, (n - self.K,), generator=generator)
        return torch.cat([torch.arange(self.K), more])[torch.randperm(n, generator=generator)]

    def _given_proxies(self, proxy: Any, n: int) -> Tensor:
        if not torch.is_tensor(proxy) or proxy.is_floating_point() or proxy.dtype == torch.bool:
            what = proxy.dtype if torch.is_tensor(proxy) else type(proxy).__name__
            raise TypeError(f"indices_tuple must be a tensor of integers, the proxy of each embedding, got {what}")
        if proxy.shape != (n,):
            raise ValueError(f"indices_tuple must have one proxy for each embedding, shape ({n},), got {tuple(proxy.shape)}")
        if n > 0 and proxy.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(proxy.min()), int(proxy.max())
            if low < 0 or high >= self.K:
                raise ValueError(f"indices_tuple must be from 0 to {self.K - 1}, the proxies, got {low} to {high}")
        return proxy.long()


def _cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Cosines of all rows with all columns, ``[N, K]``."""
    unit = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=_NORM_EPS) for x in (rows, columns))
    a, b = unit
    return a @ b.T
