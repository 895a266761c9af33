"""What the benchmarks do not time: wrong answers, refusals, cases beyond their limits, and peers that are not installed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from benchmark_cases import LIMITS, PLAN, SETUP

from benchmarks import bounded, peers, results, runner
from benchmarks.cases import Case
from benchmarks.inputs import Inputs
from benchmarks.peers import Step
from benchmarks.probe import run_oracle
from benchmarks.runner import Limits, failures, run_cases
from benchmarks.suites import SUITES


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
