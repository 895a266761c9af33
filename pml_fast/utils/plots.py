"""Pictures of embeddings: maps, retrieval grids, similarities of positive and negative pairs, ROC curves.

Every function returns a matplotlib Figure and, with `path`, writes it. Embeddings are `[N, D]`, labels `[N]`, as tensors or
arrays.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .exact_search import ExactKNN

__all__ = ["MapHook", "embedding_map", "retrieval_grid", "roc_curve", "similarity_histogram", "verification_scores"]

_GREEN, _RED, _BLUE = "tab:green", "tab:red", "tab:blue"


def embedding_map(
    embeddings: Any, labels: Any, method: str | Any = "pca", class_names: Sequence[str] | None = None, path: Any = None
) -> Any:
    """A 2D map of the embeddings, a colour for each label.

    `method` is "pca" (scikit-learn), "umap" (umap-learn, which must be installed), or any object with
    `fit_transform(array) -> array [N, 2]`.
    """
    points = np.asarray(_visualizer(method).fit_transform(_array(embeddings)))
    return _map(points, _array(labels), class_names, _name(method), path)


class MapHook:
    """A tester's `visualizer_hook`: writes a map of each split and level to `<folder>/<split>_<key>_<epoch>.png`."""

    def __init__(self, folder: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> None:
        self.folder = os.fspath(folder)
        self.class_names = class_names

    def __call__(
        self, visualizer: Any, embeddings: Any, labels: Any, split_name: str, keyname: str, epoch: Any, *args: Any
    ) -> None:
        os.makedirs(self.folder, exist_ok=True)
        path = os.path.join(self.folder, f"{split_name}_{keyname}_{epoch}.png")
        title = f"{type(visualizer).__name__} of {split_name}, epoch {epoch}"
        _map(np.asarray(embeddings), _array(labels), self.class_names, title, path)


def retrieval_grid(
    images: Any, embeddings: Any, labels: Any, queries: Sequence[int], k: int = 5, ref: Any = None, path: Any = None
) -> Any:
    """Each query image and its `k` nearest neighbours, framed in green where the label is the query's, in red where not.

    Images are `[N, H, W]`, `[N, 1, H, W]` or `[N, 3, H, W]`, from 0 to 1. `ref` is `(images, embeddings, labels)` to search in;
    the other images where it is None.
    """
    ref_images, ref_embeddings, ref_labels = (images, embeddings, labels) if ref is None else ref
    rows, own = torch.as_tensor(list(queries)), ref is None
    query, reference = torch.as_tensor(_array(embeddings))[rows], torch.as_tensor(_array(ref_embeddings))
    if not 0 < k <= len(reference) - own:
        raise ValueError(f"k must be from 1 to {len(reference) - own}, the number of images to find, got {k}")
    _, found = ExactKNN()(query, k + own, reference)
    labels, ref_labels = _array(labels), _array(ref_labels)
    figure, axes = _figure(len(rows), k + 1, (1.1 * (k + 1), 1.2 * len(rows)))
    for line, row, near in zip(axes, rows.tolist(), found.tolist()):
        _image(line[0], images[row], _BLUE, f"{labels[row]}")
        for axis, j in zip(line[1:], [j for j in near if not own or j != row][:k]):
            _image(axis, ref_images[j], _GREEN if ref_labels[j] == labels[row] else _RED, f"{ref_labels[j]}")
    return _finished(figure, path)


def verification_scores(embeddings: Any, labels: Any, max_pairs: int = 1_000_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cosine similarities of random pairs of rows, and whether their labels match: as many of each kind as there are, up to
    `max_pairs` of each. No matrix of all pairs is held."""
    x = torch.nn.functional.normalize(torch.as_tensor(_array(embeddings)).float())
    y = torch.as_tensor(_array(labels))
    scores, matches = [], []
    for same in (True, False):
        i, j = _pairs(y, same, max_pairs, torch.Generator().manual_seed(seed))
        parts = [(x[a] * x[b]).sum(1) for a, b in zip(i.split(1 << 16), j.split(1 << 16))]
        scores.append(torch.cat(parts) if parts else x.new_zeros(0))
        matches.append(torch.full((len(i),), same))
    if min(map(len, scores)) == 0:
        raise ValueError("labels must have two rows that match and two that do not: there is no pair of one kind")
    return torch.cat(scores), torch.cat(matches)


def similarity_histogram(embeddings: Any, labels: Any, bins: int = 60, path: Any = None, **pairs: Any) -> Any:
    """The distribution of cosine similarities of pairs with one label and with two."""
    scores, matches = verification_scores(embeddings, labels, **pairs)
    figure, axes = _figure(1, 1, (6, 4))
    axis = axes[0][0]
    for same, colour, name in ((True, _GREEN, "positive pairs"), (False, _RED, "negative pairs")):
        axis.hist(scores[matches == same].numpy(), bins=bins, range=(-1, 1), density=True, alpha=0.5, color=colour, label=name)
    axis.set(xlabel="cosine similarity", ylabel="density")
    axis.legend()
    return _finished(figure, path)


def roc_curve(embeddings: Any, labels: Any, path: Any = None, **pairs: Any) -> Any:
    """The rates at which positive and negative pairs are taken for matches, over all thresholds (scikit-learn)."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ImportError("roc_curve needs scikit-learn: pip install 'pml-fast[plots]'") from error
    scores, matches = verification_scores(embeddings, labels, **pairs)
    false_positive, true_positive, _ = metrics.roc_curve(matches.numpy(), scores.numpy())
    figure, axes = _figure(1, 1, (5, 5))
    axis = axes[0][0]
    axis.plot(false_positive, true_positive, label=f"area {metrics.auc(false_positive, true_positive):.4f}")
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    axis.legend(loc="lower right")
    return _finished(figure, path)


# Steps


def _pairs(labels: Tensor, same: bool, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
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


def _visualizer(method: Any) -> Any:
    if not isinstance(method, str):
        return method
    if method == "pca":
        try:
            from sklearn.decomposition import PCA
        except ImportError as error:
            raise ImportError('method="pca" needs scikit-learn: pip install "pml-fast[plots]"') from error
        return PCA(2)
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError('method="umap" needs umap-learn: pip install umap-learn, or use method="pca"') from error
        return UMAP()
    raise ValueError(f'method must be "pca", "umap" or an object with fit_transform, got {method!r}')


def _name(method: Any) -> str:
    return method.upper() if isinstance(method, str) else type(method).__name__


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _map(points: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, title: str, path: Any) -> Any:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(labels):
        raise ValueError(f"a map needs points [N, 2] and labels [N], got {points.shape} and {labels.shape}")
    figure, axes = _figure(1, 1, (6.5, 6))
    axis = axes[0][0]
    classes = np.unique(labels)
    if len(classes) <= 20:
        for k, label in enumerate(classes):
            rows = points[labels == label]
            name = str(label) if class_names is None else class_names[int(label)]
            axis.scatter(rows[:, 0], rows[:, 1], s=6, color=f"C{k}" if len(classes) <= 10 else None, label=name)
        axis.legend(markerscale=2, fontsize="small")
    else:
        axis.scatter(points[:, 0], points[:, 1], s=4, c=np.searchsorted(classes, labels), cmap="hsv")
    axis.set(title=title, xticks=[], yticks=[])
    return _finished(figure, path)


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Without pyplot: no window, no state shared with the caller's figures."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pml-fast[plots]'") from error
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _image(axis: Any, image: Any, colour: str, title: str) -> None:
    pixels = _array(image)
    if pixels.ndim == 3:
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axis.set_title(title, fontsize="small", color=colour)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5)


def _finished(figure: Any, path: Any) -> Any:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
