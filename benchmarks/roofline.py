"""The roofline of the GPU kernels: ``python -m benchmarks.roofline`` predicts, with ``--report`` it places what was measured.

A step cannot end before its operations are done at the peak of the multipliers, nor before its inputs and results have crossed
the memory bus once: the larger of the two times bounds it from below. Operations and bytes are those that ``explain`` prints
(``pml_fast/engine/cost``). A prediction is that bound for the card's data sheet, not a measurement, and says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import results
from benchmarks.cases import TF32, Case, torch_dtype
from benchmarks.machine import REPOSITORY
from benchmarks.report import _markdown
from benchmarks.results import Report
from benchmarks.suites import PAIR_OPERATIONS, SUITES
from pml_fast.engine import cost
from pml_fast.engine import specs as _registered  # noqa: F401  (registers the losses)
from pml_fast.engine.score import Score
from pml_fast.engine.spec import PAIR_SPECS, TripletSpec

OURS = "pml_fast/triton"
COLUMNS = ("case", "GFLOP", "MB", "FLOP a byte", "bound by", "bound", "measured", "TFLOP/s", "of the bound")
NOTHING = "–"


@dataclass(frozen=True)
class Card:
    """Peaks of a data sheet, in FLOP/s by the product's type, and of its memory in bytes/s; source: where they are stated."""

    name: str
    source: str
    bfloat16: float
    tf32: float
    memory: float

    def rate(self, dtype: str) -> float:
        """Of the products of a case: float32 takes three tf32 products for one."""
        return {"bfloat16": self.bfloat16, TF32: self.tf32}.get(dtype, self.tf32 / 3)


CARDS = {
    card.name: card
    for card in (
        Card("H100 SXM", "NVIDIA H100 data sheet, dense rates", 989e12, 494.7e12, 3.35e12),
        Card("H200 SXM", "NVIDIA H200 data sheet, dense rates", 989e12, 494.7e12, 4.8e12),
        Card("A100 SXM 80 GB", "NVIDIA A100 data sheet, dense rates", 312e12, 156e12, 2.039e12),
    )
}


@dataclass(frozen=True)
class Point:
    """A case on the roofline: its work, the seconds that bound it, and those measured (None: a prediction)."""

    case: str
    flops: int
    bytes: int
    arithmetic_seconds: float
    memory_seconds: float
    measured_seconds: float | None = None

    @property
    def bound(self) -> float:
        return max(self.arithmetic_seconds, self.memory_seconds)

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes


def work(case: Case) -> tuple[int, int] | None:
    """Operations and compulsory bytes of forward + backward on the Triton backend; None for what is no one engine's."""
    dtype = torch_dtype(case.dtype)
    pairs = case.size * case.positives
    size = cost.Size(case.size, case.size, case.dim, pairs, 0, 0, dtype, shared=True, need_x=True, need_y=False)
    score = Score() if case.operation != "triplet_all" else Score("l2", inverted=False)
    if case.operation in PAIR_OPERATIONS:
        found = cost.estimate("pairwise", "triton", size, PAIR_SPECS[case.operation](), score)
    elif case.operation == "triplet_all":
        found = cost.estimate("triplet", "triton", size, TripletSpec(0.05), score)
    else:
        return None
    return found.step_flops, found.read_bytes + found.written_bytes


def points(cases: Sequence[Case], card: Card, report: Report | None = None) -> list[Point]:
    """The roofline's points of the cases that have one."""
    measured = {} if report is None else {case.case: case.peer(OURS) for case in report.cases}
    found = []
    for case in cases:
        done = work(case)
        if done is None or (report is not None and case.name not in measured):
            continue
        peer = measured.get(case.name)
        seconds = peer.seconds.p50 if peer is not None and peer.seconds is not None else None
        found.append(Point(case.name, *done, done[0] / card.rate(case.dtype), done[1] / card.memory, seconds))
    return found


def rows(found: Sequence[Point]) -> list[tuple[str, ...]]:
    """A row of the table for each point."""
    return [
        (
            point.case,
            f"{point.flops / 1e9:.3g}",
            f"{point.bytes / 1e6:.3g}",
            f"{point.intensity:.3g}",
            "arithmetic" if point.arithmetic_seconds >= point.memory_seconds else "memory",
            f"{1e6 * point.bound:.3g} µs",
            NOTHING if point.measured_seconds is None else f"{1e6 * point.measured_seconds:.3g} µs",
            NOTHING if point.measured_seconds is None else f"{point.flops / point.measured_seconds / 1e12:.3g}",
            NOTHING if point.measured_seconds is None else f"{point.bound / point.measured_seconds:.0%}",
        )
        for point in found
    ]


def draw(found: Sequence[Point], card: Card, path: Path, title: str) -> None:
    """FLOP/s against FLOP a byte: the roofs of each type, and the points that were measured (else where they would lie)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xscale="log", yscale="log", xlabel="FLOP a byte of compulsory traffic", ylabel="FLOP/s", title=title)
    low, high = min(point.intensity for point in found) / 3, max(point.intensity for point in found) * 3
    for colour, dtype in zip(("#c1272d", "#0b559f", "#3a923a"), ("bfloat16", TF32, "float32"), strict=True):
        rate = card.rate(dtype)
        ridge = rate / card.memory
        axes.plot([low, max(low, ridge), high], [min(rate, low * card.memory), rate, rate], color=colour, label=f"{dtype} roof")
        mine = [point for point in found if point.case.endswith(f"/{dtype}")]
        heights = [point.flops / (point.measured_seconds or point.bound) for point in mine]
        filled = all(point.measured_seconds is not None for point in mine)
        axes.scatter([p.intensity for p in mine], heights, s=22, color=colour, facecolors=colour if filled else "none")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the table, the numbers and the plot."""
    text = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=(__doc__ or "").split("\n\n")[0])
    text.add_argument("--card", choices=tuple(CARDS), default="H100 SXM")
    text.add_argument("--report", type=Path, help="a full.json of that card; without one the bounds are written as predictions")
    text.add_argument("--out", type=Path, help="default: beside the report, or benchmarks/results/roofline")
    arguments = text.parse_args(argv)
    card = CARDS[arguments.card]
    report = None if arguments.report is None else results.read(arguments.report)
    folder = arguments.out or (REPOSITORY / "benchmarks/results/roofline" if report is None else arguments.report.parent)
    folder.mkdir(parents=True, exist_ok=True)
    found = points(SUITES["gpu"].registry(("float32", TF32, "bfloat16")), card, report)
    if not found:
        print(f"{arguments.report} holds no case of the suite gpu", file=sys.stderr)
        return 2
    kind = "prediction" if report is None else "measured"
    stem = f"{card.name.lower().replace(' ', '-')}-{kind}"
    title = f"{card.name}: " + ("bounds predicted from its data sheet, nothing measured" if report is None else "measured")
    lines = [
        f"# {title}",
        "",
        f"Peaks: {card.source}. Forward + backward, Triton backend.",
        "",
        *_markdown(COLUMNS, rows(found)),
    ]
    (folder / f"{stem}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    described = {"card": dataclasses.asdict(card), "kind": kind, "points": [dataclasses.asdict(point) for point in found]}
    (folder / f"{stem}.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    draw(found, card, folder / f"{stem}.png", title)
    print(f"written to {folder / stem}.json, .md and .png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
