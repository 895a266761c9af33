"""Triplet margin loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import pml_fast.engine.triplet_ops  # noqa: F401  (defines the operators)
from pml_fast.distances.base_distance import refuse_own_margin
from pml_fast.engine import listed, operator
from pml_fast.engine.fold import Fold, inside, reduce_rows
from pml_fast.engine.lazy import LazyIndices, RowChoice
from pml_fast.engine.listed_blocks import triplet_loss_of_blocks
from pml_fast.engine.listed_sums import add_at
from pml_fast.engine.plan import (
    FUSED,
    MATERIALISED,
    PARTLY,
    Call,
    Plan,
    learnable,
    overridden,
    read_indices,
    reduction_of,
    with_copies,
)
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import Term, TripletSpec
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.joined import joined_triplets
from pml_fast.losses.spec_pair_loss import engine_labels
from pml_fast.reducers import AvgNonZeroReducer, BaseReducer
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.checks import check_number
from pml_fast.utils.index_types import TripletIndices

TERM = Term("loss", "triplet")


def fused_triplet_loss(
    spec: TripletSpec, score: Score, fold: Fold, rule: Tensor | None, call: Call, x: Tensor, y: Tensor
) -> Tensor:
    """The reduced loss of all triplets that ``rule`` leaves, in one operator; ``x`` and ``y`` are the rows the engine sees."""
    assert call.labels is not None and call.ref_labels is not None
    labels, ref_labels = engine_labels(call.labels, call.ref_labels, call.itself)
    need = torch.is_grad_enabled()
    loss, *_ = operator.call(
        "triplet_loss",
        x, y, labels, ref_labels, rule, fold.row_weights(call.labels, compute_type(x.dtype)),
        [spec.margin, float(spec.smooth), float(spec.swap), spec.select_margin], spec.select, score.encode(),
        call.itself, fold.encode(), need and x.requires_grad, need and y.requires_grad,
    )  # fmt: skip
    result: Tensor = loss
    return result


class TripletMarginLoss(BaseMetricLossFunction):
    """``relu(d_ap - d_an + margin)`` over triplets; by default over all of them, exactly, without naming one.

    Weinberger and Saul, JMLR 2009; Schroff et al., "FaceNet", CVPR 2015. The sum over all triplets takes O(N^2 log P) work and
    O(N P) memory (Rust and Hocking, arXiv 2302.11062).

    Args:
        margin: how much further than the positive the negative should be.
        swap: use the positive-negative distance where it is the smaller one (Balntas et al., BMVC 2016).
        smooth_loss: ``softplus`` in the place of ``relu``.
        triplets_per_anchor: ``"all"``, or how many triplets to draw at random for each anchor.
    """

    def __init__(
        self,
        margin: float = 0.05,
        swap: bool = False,
        smooth_loss: bool = False,
        triplets_per_anchor: int | str = "all",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.margin = margin
        self.swap = swap
        self.smooth_loss = smooth_loss
        self.triplets_per_anchor = triplets_per_anchor
        self.add_to_recordable_attributes(list_of_names=["margin"], is_stat=False)
        self._check_settings()

    def _check_settings(self) -> None:
        check_number("margin", self.margin)
        drawn = self.triplets_per_anchor
        # True is an int, and no number of triplets.
        if drawn != "all" and not (isinstance(drawn, int) and not isinstance(drawn, bool) and drawn > 0):
            raise ValueError(f"triplets_per_anchor must be 'all' or a positive int, got {drawn!r}")

    def get_default_reducer(self) -> BaseReducer:
        return AvgNonZeroReducer()

    def spec(self, select: str = "every", select_margin: float = 0.0) -> TripletSpec:
        """The maths of this loss with its parameters as they are now."""
        return TripletSpec(float(self.margin), bool(self.smooth_loss), bool(self.swap), select, float(select_margin))

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        self._check_settings()
        c_f.labels_or_indices_tuple_required(call.labels, call.indices)
        score = self.distance.engine_score()
        if learnable(self, ["margin"]):
            note = "the loss of every triplet is materialised: margin is trained, and needs its gradient"
            return Plan(MATERIALISED, "indexed", None, score, notes=[note])
        if score is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", self.spec(), Score(inverted=self.distance.is_inverted), notes=[note])
        reduction = reduction_of(self.reducer, ["loss"])
        folds = reduction.folds
        if folds is not None and folds[0].kind == "per_anchor":
            folds, reduction.reason = None, "PerAnchorReducer has no reduction of triplets"
        mined = read_indices(call, score, triplets=True, copies=True)
        notes = [mined.note]
        if call.indices is None and self.triplets_per_anchor != "all":
            notes = [f"{self.triplets_per_anchor} random triplets an anchor: index tensors, only those are scored"]
            return Plan(PARTLY, "indexed", self.spec(), score, folds, notes=notes)
        if mined.lists is not None:
            in_blocks = folds is not None and self._blocks(call, folds[0]) is not None
            how = "mined, scored and reduced a block at a time" if in_blocks else "scored; their losses are reduced in torch"
            notes.append(f"only the listed triplets are {how}")
            return Plan(PARTLY, "indexed", self.spec(), score, folds, notes=notes)
        if folds is None:
            notes.append(f"the loss of every triplet is materialised: {reduction.reason}")
            return Plan(MATERIALISED, "indexed", self.spec(), score, notes=notes)
        if self.swap and not score.symmetric:
            notes.append("the loss of every triplet is materialised: swap needs a symmetric distance to be folded")
            return Plan(MATERIALISED, "indexed", self.spec(), score, notes=notes)
        if folds[0].kind == "threshold" and (folds[0].low, folds[0].high) != (0.0, float("inf")):
            notes.append("the loss of every triplet is materialised: only a threshold at 0 folds into the sorted sums")
            return Plan(MATERIALISED, "indexed", self.spec(), score, notes=notes)
        notes.append("losses are reduced inside the sweep; no triplet is named")
        spec = self.spec(mined.select, mined.select_margin)
        return Plan(FUSED, "triplet", spec, score, folds, mined.rule, notes, mined.copies)

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if plan.folds is None or plan.score is None or not isinstance(plan.spec, TripletSpec):
            return None
        x, y = self.distance.engine_rows(call.embeddings, call.ref_emb)
        if plan.engine == "indexed":
            return self._run_listed(plan, call, x, y)
        call, score = with_copies(call, plan.score, plan.copies)
        return fused_triplet_loss(plan.spec, score, plan.folds[0], plan.rule, call, x, y)

    def joined_loss(self, call: Call, copies: bool, everyone: Any) -> Tensor:
        plan = self.plan(call)
        if plan.engine != "triplet" or plan.folds is None:
            return super().joined_loss(call, copies, everyone)
        assert call.labels is not None and call.ref_labels is not None
        plan.copies = plan.copies or (copies and call.indices is None)
        rows = self.distance.engine_rows(call.embeddings, call.ref_emb)
        return joined_triplets(plan, call, rows, engine_labels(call.labels, call.ref_labels, False), everyone)

    def _run_listed(self, plan: Plan, call: Call, x: Tensor, y: Tensor) -> Tensor:
        assert plan.folds is not None and plan.score is not None
        blocks = self._blocks(call, plan.folds[0])
        if blocks is not None:
            return triplet_loss_of_blocks(
                blocks, x, y, plan.score, plan.folds[0], float(self.margin), bool(self.smooth_loss)
            )  # fmt: skip
        a, p, n, keep = self._triplets(call)
        if not self.swap and len(a) > 0 and len(y) > 0:
            return self._run_listed_at_once(plan, call, x, y, (a, p, n, keep))
        between = self._swap_scorer(plan.score, call.ref_emb, y)
        loss = self._losses(plan.score, listed.engine_scorer(x, y, plan.score), between, a, p, n)
        fold = plan.folds[0]
        kept = inside(loss.detach(), *fold.pair_limits())
        kept = kept if keep is None else kept & keep
        rows, count = loss.new_zeros(x.shape[0]), torch.zeros(x.shape[0], dtype=loss.dtype, device=loss.device)
        sums = add_at(rows, a, torch.where(kept, loss, 0.0))
        count = add_at(count, a, kept.to(loss.dtype))
        weights = fold.row_weights(call.labels, loss.dtype)
        return reduce_rows(fold, TERM, sums, count, weights)[0]

    def _blocks(self, call: Call, fold: Fold) -> Iterator[TripletIndices] | None:
        """Mined triplets that need not be held all at once; a traced graph cannot read how many a block has."""
        indices = call.indices
        if self.swap or not fold.even(TERM) or torch.compiler.is_compiling() or not isinstance(indices, LazyIndices):
            return None
        return indices.blocks()

    def _run_listed_at_once(
        self, plan: Plan, call: Call, x: Tensor, y: Tensor, triplets: tuple[Tensor, Tensor, Tensor, Tensor | None]
    ) -> Tensor:
        assert plan.folds is not None and plan.score is not None
        fold, need = plan.folds[0], torch.is_grad_enabled()
        loss: Tensor = operator.call(
            "listed_triplet_loss",
            x, y, *triplets, fold.row_weights(call.labels, compute_type(x.dtype)), [self.margin, float(self.smooth_loss)],
            plan.score.encode(), call.itself, fold.encode(), need and x.requires_grad, need and y.requires_grad,
        )[0]  # fmt: skip
        return loss

    def _triplets(self, call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Anchors, positives, negatives, and a mask where the list is padded."""
        indices = call.indices
        if isinstance(indices, RowChoice):
            keep = indices.keep_pos & indices.keep_neg
            return indices.anchor, indices.pos.clamp(min=0), indices.neg.clamp(min=0), keep
        if isinstance(indices, LazyIndices):
            indices = indices.materialise()
        t_per_anchor = self.triplets_per_anchor
        labels = call.labels if call.labels is not None else call.embeddings.new_empty(0)
        a, p, n = lmu.convert_to_triplets(indices, labels, call.ref_labels, t_per_anchor=t_per_anchor)
        return a, p, n, None

    def _losses(self, score: Score, scores: listed.Scorer, between: listed.Scorer, a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        """The loss of every listed triplet."""
        ap, an = scores(a, p), scores(a, n)
        if self.swap:
            an = self.distance.smallest_dist(an, between(p, n))
        violation = score.sign * (an - ap) + self.margin
        return torch.nn.functional.softplus(violation) if self.smooth_loss else torch.relu(violation)

    def _swap_scorer(self, score: Score, ref_emb: Tensor, y: Tensor) -> listed.Scorer:
        # Positives and negatives both live in the reference set.
        rows, cols = (y, y) if score.symmetric else self.distance.engine_rows(ref_emb, ref_emb)
        return listed.engine_scorer(rows, cols, score)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """Every single loss, for reducers that need them and for distances that have only a matrix."""
        refuse_own_margin(self)
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        itself = ref_emb is embeddings and ref_labels is labels
        a, p, n, keep = self._triplets(Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, itself))
        if keep is not None:
            a, p, n = a[keep], p[keep], n[keep]
        if len(a) == 0:
            return self.zero_losses()
        score = self.distance.engine_score()
        if score is None:
            scorer = listed.matrix_scorer(self.distance(embeddings, ref_emb))
            between = scorer
            if self.swap and ref_emb is not embeddings:
                between = listed.matrix_scorer(self.distance(ref_emb, ref_emb))
            score = Score(inverted=self.distance.is_inverted)
        else:
            x, y = self.distance.engine_rows(embeddings, ref_emb)
            scorer, between = listed.engine_scorer(x, y, score), self._swap_scorer(score, ref_emb, y)
        losses = self._losses(score, scorer, between, a, p, n)
        return {"loss": {"losses": losses, "indices": (a, p, n), "reduction_type": "triplet"}}
