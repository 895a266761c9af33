"""Views of scores: the same formula read over dense strips or over explicit lists of pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.listed_sums import add_at

NEG_INF = float("-inf")


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` without overflow: linear from where that is ``x`` to the last bit of a float64."""
    return torch.nn.functional.softplus(x, threshold=40.0)


class Side:
    """The positive or the negative pairs of some rows. ``s`` holds their scores; every method returns ``[rows]``."""

    s: Tensor

    def sum(self, x: Tensor) -> Tensor:
        """Sum of ``x`` over the pairs of each row."""
        raise NotImplementedError

    def only(self, x: Tensor, fill: float) -> Tensor:
        """``x`` with ``fill`` in the place of what is no pair of this side."""
        raise NotImplementedError

    def count(self) -> Tensor:
        """Number of pairs of each row, int64."""
        raise NotImplementedError

    def logsumexp(self, x: Tensor) -> Tensor:
        """Log of the sum of exp(x) over the pairs of each row, ``-inf`` (with zero gradient) where there is none."""
        raise NotImplementedError

    def spread(self, rows: Tensor) -> Tensor:
        """A row vector repeated over the pairs of its row, in the shape of ``s``."""
        raise NotImplementedError

    def across(self, columns: Tensor) -> Tensor:
        """A vector with a number for each column, as each pair's column has it, in the shape of ``s``."""
        raise NotImplementedError


class DenseSide(Side):
    """Pairs marked by a mask over a ``[rows, M]`` strip of scores."""

    def __init__(self, s: Tensor, mask: Tensor) -> None:
        self.s, self.mask = s, mask

    def only(self, x: Tensor, fill: float) -> Tensor:
        return torch.where(self.mask, x, fill)

    def sum(self, x: Tensor) -> Tensor:
        return self.only(x, 0.0).sum(dim=1)

    def count(self) -> Tensor:
        return self.mask.sum(dim=1)

    def logsumexp(self, x: Tensor) -> Tensor:
        if x.shape[1] == 0:
            return x.sum(dim=1) + NEG_INF
        empty = ~self.mask.any(dim=1)
        kept = self.only(x, NEG_INF)
        # A row without pairs would give 0/0 in the backward: let it sum zeros, then say -inf.
        return torch.logsumexp(kept.masked_fill(empty.unsqueeze(1), 0.0), dim=1).masked_fill(empty, NEG_INF)

    def spread(self, rows: Tensor) -> Tensor:
        return rows.unsqueeze(1)

    def across(self, columns: Tensor) -> Tensor:
        return columns.unsqueeze(0)


class ListedSide(Side):
    """Pairs listed as scores ``s[K]`` with the row and the column ``[K]`` of each, for ``n`` rows; ``keep`` drops some."""

    def __init__(self, s: Tensor, row: Tensor, n: int, keep: Tensor | None = None, column: Tensor | None = None) -> None:
        self.s, self.row, self.n, self.keep, self.column = s, row, n, keep, column

    def only(self, x: Tensor, fill: float) -> Tensor:
        return x if self.keep is None else torch.where(self.keep, x, fill)

    def sum(self, x: Tensor) -> Tensor:
        return add_at(x.new_zeros(self.n), self.row, self.only(x, 0.0))

    def count(self) -> Tensor:
        ones = torch.ones_like(self.row) if self.keep is None else self.keep.to(self.row.dtype)
        return torch.zeros(self.n, dtype=torch.int64, device=self.row.device).index_add(0, self.row, ones)

    def logsumexp(self, x: Tensor) -> Tensor:
        x = self.only(x, NEG_INF)
        top = x.new_full((self.n,), NEG_INF).scatter_reduce(0, self.row, x.detach(), "amax")
        shift = torch.where(torch.isinf(top), 0.0, top)
        total = add_at(x.new_zeros(self.n), self.row, torch.exp(x - shift[self.row]))
        empty = total == 0
        return torch.where(empty, NEG_INF, torch.log(torch.where(empty, 1.0, total)) + shift)

    def spread(self, rows: Tensor) -> Tensor:
        return rows[self.row]

    def across(self, columns: Tensor) -> Tensor:
        assert self.column is not None
        return columns[self.column]


@dataclass
class View:
    """The positive and the negative side of the same rows; of a batch against ``itself`` the columns are the rows.

    ``comparable`` is ``[rows, M]`` without the self pairs, for a dense view of a batch against itself.
    """

    pos: Side
    neg: Side
    itself: bool = False
    comparable: Tensor | None = None


def dense_view(s: Tensor, same: Tensor, comparable: Tensor | None, rule: Tensor | None) -> View:
    """View of a strip of scores ``[n, M]``.

    ``same`` marks equal labels; ``comparable`` clears the self pairs (``None``: every pair counts); ``rule`` is ``[4, n]``:
    closed score intervals (positive low, high; negative low, high) that a miner leaves.
    """
    pos, neg = same, ~same
    if comparable is not None:
        pos, neg = pos & comparable, neg & comparable
    if rule is not None:
        pos_low, pos_high, neg_low, neg_high = rule.unsqueeze(2).unbind(0)
        value = s.detach()
        pos = pos & (value >= pos_low) & (value <= pos_high)
        neg = neg & (value >= neg_low) & (value <= neg_high)
    return View(DenseSide(s, pos), DenseSide(s, neg), comparable is not None, comparable)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """``logaddexp`` whose gradient is 0, not NaN, where both are ``-inf``."""
    none = (a == NEG_INF) & (b == NEG_INF)
    return torch.logaddexp(a.masked_fill(none, 0.0), b.masked_fill(none, 0.0)).masked_fill(none, NEG_INF)
