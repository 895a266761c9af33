"""The floor: the matrix products of a forward + backward over all pairs, at the speed of torch's own library.

S = X Y^T, then G Y and G^T X for the gradients: three products of 2 N M D operations each; Y is X where a batch is compared
with itself. A kernel that uses the symmetry of that can beat it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DENSE_LIMIT_BYTES = 2**30
STRIP_ROWS = 1024


def floor(rows: Tensor, columns: Tensor | None = None) -> Callable[[], None]:
    """The three products as a call: one N x M matrix where that fits in 1 GiB, else strips along its longer side."""
    x = rows.detach()
    y = x if columns is None else columns.detach()
    if len(x) * len(y) * x.element_size() <= DENSE_LIMIT_BYTES:
        return _dense(x, y)
    return _strips(x, y) if len(x) >= len(y) else _strips(y, x)


def _dense(x: Tensor, y: Tensor) -> Callable[[], None]:
    scores = x.new_empty(len(x), len(y))
    left, right = torch.empty_like(x), torch.empty_like(y)

    def run() -> None:
        torch.mm(x, y.T, out=scores)
        torch.mm(scores, y, out=left)
        torch.mm(scores.T, x, out=right)

    return run


def _strips(x: Tensor, y: Tensor) -> Callable[[], None]:
    scores = x.new_empty(STRIP_ROWS, len(y))
    left, right = torch.empty_like(x), torch.empty_like(y)

    def run() -> None:
        right.zero_()
        for start in range(0, len(x), STRIP_ROWS):
            rows = x[start : start + STRIP_ROWS]
            strip = scores[: len(rows)]
            torch.mm(rows, y.T, out=strip)
            torch.mm(strip, y, out=left[start : start + STRIP_ROWS])
            right.addmm_(strip.T, rows)

    return run
