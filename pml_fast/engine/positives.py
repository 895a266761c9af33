"""The positive pairs of labels, named or counted without the label matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.cpu import layout
from pml_fast.engine.label_ranks import compiled_reads


def positive_pairs(labels: Tensor, ref_labels: Tensor, itself: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Anchors and positives ``[K]`` of all positive pairs, in order, and how many rows of the reference set differ ``[N]``.

    The number of pairs depends on the data: reading it waits for the device.
    """
    if compiled_reads(labels, ref_labels):
        return layout.positive_pairs(labels, ref_labels, itself)
    ordered, order = torch.sort(ref_labels, stable=True)
    start = torch.searchsorted(ordered, labels.contiguous())
    size = torch.searchsorted(ordered, labels.contiguous(), right=True) - start
    anchor = torch.repeat_interleave(size)
    before = size.cumsum(dim=0) - size
    within = torch.arange(len(anchor), device=labels.device) - before[anchor]
    positive = order[start[anchor] + within]
    if itself:
        other = torch.nonzero(anchor != positive).squeeze(1)
        anchor, positive = anchor[other], positive[other]
    return anchor, positive, len(ref_labels) - size


def count_partners(labels: Tensor, ref_labels: Tensor, itself: bool) -> Tensor:
    """How many positive and how many negative pairs each row has, ``[2, N]``."""
    labels, ordered = labels.contiguous(), ref_labels.sort()[0]
    same = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    return torch.stack([same - int(itself), len(ref_labels) - same])
