"""The metrics that an accuracy calculator has of its own, each from the fold of the ranks or from the labels of neighbours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.knn.fold import Retrieval

from .clustering import mutual_information
from .ranking_metrics import (
    maybe_get_avg_of_avgs,
    mean_average_precision,
    mean_reciprocal_rank,
    nan_accuracy,
    precision_at_k,
    r_precision,
    recall_at_k,
)


class AccuracyMetrics:
    """The part of an accuracy calculator that its metrics are: `calculate_NAME`, and what each needs."""

    avg_of_avgs: bool
    return_per_class: bool
    label_comparison_fn: Any
    kmeans_func: Any

    def requires_clustering(self) -> list[str]:
        """Names of the metrics that need ``cluster_labels``; subclasses extend it."""
        return ["NMI", "AMI"]

    def requires_knn(self) -> list[str]:
        """Names of the metrics that need neighbours; subclasses may extend it."""
        return [
            "precision_at_1",
            "mean_average_precision",
            "mean_average_precision_at_r",
            "mean_reciprocal_rank",
            "r_precision",
        ]

    def calculate_precision_at_1(
        self, knn_labels: Any, query_labels: Any, not_lone_query_mask: Any, label_counts: Any, **kwargs: Any
    ) -> Any:
        """Share of queries whose nearest reference has their label."""
        return self._at_k("precision", 1, knn_labels, query_labels, not_lone_query_mask, label_counts, **kwargs)

    def calculate_r_precision(
        self, knn_labels: Any, query_labels: Any, not_lone_query_mask: Any, ref_includes_query: Any, label_counts: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """Share of the query's label among its R nearest."""

        def of_ranks(r: Retrieval) -> Tensor:
            return r.hits_within_r.double() / r.count.clamp_max(kwargs["num_k"])

        def of_labels(labels: Tensor, own: Tensor) -> Any:
            return r_precision(
                labels, own, ref_includes_query, label_counts, self.avg_of_avgs, self.return_per_class, self.label_comparison_fn
            )

        return self._metric(of_ranks, of_labels, knn_labels, query_labels, not_lone_query_mask, label_counts, kwargs)

    def calculate_mean_average_precision(
        self, knn_labels: Any, query_labels: Any, not_lone_query_mask: Any, ref_includes_query: Any, label_counts: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """MAP over all neighbours that count."""

        def of_labels(labels: Tensor, own: Tensor) -> Any:
            return mean_average_precision(
                labels, own, ref_includes_query, label_counts, self.avg_of_avgs, self.return_per_class, self.label_comparison_fn
            )

        return self._metric(
            lambda r: r.precisions / r.count, of_labels, knn_labels, query_labels, not_lone_query_mask, label_counts, kwargs
        )

    def calculate_mean_average_precision_at_r(
        self, knn_labels: Any, query_labels: Any, not_lone_query_mask: Any, ref_includes_query: Any, label_counts: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """MAP@R."""

        def of_labels(labels: Tensor, own: Tensor) -> Any:
            return mean_average_precision(
                labels, own, ref_includes_query, label_counts, self.avg_of_avgs, self.return_per_class,
                self.label_comparison_fn, at_r=True,
            )  # fmt: skip

        return self._metric(
            lambda r: r.precisions_within_r / r.count, of_labels, knn_labels, query_labels, not_lone_query_mask, label_counts,
            kwargs,
        )  # fmt: skip

    def calculate_mean_reciprocal_rank(
        self, knn_labels: Any, query_labels: Any, not_lone_query_mask: Any, label_counts: Any, **kwargs: Any
    ) -> Any:
        """Mean of 1 over the place of the first reference of the query's label."""

        def of_labels(labels: Tensor, own: Tensor) -> Any:
            return mean_reciprocal_rank(labels, own, self.avg_of_avgs, self.return_per_class, self.label_comparison_fn)

        return self._metric(
            lambda r: torch.where(r.first >= 0, 1.0 / (r.first + 1).double(), 0.0), of_labels, knn_labels, query_labels,
            not_lone_query_mask, label_counts, kwargs,
        )  # fmt: skip

    def calculate_AMI(self, query_labels: Any, cluster_labels: Any, **kwargs: Any) -> float:
        """Adjusted mutual information of labels and clusters."""
        return mutual_information("adjusted", query_labels, cluster_labels)

    def calculate_NMI(self, query_labels: Any, cluster_labels: Any, **kwargs: Any) -> float:
        """Normalised mutual information of labels and clusters."""
        return mutual_information("normalized", query_labels, cluster_labels)

    def get_cluster_labels(self, query: Tensor, query_labels: Tensor, **kwargs: Any) -> Any:
        """The cluster of each query, of as many clusters as there are labels."""
        return self.kmeans_func(query, len(torch.unique(query_labels.flatten())))

    def _at_k(
        self, kind: str, k: int, knn_labels: Any, query_labels: Any, not_lone_query_mask: Any, label_counts: Any, **kwargs: Any
    ) -> Any:
        def of_ranks(r: Retrieval) -> Tensor:
            if kind == "precision" and k > 1:
                return r.hits[kwargs["cutoffs"].index(k)].double() / k
            return ((r.first >= 0) & (r.first < k)).double()

        def of_labels(labels: Tensor, own: Tensor) -> Any:
            function = precision_at_k if kind == "precision" else recall_at_k
            return function(labels, own, k, self.avg_of_avgs, self.return_per_class, self.label_comparison_fn)

        return self._metric(of_ranks, of_labels, knn_labels, query_labels, not_lone_query_mask, label_counts, kwargs)

    def _metric(
        self, of_ranks: Callable[[Retrieval], Tensor], of_labels: Callable[[Tensor, Tensor], Any], knn_labels: Tensor | None,
        query_labels: Tensor, not_lone: Tensor, label_counts: tuple[Tensor, Tensor], kwargs: dict[str, Any],
    ) -> Any:  # fmt: skip
        """A metric from the labels of the neighbours where they are given, else from the fold of the ranks."""
        if not bool(not_lone.any()):
            return nan_accuracy(label_counts[0], self.return_per_class)
        own = query_labels[not_lone]
        if knn_labels is not None:
            return of_labels(knn_labels[not_lone], own[:, None])
        values = of_ranks(kwargs["retrieval"])[not_lone]
        return maybe_get_avg_of_avgs(values, own, self.avg_of_avgs, self.return_per_class)
