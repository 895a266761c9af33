"""The demo's figures: the loss, maps of the unseen classes, nearest neighbours as images, similarities of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from pml_fast.demo.data import Split
from pml_fast.demo.metrics import nearest_neighbours
from pml_fast.utils.plots import similarity_histogram

# The palette of Okabe and Ito, without black: told apart with any kind of colour vision.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A900", "#7A5195")
_RIGHT, _WRONG, _INK, _FAINT = "#009E73", "#D55E00", "#222222", "#9AA5B1"
_DPI = 150
_MAX_POINTS = 1500
_MAX_QUERIES = 6
_MAX_NAMED = 32
_NEIGHBOURS = 6
_GAP = 0.35


def loss_curve(history: list[float], path: Path) -> Path:
    """The loss of every step, and its running mean; the axis spans the values, as the loss has no useful zero."""
    figure, (axes,) = _figure(1, 7.0, 4.0)
    steps = np.arange(1, len(history) + 1)
    axes.plot(steps, history, color=_FAINT, linewidth=0.8, label="each step")
    axes.plot(steps, _running_mean(history), color=PALETTE[0], linewidth=2.2, label="running mean")
    axes.set(xlabel="training step", ylabel="multi-similarity loss", title="Loss on the training classes")
    axes.set_xlim(1, max(2, len(history)))
    axes.grid(color="#E5E8EB", linewidth=0.8)
    axes.legend(frameon=False)
    return _save(figure, path)


def embedding_maps(before: Tensor, after: Tensor, split: Split, captions: tuple[str, str], seed: int, path: Path) -> Path:
    """t-SNE maps of the classes of split, embedded before and after training, one colour a class."""
    kept = _sample(len(split.labels), _MAX_POINTS, seed)
    figure, panels = _figure(2, 11.0, 5.6)
    for axes, embeddings, caption in zip(panels, (before, after), captions, strict=True):
        _scatter(axes, _flatten(embeddings[kept], seed), split.labels[kept].numpy(), split.class_names)
        axes.set_title(caption, fontsize=11)
    figure.suptitle("Classes never seen in training, mapped to a plane by t-SNE", fontsize=13, fontweight="bold")
    return _save(figure, path)


def neighbour_grid(before: Tensor, after: Tensor, split: Split, seed: int, path: Path) -> Path:
    """Random queries, one a class, with their nearest neighbours before and after training, marked right or wrong."""
    queries = _queries(split.labels, seed)
    ranked = [nearest_neighbours(embeddings, queries, _NEIGHBOURS) for embeddings in (before, after)]
    shown = ranked[0].shape[1]
    figure = Figure(figsize=(0.82 * (2 * shown + 2.6), 0.86 * len(queries) + 1.0), layout="constrained")
    figure.suptitle("Nearest neighbours of random queries from unseen classes", fontsize=13, fontweight="bold")
    widths = [1.0, _GAP, *[1.0] * shown, _GAP, *[1.0] * shown]
    grid = figure.add_gridspec(len(queries), len(widths), width_ratios=widths)
    for row, query in enumerate(queries.tolist()):
        cell = figure.add_subplot(grid[row, 0])
        _image(cell, split.images[query], _INK)
        if row == 0:
            _caption(cell, "query")
        name = _short(split.class_names[int(split.labels[query])])
        cell.set_ylabel(name, fontsize=10, rotation=0, ha="right", va="center")
    for side, title in enumerate(("before training", "after training")):
        right = split.labels[ranked[side]] == split.labels[queries, None]
        for row, column in np.ndindex(*right.shape):
            cell = figure.add_subplot(grid[row, 2 + side * (shown + 1) + column])
            _marked(cell, split.images[ranked[side][row, column]], bool(right[row, column]))
            if row == column == 0:
                _caption(cell, f"{title}: {int(right.sum())} of {right.numel()} right")
    return _save(figure, path)


def similarities(embeddings: Tensor, split: Split, seed: int, path: Path) -> Path:
    """Cosine similarities of pairs of one class and of pairs of two."""
    similarity_histogram(embeddings, split.labels, seed=seed, path=path)
    return path


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, panels, index + 1) for index in range(panels)]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    # The Agg canvas draws without a display and leaves pyplot's global state alone.
    FigureCanvasAgg(figure).print_figure(str(path), dpi=_DPI, facecolor="white")
    return path


def _running_mean(values: list[float], reach: int = 7) -> np.ndarray:
    """The mean of each value and as many as reach on either side of it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    # Equal reach on both sides, so that the ends do not lag behind a falling curve.
    reaches = np.minimum(reach, np.minimum(at, at[::-1]))
    return (sums[at + reaches + 1] - sums[at - reaches]) / (2 * reaches + 1)


def _flatten(embeddings: Tensor, seed: int) -> np.ndarray:
    """Embeddings [N, D] as points [N, 2]; so few that t-SNE has no neighbourhoods are projected by PCA."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    points = embeddings.double().numpy()
    if len(points) < 10:
        return np.asarray(PCA(n_components=2, random_state=seed).fit_transform(points))
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed)
    return np.asarray(tsne.fit_transform(points))


def _scatter(axes: Axes, points: np.ndarray, labels: np.ndarray, names: tuple[str, ...]) -> None:
    for label in np.unique(labels):
        own = points[labels == label]
        colour = PALETTE[label % len(PALETTE)]
        axes.scatter(own[:, 0], own[:, 1], s=14, color=colour, alpha=0.75, linewidths=0)
        if len(names) <= _MAX_NAMED:
            # The member nearest the median lies inside the cluster even where the median does not.
            centre = own[np.abs(own - np.median(own, axis=0)).sum(1).argmin()]
            outline: list[Any] = [withStroke(linewidth=3.5, foreground="white")]
            axes.text(
                centre[0], centre[1], _short(names[label]), color=colour, fontsize=14, fontweight="bold",
                ha="center", va="center", path_effects=outline,
            )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color("#CCD2D8")


def _queries(labels: Tensor, seed: int) -> Tensor:
    """One random item of each of the first classes: indices [Q]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique()[:_MAX_QUERIES]:
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randint(len(members), (1,), generator=generator)])
    return torch.cat(chosen)


def _sample(count: int, most: int, seed: int) -> Tensor:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:most].sort().values


def _marked(axes: Axes, image: Tensor, right: bool) -> None:
    colour = _RIGHT if right else _WRONG
    _image(axes, image, colour)
    axes.text(
        0.97, 0.03, "\N{CHECK MARK}" if right else "\N{MULTIPLICATION SIGN}", transform=axes.transAxes, color="white",
        fontsize=8, fontweight="bold", fontfamily="DejaVu Sans", ha="right", va="bottom",
        bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
    )  # fmt: skip


def _image(axes: Axes, image: Tensor, colour: str) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    grey = pixels.shape[2] == 1
    axes.imshow(pixels[:, :, 0] if grey else pixels, cmap="gray_r" if grey else None, vmin=0, vmax=1)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color(colour)
    axes.spines[:].set_linewidth(2.5)


def _caption(axes: Axes, text: str) -> None:
    """Text above the axes, reserving a line of height but no width: it may run on over the neighbours."""
    axes.set_title(" ", fontsize=10)
    axes.text(0, 1.06, text, transform=axes.transAxes, fontsize=10, va="bottom").set_in_layout(False)


def _short(name: str, most: int = 14) -> str:
    return name if len(name) <= most else name[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"
