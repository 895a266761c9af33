"""Ranking metrics from the labels of each query's neighbours, closest first, and their averages.

``knn_labels`` is ``[N, k, ...]``, ``gt_labels [N, 1, ...]``; a comparison of labels takes both and gives ``[N, k]``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

EQUALITY = torch.eq
Compare = Callable[[Tensor, Tensor], Tensor]


def get_unique_labels(labels: Tensor) -> Tensor:
    """The different labels, sorted; labels of several numbers are compared as rows."""
    return torch.unique(labels, dim=0)


def maybe_get_avg_of_avgs(
    accuracy_per_sample: Tensor, sample_labels: Tensor, avg_of_avgs: bool, return_per_class: bool
) -> float | list[float]:
    """The mean over all queries, the mean of the classes' means, or the list of these in the order of the sorted labels."""
    if not (avg_of_avgs or return_per_class):
        return float(accuracy_per_sample.mean())
    labels, which = torch.unique(sample_labels, dim=0, return_inverse=True)
    values = accuracy_per_sample.double()
    sums = values.new_zeros(len(labels)).index_add(0, which.flatten(), values)
    per_class = sums / torch.bincount(which.flatten(), minlength=len(labels))
    return per_class.tolist() if return_per_class else float(per_class.mean())


def nan_accuracy(unique_labels: Tensor, return_per_class: bool) -> float | list[float]:
    """What stands for the accuracy where no query has a match."""
    return [float("nan")] * len(unique_labels) if return_per_class else float("nan")


