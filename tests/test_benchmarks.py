"""The benchmark harness: registry, oracle, refusal of wrong answers, bounds, and what it writes."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("rich", reason="the benchmarks need the bench extra")
pytest.importorskip("matplotlib", reason="the benchmarks need the bench extra")

import pml_fast.losses
import pml_fast.miners
from benchmarks import __main__ as command
from benchmarks import bounded, library_oracle, on_gpu, oracle, peers, results, runner
from benchmarks import probe as probe_module
from benchmarks.cases import FLOOR_RATIO, NOT_SLOWER, NOT_SLOWER_THAN_PML, Case, Target
from benchmarks.floor import floor
from benchmarks.inputs import Inputs
from benchmarks.machine import Machine, describe_machine, describe_revision, describe_versions
from benchmarks.operations import CLASS_LOSSES, CLASSES, CORE, OPERATIONS, QUEUE, QUEUED, Tolerance
from benchmarks.peers import Step, forward_backward
from benchmarks.plots import write_plots
from benchmarks.probe import Probe, Setup, compare, run_oracle, run_probe, run_timing
from benchmarks.report import write_markdown
from benchmarks.results import CaseResult, PeerResult, Report
from benchmarks.runner import Limits, failures, run_cases
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
    loss_case,
)
from benchmarks.targets import judge
from benchmarks.timing import CpuClock, Entrant, Plan, Quantiles, quantiles, time_in_turn

MEBIBYTE = 2**20
SETUP = Setup(device="cpu", threads=1, seed=3)
LIMITS = Limits(memory_bytes=2**31, seconds=60.0)
PLAN = Plan(seconds=0.01, min_rounds=2, max_rounds=3)
CASES = [Case(operation, 96, 8) for operation in CORE]


def tiny(operation: str) -> Case:
    """A case of an operation that takes milliseconds."""
    case = loss_case(operation, 64)
    return replace(case, columns={CLASSES: 40, QUEUE: 256}.get(case.what.against, 0))


TINY = [tiny(operation) for operation in OPERATIONS]

pml_losses = pytest.importorskip("pytorch_metric_learning.losses", reason="the benchmarks need the bench extra")


# ---- registry ----


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


# ---- oracle and agreement ----


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operation)
def test_oracle_equals_float64_autograd_of_the_dense_formula(case: Case) -> None:
    inputs = case.inputs(1)
    value, (gradient,) = forward_backward(peers.PEERS["eager"].build(case, inputs.double()))
    answer = oracle.answer(case.operation, inputs.embeddings, inputs.labels)
    assert answer.value == pytest.approx(value.item(), rel=1e-12)
    np.testing.assert_allclose(answer.gradient, gradient.numpy(), rtol=1e-9, atol=1e-14)


def test_oracle_does_not_depend_on_its_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Case("contrastive", 96, 8).inputs(1)
    whole = oracle.answer("contrastive", inputs.embeddings, inputs.labels)
    monkeypatch.setattr(oracle, "STRIP_ELEMENTS", 96 * 7)
    strips = oracle.answer("contrastive", inputs.embeddings, inputs.labels)
    assert strips.value == pytest.approx(whole.value, rel=1e-12)
    np.testing.assert_allclose(strips.gradient, whole.gradient, rtol=1e-10)


def test_sampled_oracle_equals_the_full_one() -> None:
    inputs = Case("supcon", 512, 4).inputs(1)
    rows = (inputs.embeddings, inputs.labels)
    full, sampled = oracle.answer("supcon", *rows), oracle.supcon_sampled(*rows)
    assert sampled.value == pytest.approx(full.value, rel=1e-6)
    assert len(sampled.rows) == oracle.SAMPLED_ROWS
    np.testing.assert_allclose(sampled.gradient, full.gradient[sampled.rows], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["pml_fast/auto", "pml", "eager"])
@pytest.mark.parametrize("case", TINY, ids=lambda case: case.operation)
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_peers_agree_with_the_oracle(case: Case, name: str) -> None:
    peer = peers.PEERS[name]
    if not peer.runs(case):
        assert not peer.is_ours
        return
    probe = run_probe(case, name, replace(SETUP, measure_memory=False))
    truth = oracle_of(case, probe)
    errors = compare(probe, truth)
    tolerance = case.tolerance().beyond(truth.moved_value, truth.moved_gradient)
    assert errors[0] <= tolerance.value
    assert errors[1] <= tolerance.gradient


def oracle_of(case: Case, probe: Probe) -> oracle.Answer:
    if library_oracle.has_formula(case):
        return run_oracle(case, SETUP)
    assert (probe.drawn is not None) == case.what.drawn
    return run_oracle(case, SETUP, library_oracle.sources(case)[0], probe.drawn)


@pytest.mark.parametrize("operation", ["nca", "arcface", "margin", "queue_contrastive", "vicreg"])
def test_both_libraries_give_the_same_float64_answer(operation: str) -> None:
    case = tiny(operation)
    theirs, mine = (run_oracle(case, SETUP, source) for source in (library_oracle.PML, library_oracle.OURS))
    assert theirs.source == "PML in float64"
    assert mine.source == "pml_fast's reference in float64"
    value, gradient = theirs.errors(mine.value, mine.gradient, mine.others)
    assert value < 1e-9
    assert gradient < 1e-7


def test_gradients_of_parameters_are_compared() -> None:
    case = tiny("arcface")
    truth, probe = run_oracle(case, SETUP, library_oracle.PML), run_probe(case, "pml_fast/auto", SETUP)
    assert [other.shape for other in probe.others] == [(128, 40)]
    assert compare(probe, truth)[1] < 1e-5
    wrong = replace(probe, others=(1.01 * probe.others[0],))
    assert compare(wrong, truth)[1] == pytest.approx(0.01, rel=0.01)


def test_a_sketch_keeps_the_length_of_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_oracle, "WHOLE_NUMBERS", 1000)
    monkeypatch.setattr(library_oracle, "SKETCH_ROWS", 64)
    gen = torch.Generator().manual_seed(1)
    rows, change = torch.randn(2000, 32, generator=gen), 1e-3 * torch.randn(2000, 32, generator=gen)
    for first, second in ((rows, rows + change), (rows.T, (rows + change).T)):
        found = library_oracle.digest(second) - library_oracle.digest(first)
        assert found.shape == (64, 32)
        assert np.linalg.norm(found) == pytest.approx(change.norm().item(), rel=0.1)


def test_sampled_rows_are_compared_with_the_whole_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_oracle, "WHOLE_NUMBERS", 1000)
    monkeypatch.setattr(library_oracle, "SKETCH_ROWS", 16)
    monkeypatch.setattr(probe_module, "STREAMED_ORACLE_LIMIT", 64)
    case = Case("supcon", 512, 4)
    truth = run_oracle(case, SETUP)
    assert len(truth.rows) == oracle.SAMPLED_ROWS
    assert compare(run_probe(case, "pml_fast/auto", SETUP), truth)[1] < 1e-5


def test_who_answers_is_chosen_by_size_and_exactness() -> None:
    assert library_oracle.sources(Case("arcface", 512, 4, columns=100_000)) == [library_oracle.PML, library_oracle.OURS]
    assert library_oracle.sources(Case("arcface", 512, 4, columns=1_000_000)) == [library_oracle.OURS]
    assert library_oracle.sources(Case("smooth_ap", 64, 8)) == [library_oracle.OURS]
    assert library_oracle.sources(Case("clip", 64, 4)) == [library_oracle.OURS]


def test_a_term_at_the_edge_widens_the_tolerance() -> None:
    assert Tolerance(1e-4, 1e-3).beyond(0.0, 0.01) == Tolerance(1e-4, 0.02)


def test_compare_sees_wrong_values_wrong_gradients_and_nan() -> None:
    truth = oracle.Answer(2.0, np.array([[3.0, 4.0]]))
    assert compare(Probe(2.0, np.array([[3.0, 4.0]]), None, 0.0), truth) == (0.0, 0.0)
    assert compare(Probe(2.2, np.array([[3.0, 4.0]]), None, 0.0), truth)[0] == pytest.approx(0.1)
    assert compare(Probe(2.0, np.array([[3.0, 4.5]]), None, 0.0), truth)[1] == pytest.approx(0.1)
    assert compare(Probe(2.0, np.array([[3.0, math.nan]]), None, 0.0), truth) == (math.inf, math.inf)


def wrong_gradient(case: Case, inputs: Inputs) -> Step:
    right = peers.PEERS["eager"].build(case, inputs)

    def call() -> torch.Tensor:
        loss = right.call()
        return loss.detach() + 1.01 * (loss - loss.detach())

    return Step(call, right.leaves)


def test_a_wrong_answer_is_reported_and_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run", _in_this_process)
    monkeypatch.setitem(peers.PEERS, "pml_fast/cpu", peers.Peer("pml_fast/cpu", wrong_gradient))
    monkeypatch.setattr(runner, "why_unavailable", lambda peer: None)
    (result,) = run_cases([Case("supcon", 64, 4)], ["pml_fast/cpu", "eager"], SETUP, PLAN, LIMITS)
    wrong, right = result.peer("pml_fast/cpu"), result.peer("eager")
    assert wrong.status == results.WRONG
    assert wrong.gradient_error == pytest.approx(0.01, rel=0.01)
    assert "gradient" in wrong.detail
    assert wrong.seconds is None
    assert wrong.peak_extra_bytes is None
    assert right.seconds is not None
    assert right.ours_is_faster_by is None
    assert len(failures([result])) == 1
    assert all(target.met is False for target in result.targets)


def _in_this_process(function, *args, **bounds) -> bounded.Outcome:
    return bounded.Outcome(bounded.OK, function(*args), None, 0.0, None)


def test_a_case_without_an_oracle_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_oracle(function, *args, **bounds) -> bounded.Outcome:
        if function is not run_oracle:
            return _in_this_process_with_errors(function, *args, **bounds)
        return bounded.Outcome(bounded.TIMED_OUT, None, "stopped", 1.0, None)

    monkeypatch.setattr(runner, "run", no_oracle)
    (result,) = run_cases([Case("supcon", 64, 4)], ["eager"], SETUP, PLAN, LIMITS)
    assert result.peer("eager").status == results.NOT_RUN
    assert "timed out" in result.peer("eager").detail


def test_a_backend_that_has_no_kernel_is_unavailable_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(case: Case, inputs: Inputs) -> None:
        raise ValueError("backend 'cpu' cannot run this: no kernel; choose another, or backend='auto'")

    monkeypatch.setitem(peers.PEERS, "pml_fast/cpu", peers.Peer("pml_fast/cpu", refuse))
    monkeypatch.setattr(runner, "why_unavailable", lambda peer: None)
    monkeypatch.setattr(runner, "run", _in_this_process_with_errors)
    (result,) = run_cases([Case("supcon", 64, 4)], ["pml_fast/cpu", "eager"], SETUP, PLAN, LIMITS)
    assert result.peer("pml_fast/cpu").status == results.UNAVAILABLE
    assert result.peer("pml_fast/cpu").detail.endswith("choose another, or backend='auto'")
    assert result.peer("eager").seconds is not None
    assert failures([result]) == []


def _in_this_process_with_errors(function, *args, **bounds) -> bounded.Outcome:
    try:
        return _in_this_process(function, *args)
    except ValueError as error:
        return bounded.Outcome(bounded.FAILED, None, f"ValueError: {error}\nTraceback: ...", 0.0, None)


def test_cases_beyond_the_budget_are_not_run() -> None:
    limits = Limits(memory_bytes=None, seconds=60.0, budget=-1.0)
    (result,) = run_cases([Case("supcon", 64, 4)], ["eager"], SETUP, PLAN, limits)
    assert result.peer("eager").status == results.NOT_RUN
    assert result.floor_seconds is None


# ---- timing ----


def test_probe_and_timing_give_figures() -> None:
    case = Case("supcon", 64, 4)
    probe = run_probe(case, "eager", SETUP)
    assert probe.gradient.shape == (64, 128)
    assert probe.seconds > 0
    timings = run_timing(case, {"eager": probe.seconds}, PLAN, SETUP)
    assert set(timings) == {"floor", "eager"}
    for timing in timings.values():
        assert timing.quantiles.least <= timing.quantiles.p20 <= timing.quantiles.p50 <= timing.quantiles.p80
        assert 2 <= timing.quantiles.rounds <= 3


def test_entrants_take_turns_and_slow_ones_have_fewer() -> None:
    calls: list[str] = []

    def entrant(name: str, seconds: float) -> Entrant:
        def call() -> None:
            calls.append(name)
            time.sleep(seconds)

        return Entrant(name, call)

    plan = Plan(seconds=0.05, min_rounds=2, max_rounds=8)
    timed = time_in_turn([entrant("fast", 0.002), entrant("slow", 0.03)], plan, CpuClock())
    assert timed["fast"].rounds == 8
    assert timed["slow"].rounds == 2
    measured = calls[6:]  # after three warm-up calls each
    assert measured[:2] == ["fast", "slow"]
    assert measured[2] == measured[3] == "fast"
    assert measured.count("slow") == 2


def test_an_entrant_that_raises_leaves_the_others_timed() -> None:
    def broken() -> None:
        raise RuntimeError("no memory left")

    timed = time_in_turn([Entrant("broken", broken), Entrant("fine", lambda: None)], PLAN, CpuClock())
    assert isinstance(timed["broken"], RuntimeError)
    assert isinstance(timed["fine"], Quantiles)


def test_quantiles_interpolate() -> None:
    found = quantiles([5.0, 1.0, 2.0, 3.0, 4.0, 6.0], calls=2)
    assert (found.p20, found.p50, found.p80, found.least) == pytest.approx((2.0, 3.5, 5.0, 1.0))
    assert (found.rounds, found.calls) == (6, 2)
    with pytest.raises(ValueError, match="samples"):
        quantiles([], calls=1)


def test_floor_by_strips_computes_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import floor as module

    rows = torch.randn(50, 16)
    buffers: list[dict[str, torch.Tensor]] = []
    for limit in (2**30, 1):
        monkeypatch.setattr(module, "DENSE_LIMIT_BYTES", limit)
        monkeypatch.setattr(module, "STRIP_ROWS", 16)
        run = floor(rows)
        run()
        cells = zip(run.__code__.co_freevars, run.__closure__)
        buffers.append({name: cell.cell_contents for name, cell in cells})
    for name in ("left", "right"):
        torch.testing.assert_close(buffers[0][name], buffers[1][name], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(buffers[0][name], rows @ rows.T @ rows, rtol=1e-4, atol=1e-4)


# ---- targets, JSON, plots, command line ----


def _result(case: Case, ours: float, floor_seconds: float, **peer_seconds: float) -> CaseResult:
    def figures(seconds: float) -> Quantiles:
        return Quantiles(seconds, seconds, seconds, seconds, 3, 1)

    result = CaseResult(
        case.name,
        case.operation,
        case.size,
        128,
        case.per_class,
        case.dtype,
        case.memory_bound,
        figures(floor_seconds),
    )
    for name, seconds in {"pml_fast/cpu": ours, **peer_seconds}.items():
        result.peers.append(
            PeerResult(
                name,
                results.OK,
                None,
                figures(seconds),
                seconds / floor_seconds,
                seconds / ours,
                MEBIBYTE,
                True,
                1e-7,
                1e-6,
            )
        )
    return result


def test_targets_are_met_and_missed() -> None:
    case = Case("supcon", 4096, 4, (Target(FLOOR_RATIO, 1.15, 0.8),))
    for ours, met in ((1.1, True), (1.2, False)):
        result = _result(case, ours, 1.0)
        judge(case, result, on_gpu=False)
        assert [target.met for target in result.targets] == [met, True]
        assert result.targets[0].reached == f"{ours:.2f} x floor (pml_fast/cpu)"


def test_small_batches_must_beat_every_rival_that_was_timed() -> None:
    case = next(case for case in SUITES["core"].cases() if case.size == 32)
    result = _result(case, 1.0, 0.5, pml=3.0, eager=0.9)
    judge(case, result, on_gpu=False)
    assert result.targets[0].met is False
    alone = _result(case, 1.0, 0.5)
    judge(case, alone, on_gpu=False)
    assert alone.targets[0].met is None


def test_speed_up_over_a_peer_that_did_not_finish_is_not_judged() -> None:
    case = SUITES["core"].cases()[0]
    assert case.operation == "ntxent"
    result = _result(case, 1.0, 1.0)
    result.peers.append(PeerResult("pml", bounded.OUT_OF_MEMORY, "18 GiB"))
    judge(case, result, on_gpu=False)
    assert result.targets[0].met is None
    assert result.targets[0].reached == "pml: out of memory"


def _report(*cases: CaseResult) -> Report:
    return Report(
        date="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks",
        device="cpu",
        threads=2,
        seed=0,
        machine=describe_machine("cpu"),
        versions=describe_versions(),
        revision=describe_revision(),
        matmul_precision="highest",
        memory_limit_bytes=None,
        seconds_limit=1.0,
        cases=list(cases),
    )


def test_json_round_trip_and_schema(tmp_path) -> None:
    report = _report(_result(Case("supcon", 64, 4), 1.0, 0.5, pml=3.0))
    path = tmp_path / "full.json"
    results.write(report, path)
    assert results.read(path) == report
    data = json.loads(path.read_text())
    assert data["schema_version"] == results.SCHEMA_VERSION
    assert set(data["machine"]) == {"cpu", "cores", "memory_bytes", "system", "gpu"}
    assert {"torch", "triton", "pml_fast", "pytorch-metric-learning"} <= set(data["versions"]["packages"])
    assert set(data["revision"]) == {"commit", "dirty"}
    assert set(data["cases"][0]["peers"][0]["seconds"]) == {"p20", "p50", "p80", "least", "rounds", "calls"}
    path.write_text(json.dumps({**data, "schema_version": 99}))
    with pytest.raises(ValueError, match="schema_version 99"):
        results.read(path)


def test_machine_slug_is_the_hardware() -> None:
    assert Machine("AMD EPYC", 2, None, "Linux x86_64").slug == "amd-epyc-2c"
    intel = Machine("Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz", 16, None, "Linux x86_64")
    assert intel.slug == "intel-xeon-platinum-8480c-16c"
    assert Machine("AMD EPYC", 2, None, "Linux x86_64", "NVIDIA H100 80GB HBM3").slug == "nvidia-h100-80gb-hbm3"
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", describe_machine("cpu").slug)


def test_plots_and_markdown_are_written(tmp_path) -> None:
    report = _report(*(_result(Case("supcon", size, 4), 1.0, 0.5, pml=3.0) for size in (64, 128)))
    for path in write_plots(report, tmp_path, "full"):
        assert path.read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"full-time.png", "full-memory.png"}
    write_markdown(report, tmp_path / "full.md")
    text = (tmp_path / "full.md").read_text()
    assert "supcon/n64/k4/float32" in text
    assert "3.00 x" in text


def test_command_line_lists_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    assert "supcon/n65536/k4/float32" in capsys.readouterr().out
    assert command.main(["--suite", "classes", "--list"]) == 0
    assert "arcface/n512/c1000000/float32" in capsys.readouterr().out
    assert command.main(["--cases", "no such case"]) == 2
    assert "--list" in capsys.readouterr().out
    assert command.main(["--peers", "nobody"]) == 2
    assert "nobody" in capsys.readouterr().out
    assert command.main(["--cases", "["]) == 2
    if not torch.cuda.is_available():
        assert command.main(["--gpu"]) == 2
        assert "CUDA" in capsys.readouterr().out


def test_command_runs_a_case_end_to_end(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--cases", "supcon/n64/", "--peers", "pml", "eager", "--rounds", "2", "--out", str(tmp_path)]
    assert command.main([*arguments, "--threads", "1", "--limit", "120"]) == 0
    report = results.read(tmp_path / "partial.json")
    (case,) = report.cases
    assert case.floor_seconds.rounds == 2
    for name in ("pml", "eager"):
        assert case.peer(name).status == results.OK
        assert case.peer(name).seconds.p50 > 0
        assert case.peer(name).gradient_error < 1e-4
    assert "supcon/n64/k4/float32" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_measured(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_later(cases: list[Case], *rest: Any) -> Iterator[Any]:
        yield from run_cases(cases[:1], *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.suites.run_cases", fails_later)
    arguments = ["--cases", "^supcon/n(32|64)/", "--peers", "eager", "--rounds", "2", "--out", str(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        command.main([*arguments, "--threads", "1", "--limit", "120"])
    (case,) = results.read(tmp_path / "partial.json").cases
    assert case.case == "supcon/n32/k4/float32" and case.peer("eager").status == results.OK


def test_a_suite_writes_files_of_its_own(tmp_path) -> None:
    arguments = ["--suite", "small", "--cases", "^(nca|arcface)/n32/", "--peers", "pml_fast/auto", "pml", "--rounds", "2"]
    assert command.main([*arguments, "--threads", "1", "--limit", "120", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"small-partial{end}" for end in (".json", ".md", "-speedup.png")}
    report = results.read(tmp_path / "small-partial.json")
    assert report.suite == "small"
    for case in report.cases:
        assert case.oracle == "PML in float64"
        assert case.targets[0].target == NOT_SLOWER_THAN_PML
        assert {peer.status for peer in case.peers} == {results.OK}
    assert "| nca/n32/k4/float32 |" in (tmp_path / "small-partial.md").read_text()


# ---- a GPU ----


def test_the_suite_of_a_gpu_is_judged_there_alone() -> None:
    case = next(case for case in SUITES["gpu"].cases() if case.size == 8192 and case.dim == 512)
    assert "/d512/" in case.name and case.inputs(0).embeddings.shape == (8192, 512)
    result = _result(case, 0.8, 1.0, eager=2.0)
    judge(case, result, on_gpu=True)
    reached = {target.target: target.met for target in result.targets}
    assert reached[">= 3 x faster than eager"] is False and reached["<= 1.43 x floor"] is True
    assert reached[">= 1.7 x faster than compile"] is None
    judge(case, elsewhere := _result(case, 0.8, 1.0), on_gpu=False)
    assert [target.target.split()[0] for target in elsewhere.targets] == ["peak"]


def test_tf32_is_float32_with_narrow_products() -> None:
    case = replace(Case("supcon", 64, 4), dtype="tf32")
    setup = Setup("cpu", 2, 0)
    assert case.inputs(0).embeddings.dtype == torch.float32
    assert setup.of(case).matmul_precision == "high" and setup.of(Case("supcon", 64, 4)).matmul_precision == "highest"
    assert case.tolerance().value > Case("supcon", 64, 4).tolerance().value


def test_inf_cl_is_a_peer_of_clip_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = peers.PEERS[peers.INF_CL]
    assert peers.INF_CL in SUITES["gpu"].peers(on_gpu=True) and peers.INF_CL not in SUITES["gpu"].peers(on_gpu=False)
    entered = [case for case in SUITES["gpu"].cases() if peer.runs(case)]
    assert {(case.operation, case.dim) for case in entered} == {("clip", 128), ("clip", 512)}
    monkeypatch.setitem(sys.modules, peers.INF_CL, None)
    assert runner.why_unavailable(peer) == "inf_cl is not installed"
    monkeypatch.setitem(sys.modules, peers.INF_CL, SimpleNamespace())
    assert (runner.why_unavailable(peer) is None) == torch.cuda.is_available()


def test_inf_cl_is_asked_for_clips_loss_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[int] = []

    def rows_of_infonce(q: torch.Tensor, k: torch.Tensor, scale: torch.Tensor, head_dim: int) -> torch.Tensor:
        """What its kernels compute of each row, [N]."""
        heads.append(head_dim)
        logits = scale * q @ k.T
        return logits.logsumexp(dim=1) - logits.diagonal()

    monkeypatch.setitem(sys.modules, peers.INF_CL, SimpleNamespace(cal_flash_loss=rows_of_infonce))
    for dim, head in ((128, 128), (512, 256), (96, 32)):
        case = Case("clip", 24, 4, dim=dim)
        got, want = (peers.forward_backward(peers.PEERS[name].build(case, case.inputs(3))) for name in (peers.INF_CL, "eager"))
        assert len(got[1]) == len(want[1]) == 3
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
        assert set(heads) == {head}
        heads.clear()


def test_what_a_junit_file_says(tmp_path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="tests.test_a" name="test_good"/>'
        '<testcase classname="tests.test_a" name="test_bad[x]">'
        '<failure message="assert 1 == 2&#10;more">trace</failure></testcase>'
        '<testcase classname="tests.test_a" name="test_left"><skipped message="no card"/></testcase></testsuite></testsuites>'
    )
    tested = on_gpu.read_tests(path)
    assert (tested.passed, tested.skipped) == (1, 1)
    assert tested.failures == ["tests.test_a::test_bad[x]: assert 1 == 2"]


def test_without_a_card_the_command_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_gpu.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().out
