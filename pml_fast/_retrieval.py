"""Neighbours and rankings as stateless functions; `pml_fast.functional` exports them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pml_fast.engine import operator
from pml_fast.engine.knn import ops
from pml_fast.engine.knn.fold import Retrieval
from pml_fast.engine.plan import Call
from pml_fast.engine.score import Score, named_score
from pml_fast.losses.base_metric_loss_function import prepare_call
from pml_fast.losses.spec_pair_loss import engine_labels


class Neighbors(NamedTuple):
    """The closest rows of the reference set of each query ``[N, k]``, closest first: their scores and indices (int64)."""

    scores: Tensor
    indices: Tensor


class PositiveRanks(NamedTuple):
    """How many positives each query has ``[N]``, and query by query their ranks, ascending ``[sum(counts)]`` (int64)."""

    counts: Tensor
    ranks: Tensor


def nearest_neighbors(
    embeddings: Tensor,
    k: int,
    *,
    ref_embeddings: Tensor | None = None,
    distance: str | Score = "l2",
    ref_includes_query: bool = False,
) -> Neighbors:
    """The ``k`` rows of the reference set closest to each of the embeddings, exactly; no gradient.

    Rows of equal score come in the order of their index, scores that are not a number last. Without ``ref_embeddings`` the
    embeddings are searched among themselves, each without itself.

    Args:
        k: from 0 to the number of candidates.
        ref_includes_query: ``ref_embeddings`` begins with the embeddings; row ``i`` is no candidate of query ``i``.
    """
    call, itself = _sets(embeddings, None, ref_embeddings, None, ref_includes_query)
    check_k(k, len(call.ref_emb) - int(itself))
    scores, indices = operator.call(
        "nearest", call.embeddings.detach(), call.ref_emb.detach(), k, named_score(distance).encode(), itself
    )
    return Neighbors(scores, indices)


def positive_ranks(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "l2",
    ref_includes_query: bool = False,
) -> PositiveRanks:
    """The ranks, from 0, of all rows of a query's label among all rows of the reference set; no gradient.

    Every ranking metric is a function of them. Memory is ``O(N R)`` for ``R`` positives a query; :func:`retrieval` folds them
    where that is too much. Order, ``ref_includes_query`` and sets are those of :func:`nearest_neighbors`.
    """
    call, itself = _sets(embeddings, labels, ref_embeddings, ref_labels, ref_includes_query)
    return PositiveRanks(*ops.positive_ranks(*_arguments(call), named_score(distance), itself))


def retrieval(
    embeddings: Tensor,
    labels: Tensor,
    *,
    ref_embeddings: Tensor | None = None,
    ref_labels: Tensor | None = None,
    distance: str | Score = "l2",
    ref_includes_query: bool = False,
    limit: int | None = None,
    cutoffs: Sequence[int] = (),
) -> Retrieval:
    """What the retrieval metrics of each query are made of, in the memory of a few rows of scores; no gradient.

    With the :class:`~pml_fast.engine.knn.fold.Retrieval` ``r`` of queries that all have a positive,
    MAP@R is ``(r.precisions_within_r / r.count).mean()``, R-precision ``(r.hits_within_r / r.count).mean()``, mean reciprocal
    rank ``(1 / (r.first + 1)).mean()`` and Recall@K ``(r.first < K).mean()``
    (Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV 2020).

    Args:
        limit: count only positives of rank below this.
        cutoffs: also count the positives of rank below each of these.
    """
    call, itself = _sets(embeddings, labels, ref_embeddings, ref_labels, ref_includes_query)
    found = operator.call(
        "retrieval",
        *_arguments(call), named_score(distance).encode(), itself, limit, list(cutoffs)
    )  # fmt: skip
    return Retrieval(*found)


def check_k(k: Any, candidates: int) -> None:
    """Raise ``TypeError`` or ``ValueError`` unless ``k`` is a number of neighbours that there are."""
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k must be a whole number, got {k!r}")
    if not 0 <= k <= candidates:
        raise ValueError(f"k must be from 0 to the number of candidates, {candidates}, got {k}")


def _sets(
    embeddings: Tensor, labels: Tensor | None, ref_embeddings: Tensor | None, ref_labels: Tensor | None, included: bool
) -> tuple[Call, bool]:
    call = prepare_call(embeddings, labels, None, ref_embeddings, ref_labels, "ref_embeddings")
    n = len(embeddings)
    if included and not call.itself and not torch.equal(call.embeddings, call.ref_emb[:n]):
        raise ValueError(
            "ref_embeddings must begin with the queries where ref_includes_query is True; pass torch.cat([embeddings, others])"
        )
    return call, call.itself or included


def _arguments(call: Call) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if call.labels is None or call.ref_labels is None:
        raise ValueError("labels must be given, got None; pass a tensor of shape (batch_size,)")
    labels, ref_labels = engine_labels(call.labels, call.ref_labels, call.itself)
    return call.embeddings.detach(), call.ref_emb.detach(), labels, ref_labels
