"""Metrics of a retrieval of N embeddings among themselves: this library, PML with faiss on the CPU, and scikit-learn."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.inputs import Clusters
from benchmarks.probe import Setup
from benchmarks.workloads import Numbers, Work, Workload

PEERS = {"pml_fast/auto": "pml_fast", "pml": "pytorch_metric_learning"}
MAP_AT_R = "mean_average_precision_at_r"
RETRIEVAL = (MAP_AT_R, "mean_average_precision", "mean_reciprocal_rank", "precision_at_1", "r_precision")
CLUSTERING = ("AMI", "NMI")
KMEANS_ROUNDS = 20  # as PML's AccuracyCalculator has it
STRIP = 256
# A neighbour whose distance is within rounding of another's may stand before or after it.
TOLERANCE = 1e-5
SAME_AS_PML = 1e-6


def inputs_of(workload: Workload, setup: Setup) -> tuple[Tensor, Tensor]:
    """Rows of length 1 [N, D], as testers hand them on, and their labels [N]."""
    generator = torch.Generator().manual_seed(setup.seed)
    labels = (torch.arange(workload.size) // workload.per_class)[torch.randperm(workload.size, generator=generator)]
    rows = Clusters(int(labels.max()) + 1, workload.dim, generator).rows(labels)
    return torch.nn.functional.normalize(rows).to(setup.device), labels.to(setup.device)


def _limit_threads(setup: Setup) -> None:
    """Of faiss and scikit-learn, which know nothing of torch's setting."""
    importlib.import_module("threadpoolctl").threadpool_limits(setup.threads)


def calculated(include: tuple[str, ...], k: str | None, peer: str, workload: Workload, setup: Setup) -> Callable[[], Any]:
    """The AccuracyCalculator of a library, or scikit-learn's neighbours."""
    for package in ("sklearn.neighbors", "faiss"):
        importlib.import_module(package)
    _limit_threads(setup)
    rows, labels = inputs_of(workload, setup)
    if peer == "sklearn":
        return partial(_by_sklearn, include, k, rows.cpu().numpy(), labels.cpu().numpy())
    module = importlib.import_module(f"{PEERS[peer]}.utils.accuracy_calculator")
    calculator = module.AccuracyCalculator(include=include, k=k, device=torch.device(setup.device))
    return partial(calculator.get_accuracy, rows, labels)


def _by_sklearn(include: tuple[str, ...], k: str | None, rows: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Exact neighbours, as many as count, and the metrics of their labels."""
    neighbors = importlib.import_module("sklearn.neighbors").NearestNeighbors(algorithm="brute").fit(rows)
    relevant = np.bincount(labels)[labels] - 1
    found = neighbors.kneighbors(n_neighbors=len(rows) - 1 if k is None else int(relevant.max()), return_distance=False)
    matches = labels[found] == labels[:, None]
    places = np.arange(1, found.shape[1] + 1)
    precision = np.cumsum(matches, axis=1) / places
    within = matches & (places <= relevant[:, None])
    values = {
        MAP_AT_R: ((precision * within).sum(1) / relevant).mean(),
        "precision_at_1": matches[:, 0].mean(),
        "r_precision": (within.sum(1) / relevant).mean(),
    }
    if k is None:
        values["mean_average_precision"] = ((precision * matches).sum(1) / relevant).mean()
        values["mean_reciprocal_rank"] = (1 / (matches.argmax(1) + 1)).mean()
    return {name: float(values[name]) for name in include}


def as_numbers(found: Any, workload: Workload, setup: Setup) -> Numbers:
    return {name: float(value) for name, value in found.items()}


# ---- the truth ---------------------------------------------------------------------------------------------------------------


def retrieval_truth(workload: Workload, setup: Setup) -> Numbers:
    """All five metrics from the ranks of the positives, in float64 by strips of rows, independently of every peer."""
    rows, labels = (part.cpu() for part in inputs_of(workload, setup))
    wide = rows.double()
    norms = wide.square().sum(1)
    total = torch.zeros(len(RETRIEVAL), dtype=torch.float64)
    members = torch.argsort(labels, stable=True).view(-1, workload.per_class)
    place = torch.empty_like(labels)
    place[members] = torch.arange(len(members))[:, None]
    for first in range(0, len(wide), STRIP):
        own = torch.arange(first, min(first + STRIP, len(wide)))
        distances = norms - 2 * wide[own] @ wide.T
        distances[torch.arange(len(own)), own] = float("inf")
        of_class = members[place[own]]
        positives = of_class[of_class != own[:, None]].view(len(own), -1)
        closest = distances.gather(1, positives).sort(1).values
        ranks = torch.stack([(distances < closest[:, j : j + 1]).sum(1) for j in range(closest.shape[1])], dim=1) + 1.0
        total += _sums(ranks)
    return dict(zip(RETRIEVAL, (total / len(wide)).tolist()))


def _sums(ranks: Tensor) -> Tensor:
    """Of each metric over queries, from the ranks [n, R] of the relevant, in order."""
    relevant = ranks.shape[1]
    precision = torch.arange(1, relevant + 1) / ranks
    within = (ranks <= relevant).double()
    first = ranks[:, 0]
    each = ((precision * within).mean(1), precision.mean(1), 1 / first, (first == 1).double(), within.mean(1))
    return torch.stack([value.sum() for value in each])


def truth_with_clusters(workload: Workload, setup: Setup) -> Numbers:
    """With the clustering scores of faiss' k-means, called here."""
    _limit_threads(setup)
    rows, labels = (part.cpu().numpy() for part in inputs_of(workload, setup))
    kmeans = importlib.import_module("faiss").Kmeans(rows.shape[1], int(labels.max()) + 1, niter=KMEANS_ROUNDS)
    kmeans.train(rows)
    clusters = kmeans.index.search(rows, 1)[1].ravel()
    metrics = importlib.import_module("sklearn.metrics")
    scores = (metrics.adjusted_mutual_info_score(labels, clusters), metrics.normalized_mutual_info_score(labels, clusters))
    return {**retrieval_truth(workload, setup), **dict(zip(CLUSTERING, map(float, scores)))}


def _work(include: tuple[str, ...], k: str | None, peers: tuple[str, ...], truth: Any, about: str) -> Work:
    return Work(peers, partial(calculated, include, k), as_numbers, truth, about, TOLERANCE, SAME_AS_PML)


WORKS = {
    "map_at_r": _work((MAP_AT_R,), "max_bin_count", (*PEERS, "sklearn"), retrieval_truth, "ranks in float64"),
    "retrieval_metrics": _work(RETRIEVAL, None, (*PEERS, "sklearn"), retrieval_truth, "ranks in float64"),
    "all_metrics": _work((*RETRIEVAL, *CLUSTERING), None, tuple(PEERS), truth_with_clusters, "ranks in float64, faiss"),
}
