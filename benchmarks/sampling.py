"""The samplers: making one of N labels, and drawing an epoch from it. What is drawn is held to what a sampler promises."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from benchmarks.probe import Setup
from benchmarks.workloads import Numbers, Work, Workload

PEERS = {"pml_fast/auto": "pml_fast", "pml": "pytorch_metric_learning"}
BATCH, PER_CLASS_DRAWN, SUPER_CLASSES = 128, 4, 12
# Of a million samples a subset is embedded and mined, all of it at once.
MINED = 10_000
# Every number says how much of an epoch breaks a promise.
SHARE = "share of the epoch that breaks a promise"
LENGTH = "items too many or too few"
ABOUT = "what it promises"


def labels_of(workload: Workload, setup: Setup) -> np.ndarray:
    """Classes in random order; with a super class as second column."""
    order = np.random.default_rng(setup.seed).permutation(workload.size)
    inner = (np.arange(workload.size) // workload.per_class)[order]
    return np.stack([inner, inner % SUPER_CLASSES], axis=1)


def _made(name: str, peer: str, setup: Setup, *arguments: Any, **named: Any) -> Callable[[], Any]:
    """Makes the sampler of a library: this library's has a seed, PML's draws from NumPy's own generator."""
    cls = getattr(importlib.import_module(f"{PEERS[peer]}.samplers"), name)
    if peer == "pml":
        np.random.seed(setup.seed)
        torch.manual_seed(setup.seed)
    else:
        named["seed"] = setup.seed
    return partial(cls, *arguments, **named)


def m_per_class(peer: str, workload: Workload, setup: Setup) -> Callable[[], Any]:
    labels = labels_of(workload, setup)[:, 0]
    return _made("MPerClassSampler", peer, setup, labels, PER_CLASS_DRAWN, BATCH, workload.size)


def hierarchical(peer: str, workload: Workload, setup: Setup) -> Callable[[], Any]:
    return _made(
        "HierarchicalSampler", peer, setup, labels_of(workload, setup), BATCH, PER_CLASS_DRAWN, _batches_a_pair(workload)
    )


def fixed_set_of_triplets(peer: str, workload: Workload, setup: Setup) -> Callable[[], Any]:
    return _made("FixedSetOfTriplets", peer, setup, labels_of(workload, setup)[:, 0], _triplets(workload))


def tuples_to_weights(peer: str, workload: Workload, setup: Setup) -> Callable[[], Any]:
    labels = torch.from_numpy(labels_of(workload, setup)[:, 0])
    rows = torch.randn(workload.size, workload.dim, generator=torch.Generator().manual_seed(setup.seed))
    miner = importlib.import_module(f"{PEERS[peer]}.miners").BatchHardMiner()
    return _made(
        "TuplesToWeightsSampler", peer, setup, torch.nn.Identity(), miner, TensorDataset(rows, labels), _mined(workload),
        dataloader_num_workers=0, batch_size=1024,
    )  # fmt: skip


