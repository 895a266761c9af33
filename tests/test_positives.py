"""The list of all positive pairs, compiled and in torch."""

from __future__ import annotations

import pytest
import torch

from pml_fast import _extension
from pml_fast.engine import positives

CASES = {
    "classes of four": (torch.arange(24) // 4, None),
    "mixed": (torch.tensor([3, -1, 3, 7, -1, 3, 10**12]), None),
    "one class": (torch.full((5,), 2), None),
    "no two alike": (torch.arange(6), None),
    "one row": (torch.tensor([4]), None),
    "none": (torch.empty(0, dtype=torch.int64), None),
    "two sets": (torch.tensor([1, 2, 1, 9]), torch.tensor([2, 1, 1, 5, 2])),
    "strided": (torch.arange(20)[::2] % 3, torch.arange(30)[::3] % 4),
    "no column": (torch.tensor([1, 2]), torch.empty(0, dtype=torch.int64)),
    "other types": (torch.tensor([1, 2, 1], dtype=torch.int32), torch.tensor([2, 1, 1], dtype=torch.int32)),
}


@pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=pytest.mark.skipif(_extension.load() is None, reason="the extension is not built"))],
)
@pytest.mark.parametrize("case", CASES)
def test_the_pairs_are_those_of_the_label_matrix(case: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, others = CASES[case]
    itself = others is None
    ref_labels = labels if others is None else others
    if not compiled:
        monkeypatch.setattr(positives, "compiled_reads", lambda *_: False)
    anchor, positive, different = positives.positive_pairs(labels, ref_labels, itself)
    same = labels[:, None] == ref_labels
    wanted = same & ~torch.eye(len(labels), dtype=torch.bool) if itself else same
    assert torch.equal(torch.stack([anchor, positive], dim=1), wanted.nonzero())
    assert torch.equal(different, (~same).sum(dim=1))
    assert anchor.dtype == positive.dtype == torch.int64
