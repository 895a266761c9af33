"""Angular loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from pml_fast.distances import BaseDistance, LpDistance
from pml_fast.engine import grad_sum
from pml_fast.engine.fold import Fold, inside, reduce_rows
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.pair_exponents import pair_exponents
from pml_fast.engine.plan import MATERIALISED, PARTLY, Call, Plan, overridden, reduction_of
from pml_fast.engine.positives import positive_pairs
from pml_fast.engine.recompute import over_rows
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import Term
from pml_fast.engine.specs import MultiSimilarity
from pml_fast.engine.views import ListedSide
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.spec_pair_loss import fused_pair_loss, pair_row_losses
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.checks import ref_labels_required

if TYPE_CHECKING:
    from pml_fast.engine.cost import Size

TERM = Term("loss", "pos_pair")
# log(1 + sum over negatives of exp(s)): the rows hold the exponent, what does not depend on the negative as one more feature.
SPEC = MultiSimilarity(1.0, 1.0, 0.0)
PRODUCT = Score("dot", normalize=False, symmetric=False)


@dataclass
class Pairs:
    """``anchor`` and ``positive [K]``; ``left`` and ``right`` are those that stand for all: one of two mirror images."""

    anchor: Tensor
    positive: Tensor
    left: Tensor
    right: Tensor

    @staticmethod
    def of(anchor: Tensor, positive: Tensor, mirrored: bool) -> Pairs:
        """Pairs in order, of which each has its mirror image among them where ``mirrored``."""
        if not mirrored:
            return Pairs(anchor, positive, anchor, positive)
        first = torch.nonzero(anchor < positive).squeeze(1)
        return Pairs(anchor, positive, anchor[first], positive[first])

    def of_every(self, values: Tensor) -> Tensor:
        """What belongs to each of all pairs, from the values of those that stand for them."""
        if self.left is self.anchor:
            return values
        width = int(self.positive.max()) + 1
        known, wanted = (
            torch.minimum(i, j) * width + torch.maximum(i, j)
            for i, j in ((self.left, self.right), (self.anchor, self.positive))
        )
        return values[torch.searchsorted(known, wanted)]

    def prepared(
        self, first: int, last: int, call: Call, divide: bool, x: Tensor, y: Tensor, negatives: Tensor, slope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows ``[last - first, D + 1]`` of these pairs and columns ``[M, D + 1]``, whose inner product is the exponent."""
        return pair_exponents(x, y, negatives, slope, self.left[first:last], self.right[first:last], divide, call.itself)

    def rule(self, rows: Tensor) -> Tensor:
        """No positive pair of a row takes part: ``[4, K]``."""
        return _NEGATIVES_ONLY.to(rows).unsqueeze(1).expand(4, len(rows))

    def call(self, first: int, last: int, call: Call) -> Call:
        """The comparison of these pairs, which have their anchors' labels, with all columns."""
        assert call.labels is not None
        return Call(call.embeddings, call.labels[self.left[first:last]], None, call.ref_emb, call.ref_labels, False)


_NEGATIVES_ONLY = torch.tensor([math.inf, -math.inf, -math.inf, math.inf])


