"""Progress bars, where tqdm is installed and a person looks on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")

# Seconds between two looks at the losses: reading one waits for the device.
_SECONDS = 0.25


class Progress(Iterable[T]):
    """The items of an iterable under a bar; without tqdm, or where the output is no terminal, the items alone."""

    def __init__(self, items: Iterable[T], description: str, unit: str = "batch", hidden: bool = False) -> None:
        self._bar: Any = None
        self.items: Iterable[T] = items
        self._last = 0.0
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self.items = self._bar = tqdm(items, desc=description, unit=unit, disable=True if hidden else None)

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def show(self, values: Mapping[str, Any]) -> None:
        """Numbers beside the bar, now and then."""
        if self._bar is None or self._bar.disable or time.monotonic() - self._last < _SECONDS:
            return
        self._last = time.monotonic()
        numbers = {name: value.detach() if isinstance(value, Tensor) else value for name, value in values.items()}
        self._bar.set_postfix({name: f"{float(value):.5f}" for name, value in numbers.items()}, refresh=False)
