"""The tables that the demo prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from rich import box
from rich.table import Table

from pml_fast import _bounded
from pml_fast.demo.metrics import RetrievalMetrics
from pml_fast.demo.speed import Comparison

PEER_REMEDY = "To compare with pytorch-metric-learning, install it: pip install pytorch-metric-learning==2.9.0"
_CLASSES_SHOWN = 8


def metrics_table(rows: Mapping[str, RetrievalMetrics]) -> Table:
    """One row an embedding, one column a metric; the last row is the one to look at."""
    queries = next(iter(rows.values())).queries
    table = Table(title="Retrieval among classes never seen in training", box=box.SIMPLE_HEAD, title_justify="left")
    table.caption = f"{queries} queries, each against all other test images (cosine)"
    table.caption_justify = "left"
    table.add_column("embedding")
    for name in ("precision@1", "R-precision", "MAP@R"):
        table.add_column(name, justify="right")
    for index, (name, values) in enumerate(rows.items()):
        figures = (values.precision_at_1, values.r_precision, values.map_at_r)
        style = "bold green" if index == len(rows) - 1 else None
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), style=style)
    return table


def speed_tables(rows: Sequence[Comparison]) -> list[Table]:
    """A table a step, a row a batch size: time and peak extra memory here and in PML, and the ratio of the times."""
    return [_speed_table(title, list(group)) for title, group in groupby(rows, key=lambda row: row.step.title)]


def conditions(memory_gb: float, seconds: float) -> str:
    """How the figures of the speed tables were taken."""
    return (
        "Forward + backward on the CPU; median time; peak memory beyond the inputs.\n"
        f"Each run is bounded to {memory_gb:g} GiB and {seconds:g} s."
    )


def remarks(rows: Sequence[Comparison]) -> list[str]:
    """One line for each run that ended with neither a result nor a bound, and for each pair of losses that differ."""
    lines = []
    for row in rows:
        where = f"{row.step.title}, batch {row.batch_size}"
        for name, outcome in (("pml_fast", row.ours), ("PML", row.peer)):
            if outcome is not None and outcome.status == _bounded.FAILED:
                lines.append(f"{where}, {name}: {(outcome.error or 'no reason given').splitlines()[0]}")
        if row.same_loss is False and row.peer is not None:
            lines.append(f"{where}: the losses differ: {row.ours.value.loss:.8g} and {row.peer.value.loss:.8g}")
    return lines


def class_list(names: Sequence[str]) -> str:
    """The names, the middle ones left out where they are many."""
    if len(names) <= _CLASSES_SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: _CLASSES_SHOWN - 2])}, ..., {names[-1]} ({len(names)} in all)"


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best, to three digits."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def size(count: int | None) -> str:
    """Bytes in MiB or GiB; a dash where they are not known."""
    if count is None:
        return "-"
    return f"{count / 2**20:.1f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"


def _speed_table(title: str, rows: Sequence[Comparison]) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", collapse_padding=True)
    for name in ("batch", "pml_fast", "memory", "PML", "memory", "faster", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(str(row.batch_size), *_cost(row.ours), *_cost(row.peer), _ratio(row), _agreement(row))
    return table


def _cost(outcome: _bounded.Outcome | None) -> tuple[str, str]:
    if outcome is None:
        return "not installed", "-"
    if outcome.ok:
        return duration(outcome.value.seconds), size(outcome.value.peak_bytes)
    return f"[red]{outcome.status}[/red]", "-"


def _ratio(row: Comparison) -> str:
    if row.speed_up is None:
        return "-"
    return f"{row.speed_up:,.0f} x" if row.speed_up >= 100 else f"{row.speed_up:.1f} x"


def _agreement(row: Comparison) -> str:
    return "-" if row.same_loss is None else "same" if row.same_loss else "[red]differs[/red]"
