"""Pairs of label sets on the compiled backend."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.cpu.extension import extension
from pml_fast.engine.operator import are_plain
from pml_fast.engine.settings import current


def applies(sets: Tensor, others: Tensor) -> bool:
    """Whether masks are there for the compiled search to read."""
    return (
        sets.device.type == "cpu"
        and sets.dtype == others.dtype == torch.bool
        and current().backend in ("auto", "cpu")
        and are_plain(sets, others)
        and _extension.load() is not None
    )


def alike_pairs(
    sets: Tensor, others: Tensor, threshold: float, itself: bool, dtype: torch.dtype, most: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Rows, columns and similarities of alike pairs (:func:`pml_fast.engine.label_sets.alike_pairs`), or ``None`` where more
    than ``most`` labels are shared, counted with their pairs."""
    rows = sets.contiguous()
    columns = rows if others is sets else others.contiguous()
    is_double = dtype == torch.float64
    found = extension().alike_pairs(
        rows.data_ptr(), len(rows), columns.data_ptr(), len(columns), rows.shape[1], threshold, itself, is_double, most,
        torch.get_num_threads(),
    )  # fmt: skip
    if found is None:
        return None
    i, j = torch.empty(2, len(found), dtype=torch.int64).unbind()
    weight = torch.empty(len(found), dtype=dtype)
    found.write(i.data_ptr(), j.data_ptr(), weight.data_ptr(), is_double)
    return i, j, weight
