"""What an accuracy calculator is given, as the tensors that it computes with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import common_functions as c_f


def as_embeddings(name: str, rows: Any, device: torch.device) -> Tensor:
    """Embeddings as a float32 tensor ``[N, D]``; ``ValueError`` for another shape, and for what is not finite."""
    tensor = torch.as_tensor(c_f.numpy_to_torch(rows)).detach().to(device, torch.float)
    if tensor.ndim != 2:
        raise ValueError(f"{name} must have shape (N, D), got {tuple(tensor.shape)}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity: its neighbors would mean nothing")
    return tensor


def as_labels(labels: Any, device: torch.device | str) -> Tensor:
    """Labels as the floating-point tensor that comparisons and metrics of one's own get: float32 where it holds them."""
    tensor = torch.as_tensor(c_f.numpy_to_torch(labels)).to(device)
    if tensor.is_floating_point() or tensor.dtype == torch.bool or not tensor.numel():
        return tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    exact = bool((tensor.abs() <= 1 << 24).all())
    return tensor.to(torch.float32 if exact else torch.float64)


def check_sets(query: Tensor, labels: Tensor, reference: Tensor, ref_labels: Tensor, includes: bool) -> None:
    """``ValueError`` unless queries and references belong together; ``includes``: the references begin with the queries."""
    if len(query) != len(labels) or len(reference) != len(ref_labels):
        raise ValueError(
            f"embeddings and labels must have the same length, got {len(query)} and {len(labels)} of the queries, "
            f"{len(reference)} and {len(ref_labels)} of the references"
        )
    if query.shape[1] != reference.shape[1]:
        raise ValueError(f"reference must have rows of the query's length, {query.shape[1]}, got {reference.shape[1]}")
    n = len(query)
    begins = reference is query or (
        len(reference) >= n and torch.allclose(query, reference[:n]) and torch.equal(labels, ref_labels[:n].to(labels.dtype))
    )
    if includes and not begins:
        raise ValueError(
            "When ref_includes_query is True, the first len(query) elements of reference must be equal to query. "
            "Likewise, the first len(query_labels) elements of reference_labels must be equal to query_labels."
        )


def class_numbers(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of any kind as int64 numbers of their classes."""
    if labels is ref_labels:
        codes = torch.unique(labels, dim=0, return_inverse=True)[1].flatten()
        return codes, codes
    codes = torch.unique(torch.cat([labels, ref_labels]), dim=0, return_inverse=True)[1].flatten()
    return codes[: len(labels)], codes[len(labels) :]
