"""Explicit pairs and triplets: scores of the listed pairs only, and a spec's formula over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pml_fast.engine.ops
import pml_fast.engine.triplet_ops  # noqa: F401  (define the operators)
from pml_fast.engine import operator
from pml_fast.engine.cpu import small
from pml_fast.engine.fold import Fold, inside, reduce_rows
from pml_fast.engine.lazy import RowChoice
from pml_fast.engine.operator import are_plain, refuse_double_backward
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.spec import PairSpec, Some, Term
from pml_fast.engine.views import ListedSide, View
from pml_fast.utils import loss_and_miner_utils as lmu

Scorer = Callable[[Tensor, Tensor], Tensor]

# Pairs up to which a direct call, on one thread, is the faster.
SMALL_LIST = 4096


def engine_scorer(x: Tensor, y: Tensor, score: Score) -> Scorer:
    """Scores of listed pairs by the indexed engine."""
    text = score.encode()
    # A small set against itself takes one compiled call each way, without an operator.
    direct = x is y and is_direct(x, score)

    def scores(i: Tensor, j: Tensor) -> Tensor:
        if i.shape[0] == 0:
            # A zero that no NaN of the embeddings reaches, in the value or in the gradient.
            return (x[:0].sum(dim=1) + y[:0].sum(dim=1)).to(compute_type(x.dtype))
        if y.shape[0] == 0:
            # A padded list over an empty reference set: nothing of it counts, and nothing can be looked up.
            nothing = (x[:0].sum() + y.sum()).to(compute_type(x.dtype))
            return nothing.expand(i.shape[0])
        if direct and i.shape[0] <= SMALL_LIST:
            found: Tensor = _Direct.apply(x.to(compute_type(x.dtype)), i, j, score)
            return found
        value: Tensor = operator.call("listed_scores", x, y, i, j, text)
        return value

    return scores


def is_direct(x: Tensor, score: Score) -> bool:
    """Whether a set against itself takes compiled calls without an operator, which costs a small batch more than they do."""
    return are_plain(x) and small.applies(x) and small.has_kernel(score)


class _Direct(torch.autograd.Function):
    """Listed pairs of one small set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, i: Tensor, j: Tensor, score: Score) -> Tensor:
        x, i, j = x.contiguous(), i.contiguous(), j.contiguous()
        ctx.save_for_backward(x, i, j)
        ctx.score = score
        return small.pair_scores(x, score, i, j)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward()
        x, i, j = ctx.saved_tensors
        return small.pair_gradients(x, ctx.score, i, j, grad), None, None, None


def closest_scores(x: Tensor, score: Score) -> Tensor:
    """The best score of each row of ``x [N, D]`` with another one ``[N]``; a row without any is compared with itself."""
    # Every row is a class of its own, so that all the others are its negatives.
    own, rows = torch.arange(x.shape[0], device=x.device), x.detach()
    if is_direct(x, score):
        closest = small.closest(rows, score, own)
    else:
        _, closest = operator.call(
            "row_extremes",
            rows, rows, own, own, None, None, score.encode(), True, False, score.inverted
        )  # fmt: skip
    return engine_scorer(x, x, score)(own, torch.where(closest < 0, own, closest))


def matrix_scorer(mat: Tensor) -> Scorer:
    """Scores of listed pairs out of a user's own matrix."""
    return lambda i, j: mat[i, j]


@dataclass
class PairLists:
    """Listed pairs; a mask (or ``None``) says which of a padded list are there."""

    a1: Tensor
    p: Tensor
    keep_pos: Tensor | None
    a2: Tensor
    n: Tensor
    keep_neg: Tensor | None


