"""Angular loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pml_fast.distances import LpDistance
from pml_fast.engine.fold import inside, reduce_rows
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import MATERIALISED, PARTLY, Call, Plan, overridden, reduction_of
from pml_fast.engine.positives import positive_pairs
from pml_fast.engine.recompute import over_rows, strip_scores
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import Term
from pml_fast.engine.views import NEG_INF, DenseSide, ListedSide, softplus
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu

TERM = Term("loss", "pos_pair")
PRODUCT = Score("dot", normalize=False)


class AngularLoss(BaseMetricLossFunction):
    """``log(1 + sum_n exp(4 tan^2(alpha) (a + p) . n - 2 (1 + tan^2(alpha)) a . p))``, one loss for every anchor-positive pair.

    Wang et al., "Deep Metric Learning with Angular Loss", ICCV 2017. Anchors and positives are unit vectors; negatives are all
    rows of the reference set with another label than the anchor's, taken as they are, as in PML: hand over unit vectors for the
    paper's loss. Pairs are taken in blocks, each against the whole reference set: no triplet is named.

    Args:
        alpha: the angle at the negative, in degrees; kept in radians.
    """

    def __init__(self, alpha: float = 40, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c_f.assert_distance_type(self, LpDistance, p=2, power=1, normalize_embeddings=True)
        self.alpha = torch.tensor(math.radians(alpha), dtype=torch.float64)
        self.add_to_recordable_attributes(list_of_names=["alpha"], is_stat=False)
        self.add_to_recordable_attributes(list_of_names=["average_angle"], is_stat=True)

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        c_f.labels_required(call.labels)
        notes = [
            "positive pairs are listed; a block of them at a time meets all negatives, and is computed again in the backward",
            "one loss a pair is reduced in torch",
        ]
        return Plan(PARTLY, "blocks", notes=notes)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        folds = None if plan.mode == MATERIALISED else reduction_of(self.reducer, ["loss"]).folds
        # A pair that a tuple names twice counts once an anchor, which the reducer sees to.
        if not folds or (folds[0].kind == "per_anchor" and call.indices is not None):
            return None
        entry = self.compute_loss(call.embeddings, call.labels, call.indices, call.ref_emb, call.ref_labels)["loss"]
        if entry["indices"] is None:
            return None
        loss, fold = entry["losses"], folds[0]
        kept = inside(loss.detach(), *fold.pair_limits())
        side = ListedSide(loss, entry["indices"][0], len(call.embeddings), kept)
        weights = fold.row_weights(call.labels, loss.dtype)
        return reduce_rows(fold, TERM, side.sum(loss), side.count().to(loss.dtype), weights)[0]

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """One loss for each anchor-positive pair."""
        c_f.labels_required(labels)
        assert labels is not None and ref_labels is not None
        itself = ref_emb is embeddings and ref_labels is labels
        anchor, positive, some = _pairs(labels, ref_labels, indices_tuple, itself)
        if len(anchor) == 0 or not some:
            return self.zero_losses()
        x, y = (rows.to(compute_type(rows.dtype)) for rows in (embeddings, ref_emb))
        unit_x = self.distance.normalize(x)
        unit_y = unit_x if itself else self.distance.normalize(y)
        if self.collect_stats:
            self._set_stats(unit_x.detach(), unit_y.detach(), y.detach(), labels, ref_labels, anchor, positive)
        slope = torch.tan(self.alpha).square().to(x)
        # A pair and its mirror image have one sum of rows, the same negatives, and so one loss.
        mirrored = itself and indices_tuple is None
        left, right, place = _once(anchor, positive, len(x)) if mirrored else (anchor, positive, None)

        def losses(first: int, last: int, unit_x: Tensor, unit_y: Tensor, y: Tensor, slope: Tensor) -> Tensor:
            a, p = unit_x[left[first:last]], unit_y[right[first:last]]
            side = DenseSide(4 * slope * strip_scores(PRODUCT, a + p, y), _differ(labels, ref_labels, left[first:last]))
            closeness = 2 * (1 + slope) * (a * p).sum(dim=1)
            negatives = side.logsumexp(side.s)
            return softplus(torch.where(negatives == NEG_INF, negatives, negatives - closeness))

        values = over_rows(losses, len(left), max(len(y), y.shape[1]), unit_x, unit_y, y, slope)
        values = values if place is None else values[place]
        return {"loss": {"losses": values, "indices": (anchor, positive), "reduction_type": "pos_pair"}}

    def _set_stats(
        self, x: Tensor, y: Tensor, raw: Tensor, labels: Tensor, ref_labels: Tensor, anchor: Tensor, positive: Tensor
    ) -> None:
        """The mean angle at the negative, over all triplets."""

        def sums(first: int, last: int) -> Tensor:
            a, p = x[anchor[first:last]], y[positive[first:last]]
            far = torch.cdist((a + p) / 2, raw)
            angle = torch.atan((a - p).norm(dim=1, keepdim=True) / (2 * far))
            kept = _differ(labels, ref_labels, anchor[first:last])
            return torch.stack([torch.where(kept, angle, 0.0).sum(dim=1), kept.sum(dim=1).to(angle.dtype)])

        with torch.no_grad():
            total, count = over_rows(sums, len(anchor), max(len(raw), raw.shape[1])).sum(dim=1)
        self.average_angle = math.degrees(float(total / count))

    def get_default_distance(self) -> LpDistance:
        return LpDistance()


def _differ(labels: Tensor, ref_labels: Tensor, anchor: Tensor) -> Tensor:
    return labels[anchor].unsqueeze(1) != ref_labels.unsqueeze(0)


def _once(anchor: Tensor, positive: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of ``n`` rows without their mirror images, and where each of the given pairs is among them."""
    key, place = torch.unique(torch.minimum(anchor, positive) * n + torch.maximum(anchor, positive), return_inverse=True)
    return torch.div(key, n, rounding_mode="floor"), key % n, place


def _pairs(labels: Tensor, ref_labels: Tensor, indices: Any, itself: bool) -> tuple[Tensor, Tensor, bool]:
    """Anchors, positives, and whether there is any negative pair."""
    if indices is None:
        anchor, positive, negatives = positive_pairs(labels, ref_labels, itself)
        return anchor, positive, bool((negatives > 0).any())
    if isinstance(indices, LazyIndices):
        indices = indices.materialise()
    anchor, positive, other, _ = lmu.convert_to_pairs(indices, labels, ref_labels)
    return anchor, positive, len(other) > 0
