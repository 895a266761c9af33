"""The stateless operations: the kernels of this package for those who build their own library on them.

Every loss takes embeddings ``[N, D]`` (float16, bfloat16, float32 or float64) and integer labels ``[N]`` and compares the
batch with itself, without self pairs, or with ``ref_embeddings [M, D]`` and ``ref_labels [M]``, pair for pair. Nothing of size
``N x M`` is built where a streaming backend runs. Losses come back as float32, or float64 for float64 embeddings, with first
derivatives for both sets; a second derivative raises ``RuntimeError``.

``distance`` is

================  ===========================================================================  =================
``"cosine"``      inner product of unit vectors                                                larger is closer
``"dot"``         inner product of the rows as they are                                        larger is closer
``"l2"``          Euclidean distance of the rows as they are                                   smaller is closer
``"squared_l2"``  its square                                                                   smaller is closer
a ``Score``       whatever the engines can compute, see :class:`pml_fast.engine.score.Score`   as it says
================  ===========================================================================  =================

``reduction`` is ``"mean"``, ``"sum"``, ``"mean_nonzero"`` (the mean of the losses above zero) or, where a loss is one number a
row, ``"none"``: the losses ``[N]``.

Every function raises ``TypeError`` or ``ValueError``, with the argument's name and the remedy, for tensors that are no matrix,
labels that do not match, settings that the formula does not allow, an unknown ``distance`` or ``reduction``, and a backend
asked for by :class:`pml_fast.use` that cannot run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_fast._retrieval import Neighbors, PositiveRanks, nearest_neighbors, positive_ranks, retrieval
from pml_fast.engine import listed, operator
from pml_fast.engine.fold import Fold
from pml_fast.engine.knn.fold import Retrieval
from pml_fast.engine.plan import Call
from pml_fast.engine.score import NAMED_SCORES, Score, named_score
from pml_fast.engine.spec import PairSpec, TripletSpec
from pml_fast.engine.specs import Circle, Contrastive, MultiSimilarity, NTXent, SupCon
from pml_fast.losses.base_metric_loss_function import prepare_call
from pml_fast.losses.spec_pair_loss import engine_labels, fused_pair_loss, pair_row_losses
from pml_fast.losses.triplet_margin_loss import fused_triplet_loss

__all__ = [
    "HardestTriplets",
    "Neighbors",
    "PositiveRanks",
    "Retrieval",
    "circle",
    "contrastive",
    "hardest_triplets",
    "listed_scores",
    "multi_similarity",
    "nearest_neighbors",
    "ntxent",
    "positive_ranks",
    "retrieval",
    "row_extremes",
    "supcon",
    "triplet_margin",
]

_FOLDS = {"mean": Fold("mean"), "sum": Fold("sum"), "mean_nonzero": Fold("threshold", low=0.0)}


def supcon(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float = 0.1,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "cosine",
    reduction: str = "mean",
) -> Tensor:
    """Supervised contrastive loss, one loss a row: ``log sum_j exp(s_aj/t) - mean_p s_ap/t``, 0 for a row without positives.

    ``j`` runs over all others of anchor ``a``, ``p`` over its positives; distances count negatively. All is 0 unless the batch
    has a positive and a negative pair. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020 (L_out).

    Args:
        temperature: ``t``, in the unit of the score, above 0.
    """
    call = _call(embeddings, labels, ref_embeddings, ref_labels)
    return _pair_loss(SupCon(_number("temperature", temperature)), call, named_score(distance), reduction)


def ntxent(
    embeddings: Tensor,
    labels: Tensor,
    temperature: float = 0.07,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "cosine",
    reduction: str = "mean",
) -> Tensor:
    """Normalised temperature-scaled cross entropy (InfoNCE), one loss a positive pair.

    ``-log(exp(s_ap/t) / (exp(s_ap/t) + sum_n exp(s_an/t)))`` over the anchor's negatives ``n``; its other positives stay out of
    it, and distances count negatively. All is 0 unless the batch has a positive and a negative pair. Sohn, NIPS 2016; Chen et
    al., "SimCLR", ICML 2020.

    Args:
        temperature: ``t``, in the unit of the score, above 0.
    """
    call = _call(embeddings, labels, ref_embeddings, ref_labels)
    return _pair_loss(NTXent(_number("temperature", temperature)), call, named_score(distance), reduction)


def multi_similarity(
    embeddings: Tensor,
    labels: Tensor,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "cosine",
    reduction: str = "mean",
) -> Tensor:
    """Multi-similarity loss, one loss a row.

    ``log(1 + sum_p exp(-alpha (s_ap - base)))/alpha + log(1 + sum_n exp(beta (s_an - base)))/beta``, signs turned for a
    distance.
    Wang et al., "Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning", CVPR 2019.

    Args:
        alpha: weight of the positives in the exponent, 1 / unit of the score, above 0.
        beta: the same for the negatives.
        base: offset, in the unit of the score.
    """
    call = _call(embeddings, labels, ref_embeddings, ref_labels)
    spec = MultiSimilarity(_number("alpha", alpha), _number("beta", beta), _number("base", base))
    return _pair_loss(spec, call, named_score(distance), reduction)


def circle(
    embeddings: Tensor,
    labels: Tensor,
    m: float = 0.4,
    gamma: float = 80.0,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "cosine",
    reduction: str = "mean",
) -> Tensor:
    """Circle loss, one loss a row; 0 for a row without positives or without negatives.

    ``log(1 + sum_n exp(gamma [s_an + m]_+ (s_an - m)) sum_p exp(-gamma [1 + m - s_ap]_+ (s_ap - 1 + m)))``; the brackets are
    constants to the gradient. Sun et al., "Circle Loss: A Unified Perspective of Pair Similarity Optimization", CVPR 2020.

    Args:
        m: relaxation margin, in the unit of the cosine.
        gamma: scale of the similarities, above 0.
        distance: must be ``"cosine"`` or a ``Score`` that equals it, else ``ValueError``: the optima are at 1 and 0.
    """
    score = named_score(distance)
    if score != NAMED_SCORES["cosine"]:
        raise ValueError(f"distance must be 'cosine' for the circle loss, whose optima are at 1 and 0, got {distance!r}")
    call = _call(embeddings, labels, ref_embeddings, ref_labels)
    return _pair_loss(Circle(_number("m", m), _number("gamma", gamma)), call, score, reduction)


def contrastive(
    embeddings: Tensor,
    labels: Tensor,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "l2",
    reduction: str = "mean",
) -> Tensor:
    """Contrastive loss, one loss a pair: ``[d - pos_margin]_+`` for positives, ``[neg_margin - d]_+`` for negatives.

    Positives and negatives are reduced apart and added. For similarities the differences change sign: ``pos_margin=1,
    neg_margin=0`` suits the cosine. Hadsell, Chopra and LeCun, "Dimensionality Reduction by Learning an Invariant Mapping",
    CVPR 2006, without the squares.

    Args:
        pos_margin: positives closer than this cost nothing, in the unit of the distance.
        neg_margin: negatives further than this cost nothing, in the unit of the distance.
    """
    call = _call(embeddings, labels, ref_embeddings, ref_labels)
    spec = Contrastive(_number("pos_margin", pos_margin), _number("neg_margin", neg_margin))
    return _pair_loss(spec, call, named_score(distance), reduction)


def triplet_margin(
    embeddings: Tensor,
    labels: Tensor,
    margin: float = 0.05,
    *,
    smooth: bool = False,
    swap: bool = False,
    select: str = "every",
    select_margin: float = 0.0,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "l2",
    reduction: str = "mean",
) -> Tensor:
    """Triplet margin loss over all triplets, exactly: ``[d_ap - d_an + margin]_+``, without naming one.

    The sum over all triplets takes ``O(N M log P)`` work for ``P`` positives an anchor (Rust and Hocking, arXiv 2302.11062), or
    ``O(N M P)`` where ``smooth`` or ``swap`` keep it from separating. Schroff et al., "FaceNet", CVPR 2015.

    Args:
        margin: how much further than the positive the negative should be, in the unit of the distance.
        smooth: ``softplus`` in the place of ``[.]_+``.
        swap: take the positive-negative distance where it is the closer one (Balntas et al., BMVC 2016).
        select: which triplets count by their gap ``g = d_an - d_ap``: ``"every"``; ``"all"`` (``g <= select_margin``);
            ``"hard"`` (also ``g <= 0``); ``"semihard"`` (``0 < g <= select_margin``); ``"easy"`` (``g > select_margin``).
        select_margin: in the unit of the distance.
        reduction: ``"mean"`` is over all selected triplets; ``"none"`` is refused, there are too many of them.
    """
    if reduction == "none":
        raise ValueError("reduction must be 'mean', 'sum' or 'mean_nonzero' for triplets, got 'none': no triplet is named")
    fold, score = _fold(reduction), named_score(distance)
    if swap and not score.symmetric:
        raise ValueError(f"swap must be False for a distance that is not symmetric, got distance {distance!r}")
    spec = TripletSpec(_number("margin", margin), bool(smooth), bool(swap), select, _number("select_margin", select_margin))
    call = _call(embeddings, labels, ref_embeddings, ref_labels)
    return fused_triplet_loss(spec, score, fold, None, call, call.embeddings, call.ref_emb)


def row_extremes(
    embeddings: Tensor,
    labels: Tensor,
    *,
    positive: bool,
    largest: bool,
    low: Tensor | None = None,
    high: Tensor | None = None,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "cosine",
) -> tuple[Tensor, Tensor]:
    """Each row's largest or smallest score over its positives or its negatives: the sweep of hard mining. No gradient.

    Args:
        positive: over the rows of the same label (``True``) or of others.
        largest: the largest score or the smallest.
        low, high: ``[N]``, closed bounds that a score must lie in.

    Returns:
        ``value [N]`` and ``index [N]`` (int64, into the batch or the reference set); -1 and an infinity for a row without any.
    """
    call = _call(embeddings, labels, ref_embeddings, ref_labels)
    for name, bound in (("low", low), ("high", high)):
        if bound is not None and tuple(bound.shape) != (len(embeddings),):
            raise ValueError(f"{name} must have one bound a row, shape ({len(embeddings)},), got shape {tuple(bound.shape)}")
    return _extremes(call, named_score(distance), positive, largest, low, high)


class HardestTriplets(NamedTuple):
    """For each anchor ``[N]``: its furthest positive and closest negative (-1 for none, int64), and their scores."""

    positive: Tensor
    negative: Tensor
    positive_score: Tensor
    negative_score: Tensor


def hardest_triplets(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "l2",
) -> HardestTriplets:
    """The hardest triplet of every anchor, by two sweeps. No gradient: score the indices with :func:`listed_scores` for one.

    Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    """
    call, score = _call(embeddings, labels, ref_embeddings, ref_labels), named_score(distance)
    far, positive = _extremes(call, score, True, not score.inverted, None, None)
    near, negative = _extremes(call, score, False, score.inverted, None, None)
    return HardestTriplets(positive, negative, far, near)


def listed_scores(
    embeddings: Tensor,
    i: Tensor,
    j: Tensor,
    *,
    ref_embeddings: Tensor | None = None,
    distance: str | Score = "cosine",
) -> Tensor:
    """Scores ``[K]`` of rows ``i`` of the embeddings against rows ``j`` of the reference set, pair by pair.

    ``O(K D)`` work, differentiable by both sets; distances are taken by differences, exact near zero.

    Args:
        i, j: ``[K]`` integers, ``0 <= i < N`` and ``0 <= j < M``.
        ref_embeddings: ``None`` for the embeddings themselves.
    """
    call = prepare_call(embeddings, None, None, ref_embeddings, None, "ref_embeddings")
    for name, index in (("i", i), ("j", j)):
        if not torch.is_tensor(index) or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
            got = index.dtype if torch.is_tensor(index) else type(index).__name__
            raise TypeError(f"{name} must be a tensor of integers, got {got}")
        if index.ndim != 1 or index.shape != i.shape:
            raise ValueError(f"i and j must be 1-D and of one length, got shapes {tuple(i.shape)} and {tuple(j.shape)}")
    scores = listed.engine_scorer(call.embeddings, call.ref_emb, named_score(distance))
    device = embeddings.device
    return scores(i.to(device, torch.int64), j.to(device, torch.int64))


# ---- what they share ----


def _call(embeddings: Tensor, labels: Tensor, ref_embeddings: Tensor | None, ref_labels: Tensor | None) -> Call:
    if labels is None:
        raise ValueError("labels must be given, got None; pass a tensor of shape (batch_size,)")
    return prepare_call(embeddings, labels, None, ref_embeddings, ref_labels, "ref_embeddings")


def _pair_loss(spec: PairSpec, call: Call, score: Score, reduction: str) -> Tensor:
    x, y = call.embeddings, call.ref_emb
    if reduction != "none":
        return fused_pair_loss(spec, score, [_fold(reduction)] * len(spec.terms), None, call, x, y)
    if any(term.kind != "element" for term in spec.terms):
        raise ValueError(
            f"reduction must be 'mean', 'sum' or 'mean_nonzero' for {spec.name}, which has one loss a pair, got 'none'; "
            "pml_fast.losses with a DoNothingReducer gives every loss"
        )
    return pair_row_losses(spec, score, None, call, x, y)[0]


def _extremes(
    call: Call, score: Score, positive: bool, largest: bool, low: Tensor | None, high: Tensor | None
) -> tuple[Tensor, Tensor]:
    assert call.labels is not None and call.ref_labels is not None
    labels, ref_labels = engine_labels(call.labels, call.ref_labels, call.itself)
    value, index = operator.call(
        "row_extremes",
        call.embeddings.detach(), call.ref_emb.detach(), labels, ref_labels, low, high, score.encode(), call.itself,
        bool(positive), bool(largest),
    )  # fmt: skip
    return value, index


def _fold(reduction: str) -> Fold:
    if reduction not in _FOLDS:
        raise ValueError(f"reduction must be one of {', '.join(_FOLDS)} or none, got {reduction!r}")
    return _FOLDS[reduction]


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {type(value).__name__}") from error
