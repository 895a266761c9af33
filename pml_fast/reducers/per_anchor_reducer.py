"""First the mean of each anchor's losses, then another reducer over the anchors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..engine.listed_sums import add_at
from ..utils import common_functions as c_f
from .base_reducer import BaseReducer
from .fold import Fold
from .mean_reducer import MeanReducer


def aggregation_func(x: Tensor, num_per_row: Tensor) -> Tensor:
    """The default: sums of the rows of `x` (N, M) over `num_per_row` (N,), 0 for a row that has no losses."""
    return torch.where(num_per_row == 0, 0, x.sum(dim=1) / num_per_row.clamp(min=1))


class PerAnchorReducer(BaseReducer):
    """Aggregates pair losses by anchor and passes one element loss for each row of the batch to `reducer`.

    `reducer` (default MeanReducer) also gets element losses, unchanged. An `aggregation_func` of your own is
    called with a dense matrix x (N, M) that holds each pair's loss at (anchor, other) and 0 elsewhere, and
    the number of losses in each row (N,), and returns (N,); M is the batch size, or more where `other`
    indexes a larger reference set. The default never builds that matrix. A pair listed more than once counts
    once.
    """

    def __init__(
        self,
        reducer: BaseReducer | None = None,
        aggregation_func: Callable[[Tensor, Tensor], Tensor] = aggregation_func,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.reducer: torch.nn.Module = reducer if reducer is not None else MeanReducer()
        self.aggregation_func = aggregation_func

    def element_reduction(self, losses: Tensor, loss_indices: Any, embeddings: Tensor, labels: Tensor | None) -> Any:
        loss_info = {"losses": losses, "indices": loss_indices, "reduction_type": "element"}
        return self.reducer({"loss": loss_info}, embeddings, labels)

    def tuple_reduction_helper(
        self, losses: Tensor, loss_indices: Sequence[Tensor], embeddings: Tensor, labels: Tensor | None
    ) -> Any:
        """Aggregate by anchor, then reduce the rows as elements."""
        anchors, others = loss_indices
        batch_size = embeddings.shape[0]
        if self.aggregation_func is aggregation_func:
            rows = _mean_by_anchor(losses, anchors, others, batch_size)
        else:
            rows = self.aggregation_func(*_dense_rows(losses, anchors, others, batch_size))
        return self.element_reduction(rows, c_f.torch_arange_from_size(embeddings), embeddings, labels)

    def pos_pair_reduction(self, *args: Any, **kwargs: Any) -> Any:
        return self.tuple_reduction_helper(*args, **kwargs)

    def neg_pair_reduction(self, *args: Any, **kwargs: Any) -> Any:
        return self.tuple_reduction_helper(*args, **kwargs)

    def triplet_reduction(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "PerAnchorReducer does not support triplet losses: use MeanReducer or AvgNonZeroReducer for them"
        )

    def fold_refusal(self) -> str:
        refusal = super().fold_refusal()
        if refusal:
            return refusal
        if self.aggregation_func is not aggregation_func:
            return "PerAnchorReducer has an aggregation_func of the user's, which needs every single loss."
        if not isinstance(self.reducer, BaseReducer):
            return f"PerAnchorReducer holds {type(self.reducer).__name__}, which is no BaseReducer."
        inner = self.reducer.fold_refusal()
        return f"PerAnchorReducer holds a reducer that needs every row: {inner}" if inner else ""

    def _fold_rule(self) -> Fold:
        inner = self.reducer.fold() if isinstance(self.reducer, BaseReducer) else None
        assert inner is not None  # else fold_refusal had spoken
        # Rows are elements, and another PerAnchorReducer passes elements straight on.
        return Fold("per_anchor", inner=inner.inner if inner.kind == "per_anchor" else inner)


def _mean_by_anchor(losses: Tensor, anchors: Tensor, others: Tensor, batch_size: int) -> Tensor:
    """The mean loss of each anchor's different pairs, (batch_size,), 0 where it has none."""
    dtype = c_f.accumulation_dtype(losses.dtype)
    total = torch.zeros(batch_size, device=losses.device, dtype=dtype)
    if losses.numel() == 0:
        return (total + losses.sum()).to(losses.dtype)
    # Sorted by (anchor, other), copies of a pair are neighbours; the last of them counts, as if written in
    # order.
    key, order = torch.sort(anchors * (others.max() + 1) + others, stable=True)
    is_last = torch.ones_like(key, dtype=torch.bool)
    is_last[:-1] = key[1:] != key[:-1]
    counted = torch.where(is_last, losses[order].to(dtype), 0)
    total = add_at(total, anchors[order], counted)
    count = torch.zeros(batch_size, device=losses.device, dtype=torch.long)
    count = count.index_add(0, anchors[order], is_last.long())
    return (total / count.clamp(min=1)).to(losses.dtype)


def _dense_rows(losses: Tensor, anchors: Tensor, others: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """The losses as a matrix by anchor and other, and how many each row holds."""
    width = batch_size if others.numel() == 0 else max(batch_size, int(others.max()) + 1)
    x = torch.zeros(batch_size, width, device=losses.device, dtype=losses.dtype)
    present = torch.zeros(batch_size, width, device=losses.device, dtype=torch.bool)
    present[anchors, others] = True
    return x.index_put((anchors, others), losses), present.sum(dim=1)
