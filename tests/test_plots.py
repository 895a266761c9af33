"""Plots of scikit-learn's digits show what they say: the numbers in the figures are checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pml_fast import testers
from pml_fast.utils import plots, verification


def digits(n: int = 200) -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy((bunch.data[:n] / 16).astype(np.float32)), torch.from_numpy(bunch.target[:n])


def is_picture(path: Path) -> bool:
    from PIL import Image

    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    return pixels.std() > 5


@pytest.mark.parametrize("method", ["pca", "object"])
def test_a_map_has_every_row_under_its_label(method: str, tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    x, labels = digits()
    names = [f"digit {k}" for k in range(10)]
    figure = plots.embedding_map(x, labels, PCA(2) if method == "object" else method, names, tmp_path / "map.png")
    expected = PCA(2).fit_transform(x.numpy())
    (axis,) = figure.axes
    assert [c.get_label() for c in axis.collections] == names
    for k, collection in enumerate(axis.collections):
        np.testing.assert_allclose(np.abs(collection.get_offsets()), np.abs(expected[labels == k]), atol=1e-3)
    assert is_picture(tmp_path / "map.png")


@pytest.mark.parametrize("classes", [3, 9, 17])
def test_every_class_that_is_named_has_a_colour_of_its_own(classes: int) -> None:
    x, _ = digits(100)
    (axis,) = plots.embedding_map(x, torch.arange(100) % classes).axes
    assert len({tuple(c.get_facecolor()[0]) for c in axis.collections}) == classes


@pytest.mark.parametrize(("method", "name"), [("tsne", "t-SNE"), ("umap", "UMAP")])
def test_a_map_by_neighbourhoods_keeps_classes_together_and_repeats(method: str, name: str) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    x, labels = digits(120)
    maps = [plots.embedding_map(x, labels, method, seed=3) for _ in range(2)]
    points = [np.concatenate([c.get_offsets() for c in figure.axes[0].collections]) for figure in maps]
    np.testing.assert_array_equal(*points)
    ordered = torch.cat([labels[labels == k] for k in range(10)])
    nearest = torch.cdist(torch.tensor(points[0]), torch.tensor(points[0])).fill_diagonal_(torch.inf).argmin(1)
    assert (ordered[nearest] == ordered).float().mean() > 0.8 and maps[0].axes[0].get_title() == name


def test_losses_are_drawn_with_their_running_mean(tmp_path: Path) -> None:
    values = [5.0, 1.0, 3.0, 4.0, 0.0]
    figure = plots.loss_curve({"metric_loss": values, "total_loss": values}, window=3, path=tmp_path / "loss.png")
    lines = figure.axes[0].get_lines()
    np.testing.assert_allclose(lines[0].get_ydata(), values)
    np.testing.assert_allclose(lines[1].get_ydata(), [5, 3, 8 / 3, 7 / 3, 0])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["metric_loss", "total_loss"]
    assert is_picture(tmp_path / "loss.png")


def test_plots_share_a_figure_of_the_callers(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    x, labels = digits(40)
    whole = Figure(layout="constrained")
    parts = whole.subfigures(1, 4)
    plots.loss_curve([1.0, 2.0], figure=parts[0])
    plots.embedding_map(x, labels, figure=parts[1])
    plots.retrieval_grid(x.view(-1, 8, 8), x, labels, [0], k=2, figure=parts[2])
    plots.similarity_histogram(x, labels, figure=parts[3])
    assert [len(part.axes) for part in parts] == [1, 1, 3, 1]
    whole.savefig(tmp_path / "whole.png")


def test_many_classes_share_one_scale() -> None:
    x, _ = digits()
    (axis,) = plots.embedding_map(x, torch.arange(200) // 4).axes
    assert len(axis.collections) == 1 and axis.get_legend() is None


def test_a_testers_maps_are_files(tmp_path: Path) -> None:
    from sklearn.decomposition import PCA

    tester = testers.GlobalEmbeddingSpaceTester(
        visualizer=PCA(2), visualizer_hook=plots.MapHook(tmp_path / "maps"), dataloader_num_workers=0
    )
    tester.test({"val": TensorDataset(*digits(60))}, 3, torch.nn.Identity())
    assert is_picture(tmp_path / "maps" / "val_PCA_level0_3.png")


@pytest.mark.parametrize("reference", [False, True])
def test_a_retrieval_grid_has_the_nearest_first(reference: bool, tmp_path: Path) -> None:
    x, labels = digits()
    images = x.view(-1, 1, 8, 8)
    if reference:
        ref: Any = (images[50:], x[50:], labels[50:])
        near = torch.cdist(x[:2].double(), x[50:].double()).argsort(1)[:, :4] + 50
    else:
        ref = None
        distances = torch.cdist(x[:2].double(), x.double())
        distances[[0, 1], [0, 1]] = torch.inf
        near = distances.argsort(1)[:, :4]
    figure = plots.retrieval_grid(images, x, labels, [0, 1], k=4, ref=ref, path=tmp_path / "grid.png")
    shown = [axis.get_images()[0].get_array() for axis in figure.axes]
    for q in range(2):
        for column, row in enumerate([q, *near[q].tolist()]):
            np.testing.assert_array_equal(shown[5 * q + column], images[row, 0])
            spine = figure.axes[5 * q + column].spines["left"].get_edgecolor()
            green = spine[1] > spine[0]
            assert column == 0 or green == bool(labels[row] == labels[q])
            marks = [text.get_text() for text in figure.axes[5 * q + column].texts]
            assert marks == ([] if column == 0 else ["\N{CHECK MARK}" if green else "\N{MULTIPLICATION SIGN}"])
    right = int((labels[near] == labels[:2, None]).sum())
    assert figure.get_suptitle() == f"{right} of 8 right"
    assert is_picture(tmp_path / "grid.png")
    with pytest.raises(ValueError, match="k must be from 1 to"):
        plots.retrieval_grid(images, x, labels, [0], k=200)


def test_all_pairs_are_scored_where_they_are_few() -> None:
    x, labels = digits(60)
    scores, matches = plots.verification_scores(x, labels)
    i, j = torch.triu_indices(60, 60, 1)
    expected = torch.nn.functional.cosine_similarity(x[i], x[j])
    for same in (True, False):
        wanted = expected[(labels[i] == labels[j]) == same]
        torch.testing.assert_close(scores[matches == same].sort().values, wanted.sort().values, atol=1e-5, rtol=0)


def test_a_sample_of_many_pairs_is_distinct_fair_and_of_its_kind() -> None:
    """Pairs of 300 rows in classes of very different sizes: every pair of a kind is about as likely."""
    labels = torch.cat([torch.zeros(150), torch.ones(100), torch.arange(2, 52)]).long()[torch.randperm(300)]
    for same in (True, False):
        i, j = verification.random_pairs(labels, same, 4000, torch.Generator().manual_seed(0))
        assert len(i) == 4000 and ((labels[i] == labels[j]) == same).all() and (i != j).all()
        assert len(set(zip(torch.minimum(i, j).tolist(), torch.maximum(i, j).tolist()))) == 4000
        if same:
            share = float((labels[i] == 0).float().mean())
            assert share == pytest.approx(150 * 149 / (150 * 149 + 100 * 99), abs=0.04)


def test_histograms_are_those_of_the_pairs(tmp_path: Path) -> None:
    x, labels = digits()
    figure = plots.similarity_histogram(x, labels, bins=20, path=tmp_path / "histogram.png")
    (axis,) = figure.axes
    heights = np.array([patch.get_height() for patch in axis.patches]).reshape(2, 20)
    np.testing.assert_allclose(heights.sum(1) * 0.1, 1.0, rtol=1e-6)
    middles = np.linspace(-0.95, 0.95, 20)
    assert (heights[0] * middles).sum() > (heights[1] * middles).sum() and is_picture(tmp_path / "histogram.png")


def test_the_area_is_scikit_learns(tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    x, labels = digits()
    figure = plots.roc_curve(x, labels, path=tmp_path / "roc.png")
    scores, matches = plots.verification_scores(x, labels)
    (text,) = figure.axes[0].get_legend().get_texts()
    assert text.get_text() == f"area {roc_auc_score(matches.numpy(), scores.numpy()):.4f}"
    assert is_picture(tmp_path / "roc.png")


def test_what_is_refused() -> None:
    x, labels = digits(20)
    with pytest.raises(ValueError, match='method must be "pca", "tsne", "umap"'):
        plots.embedding_map(x, labels, "som")
    with pytest.raises(ValueError, match="no pair of one kind"):
        plots.roc_curve(x, torch.zeros(20))
    with pytest.raises(ValueError, match=r"points \[N, 2\]"):
        plots.MapHook(".")(None, np.zeros((20, 3)), labels, "val", "x", 1)