def pair_lists(
    indices: Sequence[Tensor] | None, labels: Tensor | None, ref_labels: Tensor | None, m: int, unique: bool
) -> PairLists:
    """The pairs of an index tuple (all pairs for ``None``), each once where ``unique``."""
    if isinstance(indices, RowChoice):
        both = indices.keep_pos & indices.keep_neg if indices.triplets else None
        a = indices.anchor
        return PairLists(
            a, indices.pos, indices.keep_pos if both is None else both,
            a, indices.neg, indices.keep_neg if both is None else both,
        )  # fmt: skip
    a1, p, a2, n = lmu.convert_to_pairs(indices, labels, ref_labels)  # type: ignore[arg-type]
    if unique and indices is not None:
        (a1, p), (a2, n) = _distinct(a1, p, m), _distinct(a2, n, m)
    return PairLists(a1, p, None, a2, n, None)


def _distinct(i: Tensor, j: Tensor, m: int) -> tuple[Tensor, Tensor]:
    key = torch.unique(i * m + j)
    return torch.div(key, m, rounding_mode="floor"), key % m


def listed_view(lists: PairLists, scores: Scorer, n: int, itself: bool = False) -> View:
    """The view a spec's formula reads; clamping keeps the padded entries of a masked list in range."""
    p, q = lists.p.clamp(min=0), lists.n.clamp(min=0)
    pos = ListedSide(scores(lists.a1, p), lists.a1, n, lists.keep_pos, p)
    neg = ListedSide(scores(lists.a2, q), lists.a2, n, lists.keep_neg, q)
    return View(pos, neg, itself)


def _both_exist(view: View) -> Tensor:
    return (view.pos.count() > 0).any() & (view.neg.count() > 0).any()


def _term_rows(view: View, term: Term, given: Tensor | Some, fold: Fold) -> tuple[Tensor, Tensor]:
    loss, there = given if isinstance(given, Some) else (given, None)
    if term.kind == "element":
        if there is None:
            return loss, torch.ones_like(loss)
        return torch.where(there, loss, 0.0), there.to(loss.dtype)
    side = view.pos if term.kind == "pos_pair" else view.neg
    assert isinstance(side, ListedSide)
    kept = inside(loss.detach(), *fold.pair_limits())
    for mask in (side.keep, there):
        kept = kept if mask is None else kept & mask
    if fold.kind in ("mean", "sum", "threshold"):
        # All pairs weigh alike, whatever row they are of.
        return torch.where(kept, loss, 0.0).sum().reshape(1), kept.sum().reshape(1).to(loss.dtype)
    counted = ListedSide(loss, side.row, side.n, kept)
    return counted.sum(loss), counted.count().to(loss.dtype)


def folded_loss(spec: PairSpec, score: Score, view: View, folds: Sequence[Fold], labels: Tensor | None) -> Tensor:
    """The reduced loss over listed pairs, without a data-dependent size."""
    total: Any = 0
    for term, fold, given in zip(spec.terms, folds, spec.formula(view, score), strict=True):
        values, counts = _term_rows(view, term, given, fold)
        value, _ = reduce_rows(fold, term, values, counts, fold.row_weights(labels, values.dtype))
        total = total + value
    return torch.where(_both_exist(view), total, 0.0) if spec.gated else total


def loss_dict(spec: PairSpec, score: Score, view: View, lists: PairLists) -> dict[str, dict[str, Any]]:
    """Every single loss with its indices, as reducers take them; empty terms are the number 0."""
    result: dict[str, dict[str, Any]] = {}
    none = {"losses": 0, "indices": None, "reduction_type": "already_reduced"}
    if spec.gated and not bool(_both_exist(view)):
        return {term.name: dict(none) for term in spec.terms}
    for term, given in zip(spec.terms, spec.formula(view, score), strict=True):
        loss, there = given if isinstance(given, Some) else (given, None)
        if term.kind == "element":
            index: Any = torch.arange(loss.shape[0], device=loss.device)
            index = index if there is None else index[there]
        else:
            index = (lists.a1, lists.p) if term.kind == "pos_pair" else (lists.a2, lists.n)
            index = index if there is None else tuple(part[there] for part in index)
        loss = loss if there is None else loss[there]
        empty = loss.shape[0] == 0
        result[term.name] = dict(none) if empty else {"losses": loss, "indices": index, "reduction_type": term.kind}
    return result
