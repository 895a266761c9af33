"""Timing in turn: every entrant runs once a round, so that a slow moment of the machine hits all alike."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

SAMPLE_SECONDS = 1e-3  # calls are repeated within a sample until it lasts this long, above the clock's resolution
LONG_STEP_SECONDS = 10.0
WARM_UP_CALLS = 3


@dataclass(frozen=True)
class Quantiles:
    """Seconds a call: percentiles 20, 50, 80 and the least, over rounds samples of calls calls each."""

    p20: float
    p50: float
    p80: float
    least: float
    rounds: int
    calls: int


@dataclass(frozen=True)
class Entrant:
    """Something to time: call runs it once, context is entered around each sample and is not timed.

    expected_seconds is what a call is known to take, if it is known; compiles says that the first call
    compiles.
    """

    name: str
    call: Callable[[], object]
    context: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext
    expected_seconds: float = 0.0
    compiles: bool = False


@dataclass(frozen=True)
class Plan:
    """How long to time: seconds for each entrant, between min_rounds and max_rounds samples."""

    seconds: float = 6.0
    min_rounds: int = 3
    max_rounds: int = 40

    def rounds(self, sample_seconds: float) -> int:
        if sample_seconds > LONG_STEP_SECONDS:
            return 1
        return max(self.min_rounds, min(self.max_rounds, int(self.seconds / sample_seconds)))


class CpuClock:
    """Wall time of calls on the CPU."""

    def sample(self, call: Callable[[], object], calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - began) / calls


class CudaClock:
    """Device time of a call between two CUDA events, with the L2 cache overwritten before each call."""

    def __init__(self, device: str) -> None:
        properties = torch.cuda.get_device_properties(device)
        # Twice the cache: what an earlier call left there is gone, as it is between two steps of training.
        self._flush = torch.empty(2 * properties.L2_cache_size, dtype=torch.int8, device=device)

    def sample(self, call: Callable[[], object], calls: int) -> float:
        pairs = []
        for _ in range(calls):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self._flush.zero_()
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        torch.cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in pairs)) / calls / 1e3


def clock(device: str) -> CpuClock | CudaClock:
    return CudaClock(device) if device.startswith("cuda") else CpuClock()


def quantiles(samples: list[float], calls: int) -> Quantiles:
    """Quantiles of samples by linear interpolation; raises ValueError for an empty list."""
    if not samples:
        raise ValueError("samples must hold at least one time, got none")
    ordered = sorted(samples)

    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        low, high = math.floor(place), math.ceil(place)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return Quantiles(at(0.2), at(0.5), at(0.8), ordered[0], len(ordered), calls)


def time_in_turn(entrants: list[Entrant], plan: Plan, watch: CpuClock | CudaClock) -> dict[str, Quantiles | BaseException]:
    """Warm every entrant up, then sample them in turn; one that raises gets its error as its result."""
    samples: dict[str, list[float]] = {}
    calls: dict[str, int] = {}
    rounds: dict[str, int] = {}
    errors: dict[str, BaseException] = {}
    for entrant in entrants:
        try:
            seconds = _warm_up(entrant, watch)
        except Exception as error:
            errors[entrant.name] = error
            continue
        calls[entrant.name] = max(1, math.ceil(SAMPLE_SECONDS / seconds))
        rounds[entrant.name] = plan.rounds(seconds * calls[entrant.name])
        samples[entrant.name] = []
    total = max(rounds.values(), default=0)
    gc.collect()
    gc.disable()
    try:
        for turn in range(total):
            for entrant in entrants:
                if entrant.name in errors or not _takes_part(turn, rounds[entrant.name], total):
                    continue
                try:
                    with entrant.context():
                        samples[entrant.name].append(watch.sample(entrant.call, calls[entrant.name]))
                except Exception as error:
                    errors[entrant.name] = error
    finally:
        gc.enable()
    timed = {name: quantiles(taken, calls[name]) for name, taken in samples.items() if name not in errors}
    return {**timed, **errors}


def _warm_up(entrant: Entrant, watch: CpuClock | CudaClock) -> float:
    """Run an entrant until caches and compilers are warm, and return about how long a call takes: the least, for one call that
    the machine held up would leave it with few samples."""
    if entrant.expected_seconds > LONG_STEP_SECONDS:
        return entrant.expected_seconds  # what a first call loads is nothing against such a step
    with entrant.context():
        seconds = watch.sample(entrant.call, 1)
        for _ in range(WARM_UP_CALLS - 1):
            if seconds > LONG_STEP_SECONDS / 10 and not entrant.compiles:  # long steps are warm after one call
                break
            seconds = min(seconds, watch.sample(entrant.call, 1))
    return seconds


def _takes_part(turn: int, rounds: int, total: int) -> bool:
    """Spreads an entrant's rounds evenly over all turns."""
    return turn * rounds // total != (turn - 1) * rounds // total
