"""The README tells the truth: its quick start prints what it shows, and its figures are those of the results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rich", reason="the benchmarks need the bench extra")
pytest.importorskip("matplotlib", reason="the benchmarks need the bench extra")

from benchmarks import readme, results
from benchmarks.machine import Machine, Revision, Versions
from benchmarks.results import CaseResult, PeerResult, Report, TargetResult
from benchmarks.timing import Quantiles

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def quantiles(seconds: float) -> Quantiles:
    return Quantiles(seconds, seconds, seconds, seconds, 3, 1)


def report(date: str = "2030-01-02T00:00:00+00:00", gpu: str | None = None, seconds: float = 0.0425) -> Report:
    """A run of one case, which PML did not finish."""
    case = CaseResult("supcon/n4096/k4/float32", "supcon", 4096, 128, 4, "float32", 2**27, quantiles(0.04))
    case.peers = [
        PeerResult("pml_fast/cpu", results.OK, None, quantiles(seconds), 1.0625, 1.0, 5 * 2**20),
        PeerResult("pml", "out of memory", "no room"),
        PeerResult("eager", results.OK, None, quantiles(0.17), 4.25, 4.0, 2**30),
    ]
    case.targets = [TargetResult("<= 1 x floor", "1.06 x floor", False)]
    return Report(
        date, "python -m benchmarks", "cuda:0" if gpu else "cpu", 2, 0, Machine("Some CPU", 2, 2**33, "Linux x86_64", gpu),
        Versions("3.12.0", {"torch": "2.13.0", "triton": None}), Revision("abc123", True), "highest", None, 60.0, 9.0, [case],
    )  # fmt: skip


def test_the_quick_start_prints_what_the_readme_shows() -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(r"## Quick start.*?```python\n(.*?)```.*?```text\n(.*?)```", text, re.DOTALL)
    assert found is not None
    code, shown = found.groups()
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    losses = [line for line in shown.splitlines() if line.startswith("step")]
    assert len(losses) == 5
    # The plan that follows names this machine's backend and so may differ.
    assert ran.stdout.splitlines()[: len(losses)] == losses
    assert len(ran.stdout.splitlines()) > len(losses)


def test_a_row_has_times_ratios_and_what_became_of_the_others(tmp_path: Path) -> None:
    text = readme.section([(tmp_path / "some-cpu-2c" / "full.json", report())])
    row = next(line for line in text.splitlines() if line.startswith("| supcon"))
    assert row.strip("| ").split(" | ") == [
        "supcon, 4 a class", "4096", "42.5 ms (cpu)", "1.06", "out of memory", "170 ms (4.00x)", "–", "5.0 MiB", "–",
    ]  # fmt: skip
    for fact in ("Some CPU", "torch 2.13.0", "commit abc123 with uncommitted changes", "2030-01-02", "Python 3.12.0"):
        assert fact in text
    assert "`supcon/n4096/k4/float32`: <= 1 x floor; reached: 1.06 x floor" in text


def test_the_newest_complete_run_of_each_kind_of_device_is_shown(tmp_path: Path) -> None:
    results.write(report("2030-01-01"), tmp_path / "a" / "full.json")
    results.write(report("2030-01-02"), tmp_path / "b" / "full.json")
    results.write(report("2030-01-03"), tmp_path / "b" / "quick.json")
    results.write(report("2030-01-04"), tmp_path / "b" / "partial.json")
    results.write(report("2029-01-01", gpu="Some GPU"), tmp_path / "g" / "quick.json")
    (tmp_path / "aot").mkdir()
    (tmp_path / "aot" / "sm_90.json").write_text("{}")
    shown = [str(path.relative_to(tmp_path)) for path, _ in readme.newest(tmp_path)]
    assert shown == ["b/full.json", "g/quick.json"]
    assert readme.newest(tmp_path / "nothing here") == []


def test_the_newest_run_of_another_suite_is_shown_wherever_it_was_measured(tmp_path: Path) -> None:
    results.write(report("2030-01-02"), tmp_path / "a" / "full.json")
    for folder, date in (("a", "2030-01-03"), ("b", "2030-01-04"), ("c", "2030-01-01")):
        other = report(date)
        other.suite = "small"
        results.write(other, tmp_path / folder / "small.json")
    shown = [str(path.relative_to(tmp_path)) for path, _ in readme.newest(tmp_path)]
    assert shown == ["a/full.json", "b/small.json"]


def test_another_suite_is_a_row_a_loss(tmp_path: Path) -> None:
    """Shown after the core run."""
    results.write(report(), tmp_path / "a" / "full.json")
    small = report()
    small.suite = "small"
    small.cases[0].size = 32
    slow = PeerResult("pml", results.OK, None, quantiles(0.085), None, 2.0)
    small.cases.append(
        CaseResult("nca/n64/k4/float32", "nca", 64, 128, 4, "float32", 2**27, peers=[small.cases[0].peers[0], slow])
    )
    results.write(small, tmp_path / "a" / "small.json")
    found = readme.newest(tmp_path)
    assert [path.stem for path, _ in found] == ["full", "small"]
    text = readme.section(found)
    assert "**Every loss and miner at N = 32 to 256**" in text
    table = [line for line in text.splitlines() if line.startswith(("| loss", "| supcon |", "| nca"))]
    assert table == [
        "| loss | N = 32 | N = 64 |",
        "| supcon | 42.5 ms (PML: out of memory) | – |",
        "| nca | – | 42.5 ms (2.00x) |",
    ]


def test_only_what_is_between_the_markers_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"above\n{readme.BEGIN}old{readme.END}\nbelow\n")
    results.write(report(), tmp_path / "results" / "a" / "full.json")
    arguments = ["--readme", str(page), "--results", str(tmp_path / "results")]
    assert readme.main([*arguments, "--check"]) == 1
    assert readme.main(arguments) == 0
    text = page.read_text()
    assert text.startswith(f"above\n{readme.BEGIN}\n\nForward") and text.endswith(f"{readme.END}\nbelow\n")
    assert "old" not in text
    assert readme.main([*arguments, "--check"]) == 0
    # Another run changes the figures, and only them.
    results.write(report(seconds=0.0512), tmp_path / "results" / "a" / "full.json")
    assert readme.main([*arguments, "--check"]) == 1
    assert readme.main(arguments) == 0
    assert page.read_text() == text.replace("42.5 ms", "51.2 ms")
    capsys.readouterr()


def test_a_page_without_markers_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"{readme.END} {readme.BEGIN}")
    assert readme.main(["--readme", str(page), "--results", str(tmp_path)]) == 1
    assert readme.BEGIN in capsys.readouterr().err
    assert page.read_text() == f"{readme.END} {readme.BEGIN}"


def test_the_readme_shows_the_figures_of_the_files_it_names() -> None:
    text = README.read_text(encoding="utf-8")
    names = re.findall(r"\]\((benchmarks/results/[^)]*)\.md\)", text.split(readme.BEGIN)[1].split(readme.END)[0])
    found = [(path, results.read(path)) for path in (ROOT / f"{name}.json" for name in names)]
    assert readme.replaced(text, readme.section(found)) == text, "run python -m benchmarks.readme"
