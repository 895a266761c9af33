"""Benchmarks of what is no step of training: samplers and evaluation, held to numbers known otherwise."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rich", reason="the benchmarks need the bench extra")
pytest.importorskip("faiss", reason="the benchmarks need the bench extra")

from benchmarks import __main__ as command
from benchmarks import bounded, evaluation, results, sampling, workload_runner
from benchmarks.cases import NOT_SLOWER_THAN_PML, WITHIN_SECONDS, Target
from benchmarks.probe import Setup
from benchmarks.runner import Limits
from benchmarks.suites import QUICK_SUITES, STEP_SUITES, SUITES, WORK_SUITES
from benchmarks.timing import Plan
from benchmarks.workload_runner import WORKS, do_once, run_workloads
from benchmarks.workloads import Workload, largest_difference
from pml_fast import samplers

SETUP = Setup(device="cpu", threads=1, seed=3, measure_memory=False)
PLAN = Plan(seconds=0.01, min_rounds=2, max_rounds=3)
LIMITS = Limits(memory_bytes=2**31, seconds=60.0)


def tiny(operation: str) -> Workload:
    return Workload(operation, 320 if operation in evaluation.WORKS else 2560, dim=16)


@pytest.mark.parametrize(("operation", "peer"), [(name, peer) for name, work in WORKS.items() for peer in work.peers])
def test_peers_agree_with_the_truth(operation: str, peer: str) -> None:
    case, work = tiny(operation), WORKS[operation]
    done, truth = do_once(case, peer, SETUP), work.truth(case, SETUP)
    assert done.numbers.keys() <= truth.keys()
    assert largest_difference(done.numbers, truth) <= work.tolerance


def test_every_sampler_is_benchmarked() -> None:
    drawing = {name.removesuffix("Sampler").lower() for name in samplers.__all__} - {"batches", "distributedbatch"}
    assert {name.removesuffix("_epoch").replace("_", "") for name in sampling.WORKS if name.endswith("_epoch")} == drawing


def test_suites_hold_every_kind_of_work() -> None:
    assert {case.operation for suite in WORK_SUITES.values() for case in suite.cases()} == set(WORKS)
    assert SUITES.keys() == QUICK_SUITES.keys() == STEP_SUITES.keys() | WORK_SUITES.keys()
    for name, suite in WORK_SUITES.items():
        names = [case.name for case in suite.registry()]
        assert len(set(names)) == len(names)
        quick = {case.name for case in QUICK_SUITES[name].registry()}
        assert quick < set(names)
        assert {case.operation for case in suite.cases()} == {case.operation for case in QUICK_SUITES[name].cases()}
    largest = next(case for case in SUITES["evaluation"].cases() if case.name == "map_at_r/n50000/k10")
    assert Target(WITHIN_SECONDS, 60) in largest.targets and Target(NOT_SLOWER_THAN_PML) in largest.targets
    assert largest.memory_bound == 2**30 and largest.dim == 128


# ---- broken promises are seen


def drawn(operation: str) -> Any:
    return WORKS[operation].prepare("pml_fast/auto", tiny(operation), SETUP)()


def broken(operation: str, items: Any) -> float:
    return WORKS[operation].numbers(items, tiny(operation), SETUP)[sampling.SHARE]


def test_other_samples_break_the_promise() -> None:
    rng = np.random.default_rng(0)
    for operation in ("m_per_class_epoch", "fixed_set_of_triplets_epoch"):
        assert broken(operation, rng.permutation(drawn(operation)).tolist()) > 0.1
    items = drawn("m_per_class_epoch")
    assert broken("m_per_class_epoch", [items[0], items[0], *items[2:]]) > 0
    assert broken("m_per_class_epoch", [*items[:4], *items[:4], *items[8:]]) > 0
    batches = drawn("hierarchical_epoch")
    assert broken("hierarchical_epoch", [batches[0][:-1] + batches[5][:1], *batches[1:]]) > 0
    assert broken("hierarchical_epoch", [batches[0][:-1] + batches[0][:1], *batches[1:]]) > 0
    sampler, items = drawn("tuples_to_weights_epoch")
    sampler.weights[items[0]] = 0
    assert broken("tuples_to_weights_epoch", (sampler, items)) > 0


def test_an_epoch_of_another_length_is_seen() -> None:
    for operation in ("m_per_class_epoch", "fixed_set_of_triplets_epoch"):
        cut = drawn(operation)[: -3 * sampling.BATCH]
        assert WORKS[operation].numbers(cut, tiny(operation), SETUP)[sampling.LENGTH] == -3 * sampling.BATCH


def test_what_is_no_number_is_far_off() -> None:
    assert largest_difference({"a": 1.0, "b": 2.5}, {"a": 1.0, "b": 2.0, "c": 9.0}) == 0.5
    assert largest_difference({"a": math.nan}, {"a": 1.0}) == math.inf
    assert largest_difference({"d": 1.0}, {"a": 1.0}) == math.inf
    assert largest_difference({}, {"a": 1.0}) == math.inf


# ---- runs


def in_this_process(setup: Setup, memory: int | None, seconds: float, function: Any, *args: Any) -> bounded.Outcome:
    return bounded.Outcome(bounded.OK, function(*args), None, 0.0, None)


@pytest.mark.parametrize("off", [0.0, 5e-6, 1e-3])
def test_wrong_metrics_are_reported_and_never_timed(off: float, monkeypatch: pytest.MonkeyPatch) -> None:
    work = WORKS["map_at_r"]

    def prepare(peer: str, workload: Workload, setup: Setup) -> Any:
        call = work.prepare(peer, workload, setup)
        return lambda: {name: value + (off if peer == "pml_fast/auto" else 0) for name, value in call().items()}

    monkeypatch.setattr(workload_runner, "run_apart", in_this_process)
    monkeypatch.setitem(WORKS, "map_at_r", replace(work, prepare=prepare))
    case = replace(tiny("map_at_r"), targets=(Target(NOT_SLOWER_THAN_PML), Target(WITHIN_SECONDS, 60)), memory_bound=2**30)
    (result,) = run_workloads([case], ["pml_fast/auto", "pml", "sklearn"], SETUP, PLAN, LIMITS)
    ours, pml = result.peer("pml_fast/auto"), result.peer("pml")
    assert ours is not None and pml is not None and pml.seconds is not None
    assert result.oracle == "ranks in float64"
    met = {target.target: target.met for target in result.targets}
    if off > evaluation.TOLERANCE:
        assert ours.status == results.WRONG and ours.seconds is None and pml.ours_is_faster_by is None
        assert met["<= 60 s"] is False
    else:
        assert ours.status == results.OK and ours.seconds is not None
        assert pml.ours_is_faster_by == pytest.approx(pml.seconds.p50 / ours.seconds.p50)
        assert met["metrics within 1e-06 of PML's"] is (off == 0) and met["<= 60 s"] is True


def test_what_takes_long_is_timed_by_its_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload_runner, "run_apart", in_this_process)
    monkeypatch.setattr(workload_runner, "LONG_STEP_SECONDS", 0.0)
    monkeypatch.setattr(workload_runner, "time_all", lambda *_: pytest.fail("timed again"))
    (result,) = run_workloads([tiny("map_at_r")], ["pml"], SETUP, PLAN, LIMITS)
    (pml,) = result.peers
    assert pml.seconds is not None and (pml.seconds.rounds, pml.seconds.calls) == (1, 1)


def test_what_does_not_finish_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(setup: Setup, memory: int | None, seconds: float, function: Any, *args: Any) -> bounded.Outcome:
        if function is do_once and args[1] == "pml":
            return bounded.Outcome(bounded.OUT_OF_MEMORY, None, "MemoryError: 30 GB", 1.0, None)
        return in_this_process(setup, memory, seconds, function, *args)

    monkeypatch.setattr(workload_runner, "run_apart", lost)
    (result,) = run_workloads([tiny("map_at_r")], ["pml_fast/auto", "pml"], SETUP, PLAN, LIMITS)
    assert [entry.status for entry in result.peers] == [results.OK, bounded.OUT_OF_MEMORY]
    limits = replace(LIMITS, budget=-1.0)
    (result,) = run_workloads([tiny("map_at_r")], ["pml"], SETUP, PLAN, limits)
    assert [entry.status for entry in result.peers] == [results.NOT_RUN]


def test_the_command_runs_a_suite_of_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--suite", "samplers", "--quick", "--cases", "^fixed_set", "--rounds", "2", "--threads", "1"]
    assert command.main([*arguments, "--out", str(tmp_path)]) == 0
    stem = "samplers-quick-partial"
    assert {path.name for path in tmp_path.iterdir()} == {f"{stem}{end}" for end in (".json", ".md", "-speedup.png")}
    report = results.read(tmp_path / f"{stem}.json")
    assert report.suite == "samplers" and len(report.cases) == 2
    assert all(peer.status == results.OK and peer.value_error == 0 for case in report.cases for peer in case.peers)
    text = (tmp_path / f"{stem}.md").read_text()
    assert text.startswith("# samplers: making a sampler, and drawing an epoch") and "floor" not in text
    capsys.readouterr()
    assert command.main(["--suite", "samplers", "--peers", "eager"]) == 2
    assert "expected some of pml_fast/auto, pml" in capsys.readouterr().out
