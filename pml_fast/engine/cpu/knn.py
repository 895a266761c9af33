"""The nearest-neighbour engine on the compiled backend: products of a few rows with all columns, folded where they lie.

A row's positives are compared with what the same product gave for the other columns, so that equal columns tie exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip, from_order

# The products that are held at a time.
STRIP_BYTES = 16 << 20
FEWEST_ROWS = 8


def refuse_knn(problem: NearestProblem | RankProblem) -> str | None:
    """Why the compiled engine cannot run this, or ``None``."""
    if isinstance(problem, RankProblem) and problem.relation is not None:
        return "a label comparison of one's own is a function of torch's, and has no compiled kernel"
    if problem.score.kind == "dot" and problem.score.power != 1:
        return f"power {problem.score.power:g} of an inner product has no compiled order"
    return None


def _divided(rows: Tensor, norm: Tensor | None) -> Tensor:
    return rows.contiguous() if norm is None else rows / norm


class Rows:
    """Rows, columns, and the compiled engine over them."""

    def __init__(self, problem: NearestProblem | RankProblem, order: Tensor | None, **layout: Tensor | None) -> None:
        self.x = _divided(problem.x, problem.x_norm)
        y = self.x if problem.y is problem.x else _divided(problem.y, problem.y_norm)
        self.y = y if order is None else y.index_select(0, order)
        score = problem.score
        # The compiled side reads these tensors through their addresses: they live as long as this object.
        self.layout: dict[str, Any] = {"index": order, **layout}
        address = {name: 0 if part is None else part.data_ptr() for name, part in self.layout.items()}
        self.engine = extension().knn_engine(
            self.x.data_ptr(), self.y.data_ptr(), address.get("start", 0), address.get("end", 0), address["index"],
            address["own"], len(self.x), len(self.y), self.x.shape[1], "dot" if score.kind == "dot" else "l2_squared",
            score.sign, torch.get_num_threads(), self.x.dtype == torch.float64,
        )  # fmt: skip

    def strips(self) -> Iterator[tuple[int, int, Tensor]]:
        """First row, last row and inner products with all columns, which the next strip overwrites."""
        n, m = len(self.x), len(self.y)
        height = max(FEWEST_ROWS, STRIP_BYTES // (self.x.element_size() * max(m, 1)))
        buffer = self.x.new_empty(min(n, height), m)
        for first in range(0, n, height):
            last = min(n, first + height)
            yield first, last, torch.mm(self.x[first:last], self.y.t(), out=buffer[: last - first])


def nearest(problem: NearestProblem) -> tuple[Tensor, Tensor]:
    """Scores and columns ``[N, k]``."""
    rows = Rows(problem, None, own=torch.arange(len(problem.x)) if problem.itself else None)
    order = rows.x.new_empty(len(rows.x), problem.k)
    column = torch.empty(len(rows.x), problem.k, dtype=torch.int64)
    for first, last, products in rows.strips():
        to_order, to_column = order[first:last].data_ptr(), column[first:last].data_ptr()
        rows.engine.nearest(products.data_ptr(), products.stride(0), first, last, problem.k, to_order, to_column)
    return from_order(problem.score, order), column


def rank_strips(problem: RankProblem) -> Iterator[RankStrip]:
    """Strips of rows, in order; the columns are put in the order of their class."""
    labels = problem.x_labels.contiguous()
    sorted_labels, order = torch.sort(problem.y_labels, stable=True)
    start = torch.searchsorted(sorted_labels, labels)
    end = torch.searchsorted(sorted_labels, labels, right=True)
    own = torch.argsort(order)[: len(labels)].contiguous() if problem.itself else None
    rows = Rows(problem, order, start=start, end=end, own=own)
    counts = end - start - int(problem.itself)
    for first, last, products in rows.strips():
        offset = torch.cat([counts.new_zeros(1), counts[first:last].cumsum(dim=0)])
        ranks = torch.empty(int(offset[-1]), dtype=torch.int64)
        rows.engine.ranks(
            products.data_ptr(), products.stride(0), first, last, offset.data_ptr(), ranks.data_ptr()
        )  # fmt: skip
        yield RankStrip(torch.arange(first, last), counts[first:last], ranks)
