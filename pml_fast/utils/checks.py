"""Checks of what a user hands to a loss or a miner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .index_types import IndicesTuple


def _known(name: str, value: Any) -> float | None:
    """The value of a setting, ``None`` where only a device or a traced graph knows it. TypeError for what is no number."""
    if torch.compiler.is_compiling():
        return None
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.device.type == "cpu" and value.numel() == 1
        return float(value.detach()) if plain else None
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)


def check_number(name: str, value: Any) -> None:
    """Raise ValueError for NaN, TypeError for what is no number. A tensor elsewhere than on the CPU is not read."""
    if (number := _known(name, value)) is not None and math.isnan(number):
        raise ValueError(f"{name} must be a number, got nan")


def check_positive(name: str, value: Any, infinite: bool = False) -> None:
    """As `check_number`, for a number that must be above 0, and finite unless `infinite`."""
    if (number := _known(name, value)) is not None and not 0 < number < math.inf and not (infinite and number == math.inf):
        kind = "number" if infinite else "finite number"
        raise ValueError(f"{name} must be a {kind} above 0, got {number:g}")


def check_shapes(embeddings: Tensor, labels: Tensor | None) -> None:
    """Raise ValueError unless `labels` is None or holds one label for each row of `embeddings`."""
    if labels is None:
        return
    if labels.ndim != 1:
        raise ValueError(
            f"labels must be a 1D tensor of shape (batch_size,), got shape {tuple(labels.shape)}: "
            "pass one integer label for each embedding"
        )
    if embeddings.shape[0] != labels.shape[0]:
        raise ValueError(
            f"the number of embeddings must equal the number of labels, got {embeddings.shape[0]} "
            f"embeddings and {labels.shape[0]} labels"
        )


def labels_required(labels: Tensor | None) -> None:
    """Raise ValueError if `labels` is None."""
    if labels is None:
        raise ValueError("labels are required for this loss function, got None: pass one label for each embedding")


def ref_labels_required(ref_labels: Tensor | None) -> None:
    """Raise ValueError if the labels of a reference set are None."""
    if ref_labels is None:
        raise ValueError("ref_labels are required with ref_emb for this loss, whatever the indices_tuple, got None")


def labels_or_indices_tuple_required(labels: Tensor | None, indices_tuple: IndicesTuple | None) -> None:
    """Raise ValueError if both are None."""
    if labels is None and indices_tuple is None:
        raise ValueError("labels and indices_tuple cannot both be None: pass labels, or the pairs or triplets to use")


def labels_not_supported(labels: Tensor | None, ref_labels: Tensor | None) -> None:
    """Raise ValueError if any labels were given."""
    if labels is not None or ref_labels is not None:
        raise ValueError("labels and ref_labels are not supported for this loss function: leave both as None")


def ref_not_supported(embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None) -> None:
    """Raise ValueError if a reference set other than the batch was given."""
    if ref_emb is not embeddings or ref_labels is not labels:
        raise ValueError("ref_emb is not supported for this loss function: leave ref_emb and ref_labels as None")


def indices_tuple_not_supported(indices_tuple: IndicesTuple | None) -> None:
    """Raise ValueError if an indices_tuple was given."""
    if indices_tuple is not None:
        raise ValueError("indices_tuple is not supported for this loss function: leave it as None")


def assert_distance_type(obj: Any, distance_type: type | Sequence[type] | None = None, **kwargs: object) -> None:
    """Check `obj.distance`: its class (TypeError) and the attributes named by keyword (ValueError)."""
    owner, distance = type(obj).__name__, obj.distance
    if distance_type is not None:
        allowed = tuple(distance_type) if isinstance(distance_type, Sequence) else (distance_type,)
        if not isinstance(distance, allowed):
            names = ", ".join(x.__name__ for x in allowed)
            wanted = names if len(allowed) == 1 else f"one of {names}"
            raise TypeError(
                f"{owner} requires the distance metric to be {wanted}, got {type(distance).__name__}: "
                f"pass such a distance, or leave `distance` out"
            )
    for name, wanted_value in kwargs.items():
        value = getattr(distance, name)
        if value != wanted_value:
            raise ValueError(
                f"{owner} requires distance.{name} to be {wanted_value}, got {value}: "
                f"pass {type(distance).__name__}({name}={wanted_value})"
            )
