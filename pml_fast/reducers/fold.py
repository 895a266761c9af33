"""What a reducer asks of an engine that never holds the single losses (defined beside the kernels that fold it)."""

from pml_fast.engine.fold import KINDS, Fold

__all__ = ["KINDS", "Fold"]
