"""Prints results as a table in the terminal and writes the same table in Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import results
from benchmarks.cases import MEBIBYTE
from benchmarks.peers import OURS, headline
from benchmarks.results import CaseResult, PeerResult, Report
from benchmarks.suites import MAIN_SUITES

COLUMNS = (
    "case",
    "peer",
    "p50",
    "x floor",
    "pml_fast is faster by",
    "peak extra",
    "bound",
    "error",
    "status",
)
SUMMARY = (
    "case",
    "pml_fast",
    "x floor",
    "faster than pml",
    "than eager",
    "than compile",
    "than sklearn",
    "peak extra",
    "of pml",
    "checked by",
)
TARGET_COLUMNS = ("case", "target", "reached", "")
NOTHING = ""
# Of suites that time no steps of training.
_TIMED = {"samplers": "making a sampler, and drawing an epoch", "evaluation": "metrics of a retrieval"}


def show(report: Report, console: Console) -> None:
    """Print the results, then the targets, then a line of totals."""
    console.print(_peers_table(report) if report.suite in MAIN_SUITES else _summary_table(report))
    targets = Table(*TARGET_COLUMNS, title="Targets")
    for row in _target_rows(report):
        targets.add_row(*map(escape, row), style={"missed": "red", "met": "green"}.get(row[-1]))
    if targets.row_count:
        console.print(targets)
    console.print(totals(report), highlight=False)


def _peers_table(report: Report) -> Table:
    table = Table(*COLUMNS, title=_title(report))
    table.columns[0].no_wrap = True
    for case in report.cases:
        for row in _case_rows(case):
            table.add_row(*map(escape, row), style="bold" if row[1].startswith(OURS) else None)
        table.add_section()
    return table


def _summary_table(report: Report) -> Table:
    columns, rows = _filled(SUMMARY, [summary_row(case) for case in report.cases])
    table = Table(*columns, title=_title(report))
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _filled(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Without the columns that hold nothing, such as those of peers that a suite does not have."""
    kept = [k for k in range(len(columns)) if k == 0 or any(row[k] != NOTHING for row in rows)]
    return tuple(columns[k] for k in kept), [tuple(row[k] for k in kept) for row in rows]


def summary_row(case: CaseResult) -> tuple[str, ...]:
    """A case in one row: this library's time and memory, and by how much it is faster than each peer or what became of it."""
    ours = case.peer(headline([peer.peer for peer in case.peers if peer.status == results.OK]) or "")
    ours = ours or case.peer(headline([peer.peer for peer in case.peers]) or "")
    pml = case.peer("pml")
    return (
        case.case,
        NOTHING if ours is None else _time(ours.seconds.p50) if ours.seconds else ours.status,
        f"{ours.ratio_to_floor:.2f}" if ours and ours.ratio_to_floor is not None else NOTHING,
        *(_faster(case.peer(name)) for name in ("pml", "eager", "compile", "sklearn")),
        _size(ours.peak_extra_bytes if ours else None),
        _size(pml.peak_extra_bytes if pml else None),
        case.oracle,
    )


def _faster(peer: PeerResult | None) -> str:
    if peer is None:
        return NOTHING
    if peer.ours_is_faster_by is None:
        return peer.status if peer.status != results.OK else NOTHING
    return f"{_times(peer.ours_is_faster_by)} x"


def _times(ratio: float) -> str:
    """A ratio of times without digits that a run does not repeat."""
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"


def write_markdown(report: Report, path: Path) -> None:
    """Write both tables and the facts about the machine to a Markdown file."""
    packages = ", ".join(f"{name} {version}" for name, version in report.versions.packages.items() if version)
    revision = f"{report.revision.commit}{' with uncommitted changes' if report.revision.dirty else ''}"
    lines = [
        f"# {_title(report)}",
        "",
        f"- written by `{report.command}` on {report.date}, commit {revision}",
        f"- {report.machine.cpu}, {report.machine.cores} cores, {_size(report.machine.memory_bytes)}, "
        f"{report.machine.system}, {report.threads} threads" + (f", {report.machine.gpu}" if report.machine.gpu else ""),
        f"- Python {report.versions.python}, {packages}",
        f"- {totals(report)}",
        "",
        *_markdown(*_filled(SUMMARY, [summary_row(case) for case in report.cases])),
        "",
        "## Every peer",
        "",
        *_markdown(*_filled(COLUMNS, [row for case in report.cases for row in _case_rows(case)])),
        "",
        "## Targets",
        "",
        *_markdown(("case", "target", "reached", "met"), list(_target_rows(report))),
    ]
    path.write_text("\n".join(lines) + "\n")


def totals(report: Report) -> str:
    """One line: how many targets are met, missed and not judged, and how many answers were wrong."""
    judged = [target.met for case in report.cases for target in case.targets]
    wrong = sum(peer.status == results.WRONG for case in report.cases for peer in case.peers)
    return (
        f"{judged.count(True)} targets met, {judged.count(False)} missed, {judged.count(None)} not judged; "
        f"{wrong} wrong answers; {report.wall_seconds:.0f} s"
    )


def what_is_timed(report: Report) -> str:
    return _TIMED.get(report.suite, "forward + backward")


def _title(report: Report) -> str:
    device = report.machine.gpu or report.machine.cpu
    return f"{report.suite}: {what_is_timed(report)}, {device}, {report.threads} thread{'s' if report.threads > 1 else ''}"


def _case_rows(case: CaseResult) -> Iterator[tuple[str, ...]]:
    floor = _time(case.floor_seconds.p50) if case.floor_seconds else NOTHING
    yield case.case, "floor (3 torch.mm)" if floor else NOTHING, floor, "1.00" if floor else NOTHING, *[NOTHING] * 5
    for peer in case.peers:
        yield NOTHING, peer.peer, *_figures(peer, case), _status(peer)


def _figures(peer: PeerResult, case: CaseResult) -> tuple[str, str, str, str, str, str]:
    return (
        _time(peer.seconds.p50) if peer.seconds else NOTHING,
        f"{peer.ratio_to_floor:.2f}" if peer.ratio_to_floor else NOTHING,
        f"{peer.ours_is_faster_by:.2f} x" if peer.ours_is_faster_by else NOTHING,
        _size(peer.peak_extra_bytes),
        _size(case.memory_bound_bytes or None),
        f"{error:.1e}" if (error := _error(peer)) is not None else NOTHING,
    )


def _error(peer: PeerResult) -> float | None:
    """Of the gradient, or of a result that has none."""
    return peer.value_error if peer.gradient_error is None else peer.gradient_error


def _status(peer: PeerResult) -> str:
    if peer.status in (results.OK, results.NOT_RUN) or not peer.detail:
        return peer.status
    return f"{peer.status}: {peer.detail.splitlines()[0][:80]}"


def _target_rows(report: Report) -> Iterator[tuple[str, ...]]:
    words = {True: "met", False: "missed", None: "not judged"}
    for case in report.cases:
        for target in case.targets:
            yield case.case, target.target, target.reached, words[target.met]


def _markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in cells]


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _size(size: int | None) -> str:
    if size is None:
        return NOTHING
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / MEBIBYTE:.1f} MiB"
