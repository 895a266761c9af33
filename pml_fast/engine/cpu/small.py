"""Small batches: a whole step of a pair or triplet loss, or a miner's search, in one compiled call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension, is_chosen
from pml_fast.engine.cpu.indexed import check_pairs
from pml_fast.engine.cpu.levels import COMPILED, LOGIT_SPAN, Affine, fixed_level, logit
from pml_fast.engine.cpu.rows import distance_name
from pml_fast.engine.cpu.triplet import EVERY, POSITIVE_ONLY
from pml_fast.engine.fold import Fold
from pml_fast.engine.problem import ExtremeProblem, Limits
from pml_fast.engine.score import Score, compute_type
from pml_fast.engine.search import Search
from pml_fast.engine.spec import pair_spec

# Rows of a set against itself, and with as many scores of two sets, above which matrix products on tiles are faster.
LARGEST = 1024

# What a compiled step says of itself; a pair loss never refuses.
REFUSED, NOTHING = 0, 1
# Triplets beyond which a list is worth more than one thread.
MOST_LISTED = 1 << 14

_FOLDS = ("mean", "sum", "threshold", "over_triplets")


@dataclass(frozen=True)
class Recipe:
    """What of a call does not depend on its tensors."""

    spec: str
    params: list[float]
    distance: str
    normalize: bool
    gated: bool
    sign: float
    itself: bool
    bidirectional: bool
    levels: dict[torch.dtype, float]
    logits: dict[torch.dtype, list[float]]
    limits: list[Limits]
    folds: list[tuple[str, bool]]


@lru_cache(maxsize=256)
def recipe(
    spec: str, params: tuple[float, ...], score: str, folds: tuple[str, ...], itself: bool = True,
    bidirectional: bool = False, trained: bool = False,
) -> Recipe | None:  # fmt: skip
    """How to run this in one call, or ``None`` where only tiles will do.

    Of a ``bidirectional`` loss the folds of the columns follow those of the rows. ``trained`` says that there is a scale.
    """
    sc, reductions = Score.decode(score), [Fold.decode(fold) for fold in folds]
    computed = has_kernel(sc) if itself else has_kernel(replace(sc, symmetric=True))
    if spec not in COMPILED or not computed or any(fold.kind not in _FOLDS for fold in reductions):
        return None
    maths, values = pair_spec(spec, params), list(params)
    # A scale takes the scores out of their bounds.
    seen = replace(sc, normalize=False) if trained else sc
    levels = {dtype: fixed_level(spec, values, seen, dtype) for dtype in LOGIT_SPAN}
    own = logit(spec, values, sc)
    affine = isinstance(own, Affine)
    if not affine and any(math.isnan(level) for level in levels.values()):
        return None
    a, b = (own.a, own.b) if isinstance(own, Affine) else (0.0, 0.0)
    return Recipe(
        spec, values, distance_name(sc), sc.normalize, maths.gated, sc.sign, itself, bidirectional, levels,
        {dtype: [a, b, span] for dtype, span in LOGIT_SPAN.items()},
        # A loss a row is compared with its limits when it is reduced, a pair's inside the sweep.
        [(fold.low, fold.high) if fold.kind == "threshold" else fold.pair_limits() for fold in reductions],
        [(fold.kind, term.kind == "element") for fold, term in zip(reductions, maths.terms * (1 + bidirectional), strict=True)],
    )  # fmt: skip


def has_kernel(score: Score) -> bool:
    """Whether compiled calls compute this score between rows of one set."""
    return score.symmetric and (score.kind, score.power) in (("dot", 1.0), ("l2", 1.0), ("l2", 2.0))


@dataclass(frozen=True)
class Columns:
    """Another set ``[M, D]`` to compare with, and whether its gradient is wanted.

    ``trained`` are the scale, or the scale and the bias, of the scores; ``need_scale`` and ``need_bias`` ask for the gradients
    by the logarithm of the one and by the other.
    """

    y: Tensor
    labels: Tensor
    need: bool
    trained: tuple[float, ...] = ()
    need_scale: bool = False
    need_bias: bool = False


def pair_loss(
    x: Tensor, labels: Tensor, rule: Tensor | None, how: Recipe, need: bool, columns: Columns | None = None,
    search: Search | None = None,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The outputs of ``pairwise_loss`` for a batch ``[N, D]`` against itself or other columns, and the gradients by what is
    trained (one number each, or none).

    A ``search`` takes the place of a rule. Where there was nothing to compare no gradient is left that is not finite.
    """
    rows, labels, rule = _inputs(x, labels, rule)
    wide = rows.dtype
    # Losses and, where pairs are counted over triplets, slopes.
    shape = (2, len(how.folds)) if how.folds[0][0] == "over_triplets" else (len(how.folds),)
    total, terms = rows.new_empty(()), rows.new_empty(shape)
    # What nobody wants is empty, and has no address; outputs must not be one tensor.
    dx = torch.empty_like(rows) if need else rows.new_empty(0)
    dy, by_log_scale, by_bias = (rows.new_empty(0) for _ in range(3))
    other = other_labels = None
    trained: tuple[float, ...] = ()
    if columns is not None:
        other, other_labels, _ = _inputs(columns.y, columns.labels, None)
        trained = columns.trained
        dy = torch.empty_like(other) if columns.need else dy
        by_log_scale = rows.new_empty(()) if columns.need_scale else by_log_scale
        by_bias = rows.new_empty(()) if columns.need_bias else by_bias
    result = extension().small_pair_loss(
        rows.data_ptr(), labels.data_ptr(), _address(rule), rows.shape[0], rows.shape[1], _address(other),
        _address(other_labels), 0 if other is None else other.shape[0], how.distance, how.normalize, how.gated, how.sign,
        how.levels[wide], how.logits[wide], torch.get_num_threads(), how.spec, how.params, how.limits, how.folds,
        how.bidirectional, trained, None if search is None else search.epsilon, total.data_ptr(), terms.data_ptr(),
        dx.data_ptr(), dy.data_ptr(), by_log_scale.data_ptr(), by_bias.data_ptr(), wide == torch.float64,
    )  # fmt: skip
    grads = dx, dy, by_log_scale, by_bias
    if result == NOTHING:
        for grad in grads:
            grad.masked_fill_(~grad.isfinite(), 0.0)
    if x.dtype != wide:
        dx, dy = dx.to(x.dtype), dy.to(x.dtype)
    return total, terms, dx, dy, by_log_scale, by_bias


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def triplet_loss(
    x: Tensor, labels: Tensor, rule: Tensor | None, options: Sequence[float], select: str, score: Score, fold: Fold, need: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """The outputs of ``triplet_loss`` for a batch ``[N, D]`` against itself, or ``None`` where only tiles will do."""
    margin, smooth, swap, select_margin = options
    if not has_kernel(score) or swap or fold.kind not in _FOLDS[:3] or fold.pair_limits() not in (POSITIVE_ONLY, EVERY):
        return None
    rows, labels, rule = _inputs(x, labels, rule)
    loss = rows.new_empty(())
    dx = torch.empty_like(rows) if need else rows.new_empty(0)
    extension().small_triplet_loss(
        rows.data_ptr(), labels.data_ptr(), 0 if rule is None else rule.data_ptr(), rows.shape[0], rows.shape[1],
        distance_name(score), score.normalize, need, score.sign, torch.get_num_threads(), margin, bool(smooth), select,
        select_margin, fold.pair_limits() == POSITIVE_ONLY, fold.kind, loss.data_ptr(), dx.data_ptr() if need else 0,
        rows.dtype == torch.float64,
    )  # fmt: skip
    return loss, loss.reshape(1).clone(), dx.to(x.dtype), rows.new_empty(0, dtype=x.dtype)


def extremes(problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
    """Value and index of each row's extreme score; ``problem`` is one that :func:`takes`."""
    rows, labels, rule = _inputs(problem.x, problem.x_labels, problem.rule)
    value, index = rows.new_empty(len(rows)), labels.new_empty(len(rows))
    extension().small_extreme(
        rows.data_ptr(), labels.data_ptr(), 0 if rule is None else rule.data_ptr(), rows.shape[0], rows.shape[1],
        distance_name(problem.score), problem.score.normalize, torch.get_num_threads(), problem.positive, problem.largest,
        value.data_ptr(), index.data_ptr(), rows.dtype == torch.float64,
    )  # fmt: skip
    return value, index


def hardest(x: Tensor, labels: Tensor, score: Score, share: float) -> tuple[Tensor, Tensor]:
    """The outputs of ``hardest_rule`` for a batch ``[N, D]`` against itself."""
    rows, labels, _ = _inputs(x, labels, None)
    rule, cut = rows.new_empty(4, len(rows)), labels.new_empty(2, 2)
    extension().small_hardest(
        rows.data_ptr(), labels.data_ptr(), rows.shape[0], rows.shape[1], distance_name(score), score.normalize, score.sign,
        torch.get_num_threads(), share, rule.data_ptr(), cut.data_ptr(), rows.dtype == torch.float64,
    )  # fmt: skip
    return rule, cut


def closest(x: Tensor, score: Score, own: Tensor) -> Tensor:
    """The row that scores best with each row, another one (-1 for none); ``own`` is ``0 .. N - 1``."""
    return extremes(ExtremeProblem(score, x, x, own, own, True, False, score.inverted, None, None))[1]


def _pairs(x: Tensor, score: Score, i: Tensor, j: Tensor) -> Any:
    return extension().small_pairs(
        x.data_ptr(), *x.shape, i.data_ptr(), j.data_ptr(), i.shape[0], distance_name(score), score.normalize
    )  # fmt: skip


def pair_scores(x: Tensor, score: Score, i: Tensor, j: Tensor) -> Tensor:
    """Scores ``[K]`` of the listed pairs of rows of ``x``."""
    out = x.new_empty(i.shape[0])
    if not extension().small_pair_scores(_pairs(x, score, i, j), out.data_ptr(), x.dtype == torch.float64):
        check_pairs(i, j, x.shape[0], x.shape[0])
    return out


def listed_triplet_loss(
    x: Tensor, a: Tensor, p: Tensor, n: Tensor, keep: Tensor | None, options: Sequence[float], score: Score, fold: Fold,
    need: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:  # fmt: skip
    """The outputs of ``listed_triplet_loss`` for a batch ``[N, D]`` against itself, or ``None`` where this has no kernel."""
    if not has_kernel(score) or fold.kind not in _FOLDS[:3] or len(a) > MOST_LISTED:
        return None
    margin, smooth = options
    rows = x.to(compute_type(x.dtype)).contiguous()
    i, j = torch.cat([a, a]), torch.cat([p, n])
    keep = None if keep is None else keep.contiguous()
    loss, dx = rows.new_empty(()), torch.empty_like(rows) if need else rows.new_empty(0)
    inside = extension().small_listed_triplets(
        _pairs(rows, score, i, j), _address(keep), margin, score.sign, bool(smooth), fold.pair_limits(), fold.kind,
        loss.data_ptr(), dx.data_ptr() if need else 0, rows.dtype == torch.float64,
    )  # fmt: skip
    if not inside:
        check_pairs(i, j, x.shape[0], x.shape[0])
    return loss, loss.reshape(1).clone(), dx.to(x.dtype), rows.new_empty(0, dtype=x.dtype)


def pair_gradients(x: Tensor, score: Score, i: Tensor, j: Tensor, grad: Tensor) -> Tensor:
    """The gradient by ``x`` of ``sum(grad * score)`` over the listed pairs."""
    grad, dx = grad.contiguous(), torch.empty_like(x)
    extension().small_pair_gradients(
        _pairs(x, score, i, j), grad.data_ptr(), dx.data_ptr(), x.dtype == torch.float64
    )  # fmt: skip
    return dx


def takes(problem: ExtremeProblem) -> bool:
    """Whether a search is small, and of a batch against itself."""
    return problem.shared and applies(problem.x)


def _inputs(x: Tensor, labels: Tensor, rule: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    wide = compute_type(x.dtype)
    return x.to(wide).contiguous(), labels.contiguous(), None if rule is None else rule.to(wide).contiguous()


def applies(x: Tensor, y: Tensor | None = None) -> bool:
    """Whether the one-call step is the best there is for this batch against itself, or against another set.

    A score of a set against itself serves two rows.
    """
    n = x.shape[0]
    few = 0 < n <= LARGEST if y is None else 0 < 2 * n * y.shape[0] <= LARGEST**2
    return few and x.shape[1] > 0 and is_chosen(x)
