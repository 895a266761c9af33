"""Losses over pairs whose maths is a spec of the pairwise engine."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

import pml_fast.engine.ops  # noqa: F401  (defines the operators)
from pml_fast.distances.base_distance import refuse_own_margin
from pml_fast.engine import listed, operator
from pml_fast.engine.fold import Fold
from pml_fast.engine.lazy import LazyIndices, RowChoice
from pml_fast.engine.plan import (
    FUSED,
    MATERIALISED,
    PARTLY,
    Call,
    Plan,
    Reduction,
    learnable,
    overridden,
    read_indices,
    reduction_of,
    with_copies,
)
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.search import Search
from pml_fast.engine.spec import PairSpec
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.joined import joined_pairs
from pml_fast.utils import common_functions as c_f


def engine_labels(labels: Tensor, ref_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor]:
    """Labels as the engines take them: int64, of any values."""
    # A larger set that begins with the batch has labels of its own.
    itself = itself and len(ref_labels) == len(labels)
    if labels.is_floating_point():
        merged = labels if itself else torch.cat([labels, ref_labels])
        codes = torch.unique(merged, return_inverse=True)[1]
        return codes[: len(labels)], codes if itself else codes[len(labels) :]
    labels = labels.to(torch.int64)
    return labels, labels if itself else ref_labels.to(torch.int64)


def row_weights(folds: list[Fold], labels: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The anchors' weights of each term ``[T, N]``, where any fold weighs classes."""
    rows = [fold.row_weights(labels, dtype) for fold in folds]
    if all(row is None for row in rows):
        return None
    return torch.stack([torch.ones(len(labels), dtype=dtype, device=labels.device) if r is None else r for r in rows])


def fused_pair_loss(
    spec: PairSpec,
    score: Score,
    folds: list[Fold],
    rule: Tensor | None,
    call: Call,
    x: Tensor,
    y: Tensor,
    classes: Tensor | None = None,
    search: Search | None = None,
) -> Tensor:
    """The reduced loss of all pairs that ``rule`` leaves, in one operator; ``x`` and ``y`` are the rows the engine sees.

    ``classes`` are the labels that class weights go by, where these are not the call's. A ``search`` takes the place of a rule.
    """
    return fused_pair_terms(spec, score, folds, rule, call, x, y, classes, search)[0]


