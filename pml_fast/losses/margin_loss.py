"""Margin loss."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

import pml_fast.engine.anchor_rows  # noqa: F401  (defines the operator)
from pml_fast.distances.base_distance import refuse_own_margin
from pml_fast.engine import listed, operator
from pml_fast.engine.fold import Fold, inside, reduce_rows
from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import FUSED, MATERIALISED, PARTLY, Call, Plan, learnable, overridden, read_indices
from pml_fast.engine.positives import count_partners
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import Term
from pml_fast.engine.specs import Margin
from pml_fast.losses.base_metric_loss_function import BaseMetricLossFunction, LossDict
from pml_fast.losses.spec_pair_loss import engine_labels, fused_pair_terms
from pml_fast.reducers import BaseReducer, DivisorReducer, MultipleReducers
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu

TRIPLET, ELEMENT = Term("margin_loss", "triplet"), Term("beta_reg_loss", "element")
DIVIDED = "divided"


class MarginLoss(BaseMetricLossFunction):
    """``relu(d_ap - beta + margin) + relu(beta - d_an + margin)`` over triplets, without naming one.

    Wu et al., "Sampling Matters in Deep Embedding Learning", ICCV 2017. A positive pair stands in as many triplets as its
    anchor has negatives, and the reverse: sums and counts over all triplets are weighted sums over pairs, exactly.

    Args:
        margin: slack on either side of the boundary.
        nu: weight of beta's regularization, for a learned beta.
        beta: the boundary between positives and negatives, in the unit of the distance.
        triplets_per_anchor: ``"all"``, or how many triplets to draw at random for each anchor.
        learn_beta: make beta a parameter.
        num_classes: one beta a class, for labels ``0 .. num_classes - 1``; ``None`` for a single beta.
    """

    _no_steps: ClassVar[tuple[str, ...]] = ("compute_reg_loss",)

    def __init__(
        self,
        margin: float = 0.2,
        nu: float = 0,
        beta: float = 1.2,
        triplets_per_anchor: int | str = "all",
        learn_beta: bool = False,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if triplets_per_anchor != "all" and not (isinstance(triplets_per_anchor, int) and triplets_per_anchor > 0):
            raise ValueError(f"triplets_per_anchor must be 'all' or a positive int, got {triplets_per_anchor!r}")
        self.margin = margin
        self.nu = nu
        self.learn_beta = learn_beta
        self.initialize_beta(beta, num_classes)
        self.triplets_per_anchor = triplets_per_anchor
        self.add_to_recordable_attributes(list_of_names=["margin", "nu", "beta"], is_stat=False)

    def initialize_beta(self, beta: float, num_classes: int | None) -> None:
        """Set ``beta`` to ``[1]`` or ``[num_classes]``, a parameter where it is learned."""
        values = torch.full((num_classes or 1,), float(beta))
        self.beta: Tensor = torch.nn.Parameter(values) if self.learn_beta else values

    def get_default_reducer(self) -> BaseReducer:
        return DivisorReducer()

    def _sub_loss_names(self) -> list[str]:
        return ["margin_loss", "beta_reg_loss"]

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        own = overridden(self)
        if own:
            return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} replaces {', '.join(own)}"])
        c_f.labels_or_indices_tuple_required(call.labels, call.indices)
        score = self.distance.engine_score()
        if score is None:
            note = f"the matrix of {type(self.distance).__name__} is materialised: {self.distance.engine_refusal()}"
            return Plan(MATERIALISED, "dense", notes=[note])
        if call.indices is None and self.triplets_per_anchor != "all":
            note = f"{self.triplets_per_anchor} random triplets an anchor: index tensors, only those are scored"
            return Plan(PARTLY, "indexed", None, score, notes=[note])
        mined = read_indices(call, score, triplets=False)
        if mined.lists is not None:
            notes = [mined.note, "only the listed triplets are scored; their losses are reduced in torch"]
            return Plan(PARTLY, "indexed", None, score, notes=notes)
        if learnable(self, ["margin"]):
            note = "the loss of every triplet is materialised: margin is trained, and needs its gradient"
            return Plan(MATERIALISED, "indexed", None, score, notes=[mined.note, note])
        rules = [self._rule(name) for name in self._sub_loss_names()]
        for name, rule in zip(self._sub_loss_names(), rules, strict=True):
            if isinstance(rule, str) and rule != DIVIDED:
                note = f"the loss of every triplet is materialised: {name}: {rule}"
                return Plan(MATERIALISED, "indexed", None, score, notes=[mined.note, note])
        if rules[0] == DIVIDED and mined.rule is None and self._beta_is_a_number():
            words = "losses are reduced inside the sweep, each pair as often as triplets hold it; no triplet is named"
            spec = Margin(self.margin, float(self.beta.detach()))
            return Plan(FUSED, "pairwise", spec, score, [Fold("over_triplets")] * 2, notes=[mined.note, words])
        words = "sums and counts a row come out of the sweep, times the triplets that hold a pair; no triplet is named"
        notes = [mined.note, words]
        return Plan(PARTLY, "pairwise", Margin(self.margin, 0.0), score, None, mined.rule, notes)

    def _rule(self, name: str) -> Fold | str:
        """The fold of a term, :data:`DIVIDED`, or why there is none."""
        reducer: Any = self.reducer
        if type(reducer) is MultipleReducers and not (reducer._forward_hooks or reducer._forward_pre_hooks):
            reducer = reducer._reducer_of(name)
        if not isinstance(reducer, BaseReducer):
            return f"{type(reducer).__name__} is no reducer of this package"
        if type(reducer) is DivisorReducer:
            hooks = reducer._forward_hooks or reducer._forward_pre_hooks
            return "DivisorReducer is watched: it needs every loss" if reducer.collect_stats or hooks else DIVIDED
        fold = reducer.fold()
        if fold is None:
            return reducer.fold_refusal()
        if name == TRIPLET.name and fold.kind == "per_anchor":
            return "PerAnchorReducer has no reduction of triplets"
        if name == TRIPLET.name and fold.kind == "threshold" and (fold.low, fold.high) != (0.0, float("inf")):
            return "only a threshold at 0 follows from counts of pairs"
        return fold

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        if plan.engine != "pairwise" or plan.score is None or call.labels is None:
            return None
        if plan.folds is not None and isinstance(plan.spec, Margin):
            return self._fused(plan.spec, plan.score, plan.folds, call)
        beta = self._beta_of(call.labels, call.embeddings)
        rows = self._rows(plan, plan.score, call, beta)
        triplets, active, divisor, total = _over_triplets(*rows)
        fold = self._rule(TRIPLET.name)
        if isinstance(fold, Fold):
            count = active if fold.kind == "threshold" else triplets
            loss = reduce_rows(fold, TRIPLET, total, count, fold.row_weights(call.labels, total.dtype))[0]
        else:
            loss = _divided(total.sum(), divisor)
        if not self.learn_beta:
            return loss
        if len(self.beta) == 1:
            boundary = c_f.to_device(self.beta, loss, dtype=loss.dtype)[0]
            return loss + torch.where(triplets.sum() > 0, boundary * self.nu, 0.0)
        return loss + self._regularization(beta * self.nu, triplets, divisor, call.labels)

    def _fused(self, spec: Margin, score: Score, folds: list[Fold], call: Call) -> Tensor:
        """The loss with one boundary, which every loss above 0 moves with: the positives' against the negatives'."""
        rows = self.distance.engine_rows(call.embeddings, call.ref_emb)
        loss, terms = fused_pair_terms(spec, score, folds, None, call, *rows)
        if not self.learn_beta:
            return loss
        boundary = c_f.to_device(self.beta, loss, dtype=loss.dtype)[0]
        pos, neg = terms[1].unbind()
        loss = loss + (boundary - boundary.detach()) * (score.sign * (pos - neg))
        if self.nu == 0:
            return loss
        assert call.labels is not None and call.ref_labels is not None
        some = count_partners(*engine_labels(call.labels, call.ref_labels, call.itself), call.itself).prod(dim=0).any()
        return loss + torch.where(some, boundary * self.nu, 0.0)

    def _rows(self, plan: Plan, score: Score, call: Call, beta: Tensor) -> tuple[Tensor, ...]:
        """Of each row: sums of the positives' and of the negatives' losses, how many are above 0, and how many there are."""
        assert call.labels is not None and call.ref_labels is not None
        labels, ref_labels = engine_labels(call.labels, call.ref_labels, call.itself)
        spec = Margin(self.margin, 0.0)
        inputs = (*self.distance.engine_rows(call.embeddings, call.ref_emb), labels, ref_labels, plan.rule)
        options = spec.name, spec.params(), score.encode(), call.itself
        level = beta.detach().contiguous()
        values, active, _ = operator.call("anchor_pairs", *inputs, *options, [0.0, math.inf] * 2, level)
        # Each loss above 0 moves with the boundary, the positives' against the negatives'.
        moved = score.sign * (beta - level)
        if plan.rule is None:
            pairs = count_partners(labels, ref_labels, call.itself).to(level.dtype)
        else:
            with torch.no_grad():
                pairs = operator.call("anchor_pairs", *inputs, *options, [-math.inf, math.inf] * 2, level)[1]
        return values[0] + moved * active[0], values[1] - moved * active[1], *active, *pairs

    def _beta_is_a_number(self) -> bool:
        """Whether the boundary is one number that can be read here and now."""
        learned = self.beta.requires_grad and not self.learn_beta
        return self.beta.numel() == 1 and self.beta.device.type == "cpu" and not (learned or torch.compiler.is_compiling())

    def _beta_of(self, labels: Tensor | None, embeddings: Tensor) -> Tensor:
        """The boundary of each row ``[N]``."""
        beta = c_f.to_device(self.beta, embeddings, dtype=compute_type(embeddings.dtype))
        if len(beta) == 1:
            return beta.expand(len(embeddings))
        if labels is None:
            raise ValueError(
                "labels must be given to a MarginLoss with num_classes, got None: they choose the beta of each anchor"
            )
        _check_classes(labels, len(beta))
        return beta[labels]

    def _regularization(self, values: Tensor, triplets: Tensor, divisor: Tensor, labels: Tensor) -> Tensor:
        """Beta's loss, which each triplet has once."""
        fold = self._rule(ELEMENT.name)
        if not isinstance(fold, Fold):
            return _divided((values * triplets).sum(), divisor)
        fold = fold.inner or fold
        weights = fold.row_weights(labels, values.dtype)
        kept = (
            triplets * inside(values.detach(), fold.low, fold.high).to(values.dtype) if fold.kind == "threshold" else triplets
        )
        return reduce_rows(fold, Term(ELEMENT.name, "triplet"), values * kept, kept, weights)[0]

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor | None
    ) -> LossDict:
        """Every single loss, of the listed triplets or of all."""
        refuse_own_margin(self)
        c_f.labels_or_indices_tuple_required(labels, indices_tuple)
        if isinstance(indices_tuple, LazyIndices):
            indices_tuple = indices_tuple.materialise()
        known: Any = labels if labels is not None else embeddings.new_empty(0)
        triplets = lmu.convert_to_triplets(indices_tuple, known, ref_labels, t_per_anchor=self.triplets_per_anchor)
        a, p, n = triplets
        if len(a) == 0:
            return self.zero_losses()
        score = self.distance.engine_score()
        if score is None:
            scores = listed.matrix_scorer(self.distance(embeddings, ref_emb))
        else:
            scores = listed.engine_scorer(*self.distance.engine_rows(embeddings, ref_emb), score)
        beta = self._beta_of(labels, embeddings)[a]
        pos = torch.relu(self.distance.margin(scores(a, p), beta) + self.margin)
        neg = torch.relu(self.distance.margin(beta, scores(a, n)) + self.margin)
        divisor = (pos > 0).sum() + (neg > 0).sum()
        margin_loss = {"losses": pos + neg, "indices": (a, p, n), "reduction_type": "triplet", "divisor": divisor}
        return {"margin_loss": margin_loss, "beta_reg_loss": self._regularization_entry(beta, a, divisor)}

    def _regularization_entry(self, beta: Tensor, anchor: Tensor, divisor: Tensor) -> dict[str, Any]:
        if not self.learn_beta:
            return self.zero_loss()
        if len(self.beta) == 1:
            return {"losses": beta[:1] * self.nu, "indices": None, "reduction_type": "already_reduced"}
        return {"losses": beta * self.nu, "indices": anchor, "reduction_type": "element", "divisor": divisor}


def _check_classes(labels: Tensor, classes: int) -> None:
    outside = ((labels < 0) | (labels >= classes)).any()
    message = f"labels must be from 0 to {classes - 1}, as the loss has num_classes={classes}"
    if torch.compiler.is_compiling() or labels.is_cuda:
        # Reading the answer would break the graph, or stop the queue.
        torch._assert_async(~outside, message)
    elif outside:
        raise ValueError(f"{message}, got labels from {int(labels.min())} to {int(labels.max())}: pass a larger num_classes")


def _over_triplets(
    pos: Tensor, neg: Tensor, pos_active: Tensor, neg_active: Tensor, p: Tensor, n: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From each row's pairs to its triplets: how many, how many with a loss above 0, all terms above 0, and the losses' sum."""
    active = pos_active * n + (p - pos_active) * neg_active
    # A row without triplets adds nothing, also where one of its pairs is not a number.
    total = torch.where(n > 0, n * pos, 0.0) + torch.where(p > 0, p * neg, 0.0)
    return p * n, active, (n * pos_active + p * neg_active).sum(), total


def _divided(total: Tensor, divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, total / divisor.clamp(min=1), torch.where(total.isnan(), total, 0.0))
