"""A distance matrix, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class BatchedDistance(torch.nn.Module):
    """Computes a distance's matrix in blocks of rows, and hands each to ``iter_fn(mat, start, end)``.

    ``mat`` is ``[rows, M]`` for rows ``start`` to ``end``; ``end`` is ``start + batch_size`` also for the last, shorter block.
    Attributes it does not have are the distance's.

    Args:
        distance: called as ``distance(rows, ref_emb)``.
        iter_fn: takes the blocks; it can be set later as an attribute.
        batch_size: rows of a block.
    """

    iter_fn: Callable[[Tensor, int, int], Any] | None

    def __init__(
        self,
        distance: torch.nn.Module,
        iter_fn: Callable[[Tensor, int, int], Any] | None = None,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        self.distance = distance
        self.iter_fn = iter_fn
        self.batch_size = batch_size

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> None:
        """Compare ``query_emb [N, D]`` with ``ref_emb [M, D]``, or with itself; nothing is returned.

        Raises:
            TypeError: ``iter_fn`` is still ``None``.
        """
        if self.iter_fn is None:
            raise TypeError("iter_fn must be a function of (mat, start, end), got None; set BatchedDistance.iter_fn")
        ref_emb = query_emb if ref_emb is None else ref_emb
        for start in range(0, query_emb.shape[0], self.batch_size):
            end = start + self.batch_size
            self.iter_fn(self.distance(query_emb[start:end], ref_emb), start, end)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "distance":
                raise
            return getattr(self.distance, name)