def get_relevance_mask(
    shape: Any, gt_labels: Tensor, ref_includes_query: bool, label_counts: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """For each query the first R places, as a mask ``[N, k]``, and R ``[N]``: how many references have its label."""
    labels, counts = label_counts
    flat, known = gt_labels.reshape(len(gt_labels), -1), labels.reshape(len(labels), -1)
    both, which = torch.unique(torch.cat([known, flat]), dim=0, return_inverse=True)
    by_label = counts.new_zeros(len(both)).scatter(0, which[: len(known)], counts - int(ref_includes_query))
    relevant = by_label[which[len(known) :]]
    return torch.arange(shape[1], device=gt_labels.device) < relevant.unsqueeze(1), relevant


def precision_at_k(
    knn_labels: Tensor, gt_labels: Tensor, k: int, avg_of_avgs: bool, return_per_class: bool, label_comparison_fn: Compare
) -> float | list[float]:
    """The share of the query's label among its ``k`` nearest."""
    hits = label_comparison_fn(gt_labels, knn_labels[:, :k]).sum(dim=1)
    return maybe_get_avg_of_avgs(hits.double() / k, gt_labels, avg_of_avgs, return_per_class)


def recall_at_k(
    knn_labels: Tensor, gt_labels: Tensor, k: int, avg_of_avgs: bool, return_per_class: bool, label_comparison_fn: Compare
) -> float | list[float]:
    """The share of queries with any match among their ``k`` nearest."""
    found = label_comparison_fn(gt_labels, knn_labels[:, :k]).any(dim=1)
    return maybe_get_avg_of_avgs(found.double(), gt_labels, avg_of_avgs, return_per_class)


def r_precision(
    knn_labels: Tensor, gt_labels: Tensor, ref_includes_query: bool, label_counts: tuple[Tensor, Tensor],
    avg_of_avgs: bool, return_per_class: bool, label_comparison_fn: Compare,
) -> float | list[float]:  # fmt: skip
    """The share of the query's label among its R nearest."""
    relevant, _ = get_relevance_mask(knn_labels.shape[:2], gt_labels, ref_includes_query, label_counts)
    hits = (label_comparison_fn(gt_labels, knn_labels) & relevant).sum(dim=1)
    return maybe_get_avg_of_avgs(hits.double() / relevant.sum(dim=1), gt_labels, avg_of_avgs, return_per_class)


def mean_average_precision(
    knn_labels: Tensor, gt_labels: Tensor, ref_includes_query: bool, label_counts: tuple[Tensor, Tensor],
    avg_of_avgs: bool, return_per_class: bool, label_comparison_fn: Compare, at_r: bool = False,
) -> float | list[float]:  # fmt: skip
    """The sum of the precisions at the query's matches over R; of those among its R nearest where ``at_r`` (MAP@R)."""
    relevant, count = get_relevance_mask(knn_labels.shape[:2], gt_labels, ref_includes_query, label_counts)
    hits = label_comparison_fn(gt_labels, knn_labels)
    if at_r:
        hits = hits & relevant
    place = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precision = torch.where(hits, hits.cumsum(dim=1).double() / place, 0.0)
    return maybe_get_avg_of_avgs(precision.sum(dim=1) / count, gt_labels, avg_of_avgs, return_per_class)


def mean_reciprocal_rank(
    knn_labels: Tensor, gt_labels: Tensor, avg_of_avgs: bool, return_per_class: bool, label_comparison_fn: Compare
) -> float | list[float]:
    """The mean of 1 over the place of the first match, 0 where there is none."""
    hits = label_comparison_fn(gt_labels, knn_labels)
    place = torch.arange(1, hits.shape[1] + 1, device=hits.device).double()
    best = torch.where(hits, 1.0 / place, 0.0).amax(dim=1) if hits.shape[1] else hits.new_zeros(len(hits), dtype=torch.double)
    return maybe_get_avg_of_avgs(best, gt_labels, avg_of_avgs, return_per_class)


def get_label_match_counts(
    query_labels: Tensor, reference_labels: Tensor, label_comparison_fn: Compare
) -> tuple[Tensor, Tensor]:
    """The different labels of the queries, and how many references match each."""
    unique = get_unique_labels(query_labels)
    if label_comparison_fn is EQUALITY and query_labels.ndim == 1:
        ordered = torch.sort(reference_labels).values
        values = unique.to(ordered.dtype).contiguous()
        return unique, torch.searchsorted(ordered, values, right=True) - torch.searchsorted(ordered, values)
    if label_comparison_fn is EQUALITY:
        counts = [(reference_labels == label).flatten(start_dim=1).all(dim=1).sum() for label in unique]
    else:
        counts = [label_comparison_fn(unique[i : i + 1], reference_labels).sum() for i in range(len(unique))]
    return unique, torch.stack(counts) if counts else torch.zeros(0, dtype=torch.int64, device=query_labels.device)


def matches_of_itself(labels: Tensor, label_comparison_fn: Compare) -> Tensor:
    """Whether each label matches itself ``[L]``: under a comparison of one's own it may not."""
    if label_comparison_fn is EQUALITY:
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return label_comparison_fn(labels, labels).reshape(len(labels)).bool()


def get_lone_query_labels(
    query_labels: Tensor, label_counts: tuple[Tensor, Tensor], ref_includes_query: bool, label_comparison_fn: Compare
) -> tuple[Tensor, Tensor]:
    """The labels without a match other than the query itself, and the mask ``[N]`` of queries that have one."""
    labels, counts = label_counts
    if ref_includes_query:
        counts = counts - matches_of_itself(labels, label_comparison_fn).to(counts.dtype)
    lone = labels[counts <= 0]
    if not len(lone):
        return lone, torch.ones(len(query_labels), dtype=torch.bool, device=query_labels.device)
    flat, lone_flat = query_labels.reshape(len(query_labels), -1), lone.reshape(len(lone), -1)
    which = torch.unique(torch.cat([lone_flat, flat]), dim=0, return_inverse=True)[1]
    return lone, ~torch.isin(which[len(lone) :], which[: len(lone)])


def try_getting_not_lone_labels(
    knn_labels: Tensor, query_labels: Tensor, not_lone_query_mask: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """The rows of queries that have a match, or ``None`` twice where there are none."""
    if not bool(not_lone_query_mask.any()):
        return None, None
    return knn_labels[not_lone_query_mask], query_labels[not_lone_query_mask]
