"""Memory for tiles that a step leaves to the next: fresh pages of the system take as long as a pass over what they hold."""

from __future__ import annotations

import threading
from math import prod

import torch
from torch import Tensor

# How much a thread holds for its next step: much of what a step keeps of its scores, and the tile in work. What comes after a
# sweep in the same step finds that much less of its allowance.
HELD_BYTES = 24 << 20


class _Held(threading.local):
    """The blocks of one thread that nobody uses."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def take(self, size: int) -> Tensor | None:
        """The smallest block of at least ``size`` bytes. Where there is none the smallest is let go: steps have grown."""
        # A collection of garbage may give a block back at any moment, which stands behind those seen here.
        sizes = [len(block) for block in self.blocks]
        fitting = [place for place, held in enumerate(sizes) if held >= size]
        if fitting:
            return self.blocks.pop(min(fitting, key=sizes.__getitem__))
        if sizes:
            del self.blocks[sizes.index(min(sizes))]
        return None

    def give(self, block: Tensor) -> None:
        # Memory made in inference mode must not be written to outside of it.
        if not block.is_inference() and sum(map(len, self.blocks)) + len(block) <= HELD_BYTES:
            self.blocks.append(block)


_held = _Held()


def release() -> None:
    """Leave nothing to this thread's next step."""
    _held.blocks.clear()


class Scratch:
    """Uninitialised memory for ``shape`` numbers; it is lent again once this object is gone, and its tensor with it."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        size = prod(shape) * dtype.itemsize
        block = _held.take(size)
        self._block = torch.empty(size, dtype=torch.uint8, device="cpu") if block is None else block
        self.tensor = self._block[:size].view(dtype).view(shape)

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            _held.give(block)


class Room:
    """Scratch memory in which one use follows the other; it grows to the largest of them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._memory: Scratch | None = None

    def of(self, *shape: int) -> Tensor:
        """Room for so many numbers; what was there before is lost."""
        size = prod(shape)
        if self._memory is None or self._memory.tensor.numel() < size:
            self._memory = Scratch((size,), self._dtype)
        return self._memory.tensor[:size].view(shape)
