"""Benchmarks of pml_fast against its peers: ``python -m benchmarks --help``."""
