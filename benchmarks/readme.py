"""Fills the README's tables of speeds: ``python -m benchmarks.readme``.

Every figure comes from the JSON that ``python -m benchmarks`` wrote under ``benchmarks/results/<hardware>/``. The
newest run on a CPU and the newest on a GPU are shown; a run of every case comes before ``--quick``, and a run of
chosen cases is taken only when it is named. Of the other suites the newest run on that kind of device follows, a row a
loss; each table says where it was measured. What stands between the two markers is replaced.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.machine import REPOSITORY
from benchmarks.peers import headline
from benchmarks.report import _markdown, _size, _time, _times, totals, what_is_timed
from benchmarks.results import CaseResult, PeerResult, Report
from benchmarks.suites import MAIN_SUITES, PAIR_OPERATIONS, SUITES, WORK_SUITES

BEGIN, END = "<!-- benchmark:begin -->", "<!-- benchmark:end -->"
RIVALS = {"pml": "PML", "eager": "dense PyTorch", "compile": "torch.compile"}
COLUMNS = ("step", "N", "pml_fast", "x floor", *RIVALS.values(), "extra memory", "of PML")
# Of the pair losses' many sizes the README shows these; every other case is shown.
PAIR_SIZES = (256, 1024, 4096, 8192, 65_536)
OTHER_SUITES = tuple(name for name in SUITES if name not in MAIN_SUITES)
NOTHING = "–"
EMPTY = "No run is recorded yet: `make bench` makes one, and `python -m benchmarks.readme` shows it here."

Found = tuple[Path, Report]


def newest(folder: Path) -> list[Found]:
    """The newest run on a CPU and of each other suite there, then those of GPUs, of all the hardware in ``folder``."""
    chosen = []
    for on_gpu in (False, True):
        for stems in (("full", "quick"), *((SUITES[name].stem,) for name in OTHER_SUITES)):
            runs = [(path, results.read(path)) for stem in stems for path in sorted(folder.glob(f"*/{stem}.json"))]
            fitting = [run for run in runs if (run[1].machine.gpu is not None) == on_gpu]
            if fitting:
                chosen.append(max(fitting, key=lambda run: (run[0].stem == "full", run[1].date)))
    return chosen


def section(found: Sequence[Found]) -> str:
    """What belongs between the markers, in Markdown."""
    return "\n\n".join(_one_run(*run) for run in found) if found else EMPTY


def replaced(text: str, content: str) -> str:
    """``text`` with ``content`` between the markers; ValueError unless both are there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the text must hold {BEGIN} and {END} once each, in this order; put both back")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n\n{content}\n\n{END}{after}"


def _one_run(path: Path, report: Report) -> str:
    if report.suite not in MAIN_SUITES:
        return "\n".join([f"**{_sentence(SUITES[report.suite].about)}**", "", *_facts(path, report), "", *_by_loss(report)])
    cases = [case for case in report.cases if case.operation not in PAIR_OPERATIONS or case.size in PAIR_SIZES]
    rows = [_row(case) for case in cases]
    return "\n".join([*_facts(path, report), "", *_markdown(COLUMNS, rows), "", *_missed(report)]).rstrip()


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _by_loss(report: Report) -> list[str]:
    """A row an operation and a column a size: the time, and by how much it is faster than PML."""
    wide = {case.columns for case in report.cases} - {0} if report.suite in ("classes", "queues") else set()
    sizes = sorted(wide or {case.size for case in report.cases})
    cells: dict[str, dict[int, str]] = {}
    for case in report.cases:
        cells.setdefault(case.operation, {})[case.columns if wide else case.size] = _cell(case)
    rows = [(name.replace("_", " "), *(row.get(size, NOTHING) for size in sizes)) for name, row in cells.items()]
    heads = (f"{'M' if report.suite == 'queues' else 'C' if wide else 'N'} = {size:,}" for size in sizes)
    return _markdown(("work" if report.suite in WORK_SUITES else "loss", *heads), rows)


def _cell(case: CaseResult) -> str:
    ours = case.peer(headline([peer.peer for peer in case.peers]) or "")
    rival = case.peer("pml") or case.peer("eager")
    if ours is None or ours.seconds is None:
        return _rival(ours)
    if rival is None:
        return f"{_time(ours.seconds.p50)} (beyond PML)"
    name = RIVALS[rival.peer]
    if rival.ours_is_faster_by is None:
        return f"{_time(ours.seconds.p50)} ({name}: {rival.status})"
    whom = "" if rival.peer == "pml" else f" than {name}"
    return f"{_time(ours.seconds.p50)} ({_times(rival.ours_is_faster_by)}x{whom})"


