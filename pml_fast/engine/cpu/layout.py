"""The order of rows and columns by class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pml_fast.engine.cpu.extension import extension


@dataclass(frozen=True)
class Layout:
    """Rows and columns by class (see csrc/runtime/layout.h); int64 on the CPU."""

    row_order: Tensor
    col_order: Tensor
    start: Tensor
    end: Tensor
    offset: Tensor
    col_start: Tensor
    col_end: Tensor

    def turned(self) -> Layout:
        """Columns as rows."""
        offset = self.offset.new_zeros(len(self.col_start) + 1)
        torch.cumsum(self.col_end - self.col_start, dim=0, out=offset[1:])
        return Layout(self.col_order, self.row_order, self.col_start, self.col_end, offset, self.start, self.end)

    def of_columns(self, count: int) -> Layout:
        """With the first columns alone."""
        parts = ("col_order", "col_start", "col_end")
        return replace(self, **{name: getattr(self, name)[:count] for name in parts})


def class_layout(x_labels: Tensor, y_labels: Tensor, itself: bool) -> Layout:
    """Sort rows and columns by class."""
    x_labels, y_labels = x_labels.contiguous(), y_labels.contiguous()
    n, m = len(x_labels), len(y_labels)
    parts = torch.empty(3 * n + (0 if itself else 3 * m) + n + 1, dtype=torch.int64)
    row_order, start, end, offset, *rest = parts.split([n, n, n, n + 1] + ([] if itself else [m, m, m]))
    col_order, col_start, col_end = rest if rest else (row_order, start, end)
    extension().layout(
        x_labels.data_ptr(), n, y_labels.data_ptr(), m, itself, row_order.data_ptr(), col_order.data_ptr(),
        start.data_ptr(), end.data_ptr(), offset.data_ptr(), col_start.data_ptr(), col_end.data_ptr(),
    )  # fmt: skip
    return Layout(row_order, col_order, start, end, offset, col_start, col_end)


def positives_first(layout: Layout) -> tuple[Layout, int]:
    """The layout with the columns in front that are any row's positives, and how many these are; the others as they come."""
    alike = layout.col_start < layout.col_end
    before = torch.zeros(len(alike) + 1, dtype=torch.int64)
    torch.cumsum(alike, dim=0, out=before[1:])
    front = torch.nonzero(alike).squeeze(1)
    other = torch.ones_like(alike)
    other[layout.col_order[front]] = False
    nobody = torch.zeros(len(alike) - len(front), dtype=torch.int64)
    return replace(
        layout,
        col_order=torch.cat([layout.col_order[front], torch.nonzero(other).squeeze(1)]),
        start=before[layout.start],
        end=before[layout.end],
        col_start=torch.cat([layout.col_start[front], nobody]),
        col_end=torch.cat([layout.col_end[front], nobody]),
    ), len(front)


def own_columns(layout: Layout) -> Tensor:
    """For each sorted row the sorted column that is its copy, the columns' set beginning with the rows'."""
    place = torch.empty_like(layout.col_order)
    place[layout.col_order] = torch.arange(len(place))
    return place[layout.row_order]


def class_ranks(labels: Tensor) -> Tensor:
    """The rank of each label (int64) among the different ones."""
    labels = labels.contiguous()
    ranks = torch.empty_like(labels)
    extension().class_ranks(labels.data_ptr(), len(labels), ranks.data_ptr())
    return ranks


def positive_pairs(labels: Tensor, ref_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`pml_fast.engine.positives.positive_pairs`; labels are int64."""
    labels, ref_labels = labels.contiguous(), ref_labels.contiguous()
    found = extension().PositivePairs(labels.data_ptr(), len(labels), ref_labels.data_ptr(), len(ref_labels), itself)
    anchor, positive = torch.empty(2, len(found), dtype=torch.int64).unbind()
    different = torch.empty_like(labels)
    found.write(anchor.data_ptr(), positive.data_ptr(), different.data_ptr())
    return anchor, positive, different
