"""Retrieval metrics of an embedding, computed over strips of queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_STRIP_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries, each in [0, 1]; queries alone in their class are not counted."""

    precision_at_1: float
    r_precision: float
    map_at_r: float
    queries: int


def retrieval_metrics(embeddings: Tensor, labels: Tensor, strip_elements: int = _STRIP_ELEMENTS) -> RetrievalMetrics:
    """Precision@1, R-precision and MAP@R of every item searched among all the others by cosine similarity.

    With R the number of other items of the query's class and P(i) the precision among its i nearest:
    R-precision = P(R), and MAP@R = (1 / R) * sum over i <= R of P(i) * [the i-th nearest is of its class]
    (Musgrave, Belongie and Lim, "A Metric Learning Reality Check", 2020).

    embeddings [N, D] floating point; labels [N] integers. A strip holds at most about strip_elements
    similarities, so memory grows with N and not with its square.
    Raises ValueError for shapes that do not match, values that are not finite, or no class with two items.
    """
    _check(embeddings, labels)
    _, which, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    relevant = sizes[which] - 1
    longest = int(relevant.max()) if len(labels) else 0
    if longest == 0:
        raise ValueError("labels must hold a class with at least two items, else there is nothing to retrieve")
    first = precision = average = 0.0
    for queries, hits in _ranked_hits(embeddings, labels, longest, strip_elements):
        wanted = relevant[queries]
        counted = wanted > 0
        hits, wanted = hits[counted], wanted[counted, None]
        ranks = torch.arange(1, longest + 1)
        hits_to_r = hits * (ranks <= wanted)
        precision_at = hits_to_r.cumsum(1) / ranks
        first += float(hits[:, 0].sum())
        precision += float((hits_to_r.sum(1, keepdim=True) / wanted).sum())
        average += float(((precision_at * hits_to_r).sum(1, keepdim=True) / wanted).sum())
    queries_counted = int((relevant > 0).sum())
    return RetrievalMetrics(first / queries_counted, precision / queries_counted, average / queries_counted, queries_counted)


def nearest_neighbours(embeddings: Tensor, queries: Tensor, k: int) -> Tensor:
    """Indices [Q, k] of the items nearest to each query item by cosine similarity, itself left out."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return _rank(unit, queries, min(k, len(unit) - 1))


def _ranked_hits(embeddings: Tensor, labels: Tensor, k: int, strip_elements: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Strips of query indices, each with hits [queries, k]: 1 where the i-th nearest is of the query's class."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    rows = max(1, strip_elements // len(unit))
    for queries in torch.arange(len(unit)).split(rows):
        yield queries, (labels[_rank(unit, queries, k)] == labels[queries, None]).double()


def _rank(unit: Tensor, queries: Tensor, k: int) -> Tensor:
    similarity = unit[queries] @ unit.T
    similarity[torch.arange(len(queries)), queries] = -torch.inf
    return similarity.topk(k, dim=1).indices


def _check(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be a floating-point tensor [N, D], got {embeddings.dtype} {list(embeddings.shape)}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels must have one entry an embedding, [{len(embeddings)}], got {list(labels.shape)}")
    if not bool(torch.isfinite(embeddings).all()):
        raise ValueError("embeddings must be finite, got NaN or infinity; lower the learning rate?")
