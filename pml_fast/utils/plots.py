"""Pictures of training and embeddings: losses, maps, retrieval grids, similarities of positive and negative pairs, ROC curves.

Every function returns a matplotlib Figure and, with `path`, writes it; with `figure`, a Figure or SubFigure of the caller's, it
draws there. Embeddings are `[N, D]`, labels `[N]`, as tensors or arrays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .exact_search import ExactKNN
from .verification import as_array, verification_scores

__all__ = [
    "MapHook", "embedding_map", "loss_curve", "retrieval_grid", "roc_curve", "similarity_histogram", "verification_scores",
]  # fmt: skip

# The palette of Okabe and Ito, without black: told apart with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A900", "#7A5195")
_BLUE, _GREEN, _RED = PALETTE[0], PALETTE[2], PALETTE[5]
# A map names so many classes; more share one scale.
_NAMED = 20


def loss_curve(losses: Any, window: int = 15, path: Any = None, figure: Any = None) -> Any:
    """Losses step by step, faint, and their mean over `window` steps, which reaches as far to both sides.

    `losses` are numbers, or numbers by name, as `HookContainer.get_loss_history` returns.
    """
    named: Mapping[str, Any] = losses if isinstance(losses, Mapping) else {"loss": losses}
    figure, axes = _axes(figure, 1, 1, (7, 4))
    axis = axes[0][0]
    for k, (name, values) in enumerate(named.items()):
        colour, steps = PALETTE[k % len(PALETTE)], np.arange(1, len(values) + 1)
        axis.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        axis.plot(steps, _running_mean(np.asarray(values, dtype=float), window // 2), color=colour, linewidth=2.2, label=name)
    axis.set(xlabel="step", ylabel="loss")
    axis.grid(color="#E5E8EB", linewidth=0.8)
    axis.legend(frameon=False)
    return _finished(figure, path)


def embedding_map(
    embeddings: Any,
    labels: Any,
    method: str | Any = "pca",
    class_names: Sequence[str] | None = None,
    path: Any = None,
    title: str | None = None,
    seed: int = 0,
    figure: Any = None,
) -> Any:
    """A 2D map of the embeddings, a colour for each label.

    `method` is "pca" or "tsne" (scikit-learn), "umap" (umap-learn, which must be installed), or any object with
    `fit_transform(array) -> array [N, 2]`; `seed` is for the first three. `class_names[label]` is what the legend says.
    """
    rows = as_array(embeddings)
    points = np.asarray(_visualizer(method, len(rows), seed).fit_transform(rows))
    return _map(points, as_array(labels), class_names, _name(method) if title is None else title, path, figure)


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
        _map(np.asarray(embeddings), as_array(labels), self.class_names, title, path)


def retrieval_grid(
    images: Any,
    embeddings: Any,
    labels: Any,
    queries: Sequence[int],
    k: int = 5,
    ref: Any = None,
    path: Any = None,
    class_names: Sequence[str] | None = None,
    title: str | None = None,
    cmap: str = "gray",
    figure: Any = None,
) -> Any:
    """Each query image and its `k` nearest neighbours, with a green frame and a check mark where the label is the query's, a
    red frame and a cross where not.

    Images are `[N, H, W]`, `[N, 1, H, W]` (drawn with `cmap`) or `[N, 3, H, W]`, from 0 to 1. `ref` is
    `(images, embeddings, labels)` to search in; the other images where it is None. The figure says how many are right.
    """
    ref_images, ref_embeddings, ref_labels = (images, embeddings, labels) if ref is None else ref
    rows, own = torch.as_tensor(list(queries)), ref is None
    query, reference = torch.as_tensor(as_array(embeddings))[rows], torch.as_tensor(as_array(ref_embeddings))
    if not 0 < k <= len(reference) - own:
        raise ValueError(f"k must be from 1 to {len(reference) - own}, the number of images to find, got {k}")
    _, found = ExactKNN()(query, k + own, reference)
    labels, ref_labels = as_array(labels), as_array(ref_labels)
    figure, axes = _axes(figure, len(rows), k + 1, (1.1 * (k + 1), 1.2 * len(rows) + 0.3))
    right = 0
    for line, row, near in zip(axes, rows.tolist(), found.tolist()):
        _image(line[0], images[row], _BLUE, _class_name(labels[row], class_names), cmap)
        for axis, j in zip(line[1:], [j for j in near if not own or j != row][:k]):
            same = bool(ref_labels[j] == labels[row])
            right += same
            colour = _GREEN if same else _RED
            _image(axis, ref_images[j], colour, _class_name(ref_labels[j], class_names), cmap)
            _mark(axis, "\N{CHECK MARK}" if same else "\N{MULTIPLICATION SIGN}", colour)
    figure.suptitle(f"{'' if title is None else f'{title}: '}{right} of {k * len(rows)} right")
    return _finished(figure, path)


def similarity_histogram(
    embeddings: Any, labels: Any, bins: int = 60, path: Any = None, figure: Any = None, **pairs: Any
) -> Any:
    """The distribution of cosine similarities of pairs with one label and with two."""
    scores, matches = verification_scores(embeddings, labels, **pairs)
    figure, axes = _axes(figure, 1, 1, (6, 4))
    axis = axes[0][0]
    for same, colour, name in ((True, _GREEN, "positive pairs"), (False, _RED, "negative pairs")):
        axis.hist(scores[matches == same].numpy(), bins=bins, range=(-1, 1), density=True, alpha=0.5, color=colour, label=name)
    axis.set(xlabel="cosine similarity", ylabel="density")
    axis.legend()
    return _finished(figure, path)


def roc_curve(embeddings: Any, labels: Any, path: Any = None, figure: Any = None, **pairs: Any) -> Any:
    """The rates at which positive and negative pairs are taken for matches, over all thresholds (scikit-learn)."""
    try:
        from sklearn import metrics
    except ImportError as error:
        raise ImportError("roc_curve needs scikit-learn: pip install 'pml-fast[plots]'") from error
    scores, matches = verification_scores(embeddings, labels, **pairs)
    false_positive, true_positive, _ = metrics.roc_curve(matches.numpy(), scores.numpy())
    figure, axes = _axes(figure, 1, 1, (5, 5))
    axis = axes[0][0]
    axis.plot(false_positive, true_positive, label=f"area {metrics.auc(false_positive, true_positive):.4f}")
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axis.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    axis.legend(loc="lower right")
    return _finished(figure, path)


# Steps


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """The mean of each value and as many as `reach` on either side of it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    # Equal reach on both sides, so that the ends do not lag behind a falling curve.
    reaches = np.minimum(reach, np.minimum(at, at[::-1]))
    means: np.ndarray = (sums[at + reaches + 1] - sums[at - reaches]) / (2 * reaches + 1)
    return means


