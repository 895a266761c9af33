"""Pairs of label sets: the compiled search against the one in torch, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, use
from pml_fast.engine import label_sets
from pml_fast.engine.cpu import label_sets as compiled
from pml_fast.engine.label_sets import AlikePairs, alike_pairs

pytestmark = pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")


def masks(n: int, classes: int, share: float) -> Tensor:
    """Sets of all sizes, one of them empty, the last a copy of the first."""
    sets = torch.rand(n, classes) < share
    sets[n // 2] = False
    sets[-1] = sets[0]
    return sets


CASES: dict[str, Callable[[], Tensor]] = {
    "few rows": lambda: masks(5, 3, 0.4),
    "several tasks": lambda: masks(300, 71, 0.05),
    "few classes": lambda: masks(90, 2, 0.5),
    "mostly empty": lambda: masks(70, 40, 0.01),
    "all equal": lambda: torch.ones(40, 9, dtype=torch.bool),
    "all empty": lambda: torch.zeros(40, 9, dtype=torch.bool),
    "no classes": lambda: torch.zeros(7, 0, dtype=torch.bool),
    "one row": lambda: masks(1, 4, 0.5),
    "no rows": lambda: torch.zeros(0, 4, dtype=torch.bool),
    "not contiguous": lambda: masks(33, 20, 0.2).T.contiguous().T,
}


def same(got: AlikePairs | None, want: AlikePairs | None) -> None:
    assert got is not None and want is not None
    assert got.weight.dtype == want.weight.dtype
    for mine, theirs in zip((got.row, got.column, got.weight), (want.row, want.column, want.weight), strict=True):
        assert torch.equal(mine, theirs)


def both_ways(sets: Tensor, others: Tensor, threshold: float, dtype: torch.dtype) -> tuple[AlikePairs | None, ...]:
    itself = others is sets
    assert compiled.applies(sets, others)
    mine = alike_pairs(sets, others, threshold, itself, dtype)
    with use(backend="chunked"):
        assert not compiled.applies(sets, others)
        return mine, alike_pairs(sets, others, threshold, itself, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 1 / 3, 0.5, 2 / 3, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_pairs_and_weights_are_those_of_torch(name: str, threshold: float, dtype: torch.dtype) -> None:
    sets = CASES[name]()
    same(*both_ways(sets, sets, threshold, dtype))
    for others in (
        sets.clone(),
        sets[: len(sets) // 3],
        sets.new_zeros(0, sets.shape[1]),
        torch.cat([sets, sets.flip(0), sets.roll(1, 1)]),
    ):
        same(*both_ways(sets, others, threshold, dtype))


@pytest.mark.parametrize("itself", [True, False])
def test_threads_change_nothing(itself: bool) -> None:
    sets = masks(700, 90, 0.03)
    others = sets if itself else masks(333, 90, 0.03)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(alike_pairs(sets, others, 0.3, itself, torch.float32))
    finally:
        torch.set_num_threads(before)
    same(*found)
    assert found[0] is not None and len(found[0].row) > 0


def test_a_list_that_is_too_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same number of shared labels on, with or without the compiled search."""
    sets = masks(50, 10, 0.2)
    full = label_sets.with_empty_sets(sets).long()
    shared = int((full @ full.T).sum())
    monkeypatch.setattr(label_sets, "LISTED_A_ROW", 0)
    monkeypatch.setattr(label_sets, "LISTED", shared)
    same(*both_ways(sets, sets, 0.5, torch.float64))
    monkeypatch.setattr(label_sets, "LISTED", shared - 1)
    assert both_ways(sets, sets, 0.5, torch.float64) == (None, None)
