"""Helpers shared by losses, miners, reducers and samplers, under the names of pytorch-metric-learning.

`module_with_records_and_reducer` is left to be imported by its own name: it needs `pml_fast.reducers`, which
in turn needs this package.
"""

from __future__ import annotations

from . import common_functions, index_types, loss_and_miner_utils, module_with_records
from .index_types import PairIndices, TripletIndices

__all__ = [
    "PairIndices",
    "TripletIndices",
    "common_functions",
    "index_types",
    "loss_and_miner_utils",
    "module_with_records",
]
