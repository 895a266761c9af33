"""Checks of the miners' settings."""

from __future__ import annotations

import math
import numbers
from typing import Any


def check_within(name: str, value: Any, low: float, high: float, ends: str) -> float:
    """``value`` as a float; ``TypeError`` unless a number, ``ValueError`` unless from ``low`` to ``high``.

    ``ends`` is the interval's brackets: ``"(]"`` leaves ``low`` out and lets ``high`` in.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if not (above and below):
        top = "infinity" if math.isinf(high) else f"{high:g}"
        raise ValueError(f"{name} must be in {ends[0]}{low:g}, {top}{ends[1]}, got {number:g}")
    return number


def check_count(name: str, value: Any) -> int:
    """``value`` as an int; ``TypeError`` unless an integer, ``ValueError`` below 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a positive int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be a positive int, got {value}")
    return int(value)
