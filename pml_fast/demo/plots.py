"""The demo's figures, by the library's own plots: before and after training, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from pml_fast.demo.data import Split
from pml_fast.utils import plots

_MAX_POINTS = 1500
_MIN_POINTS_OF_TSNE = 10
_MAX_QUERIES = 6
_NEIGHBOURS = 6
_MAX_NAME = 14


def loss_curve(history: list[float], path: Path) -> Path:
    """The loss of every step."""
    plots.loss_curve({"multi-similarity loss": history}, path=path)
    return path


def embedding_maps(before: Tensor, after: Tensor, split: Split, captions: tuple[str, str], seed: int, path: Path) -> Path:
    """t-SNE maps of the classes of split before and after training; so few images that they have no neighbourhoods by PCA."""
    kept = _sample(len(split.labels), _MAX_POINTS, seed)
    method = "tsne" if len(kept) >= _MIN_POINTS_OF_TSNE else "pca"
    figure, halves = _halves(11.0, 5.6)
    for half, embeddings, caption in zip(halves, (before, after), captions, strict=True):
        plots.embedding_map(embeddings[kept], split.labels[kept], method, _names(split), title=caption, seed=seed, figure=half)
    return _save(figure, "Classes never seen in training, mapped to a plane", path)


def neighbour_grid(before: Tensor, after: Tensor, split: Split, seed: int, path: Path) -> Path:
    """Random queries, one a class, with their nearest neighbours before and after training."""
    queries, names = _queries(split.labels, seed), _names(split)
    k = min(_NEIGHBOURS, len(split.labels) - 1)
    figure, halves = _halves(0.95 * 2 * (k + 1), 1.05 * len(queries) + 1.2)
    for half, embeddings, title in zip(halves, (before, after), ("before training", "after training"), strict=True):
        plots.retrieval_grid(
            split.images, embeddings, split.labels, queries, k, class_names=names, title=title, cmap="gray_r", figure=half
        )
    return _save(figure, "Nearest neighbours of random queries from unseen classes", path)


def similarities(embeddings: Tensor, split: Split, seed: int, path: Path) -> Path:
    """Cosine similarities of pairs of one class and of pairs of two."""
    plots.similarity_histogram(embeddings, split.labels, seed=seed, path=path)
    return path


def _halves(width: float, height: float) -> tuple[Figure, Any]:
    # Without pyplot: it draws without a display and leaves pyplot's global state alone.
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subfigures(1, 2)


def _save(figure: Figure, title: str, path: Path) -> Path:
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.savefig(path, dpi=150)
    return path


def _names(split: Split) -> list[str]:
    return [name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}" for name in split.class_names]


def _queries(labels: Tensor, seed: int) -> list[int]:
    """One random item of each of the first classes."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique()[:_MAX_QUERIES]:
        members = (labels == label).nonzero().flatten()
        chosen.append(int(members[torch.randint(len(members), (), generator=generator)]))
    return chosen


def _sample(count: int, most: int, seed: int) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values
