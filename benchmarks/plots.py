"""Plots: time and peak extra memory against the batch size, a panel an operation; speed-ups of many operations as a map."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from benchmarks import results
from benchmarks.cases import MEBIBYTE
from benchmarks.results import CaseResult, PeerResult, Report
from benchmarks.suites import MAIN_SUITES

COLOURS = {
    "pml_fast/auto": "#c1272d",
    "pml_fast/cpu": "#c1272d",
    "pml_fast/triton": "#c1272d",
    "pml_fast/chunked": "#f2914a",
    "pml": "#0b559f",
    "eager": "#3a923a",
    "compile": "#7b4ea3",
}
# The suites whose cases differ in what the rows meet, and not in the rows.
_AXIS = {"classes": "classes C, 512 rows", "queues": "rows of the queue, 512 rows in the batch"}
_SIZES = {"samplers": "labels", "evaluation": "queries, and references"}
REFERENCE_COLOUR = "#555555"
PANELS_A_ROW = 3

PeerFigure = Callable[[PeerResult], "float | None"]
CaseFigure = Callable[[CaseResult], "float | None"]


def write_plots(report: Report, folder: Path, prefix: str) -> list[Path]:
    """Write PREFIX-time.png and PREFIX-memory.png of the core's operations that have at least two sizes.

    Of the suites of many operations, PREFIX-speedup.png: by how much this library is faster than PML, operation x size.
    """
    if report.suite not in MAIN_SUITES:
        path = folder / f"{prefix}-speedup.png"
        _map(report).savefig(path, dpi=120)
        return [path]
    curves = _curves(report)
    if not curves:
        return []
    time_path, memory_path = folder / f"{prefix}-time.png", folder / f"{prefix}-memory.png"
    _draw(
        curves,
        "median time of forward + backward, seconds",
        lambda peer: peer.seconds.p50 if peer.seconds else None,
        ("floor: 3 torch.mm", lambda case: case.floor_seconds.p50 if case.floor_seconds else None),
    ).savefig(time_path, dpi=120)
    _draw(
        curves,
        "peak extra memory, MiB",
        # Below 0.1 MiB the page size and the allocator decide, not the operation.
        lambda peer: None if peer.peak_extra_bytes is None else max(peer.peak_extra_bytes / MEBIBYTE, 0.1),
        ("bound", lambda case: case.memory_bound_bytes / MEBIBYTE),
    ).savefig(memory_path, dpi=120)
    return [time_path, memory_path]


def _map(report: Report) -> Figure:
    """Operations by sizes; colours in the logarithm of the speed-up, red below 1, white at 1."""
    operations = list(dict.fromkeys(case.operation for case in report.cases))
    sizes = list(dict.fromkeys((case.columns if _of_columns(report) else 0) or case.size for case in report.cases))
    figure = Figure(figsize=(3.2 + 1.3 * len(sizes), 1.4 + 0.27 * len(operations)), layout="constrained")
    axes = figure.add_subplot()
    grid = np.full((len(operations), len(sizes)), np.nan)
    for case in report.cases:
        row = operations.index(case.operation)
        column = sizes.index((case.columns if _of_columns(report) else 0) or case.size)
        speedup, text = _speedup(case)
        if speedup is not None:
            grid[row, column] = np.clip(math.log10(speedup), -1, 2)
        axes.text(column, row, text, ha="center", va="center", fontsize=8)
    norm = TwoSlopeNorm(0.0, -1.0, 2.0)
    image = axes.imshow(grid, cmap="RdYlGn", norm=norm, aspect="auto")
    axes.set_facecolor("#dddddd")
    axes.set_xticks(range(len(sizes)), [f"{size:,}" for size in sizes])
    axes.set_yticks(range(len(operations)), operations)
    axes.set(
        title=f"{report.suite}: times faster than PML",
        xlabel=_AXIS.get(report.suite) or _SIZES.get(report.suite, "batch size N"),
    )
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1, 2])
    bar.ax.set_yticklabels(["0.1", "1", "10", "100"])
    note = "* than dense PyTorch, where PML has no such loss; grey: PML did not finish"
    figure.supxlabel(note, x=0.01, ha="left", fontsize=7)
    return figure


def _of_columns(report: Report) -> bool:
    return report.suite in _AXIS


def _speedup(case: CaseResult) -> tuple[float | None, str]:
    """By how much this library is faster, and what the cell says."""
    pml, eager = case.peer("pml"), case.peer("eager")
    if pml is not None:
        found = pml.ours_is_faster_by
        return found, pml.status if found is None else f"{found:.3g}"
    found = None if eager is None else eager.ours_is_faster_by
    return found, "" if found is None else f"{found:.3g}*"


def _curves(report: Report) -> dict[str, list[CaseResult]]:
    """The cases of each operation, width, dtype and labelling that has several sizes, by size."""
    groups: dict[str, list[CaseResult]] = {}
    for case in report.cases:
        groups.setdefault(f"{case.operation}, D = {case.dim}, {case.per_class} a class, {case.dtype}", []).append(case)
    return {title: sorted(cases, key=lambda case: case.size) for title, cases in groups.items() if len(cases) > 1}


def _draw(curves: dict[str, list[CaseResult]], label: str, figure_of: PeerFigure, reference: tuple[str, CaseFigure]) -> Figure:
    columns = min(PANELS_A_ROW, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(4.6 * columns, 4.0 * rows), layout="constrained")
    for place, (title, cases) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        _panel(axes, cases, figure_of, reference)
        axes.set(title=title, xlabel="batch size N", ylabel=label, xscale="log", yscale="log")
        axes.set_xticks([case.size for case in cases], [str(case.size) for case in cases], rotation=45, minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    return figure


def _panel(axes: Axes, cases: list[CaseResult], figure_of: PeerFigure, reference: tuple[str, CaseFigure]) -> None:
    names = dict.fromkeys(peer.peer for case in cases for peer in case.peers)
    for name in names:
        entries = [(case.size, case.peer(name)) for case in cases]
        points = [(size, value) for size, peer in entries if peer and (value := figure_of(peer)) is not None]
        if points:
            axes.plot(*zip(*points), marker="o", markersize=3.5, color=COLOURS.get(name), label=_label(name, cases))
    name, value_of = reference
    points = [(case.size, value) for case in cases if (value := value_of(case)) is not None]
    if points:
        axes.plot(*zip(*points), linestyle="--", color=REFERENCE_COLOUR, label=name)


def _label(name: str, cases: list[CaseResult]) -> str:
    """The peer's name, with the first size at which it did not finish."""
    silent = (results.OK, results.NOT_RUN, results.UNAVAILABLE)
    for case in cases:
        peer = case.peer(name)
        if peer is not None and peer.status not in silent:
            return f"{name} ({peer.status} at {case.size})"
    return name
