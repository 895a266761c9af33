"""A shuffled deck: draws every member once before any comes again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Deck:
    """Deals the members of `items`, reshuffled by `generator` each time the deck runs out."""

    def __init__(self, items: Sequence[int] | np.ndarray, generator: np.random.Generator) -> None:
        self._items = np.asarray(items)
        self._generator = generator
        self._left: list[int] = []

    def draw(self, size: int) -> list[int]:
        """The next `size` members; all different unless there are fewer members than that."""
        drawn: list[int] = []
        while len(drawn) < size:
            if not self._left:
                self._shuffle(last=drawn if size <= len(self._items) else [])
            taken = self._left[: size - len(drawn)]
            del self._left[: len(taken)]
            drawn += taken
        return drawn

    def draw_other_than(self, member: int) -> int:
        """The next member that is not `member`, which keeps its place; there must be another one."""
        (drawn,) = self.draw(1)
        if drawn != member:
            return drawn
        while drawn == member:
            (drawn,) = self.draw(1)
        # A deck that was shuffled meanwhile has it already.
        if member not in self._left:
            self._left.insert(0, member)
        return drawn

    def _shuffle(self, last: list[int]) -> None:
        # Members already in the hand that is being drawn go to the end of the new deck, so that it cannot
        # repeat them.
        in_hand = set(last)
        shuffled = self._generator.permutation(self._items).tolist()
        self._left = [x for x in shuffled if x not in in_hand] + [x for x in shuffled if x in in_hand]
