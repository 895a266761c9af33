"""Pairs by a comparison of labels other than equality."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pml_fast import losses, miners
from pml_fast.utils import loss_and_miner_utils as lmu


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intervals ``[..., 2]`` that meet."""
    return (a[..., 0] <= b[..., 1]) & (b[..., 0] <= a[..., 1])


def apart(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., 0] > b[..., 1] + 0.2) | (b[..., 0] > a[..., 1] + 0.2)


def intervals(n: int) -> Tensor:
    begin = torch.rand(n)
    return torch.stack([begin, begin + 0.3 * torch.rand(n)], dim=1)


def listed(mask: Tensor) -> set[tuple[int, int]]:
    return {(i, j) for i, j in mask.nonzero().tolist()}


def pairs(anchors: Tensor, others: Tensor) -> set[tuple[int, int]]:
    found = list(zip(anchors.tolist(), others.tolist(), strict=True))
    assert len(found) == len(set(found))
    return set(found)


@pytest.mark.parametrize("block", [1, 100, 1 << 26])
@pytest.mark.parametrize("negative", [None, apart])
def test_pairs_are_those_that_the_functions_name(negative, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmu, "COMPARISON_BLOCK", block)
    miner = miners.LabelComparisonMiner(overlap, negative, collect_stats=True)
    x, a, y, b = torch.randn(20, 4), intervals(20), torch.randn(31, 4), intervals(31)
    for data, other in (((x, a), a), ((x, a, y, b), b)):
        found = miner(*data)
        same = overlap(a[:, None], other[None])
        differ = ~same if negative is None else negative(a[:, None], other[None])
        if len(data) == 2:
            same.fill_diagonal_(False)
            differ.fill_diagonal_(False)
        assert pairs(*found[:2]) == listed(same)
        assert pairs(*found[2:]) == listed(differ)
        assert (miner.num_pos_pairs, miner.num_neg_pairs) == (int(same.sum()), int(differ.sum()))
        assert all(part.dtype == torch.int64 for part in found)


def test_equality_gives_what_a_loss_without_a_miner_has() -> None:
    x, labels = torch.randn(30, 8, dtype=torch.float64, requires_grad=True), torch.arange(30) % 6
    for loss in (losses.ContrastiveLoss(), losses.NTXentLoss(), losses.MultiSimilarityLoss(), losses.TripletMarginLoss()):
        found = miners.LabelComparisonMiner()(x, labels)
        values = loss(x, labels), loss(x, labels, found), loss(x, indices_tuple=found)
        grads = [torch.autograd.grad(value, x)[0] for value in values]
        for value, grad in zip(values[1:], grads[1:], strict=True):
            torch.testing.assert_close(value, values[0])
            torch.testing.assert_close(grad, grads[0])


def test_a_loss_of_overlapping_intervals_is_its_definition() -> None:
    x, labels = torch.randn(25, 6, dtype=torch.float64, requires_grad=True), intervals(25)
    found = miners.LabelComparisonMiner(overlap)(x, labels)
    value = losses.ContrastiveLoss(pos_margin=0.1, neg_margin=1.2)(x, indices_tuple=found)
    unit = x / x.norm(dim=1, keepdim=True)
    d = ((unit[:, None] - unit[None]).square().sum(dim=2) + torch.eye(25)).sqrt()
    same = overlap(labels[:, None], labels[None])
    pos, neg = (d - 0.1).relu()[same & ~torch.eye(25, dtype=torch.bool)], (1.2 - d).relu()[~same]
    want = pos[pos > 0].mean() + neg[neg > 0].mean()
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(torch.autograd.grad(value, x)[0], torch.autograd.grad(want, x)[0])


def test_a_memory_takes_it() -> None:
    """Close labels of a queue, whose own copies of the batch are no pairs."""
    torch.manual_seed(0)
    near = miners.LabelComparisonMiner(lambda a, b: (a - b).abs() <= 1)
    memory = losses.CrossBatchMemory(losses.ContrastiveLoss(), 6, 40, miner=near)
    for _ in range(3):
        x = torch.randn(16, 6, requires_grad=True)
        value = memory(x, torch.randint(0, 8, (16,)))
        value.backward()
        assert value.isfinite() and x.grad.isfinite().all() and x.grad.any()


REFUSED = [
    ({"positive": 3}, (torch.zeros(4),), TypeError, "positive must be a function"),
    ({"negative": "far"}, (torch.zeros(4),), TypeError, "negative must be a function"),
    ({}, ([0, 1, 2, 3],), TypeError, "labels must be a tensor"),
    ({}, (torch.zeros(5),), ValueError, "labels must have a label for each of the 4 rows"),
    ({}, (torch.zeros(4), torch.randn(3, 2)), TypeError, "ref_labels must be a tensor"),
    ({}, (torch.zeros(4), None, torch.zeros(3)), ValueError, "ref_labels were given without ref_emb"),
    ({}, (torch.zeros(4, 2),), ValueError, r"positive must give an answer for each pair, shape \(4, 4\)"),
    ({"positive": lambda a, b: a - b}, (torch.zeros(4),), TypeError, "positive must give a bool tensor, got torch.float32"),
    ({"negative": lambda a, b: None}, (torch.zeros(4),), TypeError, "negative must give a bool tensor, got NoneType"),
]


@pytest.mark.parametrize(("options", "data", "error", "match"), REFUSED)
def test_bad_input_is_named(options, data, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        miners.LabelComparisonMiner(**options)(torch.randn(4, 2), *data)
