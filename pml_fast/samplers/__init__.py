"""Samplers that compose batches for metric learning."""

from __future__ import annotations

from .batches import Batches
from .distributed_batch_sampler import DistributedBatchSampler
from .fixed_set_of_triplets import FixedSetOfTriplets
from .hierarchical_sampler import HierarchicalSampler
from .m_per_class_sampler import MPerClassSampler
from .tuples_to_weights_sampler import TuplesToWeightsSampler

__all__ = [
    "Batches",
    "DistributedBatchSampler",
    "FixedSetOfTriplets",
    "HierarchicalSampler",
    "MPerClassSampler",
    "TuplesToWeightsSampler",
]
