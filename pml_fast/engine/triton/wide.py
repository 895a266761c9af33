"""Gradients of rows too wide for a block: a kernel writes the coefficients of a strip of rows, and torch multiplies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pml_fast.engine.triton import layout

# Whether this torch multiplies bfloat16 into float32 on a GPU (2.8 on). Of float16 it is not asked: coefficients such as
# 1/N^2 leave its range.
WIDE_RESULT = hasattr(torch.ops.aten.mm, "dtype_out")


def strips(n: int, m: int, pulled: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First rows of strips, each with the same workspace ``[rows, M]``, of the type of what it multiplies."""
    strip = min(n, max(1, layout.WORKSPACE_BYTES // (max(m, 1) * pulled.dtype.itemsize)))
    h = layout.empty((strip, m), dtype=pulled.dtype, device=pulled.device)
    for first in range(0, n, strip):
        yield first, h[: min(strip, n - first)]


def by_strips(out: Tensor, x: Tensor, y: Tensor, kind: int, split: bool, launch: Callable[[Tensor, int, int], None]) -> None:
    """``out = H Y`` as :func:`pull` has it, where ``launch(h, first, last)`` writes these rows of ``H``; of ``split`` rows the
    coefficients come in parts, which are multiplied by those of the columns."""
    columns = layout.stacked(y) if split else y
    pulled = columns if x.dtype == torch.bfloat16 and x.is_cuda and WIDE_RESULT else columns.float()
    for first, h in strips(len(out), len(pulled), pulled):
        last = first + len(h)
        launch(h, first, last)
        pull(out[first:last], h, x[first:last], pulled, kind)


def pull(out: Tensor, h: Tensor, x: Tensor, y: Tensor, kind: int, add: bool = False) -> None:
    """``out = H Y``, less ``x`` times the sums of ``H``'s rows for a distance, in float32; ``add`` keeps what is there."""
    turn = 1.0 if kind == 0 else -1.0
    if h.dtype == torch.float32:
        with _products_of(x):
            torch.addmm(out, h, y, beta=float(add), alpha=turn, out=out)
    else:
        assert not add
        torch.ops.aten.mm.dtype_out(h, y, torch.float32, out=out)
        if kind != 0:
            out.neg_()
    if kind != 0:
        # The sum of what was multiplied: then a column equal to the row cancels.
        out.addcmul_(h.sum(dim=1, dtype=torch.float32).unsqueeze(1), x.float())


@contextmanager
def _products_of(x: Tensor) -> Iterator[None]:
    """Of half rows and coefficients rounded to tf32, whose tf32 products lose nothing."""
    before = torch.get_float32_matmul_precision()
    if not x.is_cuda or x.dtype == torch.float32 or before != "highest":
        yield
        return
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
