"""Work that is no step of training: a call that is timed, whose result is held to numbers known otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.cases import Target
from benchmarks.probe import Setup

Numbers = Mapping[str, float]


@dataclass(frozen=True)
class Workload:
    """A kind of work at one size: rows in classes of per_class, and the targets it is judged by.

    memory_bound: peak extra bytes allowed; 0 where none is set. device: where its targets are to be reached.
    """

    operation: str
    size: int
    per_class: int = 10
    targets: tuple[Target, ...] = ()
    memory_bound: int = 0
    dim: int = 0
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def name(self) -> str:
        return f"{self.operation}/n{self.size}/k{self.per_class}"

    @property
    def streams(self) -> bool:
        return self.memory_bound > 0

    def smaller(self, size: int) -> Workload:
        """The same on few rows, to load what a first call loads."""
        return replace(self, size=min(size, self.size))


@dataclass(frozen=True)
class Work:
    """How peers do a kind of work.

    peers: who can; prepare: makes the call of a peer that is timed; numbers: what its result says; truth: what each of these
    numbers must be, and who says so (about); tolerance: by how much one may be off; equal_to_pml: by how much this library's
    may differ from PML's, where that is a target.
    """

    peers: tuple[str, ...]
    prepare: Callable[[str, Workload, Setup], Callable[[], Any]]
    numbers: Callable[[Any, Workload, Setup], Numbers]
    truth: Callable[[Workload, Setup], Numbers]
    about: str
    tolerance: float
    equal_to_pml: float | None = None


def largest_difference(found: Numbers, expected: Numbers) -> float:
    """Between numbers of the same names; infinity for one that is not a number, or that nothing is expected of."""
    differences = [abs(value - expected.get(name, float("nan"))) for name, value in found.items()]
    return max((x if x == x else float("inf") for x in differences), default=float("inf"))