def _batches_a_pair(workload: Workload) -> int:
    """So many that an epoch has about as many items as there are labels."""
    return max(1, workload.size // BATCH // (SUPER_CLASSES * (SUPER_CLASSES - 1) // 2))


def _triplets(workload: Workload) -> int:
    return max(1, workload.size // workload.per_class)


def _mined(workload: Workload) -> int | None:
    return MINED if workload.size > MINED else None


# ---- what an epoch must be ---------------------------------------------------------------------------------------------------


def broken_m_per_class(items: list[Any], workload: Workload, setup: Setup) -> Numbers:
    """Groups of a class's different samples, and batches of different classes."""
    labels = labels_of(workload, setup)[:, 0]
    groups = np.asarray(items).reshape(-1, PER_CLASS_DRAWN)
    of_groups = labels[groups]
    classes = of_groups[:, 0].reshape(-1, BATCH // PER_CLASS_DRAWN)
    broken = (of_groups != of_groups[:, :1]).any(1).mean() + _repeats(groups) + _repeats(classes)
    return {SHARE: float(broken), LENGTH: len(items) - workload.size // BATCH * BATCH}


def broken_hierarchical(items: list[Any], workload: Workload, setup: Setup) -> Numbers:
    """Batches of two super classes, and in it of different samples, so many of a class."""
    labels = labels_of(workload, setup)
    batches = np.asarray(items)
    inner, outer = np.sort(labels[batches, 0]), np.sort(labels[batches, 1])
    groups = inner.reshape(len(batches), -1, PER_CLASS_DRAWN)
    broken = (groups != groups[..., :1]).any((1, 2)).mean() + ((np.diff(outer) != 0).sum(1) != 1).mean() + _repeats(batches)
    pairs = SUPER_CLASSES * (SUPER_CLASSES - 1) // 2
    return {SHARE: float(broken), LENGTH: batches.size - pairs * _batches_a_pair(workload) * BATCH}


def broken_fixed_set(items: list[Any], workload: Workload, setup: Setup) -> Numbers:
    """Anchor and positive of a class, the negative of another."""
    own, positive, negative = labels_of(workload, setup)[:, 0][np.asarray(items).reshape(-1, 3)].T
    broken = ((own != positive) | (own == negative)).mean()
    return {SHARE: float(broken), LENGTH: len(items) - 3 * _triplets(workload)}


def broken_weights(drawn: tuple[Any, list[Any]], workload: Workload, setup: Setup) -> Numbers:
    """Samples that the miner named, all of the subset."""
    sampler, items = drawn
    weights = sampler.weights.cpu().numpy()
    expected = _mined(workload) or workload.size
    broken = (weights[np.asarray(items)] <= 0).mean() + max(0, np.count_nonzero(weights) - expected) / expected
    return {SHARE: float(broken), LENGTH: len(items) - expected}


def _repeats(rows: np.ndarray) -> float:
    """The share of rows that hold a number twice."""
    return float((np.diff(np.sort(rows), axis=1) == 0).any(1).mean())


def nothing_broken(workload: Workload, setup: Setup) -> Numbers:
    return {SHARE: 0.0, LENGTH: 0.0}


# ---- the two kinds of work ---------------------------------------------------------------------------------------------------

Make = Callable[[str, Workload, Setup], Callable[[], Any]]
Broken = Callable[[Any, Workload, Setup], Numbers]


def _drawing(make: Make, peer: str, workload: Workload, setup: Setup) -> Callable[[], Any]:
    sampler = make(peer, workload, setup)()
    return lambda: list(sampler)


def _drawing_with_weights(make: Make, peer: str, workload: Workload, setup: Setup) -> Callable[[], Any]:
    sampler = make(peer, workload, setup)()
    return lambda: (sampler, list(sampler))


def _of_a_new_one(broken: Broken, sampler: Any, workload: Workload, setup: Setup) -> Numbers:
    """What a sampler that was just made then draws; not timed."""
    return broken(list(sampler), workload, setup)


def _length_of_a_new_one(sampler: Any, workload: Workload, setup: Setup) -> Numbers:
    """Where drawing an epoch is another case, and takes long: its length."""
    return {LENGTH: len(sampler) - workload.size // BATCH * BATCH}


def _work(prepare: Make, numbers: Broken) -> Work:
    return Work(tuple(PEERS), prepare, numbers, nothing_broken, ABOUT, tolerance=0.0)


WORKS = {
    "m_per_class_make": _work(m_per_class, _length_of_a_new_one),
    "m_per_class_epoch": _work(partial(_drawing, m_per_class), broken_m_per_class),
    "hierarchical_make": _work(hierarchical, partial(_of_a_new_one, broken_hierarchical)),
    "hierarchical_epoch": _work(partial(_drawing, hierarchical), broken_hierarchical),
    "fixed_set_of_triplets_make": _work(fixed_set_of_triplets, partial(_of_a_new_one, broken_fixed_set)),
    "fixed_set_of_triplets_epoch": _work(partial(_drawing, fixed_set_of_triplets), broken_fixed_set),
    "tuples_to_weights_epoch": _work(partial(_drawing_with_weights, tuples_to_weights), broken_weights),
}
