"""Retrieval metrics of an embedding by cosine similarity, as the library's tester measures them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pml_fast import testers
from pml_fast.utils.accuracy_calculator import AccuracyCalculator
from pml_fast.utils.inference import ExactKNN

_NAMES = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
_BATCH_SIZE = 512


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the queries, each in [0, 1]; queries alone in their class are not counted."""

    precision_at_1: float
    r_precision: float
    map_at_r: float
    queries: int


def retrieval_metrics(embeddings: Tensor, labels: Tensor) -> RetrievalMetrics:
    """Precision@1, R-precision and MAP@R of every item searched among all the others by cosine similarity.

    With R the number of other items of the query's class and P(i) the precision among its i nearest:
    R-precision = P(R), and MAP@R = (1 / R) * sum over i <= R of P(i) * [the i-th nearest is of its class]
    (Musgrave, Belongie and Lim, "A Metric Learning Reality Check", 2020).

    embeddings [N, D] floating point; labels [N] integers.
    Raises ValueError for shapes that do not match, values that are not finite, or no class with two items.
    """
    _check(embeddings, labels)
    _, which, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    queries = int((sizes[which] > 1).sum())
    if queries == 0:
        raise ValueError("labels must hold a class with at least two items, else there is nothing to retrieve")
    tester = testers.GlobalEmbeddingSpaceTester(
        batch_size=_BATCH_SIZE,
        dataloader_num_workers=0,
        data_device=embeddings.device,
        accuracy_calculator=AccuracyCalculator(include=_NAMES, knn_func=ExactKNN("cosine"), device=embeddings.device),
    )
    found = tester.test({"test": TensorDataset(embeddings, labels)}, 0, nn.Identity())["test"]
    precision_at_1, r_precision, map_at_r = (float(found[tester.accuracies_keyname(name)]) for name in _NAMES)
    return RetrievalMetrics(precision_at_1, r_precision, map_at_r, queries)


def _check(embeddings: Tensor, labels: Tensor) -> None:
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be a floating-point tensor [N, D], got {embeddings.dtype} {list(embeddings.shape)}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels must have one entry an embedding, [{len(embeddings)}], got {list(labels.shape)}")
    if not bool(torch.isfinite(embeddings).all()):
        raise ValueError("embeddings must be finite, got NaN or infinity; lower the learning rate?")