def _facts(path: Path, report: Report) -> Iterator[str]:
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.packages.items() if version)
    revision = f"commit {report.revision.commit or 'unknown'}"
    revision += " with uncommitted changes" if report.revision.dirty else ""
    machine = report.machine
    hardware = f"{machine.gpu}, " if machine.gpu else ""
    threads = f"{report.threads} thread{'s' if report.threads != 1 else ''}"
    dim = report.cases[0].dim if report.cases else NOTHING
    yield (
        f"{_sentence(what_is_timed(report))}, D = {dim}, medians, on {hardware}{machine.cpu} "
        f"({machine.cores} cores, {threads}), {machine.system}; Python {report.versions.python}, {packages}; "
        f"{revision}; `{report.command}`, {report.date[:10]}: {totals(report)}."
    )
    name = f"{path.parent.name}/{path.stem}.md"
    yield f"All cases, errors and targets: [{name}]({_link(path.with_suffix('.md'))})."


def _link(path: Path) -> str:
    """Relative to the repository, where the file lies in it."""
    path = path.resolve()
    return path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else path.as_posix()


def _row(case: CaseResult) -> tuple[str, ...]:
    ours = case.peer(headline([peer.peer for peer in case.peers if peer.status == results.OK]) or "")
    ours = ours or case.peer(headline([peer.peer for peer in case.peers]) or "")
    kind = "" if case.dtype == "float32" else f", {case.dtype}"
    return (
        f"{case.operation.replace('_', ' ')}, {case.per_class} a class{kind}",
        f"{case.size}",
        _own(ours),
        f"{ours.ratio_to_floor:.2f}" if ours and ours.ratio_to_floor is not None else NOTHING,
        *(_rival(case.peer(name)) for name in RIVALS),
        _memory(ours),
        _memory(case.peer("pml")),
    )


def _own(peer: PeerResult | None) -> str:
    if peer is None or peer.seconds is None:
        return _rival(peer)
    return f"{_time(peer.seconds.p50)} ({peer.peer.partition('/')[2]})"


def _rival(peer: PeerResult | None) -> str:
    """Its time and by how much pml_fast is faster, or else what became of it."""
    if peer is None:
        return NOTHING
    if peer.seconds is None:
        return "not timed" if peer.status == results.OK else peer.status
    faster = f" ({_times(peer.ours_is_faster_by)}x)" if peer.ours_is_faster_by is not None else ""
    return f"{_time(peer.seconds.p50)}{faster}"


def _memory(peer: PeerResult | None) -> str:
    return _size(peer.peak_extra_bytes) if peer and peer.peak_extra_bytes is not None else NOTHING


def _missed(report: Report) -> Iterator[str]:
    """The targets that were not met, one a line, or that none was missed."""
    missed = [(case.case, target) for case in report.cases for target in case.targets if target.met is False]
    if not missed:
        yield "No target was missed."
        return
    yield "Targets missed:\n"
    for case, target in missed:
        yield f"- `{case}`: {target.target}; reached: {target.reached}"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the section, or with --check say whether it is up to date; returns 1 where it is not and for bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=REPOSITORY / "benchmarks" / "results", metavar="DIR")
    parser.add_argument("--file", type=Path, nargs="+", metavar="JSON", help="these runs, not the newest")
    parser.add_argument("--readme", type=Path, default=REPOSITORY / "README.md", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing; return 1 if the section is out of date")
    arguments = parser.parse_args(argv)
    try:
        found = [(path, results.read(path)) for path in arguments.file] if arguments.file else newest(arguments.results)
        before = arguments.readme.read_text(encoding="utf-8")
        after = replaced(before, section(found))
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if arguments.check:
        print(f"{arguments.readme}: the table is {'up to date' if after == before else 'out of date'}")
        return int(after != before)
    arguments.readme.write_text(after, encoding="utf-8")
    print(f"{arguments.readme}: {len(found)} run{'s' if len(found) != 1 else ''} shown")
    return 0


if __name__ == "__main__":
    sys.exit(main())
