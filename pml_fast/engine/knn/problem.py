"""What the nearest-neighbour engine hands to a backend, and the order that all backends share.

A row sees its columns in the order of their closeness; columns of equal closeness come in the order of their index, and a score
that is not a number counts as infinitely far. Closeness is the score itself, for distances before its power, and for Euclidean
ones the square: a root would make ties of different squares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.problem import same_labels
from pml_fast.engine.score import Score

# Which columns ``[n, M]`` match the rows ``first:last``.
Relation = Callable[[int, int], Tensor]


@dataclass
class NearestProblem:
    """The ``k`` columns of ``y [M, D]`` closest to each row of ``x [N, D]``, already normalised where the score asks for it.

    ``itself`` means that ``y`` is ``x`` or begins with it: row ``i`` and column ``i`` are one sample, and the column is no
    candidate. ``k`` is at most the number of candidates. A backend that ``divides`` gets the norms instead.
    """

    score: Score
    x: Tensor
    y: Tensor
    k: int
    itself: bool
    x_norm: Tensor | None = None
    y_norm: Tensor | None = None


@dataclass
class RankProblem:
    """The ranks of each row's positives among its candidates, as :class:`NearestProblem` has them.

    Positives are the candidates of equal label, or what a ``relation`` says; of a set against ``itself`` the labels of the
    columns begin with those of the rows.
    """

    score: Score
    x: Tensor
    y: Tensor
    x_labels: Tensor
    y_labels: Tensor
    itself: bool
    relation: Relation | None = None
    x_norm: Tensor | None = None
    y_norm: Tensor | None = None

    def positives(self, first: int, last: int) -> Tensor:
        """The mask ``[n, M]`` of the positives of some rows."""
        if self.relation is not None:
            mask = self.relation(first, last)
        else:
            mask = same_labels(self.x_labels[first:last], self.y_labels)
        return mask & ~own_columns(first, last, mask.shape[1], mask.device) if self.itself else mask


@dataclass
class RankStrip:
    """Ranks of the positives of the rows ``rows [n]`` of a problem, row by row and ascending.

    The rank of a positive is the number of candidates that come before it, other positives included. Row ``rows[r]`` has
    ``counts[r]`` of them; ``ranks [sum(counts)]`` is int64.
    """

    rows: Tensor
    counts: Tensor
    ranks: Tensor


def own_columns(first: int, last: int, m: int, device: torch.device) -> Tensor:
    """The mask ``[n, M]`` of the self pairs of rows ``first:last``."""
    return torch.arange(first, last, device=device).unsqueeze(1) == torch.arange(m, device=device)


def turned(score: Score, base: Tensor) -> Tensor:
    """Scores as an order: smaller is closer, and what is not a number is infinitely far. Its own inverse for numbers."""
    order = -base if score.inverted else base + 0.0
    return order.masked_fill_(order.isnan(), float("inf"))


def from_order(score: Score, order: Tensor) -> Tensor:
    """Scores from an order, which :func:`turned` made of powers of inner products, of p-norms, or of squared distances."""
    base = turned(score, order)
    power = {"dot": 1.0, "l2": score.power / 2, "lp": score.power}[score.kind]
    return base if power == 1 else base**power
