"""What :func:`pml_fast.explain` returns, and how it is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pml_fast.engine.cost import Cost


@dataclass(frozen=True)
class Candidate:
    """One backend and what became of it: ``status`` is ``chosen``, ``refused``, ``less preferred`` or ``not asked``."""

    name: str
    status: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The plan of one call of a loss; ``str()`` prints it.

    Attributes:
        rows, columns, dimension: ``N``, ``M`` and ``D``.
        mode: ``fused``, ``partly fused`` or ``materialised``.
        engine: ``pairwise``, ``triplet``, ``indexed``, ``histogram``, ``classes`` or ``dense``; ``extremes`` (closest rows,
            then listed) and ``covariance`` (of features) where no rows are compared with all.
        backend: its name; ``None`` where no backend takes part, or where the one asked for refuses.
        candidates: every backend and what became of it.
        costs: ``None`` where the maths is not known (a loss of one's own) or the call would raise.
        at_most: the costs are bounds, because how much a miner leaves is not known before its rule is applied.
        notes: what is fused or materialised, and why.
        error: what the call would raise, where the backend asked for refuses.
        against: the columns in words.
    """

    loss: str
    distance: str
    reducer: str
    miner: str | None
    device: str
    dtype: torch.dtype
    rows: int
    columns: int
    dimension: int
    itself: bool
    mode: str
    engine: str
    backend: str | None
    candidates: tuple[Candidate, ...]
    precision: str
    deterministic: bool
    costs: Cost | None = None
    at_most: bool = False
    notes: tuple[str, ...] = ()
    error: str | None = None
    against: str = ""

    @property
    def gemm_flops(self) -> int:
        """Operations of one product of all rows with all columns, the unit of :attr:`costs` in print."""
        return 2 * self.rows * self.columns * self.dimension

    def __str__(self) -> str:
        return "\n".join(f"{name:<14}{value}" for name, value in self._lines())

    def _lines(self) -> list[tuple[str, str]]:
        lines = [
            ("loss", f"{self.loss}, {self.distance}, {self.reducer}"),
            ("batch", self._batch()),
            *([] if self.miner is None else [("miner", self.miner)]),
            ("mode", self.mode),
            ("engine", self.engine),
            *headed("why", self.notes),
            ("backend", self.backend or ("none: the call would raise" if self.error else "none: plain torch")),
        ]
        lines += [("", f"{c.name} {c.status}: {c.reason}") for c in self.candidates if c.status != "chosen"]
        if self.error is not None:
            lines.append(("error", self.error))
        lines += self._costs()
        lines.append(("precision", self.precision))
        lines.append(("deterministic", "yes" if self.deterministic else "no: this device adds up in any order"))
        return lines

    def _batch(self) -> str:
        return f"{self.rows} x {self.dimension} against {self.against}, {dtype_name(self.dtype)} on {self.device}"

    def _costs(self) -> list[tuple[str, str]]:
        if self.costs is None:
            return [("work", "FLOPs, traffic and peak memory are not known before the call")]
        c, most, g = self.costs, "at most " if self.at_most else "", max(self.gemm_flops, 1)
        forward, step = (f"{scaled(v, 1000, 'FLOP')} ({v / g:.2f} G)" for v in (c.forward_flops, c.step_flops))
        read, written, held = (scaled(v, 1024, "B") for v in (c.read_bytes, c.written_bytes, c.memory_bytes))
        return [
            ("work", f"{most}{forward} forward, {step} forward + backward"),
            ("", f"G = 2 N M D = {scaled(self.gemm_flops, 1000, 'FLOP')}, one product of all rows with all columns"),
            ("traffic", f"{most}{read} read, {written} written"),
            ("peak memory", f"{most}{held} beyond the inputs, gradients included"),
        ]


class Explanations(dict[str, Explanation]):
    """The plans of several losses by name; ``str()`` prints one after the other."""

    def __str__(self) -> str:
        return "\n\n".join(f"== {name}\n{found}" for name, found in self.items())


def headed(head: str, lines: Sequence[str]) -> list[tuple[str, str]]:
    """Lines under one heading."""
    return [(head if k == 0 else "", line) for k, line in enumerate(lines)]


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def scaled(value: float, base: int, unit: str) -> str:
    """A number with a prefix: 1.07 GFLOP, 64.0 MiB."""
    prefixes = ("", "K", "M", "G", "T", "P", "E") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
    power = 0
    while abs(value) >= base and power < len(prefixes) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g} {prefixes[power]}{unit}" if value < 999.5 else f"{value:.0f} {prefixes[power]}{unit}"
