"""Histogram loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import CosineSimilarity
from pml_fast.engine import cost, operator
from pml_fast.engine.bins import Bins, HistogramSpec
from pml_fast.engine.histogram import overlap, refuse_outside
from pml_fast.engine.histogram_strips import open_anchors
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.listed import Scorer, engine_scorer, matrix_scorer
from pml_fast.engine.plan import FUSED, MATERIALISED, PARTLY, Call, Plan, overridden
from pml_fast.engine.problem import same_labels
from pml_fast.engine.score import compute_type
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.spec_pair_loss import engine_labels
from pml_fast.utils import common_functions as c_f

# Rounding may make a whole number of bins a little more.
_WHOLE = 1e-9


class HistogramLoss(BaseMetricLossFunction):
    """The chance that a negative pair is more similar than a positive one, by soft histograms of both similarities.

    Ustinova and Lempitsky, "Learning Deep Embeddings with Histogram Loss", NeurIPS 2016. Each pair of the batch counts once,
    where it belongs to a triplet. Memory is that of a strip and of the bins.

    Args:
        n_bins: bins of the range from -1 to 1; 100 where ``delta`` is not given either.
        delta: their width.

    Raises:
        ValueError: both are given and ``delta != 2 / n_bins``; or (when called) a distance gives values outside of [-1, 1].
    """

    joint_anchors: ClassVar[str] = "the loss compares histograms of all pairs"

    _no_steps: ClassVar[tuple[str, ...]] = ("compute_density",)

    def __init__(self, n_bins: int | None = None, delta: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if n_bins is not None and n_bins < 1:
            raise ValueError(f"n_bins must be at least 1, got {n_bins!r}")
        if delta is not None and not 0 < delta <= 2:
            raise ValueError(f"delta must be above 0 and at most 2, the range of the bins, got {delta!r}")
        if delta is not None and n_bins is not None and delta != 2 / n_bins:
            raise ValueError(f"delta must be 2 / n_bins, got delta={delta!r} and n_bins={n_bins!r}; pass one of them")
        self.delta = delta if delta is not None else 2 / (100 if n_bins is None else n_bins)
        self.add_to_recordable_attributes(name="delta", is_stat=False)

    def get_default_distance(self) -> CosineSimilarity:
        return CosineSimilarity()

    def bins(self) -> Bins:
        """The bins of the range from -1 to 1."""
        return Bins(-1.0, float(self.delta), math.ceil(2 / self.delta - _WHOLE))

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        c_f.labels_or_indices_tuple_required(call.labels, call.indices)
        score = self.distance.engine_score()
        if score is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", notes=[note], cost=cost.dense)
        if call.indices is not None:
            note = "index tensors: only the listed pairs are scored, each once; their histograms are taken in torch"
            return Plan(PARTLY, "indexed", score=score, notes=[note], cost=cost.listed)
        notes = ["all pairs", "two histograms are folded inside the sweep; no pair is named"]
        return Plan(FUSED, "histogram", HistogramSpec(self.bins(), triplets=False), score, notes=notes)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The loss, a scalar."""
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        itself = ref_emb is embeddings and ref_labels is labels
        if indices_tuple is not None:
            loss = overlap(*self._listed(indices_tuple, embeddings, ref_emb, itself)).to(compute_type(embeddings.dtype))
        else:
            assert labels is not None and ref_labels is not None
            loss = self._all(embeddings, labels, ref_emb, ref_labels, itself)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def _all(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, itself: bool) -> Tensor:
        """The loss of all pairs."""
        score, bins = self.distance.engine_score(), self.bins()
        labels, ref_labels = engine_labels(labels, ref_labels, itself)
        if score is None:
            sums = self._matrix(self.distance(embeddings, ref_emb), labels, ref_labels, itself)
            return overlap(*sums).to(compute_type(embeddings.dtype))
        x, y = self.distance.engine_rows(embeddings, ref_emb)
        need = torch.is_grad_enabled()
        loss: Tensor = operator.call(
            "histogram_loss",
            x, y, labels, ref_labels, None, bins.low, bins.delta, bins.count, score.encode(), itself, 0.0,
            need and x.requires_grad, need and y.requires_grad,
        )[0]  # fmt: skip
        return loss

    def _matrix(self, matrix: Tensor, labels: Tensor, ref_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor]:
        same, opened = same_labels(labels, ref_labels), open_anchors(labels, ref_labels, itself)
        used = opened.unsqueeze(1).expand_as(same)
        if itself:
            used = torch.ones_like(same).triu_(1) & (used | opened)
        value = matrix.to(compute_type(matrix.dtype)).flatten()
        return self._sums(value, (used & same).flatten()), self._sums(value, (used & ~same).flatten())

    def _listed(self, indices: Any, embeddings: Tensor, ref_emb: Tensor, itself: bool) -> tuple[Tensor, Tensor]:
        score = self.distance.engine_score()
        if score is None:
            scorer = matrix_scorer(self.distance(embeddings, ref_emb).to(compute_type(embeddings.dtype)))
        else:
            scorer = engine_scorer(*self.distance.engine_rows(embeddings, ref_emb), score)
        m = len(ref_emb)
        pairs = listed_pairs(indices, len(embeddings))
        pos, neg = (self._scored(scorer, *pair, m, itself) for pair in pairs)
        return pos, neg

    def _scored(self, scorer: Scorer, i: Tensor, j: Tensor, m: int, itself: bool) -> Tensor:
        if itself:
            i, j = torch.minimum(i, j), torch.maximum(i, j)
        key = torch.unique(i * m + j)
        value = scorer(key.div(max(m, 1), rounding_mode="floor"), key % max(m, 1))
        return self._sums(value, torch.ones_like(value, dtype=torch.bool))

    def _sums(self, value: Tensor, keep: Tensor) -> Tensor:
        bins = self.bins()
        refuse_outside((keep & bins.outside(value)).any(), bins)
        return bins.sums(value, keep)[:2]


def listed_pairs(indices: Sequence[Tensor], n: int) -> list[tuple[Tensor, Tensor]]:
    """The positive and the negative pairs of the triplets of an index tuple; pairs form triplets by their anchor."""
    if isinstance(indices, LazyIndices):
        indices = indices.materialise()
    if len(indices) == 3:
        a, p, q = indices
        return [(a, p), (a, q)]
    a, p, b, q = indices
    in_pos, in_neg = (torch.zeros(n, dtype=torch.bool, device=a.device).index_fill_(0, rows, True) for rows in (a, b))
    return [(a[in_neg[a]], p[in_neg[a]]), (b[in_pos[b]], q[in_pos[b]])]
