"""Samplers that compose batches for metric learning."""

from __future__ import annotations

from .m_per_class_sampler import MPerClassSampler

__all__ = ["MPerClassSampler"]
