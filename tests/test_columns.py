"""Columns that follow the tiles of a sweep: no second copy of a queue, and the same results."""

from typing import Any

import pytest
import torch

import pml_fast.engine.ops  # noqa: F401  (defines the operators)
from pml_fast import _extension, distances, losses, miners
from pml_fast.engine.cpu import columns, small
from pml_fast.engine.cpu import rows as cpu_rows
from pml_fast.engine.cpu.layout import class_layout, positives_first

pytestmark = pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")

LOSSES = {
    "contrastive": lambda: losses.ContrastiveLoss(1, 0, distance=distances.CosineSimilarity()),
    "ntxent": losses.NTXentLoss,
    "multi_similarity": losses.MultiSimilarityLoss,
    "circle": losses.CircleLoss,
    "fast_softmax": lambda: losses.SupConLoss(temperature=0.05),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "LARGEST", 0)
    monkeypatch.setattr(cpu_rows, "TILE_COLUMNS", 96)
    monkeypatch.setattr(cpu_rows, "TILE_BYTES", 96 * 64 * 4)


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The ranges of columns that were gathered."""
    ranges: list[tuple[int, int]] = []
    block = columns.StreamedColumns.block

    def noted(self: Any, first: int, last: int) -> torch.Tensor:
        if self._place != (first, last):
            ranges.append((first, last))
        return block(self, first, last)

    monkeypatch.setattr(columns.StreamedColumns, "block", noted)
    return ranges


def sets(n: int = 150, m: int = 900, d: int = 24) -> tuple[torch.Tensor, ...]:
    """Some rows have no column of their class, most columns no row of theirs."""
    gen = torch.Generator().manual_seed(4)
    x, y = (torch.randn(count, d, generator=gen) for count in (n, m))
    return x, torch.randint(0, 60, (n,), generator=gen), y, torch.randint(10, 400, (m,), generator=gen)


def test_positives_come_first_and_are_the_same() -> None:
    _, labels, _, ref_labels = sets()
    before = class_layout(labels, ref_labels, False)
    after, count = positives_first(before)
    assert 0 < count < len(ref_labels)
    assert sorted(after.col_order.tolist()) == list(range(len(ref_labels)))
    assert torch.isin(ref_labels, labels).sum() == count
    for i in range(len(labels)):
        own, other = (layout.col_order[layout.start[i] : layout.end[i]] for layout in (before, after))
        assert torch.equal(own, other)
        assert (ref_labels[own] == labels[before.row_order[i]]).all()
        assert after.end[i] <= count
    for j in range(len(ref_labels)):
        rows = after.row_order[after.col_start[j] : after.col_end[j]]
        assert len(rows) == (labels == ref_labels[after.col_order[j]]).sum()
    rest = after.col_order[count:]
    assert torch.equal(rest, rest.sort()[0])


@pytest.mark.parametrize("mined", [False, True], ids=["all", "mined"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_results_are_those_of_a_copy(
    name: str, mined: bool, gathered: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, labels, y, ref_labels = sets()
    loss, miner = LOSSES[name](), miners.MultiSimilarityMiner() if mined else None
    found = []
    for many in (0, 1 << 20):
        monkeypatch.setattr(columns, "MANY_NUMBERS", many)
        rows = x.clone().requires_grad_()
        indices = None if miner is None else miner(rows, labels, y, ref_labels)
        value = loss(rows, labels, indices, y, ref_labels)
        (grad,) = torch.autograd.grad(value, rows)
        found.append((value, grad))
        assert bool(gathered) == (many == 0)
        gathered.clear()
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_each_range_is_gathered_once_a_sweep(gathered: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    """However many strips of rows there are."""
    monkeypatch.setattr(columns, "MANY_NUMBERS", 0)
    x, labels, y, ref_labels = sets()
    LOSSES["contrastive"]()(x.requires_grad_(), labels, None, y, ref_labels)
    assert len(gathered) == len(set(gathered)) == -(-len(y) // 96)


def test_columns_with_a_gradient_have_a_copy(gathered: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MANY_NUMBERS", 0)
    x, labels, y, ref_labels = sets()
    LOSSES["contrastive"]()(x, labels, None, y.requires_grad_(), ref_labels).backward()
    assert not gathered
    assert y.grad is not None
