"""What all samplers share: seeds, epochs, resuming, batches, and the ranks' shares of a batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from pml_fast.samplers import Batches, DistributedBatchSampler, FixedSetOfTriplets, HierarchicalSampler, MPerClassSampler

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 5))
LEVELS = np.stack([LABELS, LABELS // 3], axis=1)
MAKERS: dict[str, Callable[..., Any]] = {
    "MPerClassSampler": lambda **k: MPerClassSampler(LABELS, 2, 8, 80, **k),
    "MPerClassSampler batched": lambda **k: MPerClassSampler(LABELS, 2, 8, 80, **k).batched(),
    "HierarchicalSampler": lambda **k: HierarchicalSampler(LEVELS, 8, 2, 2, **k),
    "FixedSetOfTriplets": lambda **k: FixedSetOfTriplets(LABELS, 20, **k),
    "FixedSetOfTriplets batched": lambda **k: FixedSetOfTriplets(LABELS, 20, **k).batched(9),
}
BATCHED = [name for name in MAKERS if "batched" in name or name == "HierarchicalSampler"]


@pytest.mark.parametrize("name", MAKERS)
def test_the_order_depends_on_seed_and_epoch_alone(name: str) -> None:
    make = MAKERS[name]
    first, second = make(seed=7), make(seed=7)
    epochs = [list(first) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert all(len(epoch) == len(first) for epoch in epochs)
    for epoch in (2, 0):
        second.set_epoch(epoch)
        assert list(second) == epochs[epoch]
    assert list(make(seed=8)) != epochs[0]
    with pytest.raises(ValueError, match="epoch"):
        second.set_epoch(-1)


@pytest.mark.parametrize("name", MAKERS)
def test_global_generators_are_left_alone_and_the_default_seed_is_torchs(name: str) -> None:
    state = torch.get_rng_state()
    try:
        orders = []
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
            orders.append(list(MAKERS[name]()))
            assert torch.equal(before[0], torch.get_rng_state())
            assert np.array_equal(before[1], np.random.get_state()[1])
            assert before[2] == random.getstate()
    finally:
        torch.set_rng_state(state)
    assert orders[0] == orders[2] != orders[1]


@pytest.mark.parametrize("stop", [0, 1, 3, None])
@pytest.mark.parametrize("name", MAKERS)
def test_a_run_is_taken_up_where_it_stopped(name: str, stop: int | None) -> None:
    sampler = MAKERS[name](seed=3)
    list(sampler)
    if stop is not None:
        taken = iter(sampler)
        given = list(islice(taken, stop))
        rest = [*taken, *sampler]
        again = MAKERS[name](seed=3)
        list(again)
        assert list(islice(iter(again), stop)) == given
        state = again.state_dict()
    else:
        state, rest = sampler.state_dict(), list(sampler)
    resumed = MAKERS[name](seed=99)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    got = list(resumed)
    if stop is not None:
        got += list(resumed)
    assert got == rest


@pytest.mark.parametrize("name", MAKERS)
def test_setting_the_epoch_of_a_loaded_state_keeps_its_position(name: str) -> None:
    sampler = MAKERS[name](seed=3)
    whole = list(sampler)
    sampler.set_epoch(0)
    next(iter(sampler))
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    sampler.set_epoch(0)
    assert list(sampler) == whole[1:]
    sampler.load_state_dict(state)
    sampler.set_epoch(1)
    sampler.set_epoch(0)
    assert list(sampler) == whole


def test_the_position_that_was_used_may_be_said() -> None:
    """A loader with workers has drawn more than has been used."""
    data = TensorDataset(torch.arange(len(LABELS)))
    batches = MPerClassSampler(LABELS, 2, 8, 160, seed=3).batched()
    whole = list(MPerClassSampler(LABELS, 2, 8, 160, seed=3).batched())
    loader = iter(DataLoader(data, batch_sampler=batches, num_workers=1))
    used = [next(loader)[0].tolist() for _ in range(4)]
    assert used == whole[:4]
    assert batches.state_dict()["position"] > 4 * 8
    batches.load_state_dict(batches.state_dict(position=4))
    assert list(batches) == whole[4:]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "change", [{"position": 10**6}, {"position": -1}, {"epoch": -1}, {"seed": None}, {"epoch": "1"}], ids=str
)
def test_states_of_something_else_are_refused(name: str, change: dict[str, Any]) -> None:
    sampler = MAKERS[name](seed=3)
    before = sampler.state_dict()
    with pytest.raises(ValueError, match="state_dict"):
        sampler.load_state_dict({**before, **change})
    assert sampler.state_dict() == before


# ---- batches -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [1, 7, 9, 60, 100])
def test_batches_hold_what_the_sampler_gives(size: int, drop_last: bool) -> None:
    batches = FixedSetOfTriplets(LABELS, 20, seed=1).batched(size, drop_last)
    flat = list(FixedSetOfTriplets(LABELS, 20, seed=1))
    want = list(BatchSampler(flat, size, drop_last))
    assert list(batches) == want
    assert len(batches) == len(want)


def test_the_batch_size_is_the_samplers_own_unless_said() -> None:
    assert {len(batch) for batch in MPerClassSampler(LABELS, 2, 8, 80).batched()} == {8}
    assert {len(batch) for batch in MPerClassSampler(LABELS, 2, 8, 80).batched(16)} == {16}
    with pytest.raises(ValueError, match="batch_size"):
        MPerClassSampler(LABELS, 2).batched()
    with pytest.raises(ValueError, match="batch_size"):
        Batches(FixedSetOfTriplets(LABELS, 20), 0)


@pytest.mark.parametrize("name", BATCHED)
def test_batches_feed_a_data_loader(name: str) -> None:
    data = TensorDataset(torch.arange(len(LABELS)))
    want = list(MAKERS[name](seed=2))
    assert [x.tolist() for (x,) in DataLoader(data, batch_sampler=MAKERS[name](seed=2))] == want


# ---- ranks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("name", [*BATCHED, "MPerClassSampler"])
def test_the_ranks_parts_are_the_batch(name: str, ranks: int) -> None:
    whole = MAKERS[name](seed=2)
    whole = whole.batched() if name == "MPerClassSampler" else whole
    parts = [DistributedBatchSampler(MAKERS[name](seed=2), ranks, rank) for rank in range(ranks)]
    for epoch in range(2):
        for part in parts:
            part.set_epoch(epoch)
        want = list(whole)
        for batch, *shares in zip(want, *parts, strict=True):
            assert [i for share in shares for i in share] == batch
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= 1
    assert all(len(part) == len(want) for part in parts)


def test_groups_of_a_class_stay_on_one_rank() -> None:
    for rank in range(2):
        for batch in DistributedBatchSampler(MPerClassSampler(LABELS, 2, 8, 80), 2, rank):
            assert all(LABELS[a] == LABELS[b] for a, b in zip(batch[::2], batch[1::2]))


def test_a_share_is_taken_up_where_it_stopped() -> None:
    whole = list(DistributedBatchSampler(MPerClassSampler(LABELS, 2, 8, 80, seed=1), 2, 1))
    share = DistributedBatchSampler(MPerClassSampler(LABELS, 2, 8, 80, seed=1), 2, 1)
    list(islice(iter(share), 4))
    resumed = DistributedBatchSampler(MPerClassSampler(LABELS, 2, 8, 80), 2, 1)
    resumed.load_state_dict(share.state_dict())
    assert list(resumed) == whole[4:]
    resumed.load_state_dict(share.state_dict(position=2))
    assert list(resumed) == whole[2:]


def test_any_batch_sampler_can_be_shared() -> None:
    torch_batches = BatchSampler(range(20), 6, drop_last=False)
    shares = [list(DistributedBatchSampler(torch_batches, 2, rank)) for rank in range(2)]
    assert [a + b for a, b in zip(*shares)] == list(torch_batches)


def test_bad_shares_are_refused() -> None:
    batches = BatchSampler(RandomSampler(range(7)), 3, drop_last=False)
    with pytest.raises(ValueError, match="belong together"):
        DistributedBatchSampler(batches, num_replicas=2)
    with pytest.raises(ValueError, match="rank must be from 0 to"):
        DistributedBatchSampler(batches, 2, 2)
    with pytest.raises(RuntimeError, match="process group"):
        DistributedBatchSampler(batches)
    with pytest.raises(ValueError, match="a batch of 1 indices cannot be shared by 2 ranks"):
        list(DistributedBatchSampler(batches, 2, 0))
