"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import results
from benchmarks.bounded import available_memory
from benchmarks.cases import TF32, torch_dtype
from benchmarks.machine import REPOSITORY, describe_machine, describe_revision, describe_versions
from benchmarks.peers import PEERS
from benchmarks.plots import write_plots
from benchmarks.probe import Setup
from benchmarks.report import show, write_markdown
from benchmarks.results import Report
from benchmarks.runner import Limits, failures
from benchmarks.suites import QUICK, QUICK_SUITES, SUITES, Suite
from benchmarks.timing import Plan


def parser() -> argparse.ArgumentParser:
    text = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times pml_fast and its peers in turn, once their answers agree with a float64 oracle.",
    )
    about = "; ".join(f"{name}: {suite.about}" for name, suite in SUITES.items())
    text.add_argument("--suite", choices=tuple(SUITES), help=f"which cases (core by default, with --gpu gpu). {about}")
    text.add_argument("--quick", action="store_true", help="small cases only, two minutes; without the compiled peer")
    text.add_argument("--cases", metavar="REGEX", help="only cases whose name matches (see --list)")
    text.add_argument("--peers", nargs="+", metavar="PEER", help=f"only these peers, of: {', '.join((*PEERS, 'sklearn'))}")
    text.add_argument("--rounds", type=_positive(int), metavar="N", help="samples of a peer, but one of a step above 10 s")
    text.add_argument("--budget", type=_positive(float), metavar="SECONDS", help="start no case later")
    text.add_argument("--limit", type=_positive(float), metavar="SECONDS", help="bound on one checked step")
    text.add_argument("--memory-limit", type=_positive(float), metavar="GIB", help="default: 85 %% of free")
    text.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    text.add_argument("--gpu", action="store_true", help="run on the CUDA device instead of the CPU")
    text.add_argument("--dtypes", nargs="+", metavar="DTYPE", help="default: float32; on a GPU also tf32, bfloat16")
    text.add_argument("--matmul-precision", choices=("highest", "high", "medium"), default="highest")
    text.add_argument("--threads", type=_positive(int), default=torch.get_num_threads(), help="CPU threads")
    text.add_argument("--seed", type=int, default=0, help="seed of the inputs")
    text.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results/<hardware>")
    text.add_argument("--list", action="store_true", help="print the names of the cases and peers and stop")
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks; returns 1 where pml_fast is wrong or fails, 2 for arguments that cannot be run."""
    arguments = parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 200)
    arguments.suite = arguments.suite or ("gpu" if arguments.gpu else "core")
    try:
        suite = (QUICK_SUITES if arguments.quick else SUITES)[arguments.suite]
        cases, peers, device = _selection(arguments, suite)
    except ValueError as error:
        console.print(f"python -m benchmarks: {error}", style="red", highlight=False, markup=False)
        return 2
    if arguments.list:
        console.print("\n".join(["cases:", *(f"  {case.name}" for case in cases)]), highlight=False)
        console.print("\n".join(["peers:", *(f"  {name}" for name in peers)]), highlight=False)
        return 0
    command = shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if argv is None else argv)])
    report, setup, limits = _prepared(arguments, suite, device, command)
    try:
        _measure(report, suite.run, cases, peers, setup, _plan(arguments, suite), limits)
    finally:  # an interrupted run keeps what it has measured
        if report.cases:
            show(report, console)
            folder, stem = _write(report, arguments, suite, whole=len(report.cases) == len(cases))
            console.print(f"written to {folder}/{stem}.json, .md and plots", highlight=False)
    failed = failures(report.cases)
    for line in failed:
        console.print(line, style="red", highlight=False, markup=False)
    return 1 if failed else 0


def _selection(arguments: argparse.Namespace, suite: Suite) -> tuple[list[Any], list[str], str]:
    """Cases, peers and device that the arguments ask for; ValueError says what cannot be had."""
    if arguments.gpu and not torch.cuda.is_available():
        raise ValueError("--gpu needs a CUDA device and a CUDA build of torch, found none; leave --gpu out to use the CPU")
    dtypes = tuple(arguments.dtypes or (("float32", TF32, "bfloat16") if arguments.gpu else ("float32",)))
    for name in dtypes:
        torch_dtype(name)
    cases = suite.registry(dtypes)
    if arguments.cases:
        try:
            pattern = re.compile(arguments.cases)
        except re.error as error:
            raise ValueError(f"--cases must be a regular expression, got {arguments.cases!r} ({error})") from error
        cases = [case for case in cases if pattern.search(case.name)]
        if not cases:
            raise ValueError(f"--cases {arguments.cases!r} matches no case; --list prints their names")
    peers = list(arguments.peers or suite.peers(arguments.gpu))
    known = suite.known_peers()
    unknown = [name for name in peers if name not in known]
    if unknown:
        raise ValueError(f"--peers got {', '.join(unknown)}, expected some of {', '.join(known)}")
    return cases, peers, "cuda:0" if arguments.gpu else "cpu"


def _prepared(arguments: argparse.Namespace, suite: Suite, device: str, command: str) -> tuple[Report, Setup, Limits]:
    """A report without cases, and what every process and every step of the run is bound to."""
    limits = Limits(
        memory_bytes=_memory_limit(arguments, device),
        seconds=arguments.limit or suite.limit,
        budget=arguments.budget or suite.budget,
    )
    setup = Setup(
        device=device,
        threads=arguments.threads,
        seed=arguments.seed,
        memory_bytes=limits.memory_bytes,
        matmul_precision=arguments.matmul_precision,
        measure_memory=not arguments.no_memory,
    )
    report = Report(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command,
        device=device,
        threads=arguments.threads,
        seed=arguments.seed,
        machine=describe_machine(device),
        versions=describe_versions(),
        revision=describe_revision(),
        matmul_precision=arguments.matmul_precision,
        memory_limit_bytes=limits.memory_bytes,
        seconds_limit=limits.seconds,
        suite="core" if suite is QUICK else arguments.suite,
    )
    return report, setup, limits


def _measure(
    report: Report,
    run: Callable[..., Iterator[Any]],
    cases: list[Any],
    peers: list[str],
    setup: Setup,
    plan: Plan,
    limits: Limits,
) -> None:
    """Add each case to the report as it is done."""
    began = time.monotonic()
    with tqdm(total=len(cases), unit="case", dynamic_ncols=True) as bar:
        for result in run(cases, peers, setup, plan, limits, bar.set_postfix_str):
            report.cases.append(result)
            report.wall_seconds = time.monotonic() - began
            bar.update()


def _plan(arguments: argparse.Namespace, suite: Suite) -> Plan:
    if arguments.rounds:
        return Plan(seconds=0.0, min_rounds=arguments.rounds, max_rounds=arguments.rounds)
    return suite.plan


def _memory_limit(arguments: argparse.Namespace, device: str) -> int | None:
    if arguments.memory_limit:
        return int(arguments.memory_limit * 2**30)
    if device != "cpu":
        return int(0.9 * torch.cuda.get_device_properties(device).total_memory)
    available = available_memory()
    return None if available is None else int(0.85 * available)


def _write(report: Report, arguments: argparse.Namespace, suite: Suite, whole: bool) -> tuple[Path, str]:
    """Write JSON, Markdown and plots; a run of some cases or peers does not overwrite that of all."""
    folder = arguments.out or REPOSITORY / "benchmarks" / "results" / report.machine.slug
    stem = suite.stem
    if arguments.cases or arguments.peers or not whole:
        stem = "partial" if suite.stem in ("full", "quick") else f"{suite.stem}-partial"
    results.write(report, folder / f"{stem}.json")
    write_markdown(report, folder / f"{stem}.md")
    write_plots(report, folder, stem)
    return folder, stem


def _positive(kind: type[int] | type[float]) -> type:
    def convert(text: str) -> float:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"must be positive, got {text}")
        return value

    convert.__name__ = kind.__name__  # argparse names it in its messages
    return convert  # type: ignore[return-value]


if __name__ == "__main__":
    sys.exit(main())
