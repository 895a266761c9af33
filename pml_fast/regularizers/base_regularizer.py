"""The base of every regularizer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..utils import common_functions as c_f
from ..utils.module_with_records_and_reducer import ModuleWithRecordsReducerAndDistance


class BaseRegularizer(ModuleWithRecordsReducerAndDistance):
    """A penalty on the rows of a matrix: a subclass gives `compute_loss`, the reducer sums it up."""

    def compute_loss(self, x: Tensor) -> dict[str, dict[str, Any]]:
        """The named losses of `x` (N, D), each with its losses, indices and reduction type."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_loss(x)")

    def forward(self, x: Tensor) -> Any:
        """The penalty of `x` (N, D), reduced with the row numbers as labels."""
        if x.ndim != 2:
            raise ValueError(f"x must be a 2D tensor of shape (N, embedding_size), got shape {tuple(x.shape)}")
        self.reset_stats()
        return self.reducer(self.compute_loss(x), x, c_f.torch_arange_from_size(x))
