"""The floor: the matrix products of a forward + backward over all pairs, at the speed of torch's own library.

S = X X^T, then G X and G^T X for the gradient: three products of 2 N^2 D operations each. A kernel that uses
the symmetry of a batch compared with itself can beat it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DENSE_LIMIT_BYTES = 2**30
STRIP_ROWS = 1024


def floor(rows: Tensor) -> Callable[[], None]:
    """The three products as a call: one N x N matrix where that fits in 1 GiB, else strips of rows."""
    x = rows.detach()
    n = len(x)
    if n * n * x.element_size() <= DENSE_LIMIT_BYTES:
        return _dense(x)
    return _strips(x)


def _dense(x: Tensor) -> Callable[[], None]:
    scores = x.new_empty(len(x), len(x))
    left, right = torch.empty_like(x), torch.empty_like(x)

    def run() -> None:
        torch.mm(x, x.T, out=scores)
        torch.mm(scores, x, out=left)
        torch.mm(scores.T, x, out=right)

    return run


def _strips(x: Tensor) -> Callable[[], None]:
    scores = x.new_empty(STRIP_ROWS, len(x))
    left, right = torch.empty_like(x), torch.empty_like(x)

    def run() -> None:
        right.zero_()
        for start in range(0, len(x), STRIP_ROWS):
            rows = x[start : start + STRIP_ROWS]
            strip = scores[: len(rows)]
            torch.mm(rows, x.T, out=strip)
            torch.mm(strip, x, out=left[start : start + STRIP_ROWS])
            right.addmm_(strip.T, rows)

    return run
