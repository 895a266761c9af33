"""Retrieval and clustering metrics of embeddings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.knn import ops
from pml_fast.engine.knn.fold import Retrieval

from . import common_functions as c_f
from .accuracy_inputs import as_embeddings, as_labels, check_sets, class_numbers
from .accuracy_metrics import AccuracyMetrics
from .clustering import InstalledKMeans
from .exact_search import Comparison, ExactKNN
from .faiss_search import FaissKMeans, FaissKNN
from .ranking_metrics import (
    EQUALITY,
    get_label_match_counts,
    get_lone_query_labels,
    get_relevance_mask,
    get_unique_labels,
    matches_of_itself,
    maybe_get_avg_of_avgs,
    mean_average_precision,
    mean_reciprocal_rank,
    nan_accuracy,
    precision_at_k,
    r_precision,
    recall_at_k,
    try_getting_not_lone_labels,
)

__all__ = [
    "EQUALITY",
    "AccuracyCalculator",
    "FaissKMeans",
    "FaissKNN",
    "get_label_match_counts",
    "get_lone_query_labels",
    "get_relevance_mask",
    "get_unique_labels",
    "maybe_get_avg_of_avgs",
    "mean_average_precision",
    "mean_reciprocal_rank",
    "nan_accuracy",
    "precision_at_k",
    "r_precision",
    "recall_at_k",
    "try_getting_not_lone_labels",
]

Metric = Callable[..., Any]

# Metrics with a number in their name are made when they are asked for.
_AT_K = re.compile(r"(precision|recall|cmc)_at_([1-9][0-9]*)")
_OF_NEIGHBORS = ("knn_labels", "knn_distances")
_OF_LABELS = ("label_counts", "lone_query_labels", "not_lone_query_mask", "retrieval")


class AccuracyCalculator(AccuracyMetrics):
    """Metrics of how well embeddings find others of their label.

    ``calculator.get_accuracy(query, query_labels)`` returns a dictionary of

    =================================  ==========================================================================
    ``precision_at_1``                 the nearest has the query's label
    ``r_precision``                    share of the query's label among its R nearest, R of them being there
    ``mean_average_precision_at_r``    MAP@R: mean over the R nearest of the precision at those of the label
    ``mean_average_precision``         MAP: mean of the precisions at every reference of the label
    ``mean_reciprocal_rank``           mean of 1 / place of the first of the label
    ``AMI``, ``NMI``                   mutual information of labels and k-means clusters of the queries
    ``recall_at_K``, ``cmc_at_K``      any of the K nearest has the label, when asked for (``include=("recall_at_10",)``)
    ``precision_at_K``                 share of the label among the K nearest, when asked for
    =================================  ==========================================================================

    (Musgrave, Belongie and Lim, "A Metric Learning Reality Check", ECCV 2020.) Queries whose label no reference has are left
    out; where that is all of them the metric is NaN. Exact, and streamed: neither all scores nor the neighbours of all queries
    are held, unless ``knn_func`` is one of another kind, or a metric of a subclass asks for ``knn_labels``.

    A subclass adds a metric as a method ``calculate_NAME(self, ..., **kwargs)``. Its parameters are taken by their names from
    ``query, query_labels, reference, reference_labels, ref_includes_query, label_comparison_fn``, and where a metric asks for
    them ``knn_labels [N, k, ...]``, ``knn_distances [N, k]``, ``cluster_labels [N]`` (with ``requires_clustering`` extended),
    ``label_counts``, ``lone_query_labels``, ``not_lone_query_mask`` and ``retrieval``
    (:class:`~pml_fast.engine.knn.fold.Retrieval`: what ranks are worth to each query, in O(N) memory).

    Args:
        include: only these metrics; all but those with a ``K`` if empty.
        exclude: not these.
        avg_of_avgs: average within each class first.
        return_per_class: a list with each class's value, in the order of the labels that have a match.
        k: neighbours that count: a number, ``"max_bin_count"`` (as many as the largest class has) or all.
        label_comparison_fn: takes query labels ``[n, 1, ...]`` and reference labels ``[n, m, ...]`` and says which match;
            equality if ``None``. Not with AMI and NMI.
        device: where to compute; a GPU where there is one if ``None``.
        knn_func: what searches: an ``ExactKNN`` (squared distances if ``None``), ``CustomKNN``, ``FaissKNN``, or any
            ``f(query, k, reference, ref_includes_query) -> (distances, indices)``.
        kmeans_func: ``f(query, clusters) -> labels``; faiss, or else scikit-learn, if ``None``.
    """

    def __init__(
        self,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        avg_of_avgs: bool = False,
        return_per_class: bool = False,
        k: int | str | None = None,
        label_comparison_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        device: torch.device | str | None = None,
        knn_func: Any = None,
        kmeans_func: Any = None,
    ) -> None:
        self.function_keyword = "calculate_"
        names = [name for name in dir(self) if name.startswith(self.function_keyword)]
        self.original_function_dict: dict[str, Metric] = {
            name.removeprefix(self.function_keyword): getattr(self, name) for name in names
        }
        self._every_metric = list(self.original_function_dict)
        self.check_primary_metrics(include, exclude)
        self.original_function_dict = self.get_function_dict(include, exclude)
        self.curr_function_dict = self.get_function_dict()
        if avg_of_avgs and return_per_class:
            raise ValueError("avg_of_avgs and return_per_class are mutually exclusive: leave one of them False")
        self.avg_of_avgs = avg_of_avgs
        self.return_per_class = return_per_class
        self.device = c_f.use_cuda_if_available() if device is None else torch.device(device)
        self.knn_func = ExactKNN() if knn_func is None else knn_func
        self.kmeans_func = InstalledKMeans() if kmeans_func is None else kmeans_func
        whole = isinstance(k, int) and not isinstance(k, bool) and k > 0
        if not (whole or k is None or k == "max_bin_count"):
            raise ValueError(f"k must be an integer greater than 0, or None, or 'max_bin_count', got {k!r}")
        self.k = k
        self.label_comparison_fn = EQUALITY if label_comparison_fn is None else label_comparison_fn
        if label_comparison_fn is not None and self._any_of(self.requires_clustering()):
            raise NotImplementedError(
                f"{' and '.join(self.requires_clustering())} know no label_comparison_fn: leave them out with exclude"
            )

    # ---- which metrics

    def get_function_dict(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> dict[str, Metric]:
        """The functions of the included metrics, without the excluded ones, by name."""
        known = self.original_function_dict
        wanted = include or list(known)
        found = {name: function for name, function in known.items() if name in wanted and name not in exclude}
        for name in wanted:
            at = _AT_K.fullmatch(name)
            if at is not None and name not in known and name not in exclude:
                found[name] = partial(self._at_k, at[1], int(at[2]))
        return found

    def get_curr_metrics(self) -> list[str]:
        """Names of the metrics of the current call."""
        return list(self.curr_function_dict)

    def check_primary_metrics(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        """Raise ``TypeError`` unless both are a tuple or list, ``ValueError`` for a name that is no metric."""
        known = self._every_metric
        for argument, names in (("include", include), ("exclude", exclude)):
            if not isinstance(names, (tuple, list)):
                raise TypeError(f"{argument} must be a tuple or list of names of metrics, got {type(names).__name__}")
            unknown = [name for name in names if name not in known and not _AT_K.fullmatch(str(name))]
            if unknown:
                raise ValueError(
                    f"{argument} must name metrics, one or more of {', '.join(known)}, precision_at_K, recall_at_K or cmc_at_K "
                    f"for a number K, got {', '.join(map(str, unknown))}"
                )

    def description(self) -> str:
        """What distinguishes this calculator's averages."""
        return "avg_of_avgs" if self.avg_of_avgs else ""

    def _any_of(self, names: Sequence[str]) -> bool:
        return any(name in names for name in self.curr_function_dict)

    # ---- a call

    def get_accuracy(
        self,
        query: Any,
        query_labels: Any,
        reference: Any = None,
        reference_labels: Any = None,
        ref_includes_query: bool = False,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The metrics of queries ``[N, D]`` and labels ``[N]`` against references ``[M, D]``, or against themselves.

        Tensors or arrays; embeddings are compared in float32. ``ref_includes_query`` says that the references begin with the
        queries, none of which then is its own neighbour. ``include`` and ``exclude`` choose among the calculator's metrics.

        Raises ``ValueError`` for lengths that differ, references that do not begin with the queries though they should, and
        embeddings that are not finite.
        """
        if reference is None:
            reference, reference_labels, ref_includes_query = query, query_labels, True
        rows = as_embeddings("query", query, self.device)
        ref_rows = rows if reference is query else as_embeddings("reference", reference, self.device)
        labels = as_labels(query_labels, self.device)
        ref_labels = labels if reference_labels is query_labels else as_labels(reference_labels, self.device)
        check_sets(rows, labels, ref_rows, ref_labels, ref_includes_query)
        self.check_primary_metrics(include, exclude)
        self.curr_function_dict = self.get_function_dict(include, exclude)
        kwargs: dict[str, Any] = {
            "query": rows,
            "reference": ref_rows,
            "query_labels": labels,
            "reference_labels": ref_labels,
            "ref_includes_query": ref_includes_query,
            "label_comparison_fn": self.label_comparison_fn,
        }
        if any(self._reads(name, _OF_NEIGHBORS + _OF_LABELS) for name in self.curr_function_dict):
            kwargs.update(self._rankings(**kwargs))
        if self._any_of(self.requires_clustering()):
            kwargs["cluster_labels"] = self.get_cluster_labels(**kwargs)
        return self._get_accuracy(self.curr_function_dict, **kwargs)

    def _get_accuracy(self, function_dict: dict[str, Metric], **kwargs: Any) -> dict[str, Any]:
        # A fold of the ranks says the same as labels of neighbours, which may be there for another metric's sake.
        from_ranks = {**kwargs, "knn_labels": None} if kwargs.get("retrieval") is not None else kwargs
        return {name: function(**(from_ranks if self._is_own(name) else kwargs)) for name, function in function_dict.items()}

    def determine_k(self, bin_counts: Tensor, num_reference_embeddings: int, ref_includes_query: bool) -> int:
        """How many neighbours of each query count."""
        own = int(ref_includes_query)
        largest = int(bin_counts.max()) if len(bin_counts) else own
        if self.k == "max_bin_count":
            return max(largest - own, 0)
        if self.k is None:
            return num_reference_embeddings - own
        assert isinstance(self.k, int)
        short = [name for name in ("r_precision", "mean_average_precision_at_r") if name in self.curr_function_dict]
        if self.k < largest - own and short:
            c_f.LOGGER.warning(
                "k=%d is less than R of the largest class, %d: %s will be too low. Set k='max_bin_count', or use "
                "mean_average_precision for MAP@%d.", self.k, largest - own, " and ".join(short), self.k,
            )  # fmt: skip
        return self.k

    def _rankings(
        self, query: Tensor, reference: Tensor, query_labels: Tensor, reference_labels: Tensor, ref_includes_query: bool,
        label_comparison_fn: Any,
    ) -> dict[str, Any]:  # fmt: skip
        """What the current metrics need to know of neighbours and ranks."""
        own = int(ref_includes_query)
        unique, counts = get_label_match_counts(query_labels, reference_labels, label_comparison_fn)
        if ref_includes_query:
            # R + 1 of every label, also of those that do not match themselves.
            counts = counts + 1 - matches_of_itself(unique, label_comparison_fn).to(counts.dtype)
        label_counts = unique, counts
        lone, not_lone = get_lone_query_labels(query_labels, label_counts, ref_includes_query, EQUALITY)
        num_k = min(self.determine_k(counts, len(reference), ref_includes_query), len(reference) - own)
        self._check_cutoffs(num_k if self.k is not None else None)
        if len(not_lone) and not bool(not_lone.any()):
            c_f.LOGGER.warning("None of the query labels are in the reference set.")
        found: dict[str, Any] = {
            "label_counts": label_counts, "lone_query_labels": lone, "not_lone_query_mask": not_lone, "num_k": num_k,
            "knn_labels": None, "knn_distances": None, "retrieval": None, "cutoffs": self._cutoffs(),
        }  # fmt: skip
        comparison = getattr(self.knn_func, "comparison", None)
        if isinstance(comparison, Comparison):
            found["retrieval"] = self._retrieval(
                comparison, query, reference, query_labels, reference_labels, bool(own), num_k, found["cutoffs"]
            )
        if not isinstance(comparison, Comparison) or any(self._reads(n, _OF_NEIGHBORS, True) for n in self.curr_function_dict):
            distances, indices = self.knn_func(query, num_k, reference, ref_includes_query)
            found["knn_distances"], found["knn_labels"] = distances, reference_labels[indices]
        return found

    def _retrieval(
        self, comparison: Comparison, query: Tensor, reference: Tensor, query_labels: Tensor, reference_labels: Tensor,
        itself: bool, limit: int, cutoffs: list[int],
    ) -> Retrieval:  # fmt: skip
        relation = None
        compare = self.label_comparison_fn
        if compare is not EQUALITY:

            def relation(first: int, last: int) -> Tensor:
                columns = reference_labels.unsqueeze(0).expand(last - first, *reference_labels.shape)
                same = compare(query_labels[first:last].unsqueeze(1), columns)
                if same.shape != columns.shape[:2]:
                    raise ValueError(
                        f"label_comparison_fn must return a tensor of shape {tuple(columns.shape[:2])}, got {tuple(same.shape)}"
                    )
                return same.bool()

        labels, ref_labels = class_numbers(query_labels, reference_labels)
        with torch.no_grad():
            rows, cols = comparison.rows(query, reference)
        return ops.retrieval(rows, cols, labels, ref_labels, comparison.score, itself, limit, cutoffs, relation)

    def _is_own(self, name: str) -> bool:
        """Whether a metric is this class's, and not a subclass's."""
        method = self.function_keyword + name
        if not hasattr(type(self), method):
            return isinstance(self.curr_function_dict.get(name), partial)
        return getattr(type(self), method) is getattr(AccuracyMetrics, method, None)

    def _reads(self, name: str, inputs: Sequence[str], of_subclasses: bool = False) -> bool:
        """Whether a metric asks for any of these; one that takes everything does where ``requires_knn`` names it."""
        if of_subclasses and self._is_own(name):
            return False
        parameters = inspect.signature(self.curr_function_dict[name]).parameters
        if any(given in parameters for given in inputs):
            return True
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return takes_all and name in self.requires_knn()

    def _cutoffs(self) -> list[int]:
        asked = [_AT_K.fullmatch(name) for name in self.curr_function_dict]
        return sorted({int(at[2]) for at in asked if at is not None and at[1] == "precision"})

    def _check_cutoffs(self, k: int | None) -> None:
        for name in self.curr_function_dict:
            at = _AT_K.fullmatch(name)
            if at is not None and k is not None and int(at[2]) > k and int(at[2]) > 1:
                raise ValueError(f"{name} needs {at[2]} neighbors, and k={self.k!r} leaves {k}; set k=None or a larger one")
