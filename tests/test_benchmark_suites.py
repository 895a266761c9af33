"""What the benchmarks run: every loss and miner, its cases, their inputs and bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmark_cases import MEBIBYTE

import pml_fast.losses
import pml_fast.miners
from benchmarks.cases import NOT_SLOWER, NOT_SLOWER_THAN_PML, Case
from benchmarks.operations import CLASS_LOSSES, CORE, OPERATIONS, QUEUED
from benchmarks.probe import Setup
from benchmarks.suites import (
    BATCH_LOSSES,
    CLASS_COUNTS,
    LARGE_SIZES,
    PAIR_OPERATIONS,
    PAIR_SIZES,
    QUICK,
    SMALL_SIZES,
    STEP_SUITES,
    SUITES,
)


def test_core_suite_covers_what_its_targets_name() -> None:
    cases = SUITES["core"].registry()
    pairs = {(case.operation, case.size) for case in cases if case.per_class == 4}
    assert pairs >= {(operation, size) for operation in PAIR_OPERATIONS for size in PAIR_SIZES}
    assert {case.operation for case in cases} == set(CORE)
    assert any(case.size == 65_536 and case.only_ours for case in cases)
    huge = next(case for case in cases if case.operation == "triplet_all" and case.size == 8192)
    counts = torch.bincount(huge.inputs(0).labels)
    assert len(counts) == 10
    assert int((counts * (counts - 1) * (8192 - counts)).sum()) > 4.9e10


@pytest.mark.parametrize("module", [pml_fast.losses, pml_fast.miners], ids=["losses", "miners"])
def test_every_loss_and_every_miner_is_benchmarked(module) -> None:
    public = {getattr(module, name) for name in module.__all__}
    bases = {kind for kind in public if kind.__name__.startswith("Base") or kind.__name__.endswith("Mixin")}
    bases.add(pml_fast.losses.GenericPairLoss)
    benchmarked = {name for what in OPERATIONS.values() for name in (what.loss, what.miner)}
    assert {kind.__name__ for kind in public - bases} <= benchmarked


@pytest.mark.parametrize("suite", STEP_SUITES.values(), ids=STEP_SUITES)
def test_names_of_cases_are_unique(suite) -> None:
    names = [case.name for case in suite.registry(("float32", "bfloat16"))]
    assert len(set(names)) == len(names) == 2 * len(suite.cases())


def test_suites_of_losses_hold_every_loss_at_every_size() -> None:
    def held(name: str) -> set[tuple[str, int]]:
        return {(case.operation, case.columns if name in ("classes", "queues") else case.size) for case in SUITES[name].cases()}

    assert held("losses") == {(operation, size) for operation in BATCH_LOSSES for size in LARGE_SIZES}
    assert {operation for operation, _ in held("small")} == set(OPERATIONS) - set(QUEUED)
    assert {size for _, size in held("small")} == set(SMALL_SIZES)
    assert held("classes") == {(operation, classes) for operation in CLASS_LOSSES for classes in CLASS_COUNTS}
    assert {operation for operation, _ in held("queues")} == set(QUEUED)
    assert {case.operation for suite in STEP_SUITES.values() for case in suite.cases()} == set(OPERATIONS)


def test_every_small_case_must_not_be_slower_than_pml() -> None:
    for case in SUITES["small"].cases():
        assert case.targets[0].kind == (NOT_SLOWER_THAN_PML if case.what.in_peer else NOT_SLOWER)


def test_quick_suite_has_every_core_operation_and_some_of_each_other_suite() -> None:
    operations = {case.operation for case in QUICK.cases()}
    assert operations >= set(CORE)
    for suite in STEP_SUITES.values():
        assert operations & {case.operation for case in suite.cases()}


def test_memory_bound_is_gradients_and_row_state_and_64_mebibytes() -> None:
    assert Case("supcon", 4096, 4).memory_bound == 4096 * 128 * 4 + 8 * 4096 * (3 + 8) + 64 * MEBIBYTE
    arcface = Case("arcface", 512, 4, columns=1_000_000)
    assert arcface.gradient_bytes == (512 + 1_000_000) * 128 * 4
    assert arcface.memory_bound == arcface.gradient_bytes + 8 * 512 * 9 + 64 * 1_000_000 + 64 * MEBIBYTE
    assert arcface.memory_bound - arcface.gradient_bytes < 4 * 512 * 1_000_000 / 10


def test_inputs_are_seeded_and_labels_have_the_classes_asked_for() -> None:
    case = Case("supcon", 64, 4)
    first, second, other = case.inputs(5), case.inputs(5), case.inputs(6)
    assert torch.equal(first.embeddings, second.embeddings)
    assert not torch.equal(first.embeddings, other.embeddings)
    assert torch.bincount(first.labels).tolist() == [4] * 16


def test_all_of_a_million_classes_are_met() -> None:
    labels = Case("arcface", 512, 4, columns=1_000_000).inputs(0).labels
    assert labels.min() == 0
    assert labels.max() == 999_999
    assert labels.unique(return_counts=True)[1].tolist() == [4] * 128


def test_a_queue_holds_classes_of_the_batch_and_others() -> None:
    inputs = Case("queue_contrastive", 512, 4, columns=4096).inputs(0)
    assert inputs.queue.shape == (4096, 128)
    of_the_batch = torch.isin(inputs.queue_labels, inputs.labels)
    assert of_the_batch.any()
    assert not of_the_batch.all()


def test_tf32_is_float32_with_narrow_products() -> None:
    case = replace(Case("supcon", 64, 4), dtype="tf32")
    setup = Setup("cpu", 2, 0)
    assert case.inputs(0).embeddings.dtype == torch.float32
    assert setup.of(case).matmul_precision == "high" and setup.of(Case("supcon", 64, 4)).matmul_precision == "highest"
    assert case.tolerance().value > Case("supcon", 64, 4).tolerance().value