def fused_pair_terms(
    spec: PairSpec,
    score: Score,
    folds: list[Fold],
    rule: Tensor | None,
    call: Call,
    x: Tensor,
    y: Tensor,
    classes: Tensor | None = None,
    search: Search | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`fused_pair_loss`, and the terms as :func:`pml_fast.engine.fold.reduce_terms` gives them, without a graph."""
    assert call.labels is not None and call.ref_labels is not None
    labels, ref_labels = engine_labels(call.labels, call.ref_labels, call.itself)
    need = torch.is_grad_enabled()
    weights = row_weights(folds, call.labels if classes is None else classes, compute_type(x.dtype))
    loss, terms, *_ = operator.call(
        "pairwise_loss",
        x, y, labels, ref_labels, rule, weights, spec.name, spec.params(), score.encode(), call.itself,
        [fold.encode() for fold in folds], need and x.requires_grad, need and y.requires_grad,
        None if search is None else search.encode(),
    )  # fmt: skip
    return loss, terms


def pair_row_losses(spec: PairSpec, score: Score, rule: Tensor | None, call: Call, x: Tensor, y: Tensor) -> Tensor:
    """Every row's loss of each term ``[T, N]``, differentiable one by one."""
    return pair_rows(spec, score, rule, call, x, y)[0]


def pair_rows(spec: PairSpec, score: Score, rule: Tensor | None, call: Call, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`pair_row_losses`, and how many losses each row has."""
    assert call.labels is not None and call.ref_labels is not None
    labels, ref_labels = engine_labels(call.labels, call.ref_labels, call.itself)
    values, counts = operator.call(
        "pairwise_rows", x, y, labels, ref_labels, rule, spec.name, spec.params(), score.encode(), call.itself
    )
    return values, counts


class SpecPairLoss(BaseMetricLossFunction):
    """A loss over positive and negative pairs. Subclasses say their :meth:`spec`."""

    # Whether the spec's formula has the distance's margin in it: the difference of two scores.
    compares_margins: ClassVar[bool] = False

    def spec(self) -> PairSpec:
        """The maths of this loss with its parameters as they are now."""
        raise NotImplementedError

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        c_f.labels_or_indices_tuple_required(call.labels, call.indices)
        score, spec = self.distance.engine_score(), self.spec()
        if score is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", spec, Score(inverted=self.distance.is_inverted), notes=[note])
        reduction = self._reduction(spec)
        trained = learnable(self, [field.name for field in fields(spec)])
        if trained:
            note = f"the loss of every pair is materialised: {', '.join(trained)} is trained, and needs its gradient"
            return Plan(MATERIALISED, "indexed", spec, score, notes=[note])
        folded = reduction.folds is not None
        mined = read_indices(call, score, triplets=False, copies=spec.takes_copies, search=folded)
        notes = [mined.note]
        if mined.lists is not None:
            folds = reduction.folds
            if folds is not None and any(f.kind == "per_anchor" for f in folds) and not isinstance(mined.lists, RowChoice):
                folds = None
            notes.append("only the listed pairs are scored; their losses are reduced in torch")
            return Plan(PARTLY, "indexed", spec, score, folds, notes=notes)
        if reduction.folds is not None:
            notes.append("losses are reduced inside the sweep; no pair is named")
            return Plan(FUSED, "pairwise", spec, score, reduction.folds, mined.rule, notes, mined.copies, mined.searched)
        if all(term.kind == "element" for term in spec.terms):
            notes.append(f"one loss a row comes out of the sweep and is reduced in torch: {reduction.reason}")
            return Plan(PARTLY, "pairwise", spec, score, None, mined.rule, notes, mined.copies)
        notes.append(f"the loss of every pair is materialised: {reduction.reason}")
        return Plan(MATERIALISED, "indexed", spec, score, None, mined.rule, notes)

    def _reduction(self, spec: PairSpec) -> Reduction:
        """How the terms are reduced."""
        return reduction_of(self.reducer, [term.name for term in spec.terms])

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if plan.folds is None or plan.score is None or not isinstance(plan.spec, PairSpec):
            return None
        x, y = self.distance.engine_rows(call.embeddings, call.ref_emb)
        if plan.engine == "indexed":
            view, _ = self._listed(plan, call, x, y)
            return listed.folded_loss(plan.spec, plan.score, view, plan.folds, call.labels)
        call, score = with_copies(call, plan.score, plan.copies)
        return fused_pair_loss(plan.spec, score, plan.folds, plan.rule, call, x, y, search=plan.search)

    def joined_loss(self, call: Call, copies: bool, everyone: Any) -> Tensor:
        plan = self.plan(call)
        if plan.engine != "pairwise" or plan.folds is None:
            return super().joined_loss(call, copies, everyone)
        assert call.labels is not None and call.ref_labels is not None
        plan.copies = plan.copies or (copies and call.indices is None)
        if plan.searched is not None:
            plan = replace(plan, rule=plan.searched.rule, searched=None)
        rows = self.distance.engine_rows(call.embeddings, call.ref_emb)
        return joined_pairs(plan, call, rows, engine_labels(call.labels, call.ref_labels, False), everyone)

    def _listed(self, plan: Plan, call: Call, x: Tensor, y: Tensor) -> tuple[Any, listed.PairLists]:
        """The view over listed pairs, scored by the indexed engine."""
        assert isinstance(plan.spec, PairSpec) and plan.score is not None
        lists = self._lists(plan.spec, call)
        return listed.listed_view(lists, listed.engine_scorer(x, y, plan.score), x.shape[0], call.itself), lists

    def _lists(self, spec: PairSpec, call: Call) -> listed.PairLists:
        indices = call.indices
        # A loss a row sees each pair once, however often a tuple names it; a loss a pair counts repetitions.
        unique = all(term.kind == "element" for term in spec.terms)
        return listed.pair_lists(indices, call.labels, call.ref_labels, call.ref_emb.shape[0], unique)

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """Every single loss, for reducers that need them and for distances that have only a matrix."""
        itself = ref_emb is embeddings and ref_labels is labels
        call = Call(embeddings, labels, indices_tuple, ref_emb, ref_labels, itself)
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        spec, score = self.spec(), self.distance.engine_score()
        if score is not None:
            x, y = self.distance.engine_rows(embeddings, ref_emb)
            rows = self._row_losses(spec, score, call, x, y)
            if rows is not None:
                return rows
        call = _materialised(call)
        lists = self._lists(spec, call)
        if score is None and self.compares_margins:
            refuse_own_margin(self)
        if score is None:
            scorer = listed.matrix_scorer(self.distance(embeddings, ref_emb))
            score = Score(inverted=self.distance.is_inverted)
        else:
            scorer = listed.engine_scorer(x, y, score)
        return listed.loss_dict(spec, score, listed.listed_view(lists, scorer, embeddings.shape[0], itself), lists)

    def _row_losses(self, spec: PairSpec, score: Score, call: Call, x: Tensor, y: Tensor) -> LossDict | None:
        """One loss a row straight out of the sweep, where the spec and the index tuple allow it."""
        if any(term.kind != "element" for term in spec.terms) or call.labels is None or call.ref_labels is None:
            return None
        if learnable(self, [field.name for field in fields(spec)]):
            return None
        mined = read_indices(call, score, triplets=False, copies=spec.takes_copies)
        call, score = with_copies(call, score, mined.copies)
        if mined.lists is not None:
            return None
        values, counts = pair_rows(spec, score, mined.rule, call, x, y)
        index = torch.arange(x.shape[0], device=x.device)
        losses: LossDict = {}
        for t, term in enumerate(spec.terms):
            there: Any = counts[t] > 0 if term.partial else slice(None)
            losses[term.name] = {"losses": values[t][there], "indices": index[there], "reduction_type": "element"}
        return losses


def _materialised(call: Call) -> Call:
    indices = call.indices
    if isinstance(indices, LazyIndices):
        indices = indices.materialise()
    return Call(call.embeddings, call.labels, indices, call.ref_emb, call.ref_labels, call.itself)
