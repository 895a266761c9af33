"""Penalties on embeddings or weights, added to a loss."""

from __future__ import annotations

from .base_regularizer import BaseRegularizer
from .lp_regularizer import LpRegularizer

__all__ = ["BaseRegularizer", "LpRegularizer"]