def _visualizer(method: Any, count: int, seed: int) -> Any:
    if not isinstance(method, str):
        return method
    if method in ("pca", "tsne"):
        try:
            from sklearn.decomposition import PCA
            from sklearn.manifold import TSNE
        except ImportError as error:
            raise ImportError(f'method="{method}" needs scikit-learn: pip install "pml-fast[plots]"') from error
        # A neighbourhood is at most a third of the rows.
        return PCA(2, random_state=seed) if method == "pca" else TSNE(perplexity=min(30, (count - 1) / 3), random_state=seed)
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError('method="umap" needs umap-learn: pip install "pml-fast[umap]", or use method="pca"') from error
        return UMAP(random_state=seed, n_jobs=1)  # a seed allows no more
    raise ValueError(f'method must be "pca", "tsne", "umap" or an object with fit_transform, got {method!r}')


def _name(method: Any) -> str:
    return {"tsne": "t-SNE"}.get(method, method.upper()) if isinstance(method, str) else type(method).__name__


def _class_name(label: Any, class_names: Sequence[str] | None) -> str:
    name = str(label) if class_names is None else class_names[int(label)]
    # No formulas: names are those of folders.
    return name.replace("$", r"\$")


def _map(
    points: np.ndarray, labels: np.ndarray, class_names: Sequence[str] | None, title: str, path: Any, figure: Any = None
) -> Any:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) != len(labels):
        raise ValueError(f"a map needs points [N, 2] and labels [N], got {points.shape} and {labels.shape}")
    figure, axes = _axes(figure, 1, 1, (6.5, 6))
    axis = axes[0][0]
    classes = np.unique(labels)
    if len(classes) <= _NAMED:
        for k, label in enumerate(classes):
            rows = points[labels == label]
            colour: Any = PALETTE[k] if len(classes) <= len(PALETTE) else f"C{k}" if len(classes) <= 10 else _of_twenty(k)
            axis.scatter(
                rows[:, 0], rows[:, 1], s=8, alpha=0.75, linewidths=0, color=colour, label=_class_name(label, class_names)
            )
        axis.legend(markerscale=2, fontsize="small")
    else:
        axis.scatter(points[:, 0], points[:, 1], s=4, c=np.searchsorted(classes, labels), cmap="hsv")
    axis.set(title=title, xticks=[], yticks=[])
    return _finished(figure, path)


def _of_twenty(k: int) -> Any:
    from matplotlib import colormaps

    return colormaps["tab20"](k)


def _axes(figure: Any, rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """The figure, a new one of this size if None, and its axes."""
    if figure is None:
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("plots need matplotlib: pip install 'pml-fast[plots]'") from error
        # Without pyplot: no window, no state shared with the caller's figures.
        figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _image(axis: Any, image: Any, colour: str, title: str, cmap: str) -> None:
    pixels = as_array(image)
    if pixels.ndim == 3:
        pixels = pixels[0] if pixels.shape[0] == 1 else pixels.transpose(1, 2, 0)
    axis.imshow(pixels, cmap=cmap, vmin=0, vmax=1)
    axis.set_title(title, fontsize="small", color=colour)
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.5)


def _mark(axis: Any, sign: str, colour: str) -> None:
    """A sign in the corner: colours alone do not tell everyone."""
    axis.text(
        0.97, 0.03, sign, transform=axis.transAxes, color="white", fontsize=8, fontweight="bold", fontfamily="DejaVu Sans",
        ha="right", va="bottom", bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
    )  # fmt: skip


def _finished(figure: Any, path: Any) -> Any:
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
