"""Deep metric learning on fused, streaming, linear-memory kernels."""

__version__ = "0.1.0"
