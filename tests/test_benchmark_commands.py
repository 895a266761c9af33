"""The benchmarks' commands: what they list, refuse, write, and keep when interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("rich", reason="the benchmarks need the bench extra")
pytest.importorskip("matplotlib", reason="the benchmarks need the bench extra")
pytest.importorskip("pytorch_metric_learning", reason="the benchmarks need the bench extra")

from benchmarks import __main__ as command
from benchmarks import on_gpu, results
from benchmarks.cases import NOT_SLOWER_THAN_PML, Case
from benchmarks.runner import run_cases


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
