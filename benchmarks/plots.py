"""Plots time and peak extra memory against the batch size: a panel an operation, a curve a peer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import results
from benchmarks.cases import MEBIBYTE
from benchmarks.results import CaseResult, PeerResult, Report

COLOURS = {
    "pml_fast/cpu": "#c1272d",
    "pml_fast/triton": "#c1272d",
    "pml_fast/chunked": "#f2914a",
    "pml": "#0b559f",
    "eager": "#3a923a",
    "compile": "#7b4ea3",
}
REFERENCE_COLOUR = "#555555"
PANELS_A_ROW = 3

PeerFigure = Callable[[PeerResult], "float | None"]
CaseFigure = Callable[[CaseResult], "float | None"]


def write_plots(report: Report, folder: Path, prefix: str) -> list[Path]:
    """Write PREFIX-time.png and PREFIX-memory.png of the operations that have at least two sizes."""
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


def _curves(report: Report) -> dict[str, list[CaseResult]]:
    """The cases of each operation, dtype and labelling that has several sizes, by size."""
    groups: dict[str, list[CaseResult]] = {}
    for case in report.cases:
        groups.setdefault(f"{case.operation}, {case.per_class} a class, {case.dtype}", []).append(case)
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
