"""What a run produces, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import Machine, Revision, Versions
from benchmarks.timing import Quantiles

SCHEMA_VERSION = 1

OK = "ok"
WRONG = "wrong"
UNAVAILABLE = "unavailable"
NOT_RUN = "not run"


@dataclass
class PeerResult:
    """One peer on one case.

    status: "ok", "wrong" (answers disagree: never timed), "out of memory", "timed out", "failed",
    "unavailable" or "not run"; detail says why. value_error and gradient_error are relative to the float64
    oracle.
    """

    peer: str
    status: str
    detail: str | None = None
    seconds: Quantiles | None = None
    ratio_to_floor: float | None = None
    ours_is_faster_by: float | None = None
    peak_extra_bytes: int | None = None
    within_memory_bound: bool | None = None
    value_error: float | None = None
    gradient_error: float | None = None


@dataclass
class TargetResult:
    """A target, what was reached, and whether that meets it (None: there was nothing to judge it by)."""

    target: str
    reached: str
    met: bool | None


@dataclass
class CaseResult:
    """All peers on one case, the floor's time and the memory bound.

    columns: classes of a class loss or rows of a queue, else 0; oracle: what computed the float64 answer.
    """

    case: str
    operation: str
    size: int
    dim: int
    per_class: int
    dtype: str
    memory_bound_bytes: int
    floor_seconds: Quantiles | None = None
    peers: list[PeerResult] = field(default_factory=list)
    targets: list[TargetResult] = field(default_factory=list)
    columns: int = 0
    oracle: str = ""

    def peer(self, name: str) -> PeerResult | None:
        return next((result for result in self.peers if result.peer == name), None)


@dataclass
class Report:
    """A whole run with everything needed to judge and repeat it."""

    date: str
    command: str
    device: str
    threads: int
    seed: int
    machine: Machine
    versions: Versions
    revision: Revision
    matmul_precision: str
    memory_limit_bytes: int | None
    seconds_limit: float
    wall_seconds: float = 0.0
    cases: list[CaseResult] = field(default_factory=list)
    suite: str = "core"
    schema_version: int = SCHEMA_VERSION


def write(report: Report, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(report), indent=1) + "\n")


def read(path: Path) -> Report:
    """Load a report; raises ValueError for a file of another schema."""
    data = json.loads(path.read_text())
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} has schema_version {version!r}, expected {SCHEMA_VERSION}; "
            "write it again with python -m benchmarks of this version"
        )
    cases = [_case(case) for case in data.pop("cases")]
    return Report(
        machine=Machine(**data.pop("machine")),
        versions=Versions(**data.pop("versions")),
        revision=Revision(**data.pop("revision")),
        cases=cases,
        **data,
    )


def _case(data: dict[str, Any]) -> CaseResult:
    peers = [PeerResult(**{**peer, "seconds": _quantiles(peer["seconds"])}) for peer in data.pop("peers")]
    targets = [TargetResult(**target) for target in data.pop("targets")]
    return CaseResult(floor_seconds=_quantiles(data.pop("floor_seconds")), peers=peers, targets=targets, **data)


def _quantiles(data: dict[str, Any] | None) -> Quantiles | None:
    return None if data is None else Quantiles(**data)
