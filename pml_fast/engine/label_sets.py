"""Pairs of rows with several labels, found by the labels they share: no similarity of two label sets is computed in vain."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pml_fast.engine.cpu import label_sets as compiled

# Shared labels, counted with their pairs, up to which they are listed: a number of them, or so many a row.
LISTED, LISTED_A_ROW = 1 << 18, 16


@dataclass
class AlikePairs:
    """Pairs ``row [K]``, ``column [K]`` in this order, and the Jaccard similarity ``weight [K]`` of their label sets."""

    row: Tensor
    column: Tensor
    weight: Tensor


def with_empty_sets(sets: Tensor) -> Tensor:
    """Label sets as a mask ``[N, C]`` with one label more, which empty sets have: they are equal, and share nothing else."""
    return torch.cat([sets, ~sets.any(dim=1, keepdim=True)], dim=1)


def jaccard(common: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Common labels over all labels, of sets that are not empty."""
    return common / (left + right - common)


def alike_pairs(sets: Tensor, others: Tensor, threshold: float, itself: bool, dtype: torch.dtype) -> AlikePairs | None:
    """Pairs of label sets, masks ``[N, C]`` and ``[M, C]``, that share a label and are alike by ``threshold`` or more.

    Two empty sets share what :func:`with_empty_sets` gives them; similarities have type ``dtype``. Without a row's pair with
    itself where ``itself``. ``None`` where so many share a label that a list would take more memory than strips of
    similarities, or nothing can be read. Waits for the device.
    """
    if sets.is_meta:
        return None
    most = max(LISTED, LISTED_A_ROW * (len(sets) + len(others)))
    if compiled.applies(sets, others):
        found = compiled.alike_pairs(sets, others, threshold, itself, dtype, most)
    else:
        found = _alike_pairs(sets, others, threshold, itself, dtype, most)
    return None if found is None else AlikePairs(*found)


def _alike_pairs(
    sets: Tensor, others: Tensor, threshold: float, itself: bool, dtype: torch.dtype, most: int
) -> tuple[Tensor, Tensor, Tensor] | None:
    row, row_label = with_empty_sets(sets).nonzero(as_tuple=True)
    column, column_label = (row, row_label) if others is sets else with_empty_sets(others).nonzero(as_tuple=True)
    order = torch.argsort(column_label, stable=True)
    of_label = torch.bincount(column_label, minlength=sets.shape[1] + 1)
    first = of_label.cumsum(0) - of_label
    repeats = of_label[row_label]
    total = int(repeats.sum())
    if total > most:
        return None
    # Every member of a set meets the members of the columns' sets that have its label.
    start = repeats.cumsum(0) - repeats
    member = torch.repeat_interleave(torch.arange(len(row), device=row.device), repeats, output_size=total)
    place = first[row_label][member] + torch.arange(total, device=row.device) - start[member]
    key, common = torch.unique(row[member] * len(others) + column[order][place], return_counts=True)
    i, j = torch.div(key, max(len(others), 1), rounding_mode="floor"), key % max(len(others), 1)
    size, other_size = torch.bincount(row, minlength=len(sets)), torch.bincount(column, minlength=len(others))
    weight = jaccard(common.to(dtype), size[i].to(dtype), other_size[j].to(dtype))
    keep = (weight >= threshold) & ((i != j) | (not itself))
    return i[keep], j[keep], weight[keep]
