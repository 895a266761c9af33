"""Ranks of labels."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast import _extension
from pml_fast.engine.cpu.layout import class_ranks
from pml_fast.engine.operator import are_plain


def compiled_reads(*labels: Tensor) -> bool:
    """Whether compiled code can read these labels."""
    plain = all(part.device.type == "cpu" and part.dtype == torch.int64 for part in labels) and are_plain(*labels)
    return plain and _extension.load() is not None


def label_ranks(labels: Tensor) -> Tensor:
    """The rank of each label ``[N]`` among the different ones, int64."""
    if compiled_reads(labels):
        return class_ranks(labels)
    if labels.device.type == "cpu" and are_plain(labels):
        return torch.unique(labels, return_inverse=True)[1]
    # Without a size that depends on the labels, which a device would have to be asked for.
    ordered, order = torch.sort(labels)
    new = torch.zeros_like(order)
    new[1:] = (ordered[1:] != ordered[:-1]).to(new.dtype)
    return torch.empty_like(order).scatter_(0, order, new.cumsum(dim=0))
