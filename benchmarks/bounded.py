"""Running peers under a memory and a time bound: the same runner as the demo uses."""

from __future__ import annotations

from pml_fast._bounded import (
    FAILED,
    OK,
    OUT_OF_MEMORY,
    TIMED_OUT,
    Outcome,
    available_memory,
    measure_peak,
    run,
    run_here,
)

__all__ = ["FAILED", "OK", "OUT_OF_MEMORY", "TIMED_OUT", "Outcome", "available_memory", "measure_peak", "run", "run_here"]
