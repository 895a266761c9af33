"""Pairs of rows whose labels match or do not, as verification compares them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .conversions import to_numpy


def verification_scores(embeddings: Any, labels: Any, max_pairs: int = 1_000_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cosine similarities of random pairs of rows, and whether their labels match: as many of each kind as there are, up to
    `max_pairs` of each. No matrix of all pairs is held."""
    x = torch.nn.functional.normalize(torch.as_tensor(as_array(embeddings)).float())
    y = torch.as_tensor(as_array(labels))
    scores, matches = [], []
    for same in (True, False):
        i, j = random_pairs(y, same, max_pairs, torch.Generator().manual_seed(seed))
        parts = [(x[a] * x[b]).sum(1) for a, b in zip(i.split(1 << 16), j.split(1 << 16))]
        scores.append(torch.cat(parts) if parts else x.new_zeros(0))
        matches.append(torch.full((len(i),), same))
    if min(map(len, scores)) == 0:
        raise ValueError("labels must have two rows that match and two that do not: there is no pair of one kind")
    return torch.cat(scores), torch.cat(matches)


def random_pairs(labels: Tensor, same: bool, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distinct random pairs i < j whose labels match, or do not: all of them where they are at most `count`."""
    n = len(labels)
    if n * (n - 1) // 2 <= 4 * count:
        i, j = torch.triu_indices(n, n, 1)
        kept = (labels[i] == labels[j]) == same
        i, j = i[kept], j[kept]
        chosen = torch.randperm(len(i), generator=generator)[:count]
        return i[chosen], j[chosen]
    order = torch.argsort(labels, stable=True)
    ordered = labels[order]
    first = torch.searchsorted(ordered, ordered)
    size = torch.searchsorted(ordered, ordered, right=True) - first
    others = (size - 1) if same else (n - size)
    weights = others.double()
    if weights.sum() == 0:
        return order[:0], order[:0]
    # A row by its number of partners, then one of these.
    ends = weights.cumsum(0)
    a = torch.searchsorted(ends, torch.rand(2 * count, generator=generator, dtype=torch.float64) * ends[-1], right=True)
    a = a.clamp(max=n - 1)
    step = (torch.rand(2 * count, generator=generator, dtype=torch.float64) * weights[a]).long().clamp(max=n - 1)
    if same:
        b = first[a] + (a - first[a] + 1 + step) % size[a]
    else:
        b = (first[a] + size[a] + step) % n
    keys = torch.unique(torch.minimum(a, b) * n + torch.maximum(a, b))
    keys = keys[torch.randperm(len(keys), generator=generator)[:count]]
    return order[keys // n], order[keys % n]


def as_array(values: Any) -> np.ndarray:
    """A tensor or anything like an array as an array."""
    return np.asarray(to_numpy(values))
