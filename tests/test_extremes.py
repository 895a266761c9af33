"""A row's extreme score on the compiled backend: over tiles, over chosen columns, with ties and with what is no number."""

from dataclasses import replace

import pytest
import torch

import pml_fast
import pml_fast.engine.ops
from pml_fast import _extension
from pml_fast.engine.cpu import columns as cpu_columns
from pml_fast.engine.cpu import rows as cpu_rows
from pml_fast.engine.score import Score

pytestmark = pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")

SCORES = {"cosine": Score("dot", normalize=True, inverted=True), "l2": Score("l2", normalize=False)}


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(cpu_rows, "TILE_COLUMNS", 96)
    monkeypatch.setattr(cpu_rows, "TILE_BYTES", 96 * 64 * 4)


def search(x, y, x_labels, y_labels, score, itself, positive, largest, low=None, high=None, backend="cpu"):
    with pml_fast.use(backend=backend):
        return torch.ops.pml_fast.row_extremes(x, y, x_labels, y_labels, low, high, score.encode(), itself, positive, largest)


def sets(kind, n=150, m=1000, classes=60):
    generator = torch.Generator().manual_seed(2)
    y = torch.randn(m, 24, generator=generator)
    y_labels = torch.randint(0, 4 * classes, (m,), generator=generator)
    if kind == "other":
        return torch.randn(n, 24, generator=generator), y, torch.randint(0, classes, (n,), generator=generator), y_labels, False
    # The batch itself, or a larger set that begins with it.
    return (y, y, y_labels, y_labels, True) if kind == "batch" else (y[:n], y, y_labels[:n], y_labels, True)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("positive", [True, False])
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("kind", ["other", "larger", "batch"])
@pytest.mark.parametrize("bounded", [False, True])
def test_it_is_the_extreme(kind, score, positive, largest, bounded, small_tiles, monkeypatch):
    monkeypatch.setattr(cpu_columns, "MANY_NUMBERS", 0)
    x, y, x_labels, y_labels, itself = sets(kind)
    sc = replace(SCORES[score], symmetric=kind != "larger")
    bounds = (None, None)
    if bounded:
        middle = 0.0 if score == "cosine" else 6.5
        bounds = torch.full((len(x),), middle - 0.3), torch.full((len(x),), middle + 0.3)
    value, index = search(x, y, x_labels, y_labels, sc, itself, positive, largest, *bounds)
    expected, other = search(x, y, x_labels, y_labels, sc, itself, positive, largest, *bounds, backend="chunked")
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(index < 0, other < 0)
    assert (index >= 0).any()
    there = index >= 0
    assert ((y_labels[index] == x_labels) == positive)[there].all()
    if itself:
        assert (index != torch.arange(len(x)))[there].all()
    rows, cols = (torch.nn.functional.normalize(part) if score == "cosine" else part for part in (x, y))
    own = (rows * cols[index]).sum(dim=1) if score == "cosine" else (rows - cols[index]).norm(dim=1)
    torch.testing.assert_close(own[there], value[there], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("itself", [False, True])
def test_of_equal_scores_the_first_wins(itself, small_tiles):
    """Twins, the same to the bit, in other tiles, in another block of a tile and in the same one."""
    y = torch.randn(1000, 24, generator=torch.Generator().manual_seed(2)).abs()
    y[[15, 420, 425, 980]] = 50.0
    labels = torch.arange(1000)
    x = y if itself else y[:150] + 1
    x_labels = labels if itself else labels[:150] + 2000
    _, index = search(x, y, x_labels, labels, Score("dot", normalize=False, inverted=True), itself, False, True)
    others = torch.ones(len(x), dtype=torch.bool)
    if itself:
        others[15] = False  # its own pair is none
        assert index[15] == 420
    assert (index[others] == 15).all()


@pytest.mark.parametrize("place", [3, 700])
def test_a_score_that_is_no_number_is_found(place, small_tiles):
    """Wherever it stands: a loss of it must not look finite."""
    x, y, x_labels, y_labels, _ = sets("other")
    y = y.clone()
    y[place] = float("nan")
    y_labels[place] = -1
    value, index = search(x, y, x_labels, y_labels, Score("dot", normalize=False, inverted=True), False, False, True)
    assert value.isnan().all()
    assert (index == place).all()
