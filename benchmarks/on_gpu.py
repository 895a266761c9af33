"""Everything a card has to show, in one command: ``python -m benchmarks.on_gpu`` (``make gpu`` builds first).

The tests of the GPU run first (kernels against float64, public modules, host waits, graphs), then the benchmarks with the time
that is left, which times nothing whose answer is wrong. What failed in either is listed in one place: at the end, and in
``benchmarks/results/<gpu>/verified.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.machine import REPOSITORY, describe_machine, describe_revision, describe_versions

# Of the time, to the tests at most; the benchmarks take what is left but this, in which the last case ends.
SHARE_OF_TESTS = 0.55
RESERVE = 30.0
MARKERS = "gpu or kernels"


@dataclass
class Tested:
    """How many tests passed, were skipped and failed; failures: a line for each, its test and its error."""

    passed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def parser() -> argparse.ArgumentParser:
    text = argparse.ArgumentParser(prog="python -m benchmarks.on_gpu", description="Tests, then benchmarks, of a CUDA device.")
    text.add_argument("--minutes", type=float, default=9.5, help="for all of it")
    text.add_argument("--only", choices=("tests", "benchmarks"), help="one of the two")
    text.add_argument(
        "--wheels", type=Path, metavar="DIR", help="pure-Python wheels to import peers from, where none can be installed"
    )
    text.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<gpu>")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 where a test or an answer is wrong, 2 without a CUDA device."""
    arguments = parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    if not torch.cuda.is_available():
        console.print("python -m benchmarks.on_gpu needs a CUDA device and a CUDA build of torch, found none", style="red")
        return 2
    began = time.monotonic()
    machine = describe_machine("cuda:0")
    folder = arguments.out or REPOSITORY / "benchmarks" / "results" / machine.slug
    folder.mkdir(parents=True, exist_ok=True)
    seconds = 60 * arguments.minutes
    tested = Tested()
    if arguments.only != "benchmarks":
        tested = run_tests(seconds * SHARE_OF_TESTS if arguments.only is None else seconds)
    code = 0
    if arguments.only != "tests":
        left = seconds - (time.monotonic() - began) - RESERVE
        code = run_benchmarks(max(left, 1.0), folder, arguments.wheels)
    _write(folder / "verified.json", tested, code)
    console.print(
        f"{tested.passed} tests passed, {tested.skipped} skipped, {len(tested.failures)} failed in {tested.seconds:.0f} s"
    )
    for line in tested.failures:
        console.print(line, style="red", highlight=False, markup=False)
    if code:
        console.print(f"the benchmarks found wrong answers: {folder}/full.md lists them", style="red", highlight=False)
    return 1 if tested.failures or code else 0


def run_tests(seconds: float) -> Tested:
    """The tests that are marked for a card, over all cores where pytest-xdist is there, for no longer than ``seconds``."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "tests.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            MARKERS,
            f"--junitxml={found}",
            "tests",
        ]
        if importlib.util.find_spec("xdist") is not None:
            command += ["-n", "auto"]
        try:
            code = subprocess.run(command, cwd=REPOSITORY, timeout=seconds, check=False).returncode
        except subprocess.TimeoutExpired:
            return Tested(failures=[f"the tests were stopped after {seconds:.0f} s"], seconds=seconds)
        tested = read_tests(found) if found.exists() else Tested(failures=[f"pytest ended with code {code} and no results"])
    tested.seconds = time.monotonic() - began
    return tested


def read_tests(path: Path) -> Tested:
    """What a JUnit file says."""
    tested = Tested()
    for case in ET.parse(path).getroot().iter("testcase"):
        bad = [part for part in case if part.tag in ("failure", "error")]
        if bad:
            reason = (bad[0].get("message") or "").strip().splitlines()
            tested.failures.append(f"{case.get('classname')}::{case.get('name')}: {reason[0] if reason else bad[0].tag}")
        elif case.find("skipped") is not None:
            tested.skipped += 1
        else:
            tested.passed += 1
    return tested


def run_benchmarks(budget: float, folder: Path, wheels: Path | None) -> int:
    """The suite of a GPU in ``budget`` seconds: the exit code of ``python -m benchmarks``."""
    from benchmarks.__main__ import main as benchmark

    if wheels is not None:
        sys.path += sorted(str(path) for path in wheels.glob("*.whl"))  # a wheel of pure Python imports as it is
    return benchmark(["--gpu", "--budget", f"{budget:.0f}", "--out", str(folder)])


def _write(path: Path, tested: Tested, code: int) -> None:
    described = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": dataclasses.asdict(describe_machine("cuda:0")),
        "versions": dataclasses.asdict(describe_versions()),
        "revision": dataclasses.asdict(describe_revision()),
        "tests": dataclasses.asdict(tested),
        "benchmarks_agree": code == 0,
    }
    path.write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
