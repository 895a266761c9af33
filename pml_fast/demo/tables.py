"""The tables that the demo prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    table.caption = f"{queries} queries, each against all other test images, by cosine similarity"
    table.caption_justify = "left"
    table.add_column("embedding")
    for name in ("precision@1", "R-precision", "MAP@R"):
        table.add_column(name, justify="right")
    for index, (name, values) in enumerate(rows.items()):
        figures = (values.precision_at_1, values.r_precision, values.map_at_r)
        style = "bold green" if index == len(rows) - 1 else None
        table.add_row(name, *(f"{figure:.3f}" for figure in figures), style=style)
    return table


def speed_table(rows: Sequence[Comparison], memory_gb: float, seconds: float) -> Table:
    """One row a step and batch size: time and peak extra memory here and in PML, and the ratio of the times."""
    table = Table(title="One loss step, forward and backward, on the CPU", box=box.SIMPLE_HEAD, title_justify="left")
    table.caption = f"medians; peak memory beyond the inputs; each run bounded to {memory_gb:g} GiB and {seconds:g} s"
    table.caption_justify = "left"
    table.add_column("step")
    for name in ("batch", "pml_fast", "memory", "PML", "memory", "faster", "same loss"):
        table.add_column(name, justify="right")
    previous = None
    for row in rows:
        if previous is not None and previous != row.step:
            table.add_section()
        title = "" if previous == row.step else row.step.title
        previous = row.step
        table.add_row(title, str(row.batch_size), *_cost(row.ours), *_cost(row.peer), _ratio(row), _agreement(row))
    return table


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


def _cost(outcome: _bounded.Outcome | None) -> tuple[str, str]:
    if outcome is None:
        return "not installed", "-"
    if outcome.ok:
        return duration(outcome.value.seconds), size(outcome.value.peak_bytes)
    if outcome.status == _bounded.FAILED:
        return f"[red]failed: {_first_line(outcome.error)}[/red]", "-"
    return f"[red]{outcome.status}[/red]", "-"


def _ratio(row: Comparison) -> str:
    return "-" if row.speed_up is None else f"{row.speed_up:.3g} x"


def _agreement(row: Comparison) -> str:
    if row.same_loss is None:
        return "-"
    return "yes" if row.same_loss else f"[red]no: {row.ours.value.loss:.6g}, {row.peer.value.loss:.6g}[/red]"


def _first_line(error: str | None) -> str:
    return error.splitlines()[0].replace("[", "\\[") if error else "no reason given"