class AngularLoss(BaseMetricLossFunction):
    """``log(1 + sum_n exp(4 tan^2(alpha) (a + p) . n - 2 (1 + tan^2(alpha)) a . p))``, one loss for every anchor-positive pair.

    Wang et al., "Deep Metric Learning with Angular Loss", ICCV 2017. Anchors and positives are unit vectors; negatives are all
    rows of the reference set with another label than the anchor's, taken as they are, as in PML: hand over unit vectors for the
    paper's loss. The exponent is an inner product of a row a pair with the reference set: no triplet is named.

    Args:
        alpha: the angle at the negative, in degrees; kept in radians.
    """

    _no_steps: ClassVar[tuple[str, ...]] = ("get_pairs", "set_stats")

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
        ref_labels_required(call.ref_labels)
        notes = ["positive pairs are listed, each a row of its own against all columns; no triplet is named"]
        folds = reduction_of(self.reducer, ["loss"]).folds
        if folds and folds[0].kind == "per_anchor":
            # A row is a pair here: an anchor's pairs are brought together in torch.
            folds = None
        notes.append("one loss a pair is reduced in torch" if folds is None else "losses are reduced inside the sweep")
        seen = partial(_seen, 2 if _mirrored(call) else 1)
        return Plan(PARTLY, "pairwise", SPEC, PRODUCT, folds, notes=notes, seen=seen)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        folds = None if plan.mode == MATERIALISED else reduction_of(self.reducer, ["loss"]).folds
        # A pair that a tuple names twice counts once an anchor, which the reducer sees to.
        if not folds or (folds[0].kind == "per_anchor" and call.indices is not None):
            return None
        pairs = self._pairs(call)
        if pairs is None:
            return None
        if plan.folds is None or len(pairs.left) * (call.ref_emb.shape[1] + 1) > grad_sum.STRIP_ELEMENTS:
            return self._reduced_in_torch(folds[0], pairs, call)
        rows, columns = pairs.prepared(0, len(pairs.left), call, self._divides(), *self._inputs(call))
        loss = fused_pair_loss(SPEC, PRODUCT, plan.folds, pairs.rule(rows), pairs.call(0, len(rows), call), rows, columns)
        # A pair stands for its mirror image, which a mean need not know.
        return 2 * loss if _mirrored(call) and plan.folds[0].kind == "sum" else loss

    def _reduced_in_torch(self, fold: Fold, pairs: Pairs, call: Call) -> Tensor:
        """The loss where pairs come in blocks, or an anchor's have to be brought together."""
        loss = self._losses(pairs, call)
        kept = inside(loss.detach(), *fold.pair_limits())
        side = ListedSide(loss, pairs.anchor, len(call.embeddings), kept)
        weights = fold.row_weights(call.labels, loss.dtype)
        return reduce_rows(fold, TERM, side.sum(loss), side.count().to(loss.dtype), weights)[0]

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """One loss for each anchor-positive pair."""
        c_f.labels_required(labels)
        call = Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, ref_emb is embeddings and ref_labels is labels)
        pairs = self._pairs(call)
        if pairs is None:
            return self.zero_losses()
        index = pairs.anchor, pairs.positive
        return {"loss": {"losses": self._losses(pairs, call), "indices": index, "reduction_type": "pos_pair"}}

    def _losses(self, pairs: Pairs, call: Call) -> Tensor:
        """The loss of each pair ``[K]``."""

        divide = self._divides()

        def losses(first: int, last: int, *inputs: Tensor) -> Tensor:
            rows, columns = pairs.prepared(first, last, call, divide, *inputs)
            return pair_row_losses(SPEC, PRODUCT, pairs.rule(rows), pairs.call(first, last, call), rows, columns)[0]

        return pairs.of_every(over_rows(losses, len(pairs.left), call.ref_emb.shape[1] + 1, *self._inputs(call)))

    def _pairs(self, call: Call) -> Pairs | None:
        """The positive pairs of a call; ``None`` where no triplet exists."""
        assert call.labels is not None and call.ref_labels is not None
        anchor, positive, some = _listed(call.labels, call.ref_labels, call.indices, call.itself)
        if len(anchor) == 0 or not some:
            return None
        if self.collect_stats:
            x, y = call.embeddings.detach(), call.ref_emb.detach()
            self._set_stats(x, y, call.labels, call.ref_labels, anchor, positive)
        return Pairs.of(anchor, positive, _mirrored(call))

    def _divides(self) -> bool:
        """Whether rows are divided by their norms together with what follows: a distance's own way of it comes before."""
        return type(self.distance).normalize is BaseDistance.normalize

    def _inputs(self, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the losses are differentiated by: anchors, positives, the columns as they are, and ``tan^2(alpha)``."""
        x, y = (rows.to(compute_type(rows.dtype)) for rows in (call.embeddings, call.ref_emb))
        anchors, positives = x, y
        if not self._divides():
            anchors = self.distance.normalize(x)
            positives = anchors if call.itself else self.distance.normalize(y)
        return anchors, positives, y, torch.tan(self.alpha).square().to(x)

    def _set_stats(self, x: Tensor, y: Tensor, labels: Tensor, ref_labels: Tensor, anchor: Tensor, positive: Tensor) -> None:
        """The mean angle at the negative, over all triplets."""
        raw = y.to(compute_type(y.dtype))
        x, y = self.distance.normalize(x.to(raw)), self.distance.normalize(raw)

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


def _mirrored(call: Call) -> bool:
    """Whether of each pair its mirror image is another one, with the same sum of rows, the same negatives, and so one loss."""
    return call.itself and call.indices is None


def _seen(copies: int, size: Size) -> Size:
    """What the engine sees: a row for each pair, or for each two."""
    return replace(size, n=size.pairs // copies, d=size.d + 1, shared=False, need_y=size.need_x or size.need_y)


def _listed(labels: Tensor, ref_labels: Tensor, indices: Any, itself: bool) -> tuple[Tensor, Tensor, bool]:
    """Anchors, positives, and whether there is any negative pair."""
    if indices is None:
        anchor, positive, negatives = positive_pairs(labels, ref_labels, itself)
        return anchor, positive, bool((negatives > 0).any())
    if isinstance(indices, LazyIndices):
        indices = indices.materialise()
    anchor, positive, other, _ = lmu.convert_to_pairs(indices, labels, ref_labels)
    return anchor, positive, len(other) > 0
