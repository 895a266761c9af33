"""DynamicSoftMarginLoss: its running histogram, and calls without labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from agreement_options import PEER
from ranking_cases import close, tuples
from torch import Tensor

from pml_fast import distances, losses


def soft_margins(**options: Any) -> tuple[Any, Any]:
    return losses.DynamicSoftMarginLoss(**options), PEER.losses.DynamicSoftMarginLoss(**options)


def test_the_running_histogram_equals_the_peers() -> None:
    """Over batches with labels, with tuples, with reference sets, and without labels (sets of different sizes, too)."""
    mine, theirs = soft_margins(momentum=0.2, num_bins=25)
    gen = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (14,), generator=gen)
    for k in range(4):
        x, y = (torch.randn(size, 5, generator=gen, dtype=torch.float64) for size in (14, 12 + k))
        # The histogram's range ends where the peer fails.
        near = x[: len(y)] + 0.5 * y[: len(x)] if len(y) <= len(x) else torch.cat([x, y[len(x) :]])
        calls = [
            (x, labels),
            (x, labels, tuples("pairs", labels, gen)),
            (x, labels, None, y, torch.randint(0, 5, (len(y),), generator=gen)),
            (x, None, None, near),
        ]
        for call in calls:
            close(mine(*call), theirs(*call), rtol=1e-10)
            close(mine.hist_, theirs.hist_, rtol=1e-9)


@pytest.mark.parametrize("sizes", [(9, 9), (9, 6), (6, 9)])
def test_without_labels_the_gradient_is_autograds_of_the_matrix(sizes: tuple[int, int]) -> None:
    """The peer's backward fails there: it writes into the matrix its distance needs."""
    gen = torch.Generator().manual_seed(3)
    x, y = (torch.randn(k, 4, generator=gen, dtype=torch.float64).requires_grad_() for k in sizes)
    with pytest.raises(RuntimeError, match="inplace"):
        PEER.losses.DynamicSoftMarginLoss()(x, ref_emb=y).backward()

    class Matrix(PEER.distances.LpDistance):  # type: ignore[misc, name-defined]
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return (query_emb.unsqueeze(1) - ref_emb).square().sum(dim=2).sqrt() * 1.0

    mine, theirs = (
        losses.DynamicSoftMarginLoss()(x, ref_emb=y),
        PEER.losses.DynamicSoftMarginLoss(distance=Matrix())(x, ref_emb=y),
    )
    close(mine, theirs)
    for a, b in zip(torch.autograd.grad(mine, (x, y)), torch.autograd.grad(theirs, (x, y)), strict=True):
        close(a, b)

    class Own(distances.LpDistance):
        def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
            return (query_emb.unsqueeze(1) - ref_emb).square().sum(dim=2).sqrt() * 1.0

    close(losses.DynamicSoftMarginLoss(distance=Own())(x, ref_emb=y), mine)


def test_a_second_step_has_its_gradient() -> None:
    """The histogram is a constant to later batches; the peer's second backward goes through the first batch and fails."""
    gen = torch.Generator().manual_seed(0)
    labels = torch.arange(12) // 3
    batches = [torch.randn(12, 4, generator=gen, dtype=torch.float64).requires_grad_() for _ in range(2)]
    mine, theirs = soft_margins(momentum=0.4)
    for module in (mine, theirs):
        module(batches[0], labels).backward()
    with pytest.raises(RuntimeError, match="second time"):
        theirs(batches[1].detach().clone().requires_grad_(), labels).backward()
    mine(batches[1], labels).backward()
    second, fresh = batches[1].grad, batches[1].detach().clone().requires_grad_()
    # The peer with its histogram cut off from the first batch.
    again = PEER.losses.DynamicSoftMarginLoss(momentum=0.4)
    again(batches[0].detach(), labels)
    again(fresh, labels).backward()
    close(second, fresh.grad)


def test_the_histogram_is_in_the_state_dict() -> None:
    x, labels = torch.randn(10, 4), torch.arange(10) // 2
    loss = losses.DynamicSoftMarginLoss(momentum=0.5)
    loss(x, labels)
    assert set(loss.state_dict()) == {"hist_"} and loss.hist_.sum() == pytest.approx(1)
    twin = losses.DynamicSoftMarginLoss(momentum=0.5)
    twin.load_state_dict(loss.state_dict())
    y = torch.randn(10, 4)
    assert torch.equal(twin(y, labels), loss(y, labels))
    assert torch.equal(twin.hist_, loss.hist_)


def test_batches_that_teach_nothing_leave_the_histogram() -> None:
    loss = losses.DynamicSoftMarginLoss()
    x, labels = torch.randn(8, 4), torch.arange(8) // 2
    loss(x, labels)
    before = loss.hist_.clone()
    assert loss(x, torch.arange(8)) == 0
    assert loss(x[:1], ref_emb=x[1:2]) == 0
    x[2, 1] = float("nan")
    assert loss(x, labels).isnan()
    assert torch.equal(loss.hist_, before)


def test_differences_beyond_the_histogram_count_in_its_last_bin() -> None:
    """Two pairs of equal rows at opposite ends: every difference is -2; with labels crossed it is 2, where the peer fails."""
    x = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64)
    loss = losses.DynamicSoftMarginLoss()
    assert loss(x, torch.tensor([0, 0, 1, 1])) == -2
    assert loss.hist_.tolist() == [1.0] + [0.0] * 9
    with pytest.raises((IndexError, RuntimeError)):
        PEER.losses.DynamicSoftMarginLoss()(x, torch.tensor([0, 1, 0, 1]))
    loss = losses.DynamicSoftMarginLoss()
    # Each anchor has one positive at 2, one negative at 0 and one at 2.
    assert loss(x, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(1.0)
    assert loss.hist_.tolist() == pytest.approx([0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0.5])
