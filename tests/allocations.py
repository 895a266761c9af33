"""What torch's allocator gives and takes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pml_fast.engine.cpu import scratch


def allocations(step: Callable[[], Any]) -> list[int]:
    """Bytes that are given (above zero) and taken back (below) in a step, in order; what the step before left counts anew."""
    scratch.release()
    with torch.profiler.profile(profile_memory=True) as prof:
        step()
    events = [event for event in prof.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
