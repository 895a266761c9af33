"""TuplesToWeightsSampler: draws what a miner names, as often as it does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning import miners as peer_miners
from pytorch_metric_learning import samplers as peer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pml_fast import miners
from pml_fast.samplers import TuplesToWeightsSampler

ROWS, LABELS = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 6
DATA = TensorDataset(ROWS, LABELS)
QUICK: dict[str, Any] = {"dataloader_num_workers": 0, "batch_size": 16}


def sampler(miner: Any = None, **arguments: Any) -> TuplesToWeightsSampler:
    return TuplesToWeightsSampler(nn.Identity(), miner or miners.BatchHardMiner(), DATA, **{"seed": 3, **QUICK, **arguments})


@pytest.mark.parametrize("name", ["BatchHardMiner", "MultiSimilarityMiner", "TripletMarginMiner", "PairMarginMiner"])
def test_weights_are_the_peers(name: str) -> None:
    ours, theirs = sampler(getattr(miners, name)()), None
    theirs = peer.TuplesToWeightsSampler(nn.Identity(), getattr(peer_miners, name)(), DATA, **QUICK)
    assert ours.weights is None
    assert len(ours) == len(theirs) == len(list(ours)) == len(list(theirs)) == 60
    torch.testing.assert_close(ours.weights, theirs.weights)


def test_samples_come_as_often_as_they_are_named() -> None:
    drawn = sampler(subset_size=20_000)
    counts = np.bincount(list(drawn), minlength=60)
    assert drawn.weights is not None
    share = (drawn.weights / drawn.weights.sum()).numpy()
    assert not counts[share == 0].any()
    assert (abs(counts - 20_000 * share) <= 5 * np.sqrt(20_000 * share) + 1e-9).all()


def test_a_subset_is_all_that_is_drawn() -> None:
    part = sampler(subset_size=10)
    first, second = list(part), list(part)
    assert len(part) == len(first) == 10
    assert part.weights is not None and 0 < int((part.weights > 0).sum()) <= 10
    assert set(second) <= set(torch.nonzero(part.weights).flatten().tolist())
    assert set(first) != set(second)


def test_everything_is_as_likely_where_nothing_is_mined() -> None:
    nothing = sampler(lambda *_: (torch.empty(0, dtype=torch.int64),) * 3)
    list(nothing)
    assert torch.equal(nothing.weights, torch.ones(60))


def test_the_order_is_that_of_seed_and_epoch() -> None:
    drawn = sampler()
    epochs = [list(drawn) for _ in range(2)]
    assert epochs[0] != epochs[1]
    drawn.set_epoch(0)
    assert list(drawn) == epochs[0] == list(sampler()) != list(sampler(seed=4))
    assert [len(batch) for batch in sampler().batched(16, drop_last=True)] == [16, 16, 16]


def test_an_epoch_is_taken_up_in_the_middle() -> None:
    first = sampler()
    drawn = iter(first)
    begun = [next(drawn) for _ in range(7)]
    later = sampler(seed=9)
    later.load_state_dict(first.state_dict())
    assert begun + list(later) == list(sampler())


@pytest.mark.parametrize("position", [None, 0])
def test_an_epoch_taken_up_has_the_weights_it_began_with(position: int | None) -> None:
    """Training has changed the model since; the next epoch is embedded by it as it is."""

    def begun_with(weight: float) -> tuple[nn.Linear, TuplesToWeightsSampler]:
        model = nn.Linear(5, 5, bias=False)
        nn.init.eye_(model.weight)
        model.weight.data[0, 0] = weight
        return model, TuplesToWeightsSampler(model, miners.BatchHardMiner(), DATA, seed=3, **QUICK)

    model, first = begun_with(1.0)
    drawn = iter(first)
    begun = [next(drawn) for _ in range(7)]
    model.weight.data[0, 0] = 50.0
    state = first.state_dict(position)
    rest = list(drawn)
    _, later = begun_with(50.0)
    later.load_state_dict(state)
    later.set_epoch(0)
    assert list(later) == (rest if position is None else begun + rest)
    assert list(later) == list(first)
    wrong = {**state, "weights": torch.ones(7)}
    with pytest.raises(ValueError, match=r"weights of shape \(60,\)"):
        later.load_state_dict(wrong)


def test_weights_follow_the_model_and_it_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout())
    model.train()
    model[1].eval()
    before = model[1].running_mean.clone()
    drawn = TuplesToWeightsSampler(model, miners.BatchHardMiner(), DATA, seed=0, **QUICK)
    list(drawn)
    assert drawn.weights is not None
    old = drawn.weights
    assert [module.training for module in model] == [True, False, True]
    assert torch.equal(model[1].running_mean, before)
    nn.init.normal_(model[0].weight)
    list(drawn)
    assert not torch.equal(drawn.weights, old)


def test_labels_of_a_level() -> None:
    both = TensorDataset(ROWS, torch.stack([torch.zeros_like(LABELS), LABELS], dim=1))
    drawn = TuplesToWeightsSampler(nn.Identity(), miners.BatchHardMiner(), both, seed=3, label_hierarchy_level=1, **QUICK)
    assert list(drawn) == list(sampler())


def test_a_loader_takes_it() -> None:
    batches = list(DataLoader(DATA, batch_size=20, sampler=sampler()))
    assert [len(labels) for _, labels in batches] == [20, 20, 20]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"subset_size": 0}, "subset_size must be a positive int"),
        ({"subset_size": 1.5}, "subset_size must be a positive int"),
        ({"label_hierarchy_level": "all"}, "label_hierarchy_level must be one column"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(**arguments)
    with pytest.raises(ValueError, match="dataset must hold at least one"):
        TuplesToWeightsSampler(nn.Identity(), None, [])
