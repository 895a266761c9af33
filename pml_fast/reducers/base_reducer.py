"""The base of every reducer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..utils import common_functions as c_f
from ..utils.module_with_records import ModuleWithRecords
from .fold import Fold

LossInfo = dict[str, Any]
LossDict = dict[str, LossInfo]


class BaseReducer(ModuleWithRecords):
    """Reduces `{name: {"losses", "indices", "reduction_type"}}` to a scalar.

    reduction_type is "element" (indices: a tensor), "pos_pair" or "neg_pair" (two tensors), "triplet" (three)
    or "already_reduced" (None). A subclass defines the `<reduction_type>_reduction` methods that it supports;
    each takes (losses, loss_indices, embeddings, labels).

    A reducer also tells whether an engine can do its work while the losses stream by: see `fold`.
    """

    losses_size: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_to_recordable_attributes(name="losses_size", is_stat=True)

    def forward(self, loss_dict: LossDict, embeddings: Tensor, labels: Tensor | None) -> Any:
        """The reduced loss of a dictionary with a single named loss."""
        self.reset_stats()
        if len(loss_dict) != 1:
            raise ValueError(
                f"{type(self).__name__} takes exactly one named loss, got {len(loss_dict)} "
                f"({', '.join(loss_dict)}): use MultipleReducers for several"
            )
        (loss_info,) = loss_dict.values()
        losses, loss_indices, reduction_type, kwargs = self.unpack_loss_info(loss_info)
        return self.reduce_the_loss(losses, loss_indices, reduction_type, kwargs, embeddings, labels)

    def unpack_loss_info(self, loss_info: LossInfo) -> tuple[Any, Any, str, dict[str, Any]]:
        """Losses, indices, reduction type, and further arguments of the reduction method."""
        missing = [key for key in ("losses", "indices", "reduction_type") if key not in loss_info]
        if missing:
            raise ValueError(f"each loss must say its losses, indices and reduction_type, {', '.join(missing)} missing")
        return loss_info["losses"], loss_info["indices"], loss_info["reduction_type"], {}

    def reduce_the_loss(
        self,
        losses: Any,
        loss_indices: Any,
        reduction_type: str,
        kwargs: dict[str, Any],
        embeddings: Tensor,
        labels: Tensor | None,
    ) -> Any:
        """Check the losses and hand them to the method of their type; the number 0 is the zero loss."""
        self.set_losses_size_stat(losses)
        if self.input_is_zero_loss(losses):
            return self.zero_loss(embeddings)
        reduction_func = self.get_reduction_func(reduction_type)
        self.assert_sizes(losses, loss_indices, reduction_type)
        return reduction_func(losses, loss_indices, embeddings, labels, **kwargs)

    def already_reduced_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        """A loss that is one number already."""
        if not torch.is_tensor(losses):
            raise TypeError(f"an already reduced loss must be a tensor or the number 0, got {type(losses).__name__}")
        if losses.numel() != 1:
            raise ValueError(f"an already reduced loss must be one number, got shape {tuple(losses.shape)}")
        return losses

    def element_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        """Reduce one loss for each element."""
        raise NotImplementedError(f"{type(self).__name__} has no element reduction")

    def pos_pair_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        """Reduce one loss for each positive pair."""
        raise NotImplementedError(f"{type(self).__name__} has no positive pair reduction")

    def neg_pair_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        """Reduce one loss for each negative pair."""
        raise NotImplementedError(f"{type(self).__name__} has no negative pair reduction")

    def triplet_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        """Reduce one loss for each triplet."""
        raise NotImplementedError(f"{type(self).__name__} has no triplet reduction")

    def get_reduction_func(self, reduction_type: str) -> Callable[..., Any]:
        """The method for `reduction_type`."""
        return self._method(f"{reduction_type}_reduction", reduction_type)

    def assert_sizes(self, losses: Any, loss_indices: Any, reduction_type: str) -> None:
        """Raise unless losses and indices are what `reduction_type` calls for."""
        self._method(f"assert_sizes_{reduction_type}", reduction_type)(losses, loss_indices)

    def _method(self, name: str, reduction_type: str) -> Callable[..., Any]:
        method = getattr(self, name, None)
        if method is None:
            raise ValueError(
                f"reduction_type must be element, pos_pair, neg_pair, triplet or already_reduced, got "
                f"{reduction_type!r}: {type(self).__name__} has no method {name}"
            )
        return method

    def zero_loss(self, embeddings: Tensor) -> Tensor:
        """A zero whose gradient is zero: connected to `embeddings`, whatever they hold."""
        # The sum of no rows, as 0 * embeddings would be NaN where they are not finite.
        return embeddings[:0].sum()

    def input_is_zero_loss(self, losses: Any) -> bool:
        """Whether a loss says, with the number 0 in place of a tensor, that it had nothing to compare."""
        return not torch.is_tensor(losses) and losses == 0

    def assert_sizes_already_reduced(self, losses: Any, loss_indices: Any) -> None:
        """Nothing to check: the loss is one number."""

    def assert_sizes_element(self, losses: Any, loss_indices: Any) -> None:
        """One index for each loss."""
        _check_sizes("element", losses, (loss_indices,))

    def assert_sizes_pair(self, losses: Any, loss_indices: Any) -> None:
        """Two indices for each loss."""
        _check_sizes("pair", losses, _index_parts("pair", loss_indices, 2))

    def assert_sizes_pos_pair(self, losses: Any, loss_indices: Any) -> None:
        """Two indices for each loss."""
        self.assert_sizes_pair(losses, loss_indices)

    def assert_sizes_neg_pair(self, losses: Any, loss_indices: Any) -> None:
        """Two indices for each loss."""
        self.assert_sizes_pair(losses, loss_indices)

    def assert_sizes_triplet(self, losses: Any, loss_indices: Any) -> None:
        """Three indices for each loss."""
        _check_sizes("triplet", losses, _index_parts("triplet", loss_indices, 3))

    def set_losses_size_stat(self, losses: Any) -> None:
        """Record how many losses there are."""
        if self.collect_stats:
            self.losses_size = len(losses) if torch.is_tensor(losses) and losses.ndim > 0 else 1

    def fold(self) -> Fold | None:
        """How an engine can reduce the losses without holding them; None where it needs every single loss."""
        return None if self.fold_refusal() else self._fold_rule()

    def fold_refusal(self) -> str:
        """Why `fold` returns None, in one sentence; empty where it does not."""
        name = type(self).__name__
        # A subclass may have changed any step of the reduction, so only the class that states the rule is
        # trusted.
        if "_fold_rule" not in vars(type(self)):
            return f"{name} needs every single loss."
        if self.collect_stats:
            return f"{name} collects statistics, which need every single loss."
        if self._forward_hooks or self._forward_pre_hooks:
            return f"{name} has forward hooks, which need every single loss."
        return ""

    def fold_for(self, loss_name: str) -> Fold | None:
        """`fold` of the loss called `loss_name`."""
        return self.fold()

    def fold_refusal_for(self, loss_name: str) -> str:
        """`fold_refusal` of the loss called `loss_name`."""
        return self.fold_refusal()

    def _fold_rule(self) -> Fold:
        raise NotImplementedError(f"{type(self).__name__} cannot be folded")


def sum_of(losses: Tensor) -> Tensor:
    """The sum of `losses`, accumulated in float32 if they are of half precision."""
    return losses.sum(dtype=c_f.accumulation_dtype(losses.dtype))


def _index_parts(kind: str, loss_indices: Any, count: int) -> tuple[Any, ...]:
    if not c_f.is_list_or_tuple(loss_indices):
        raise TypeError(f"indices of {kind} losses must be a tuple of {count} tensors, got {type(loss_indices).__name__}")
    if len(loss_indices) != count:
        raise ValueError(f"indices of {kind} losses must be a tuple of {count} tensors, got {len(loss_indices)}")
    return tuple(loss_indices)


def _check_sizes(kind: str, losses: Any, indices: tuple[Any, ...]) -> None:
    for name, value in (("losses", losses), *(("indices", part) for part in indices)):
        if not torch.is_tensor(value):
            raise TypeError(f"{name} of {kind} losses must be a tensor, got {type(value).__name__}")
        if value.ndim == 0:
            raise ValueError(f"{name} of {kind} losses must have one entry for each loss, got a single number")
    if any(part.shape[0] != losses.shape[0] for part in indices):
        sizes = ", ".join(str(len(part)) for part in indices)
        raise ValueError(f"each of the {len(losses)} {kind} losses needs its indices, got {sizes}")
