"""Judges a case's results by its targets."""

from __future__ import annotations

from typing import Protocol

from benchmarks import results
from benchmarks.bounded import OUT_OF_MEMORY, TIMED_OUT
from benchmarks.cases import FLOOR_RATIO, MEBIBYTE, NOT_SLOWER, NOT_SLOWER_THAN_PML, SPEEDUP, WITHIN_SECONDS, Target
from benchmarks.peers import OURS, headline
from benchmarks.results import CaseResult, PeerResult, TargetResult


class Judged(Protocol):
    """streams: whether its memory is bounded."""

    @property
    def targets(self) -> tuple[Target, ...]: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def streams(self) -> bool: ...

    @property
    def memory_bound(self) -> int: ...


RIVALS = {NOT_SLOWER: ("pml", "eager"), NOT_SLOWER_THAN_PML: ("pml",)}


def judge(case: Judged, result: CaseResult, on_gpu: bool) -> None:
    """Fill in result.targets: the case's own, on the device they are set for (on the CPU in float32), and the memory bound."""
    entered = [entry.peer for entry in result.peers]
    if headline(entered) is None:
        return
    usable = [entry.peer for entry in result.peers if entry.status == results.OK]
    ours = result.peer(headline(usable) or "")
    if case.device == ("cuda" if on_gpu else "cpu") and (on_gpu or case.dtype == "float32"):
        result.targets += [_judge_one(target, ours, result) for target in case.targets]
    if case.streams:
        result.targets.append(_judge_memory(case, ours, result))


def _judge_one(target: Target, ours: PeerResult | None, result: CaseResult) -> TargetResult:
    if ours is None or ours.seconds is None:
        return _unmeasured(str(target), result)
    if target.kind == FLOOR_RATIO:
        ratio = ours.ratio_to_floor
        reached = "no floor" if ratio is None else f"{ratio:.2f} x floor ({ours.peer})"
        return TargetResult(str(target), reached, None if ratio is None else ratio <= (target.bound or 0))
    if target.kind == SPEEDUP:
        rival = result.peer(target.over)
        if rival is None or rival.ours_is_faster_by is None:
            return TargetResult(str(target), f"{target.over}: {rival.status if rival else 'not entered'}", None)
        reached = f"{rival.ours_is_faster_by:.3g} x ({ours.peer})"
        return TargetResult(str(target), reached, rival.ours_is_faster_by >= (target.bound or 0))
    if target.kind == WITHIN_SECONDS:
        return TargetResult(str(target), f"{ours.seconds.p50:.1f} s ({ours.peer})", ours.seconds.p50 <= (target.bound or 0))
    if target.kind in RIVALS:
        return _judge_not_slower(target, result)
    return TargetResult(str(target), f"{ours.seconds.p50:.2f} s ({ours.peer})", True)


def _judge_not_slower(target: Target, result: CaseResult) -> TargetResult:
    rivals = [entry for name in RIVALS[target.kind] if (entry := result.peer(name))]
    verdicts = [verdict for entry in rivals if (verdict := _against(entry)) is not None]
    if not verdicts:
        return TargetResult(str(target), "none was timed", None)
    return TargetResult(str(target), ", ".join(words for words, _ in verdicts), all(met for _, met in verdicts))


def _against(rival: PeerResult) -> tuple[str, bool] | None:
    """Whether we are not slower than a rival, in words and as the answer; ``None`` where there is nothing to judge it by."""
    if rival.ours_is_faster_by is not None:
        return f"{rival.ours_is_faster_by:.2f} x faster than {rival.peer}", rival.ours_is_faster_by >= 1
    if rival.status in (TIMED_OUT, OUT_OF_MEMORY):
        # We have finished within the same bounds.
        return f"{rival.peer} {rival.status} ({rival.detail})", True
    return None


def _judge_memory(case: Judged, ours: PeerResult | None, result: CaseResult) -> TargetResult:
    target = f"peak extra memory <= {case.memory_bound / MEBIBYTE:.0f} MiB"
    if ours is None:
        return _unmeasured(target, result)
    if ours.peak_extra_bytes is None:
        return TargetResult(target, "not measured", None)
    return TargetResult(target, f"{ours.peak_extra_bytes / MEBIBYTE:.0f} MiB ({ours.peer})", ours.within_memory_bound)


def _unmeasured(target: str, result: CaseResult) -> TargetResult:
    """pml_fast has no figure: missed, unless it never had the chance."""
    mine = [entry for entry in result.peers if entry.peer.startswith(OURS)]
    no_chance = all(entry.status in (results.UNAVAILABLE, results.NOT_RUN) for entry in mine)
    return TargetResult(target, f"{mine[0].peer}: {mine[0].status}", None if no_chance else False)
