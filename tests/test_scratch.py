"""Memory that a step on the compiled backend leaves to the next."""

import threading

import pytest
import torch

from pml_fast import _extension, losses
from pml_fast.engine.cpu import scratch
from pml_fast.engine.cpu.scratch import Scratch

FLOAT = torch.float32

compiled = pytest.mark.skipif(_extension.load() is None, reason="the extension is not built")


@pytest.fixture(autouse=True)
def nothing_held():
    scratch.release()
    yield
    scratch.release()


def test_a_block_is_lent_again_once_nobody_has_it():
    first = Scratch((100, 50), FLOAT)
    address = first.tensor.data_ptr()
    second = Scratch((100, 50), FLOAT)
    assert second.tensor.data_ptr() != address
    del first
    third = Scratch((10, 50), torch.float64)
    assert third.tensor.data_ptr() == address
    assert third.tensor.shape == (10, 50)
    assert third.tensor.dtype == torch.float64


def test_the_smallest_that_fits_is_taken():
    blocks = [Scratch((count,), FLOAT) for count in (400, 100, 200)]
    addresses = [block.tensor.data_ptr() for block in blocks]
    blocks.clear()
    assert Scratch((150,), FLOAT).tensor.data_ptr() == addresses[2]


def test_no_more_is_held_than_the_bound():
    quarter = scratch.HELD_BYTES // 4
    blocks = [Scratch((quarter,), torch.uint8) for _ in range(6)]
    blocks.clear()
    assert len(scratch._held.blocks) == 4


def test_steps_that_grow_let_small_blocks_go():
    quarter = scratch.HELD_BYTES // 4
    blocks = [Scratch((quarter,), torch.uint8) for _ in range(4)]
    blocks.clear()
    Scratch((2 * quarter,), torch.uint8)
    Scratch((2 * quarter,), torch.uint8)
    assert sorted(map(len, scratch._held.blocks))[-1] == 2 * quarter


def test_each_thread_has_its_own():
    mine = Scratch((100,), FLOAT)
    address = mine.tensor.data_ptr()
    del mine
    found = []
    thread = threading.Thread(target=lambda: found.append(Scratch((100,), FLOAT).tensor.data_ptr()))
    thread.start()
    thread.join()
    assert found[0] != address
    assert len(scratch._held.blocks) == 1


@compiled
def test_memory_of_inference_mode_is_not_handed_on():
    """What was made there refuses to be written to elsewhere."""
    x, labels = torch.randn(1000, 32), torch.arange(1000) // 4
    with torch.inference_mode():
        inside = losses.ContrastiveLoss()(x, labels)
    assert not scratch._held.blocks
    torch.testing.assert_close(losses.ContrastiveLoss()(x, labels), inside, rtol=0, atol=0)


@compiled
def test_a_step_uses_what_the_step_before_left():
    x, labels = torch.randn(1500, 32, requires_grad=True), torch.arange(1500) // 4
    losses.CircleLoss()(x, labels).backward()
    before = {block.data_ptr() for block in scratch._held.blocks}
    losses.CircleLoss()(x, labels).backward()
    assert before == {block.data_ptr() for block in scratch._held.blocks} != set()
