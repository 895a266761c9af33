"""Dynamic soft margin loss."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

import pml_fast.engine.ops  # noqa: F401  (defines the operators)
from pml_fast.distances import LpDistance
from pml_fast.engine import cost, operator
from pml_fast.engine.bins import Bins, HistogramSpec
from pml_fast.engine.histogram import dynamic_soft_margin
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.listed import Scorer, engine_scorer, matrix_scorer
from pml_fast.engine.plan import FUSED, MATERIALISED, PARTLY, Call, Plan, overridden
from pml_fast.engine.score import Score, compute_type
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.spec_pair_loss import engine_labels
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


class DynamicSoftMarginLoss(BaseMetricLossFunction):
    """``d_pos - d_neg``, weighted by the share of all such differences up to its own: a running histogram is the margin.

    Zhang and Rusinkiewicz, "Learning Local Descriptors With a CDF-Based Dynamic Soft Margin", ICCV 2019. With labels over all
    triplets (or those of an index tuple); without labels row ``i`` of the embeddings and of ``ref_emb`` are a positive pair,
    and the closest other row of either is its negative. The histogram ``hist_`` is a buffer, so it is in the state dict;
    gradients flow through what the batch adds to it, not through what it was.

    Args:
        min_val: the smallest difference of interest; the histogram covers ``[min_val, -min_val]``.
        num_bins: its bins.
        momentum: the weight of the present batch.

    Raises:
        TypeError, ValueError: the distance is not a Euclidean one of unit vectors.
    """

    hist_: Tensor

    joint_anchors: ClassVar[str] = "weights are the histogram of all triplets"

    _no_steps: ClassVar[tuple[str, ...]] = (
        "compute_loss_with_labels",
        "compute_loss_without_labels",
        "update_histogram",
        "weigh_loss",
    )

    def __init__(self, min_val: float = -2.0, num_bins: int = 10, momentum: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, normalize_embeddings=True, p=2)
        if int(num_bins) < 1:
            raise ValueError(f"num_bins must be at least 1, got {num_bins!r}")
        if min_val == 0:
            raise ValueError("min_val must not be 0, as the histogram covers the differences from min_val to -min_val, got 0")
        self.min_val = min_val
        self.num_bins = int(num_bins)
        self.delta = 2 * abs(min_val) / self.num_bins
        self.momentum = momentum
        self.register_buffer("hist_", torch.zeros(self.num_bins))
        self.add_to_recordable_attributes(list_of_names=["num_bins"], is_stat=False)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if f"{prefix}hist_" not in state_dict:
            c_f.LOGGER.warning("the state dict of a DynamicSoftMarginLoss has no hist_: its histogram stays as it is")
            state_dict = {**state_dict, f"{prefix}hist_": self.hist_}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def bins(self) -> Bins:
        """The bins of the differences."""
        return Bins(float(self.min_val), float(self.delta), self.num_bins)

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        score = self.distance.engine_score()
        if score is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", notes=[note], cost=cost.dense)
        if call.labels is None:
            notes = ["no labels: rows are paired by their number", "the closest other row comes out of two sweeps"]
            return Plan(PARTLY, "extremes", score=score, notes=notes, cost=cost.extremes)
        if call.indices is not None:
            note = "index tensors: only the listed triplets are scored; their histogram is taken in torch"
            return Plan(PARTLY, "indexed", score=score, notes=[note])
        notes = ["all triplets", "their histogram is folded inside the sweep; no triplet is named"]
        if call.embeddings.is_cuda:
            notes.append("each strip reads its largest number of positives on the host")
        return Plan(FUSED, "histogram", HistogramSpec(self.bins(), triplets=True), score, notes=notes)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """The loss, a scalar; the running histogram takes the batch in."""
        itself = ref_emb is embeddings and ref_labels is labels
        score = self.distance.engine_score()
        if labels is not None and indices_tuple is None and score is not None:
            if ref_labels is None:
                raise ValueError("ref_labels must be given with ref_emb, got None; pass the labels of the reference set")
            loss, after = self._all(score, embeddings, labels, ref_emb, ref_labels, itself)
        else:
            dtype = compute_type(embeddings.dtype)
            value = self._differences(score, embeddings, labels, indices_tuple, ref_emb, ref_labels)
            sums = self.bins().sums(value, torch.ones_like(value, dtype=torch.bool))
            loss, after = (part.to(dtype) for part in dynamic_soft_margin(sums, self.hist_, self.momentum))
        self.hist_ = after
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}

    def _all(
        self, score: Score, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor, itself: bool
    ) -> tuple[Tensor, Tensor]:
        """The loss of all triplets, and the running histogram after them."""
        bins = self.bins()
        labels, ref_labels = engine_labels(labels, ref_labels, itself)
        x, y = self.distance.engine_rows(embeddings, ref_emb)
        need = torch.is_grad_enabled()
        loss, after, *_ = operator.call(
            "histogram_loss",
            x, y, labels, ref_labels, self.hist_, bins.low, bins.delta, bins.count, score.encode(), itself, self.momentum,
            need and x.requires_grad, need and y.requires_grad,
        )  # fmt: skip
        return loss, after

    def _differences(
        self, score: Score | None, embeddings: Tensor, labels: Tensor | None, indices: Any, ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """The difference of every listed triplet, or of every row without labels."""
        if score is None:
            matrix = self.distance(embeddings, ref_emb).to(compute_type(embeddings.dtype))
            scorer = matrix_scorer(matrix)
        else:
            x, y = self.distance.engine_rows(embeddings, ref_emb)
            scorer = engine_scorer(x, y, score)
        if labels is not None:
            indices = indices.materialise() if isinstance(indices, LazyIndices) else indices
            a, p, n = lmu.convert_to_triplets(indices, labels, ref_labels, t_per_anchor="all")
            return scorer(a, p) - scorer(a, n)
        if score is None:
            away = matrix.detach().clone().fill_diagonal_(float("inf"))
            closest = [_closest_in(away, 1), _closest_in(away, 0)]
        else:
            closest = [_closest(x, y, score), _closest(y, x, score)]
        return _aligned(scorer, closest, len(embeddings), len(ref_emb))


def _closest(x: Tensor, y: Tensor, score: Score) -> Tensor:
    """The closest row of ``y`` with another number, for each row of ``x``; -1 for none."""
    rows, columns = (torch.arange(len(z), device=x.device) for z in (x, y))
    index: Tensor = operator.call(
        "row_extremes", x.detach(), y.detach(), rows, columns, None, None, score.encode(), False, False, score.inverted
    )[1]
    return index


def _closest_in(away: Tensor, dim: int) -> Tensor:
    """As :func:`_closest`, of a matrix whose diagonal is infinite."""
    if away.shape[dim] == 0:
        return torch.full((away.shape[1 - dim],), -1, dtype=torch.int64, device=away.device)
    value, index = away.min(dim=dim)
    return index.masked_fill(value == float("inf"), -1)


def _aligned(scorer: Scorer, closest: list[Tensor], n: int, m: int) -> Tensor:
    """``d_pos - d_neg`` of the pairs ``(i, i)``, and zeros for the rows that the other set is too short to pair, as in PML."""
    if max(n, m) <= 1 or min(n, m) == 0:
        # No row has a positive and a negative.
        return scorer(closest[0][:0], closest[0][:0])
    rows, columns = (torch.arange(len(index), device=index.device) for index in closest)
    of_rows = torch.where(closest[0] >= 0, scorer(rows, closest[0].clamp(min=0)), float("inf"))
    of_columns = torch.where(closest[1] >= 0, scorer(closest[1].clamp(min=0), columns), float("inf"))
    paired = rows[: min(n, m)]
    size = max(n, m)
    pos, of_rows, of_columns = (
        torch.nn.functional.pad(part, (0, size - len(part))) for part in (scorer(paired, paired), of_rows, of_columns)
    )
    return pos - torch.minimum(of_rows, of_columns)
