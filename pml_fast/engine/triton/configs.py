"""Block sizes by architecture, input type and D: a table, so that no call ever stops to tune."""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Fewer row blocks than this leave multiprocessors idle (an A100 has 108, an H100 132).
ENOUGH_BLOCKS = {80: 108, 90: 132}


@dataclass(frozen=True)
class Config:
    """Tile of a launch. ``block_k`` chunks D (``resident``: one chunk holds it all), ``block_out`` the gradient's D."""

    block_m: int
    block_n: int
    block_k: int
    block_out: int
    num_warps: int
    num_stages: int
    resident: bool


# Largest D kept in one chunk, by bytes an element.
RESIDENT_D = {4: 128, 2: 256}

# (op, bytes an element, D bucket) -> block_m, block_n, block_k, block_out, num_warps, num_stages; D buckets are the largest D they
# serve, 0 the chunked rest. block_k 0 means "D rounded up", block_out 0 means "block_k".
TABLE: dict[int, dict[tuple[str, int, int], tuple[int, int, int, int, int, int]]] = {
    80: {
        ("state", 4, 64): (64, 64, 0, 0, 4, 2),
        ("state", 4, 128): (64, 64, 0, 0, 4, 2),
        ("state", 4, 0): (64, 64, 32, 0, 4, 3),
        ("state", 2, 64): (64, 64, 0, 0, 4, 3),
        ("state", 2, 128): (64, 64, 0, 0, 4, 3),
        ("state", 2, 256): (64, 64, 0, 0, 4, 2),
        ("state", 2, 0): (64, 64, 64, 0, 4, 3),
        ("grad", 4, 64): (64, 32, 0, 0, 4, 2),
        ("grad", 4, 128): (64, 32, 0, 0, 8, 2),
        ("grad", 4, 0): (64, 32, 32, 128, 8, 2),
        ("grad", 2, 64): (64, 64, 0, 0, 4, 2),
        ("grad", 2, 128): (64, 64, 0, 0, 8, 2),
        ("grad", 2, 256): (64, 32, 0, 0, 8, 2),
        ("grad", 2, 0): (64, 64, 64, 256, 8, 2),
    },
}
TABLE[90] = TABLE[80]


def table_arch(capability: tuple[int, int]) -> int:
    """The table that serves a device's compute capability."""
    return 90 if capability >= (9, 0) else 80


def bucket(size: int, d: int) -> int:
    """The D bucket of ``d`` for an element of ``size`` bytes."""
    for limit in (64, 128, 256):
        if d <= limit <= RESIDENT_D[size]:
            return limit
    return 0


def block_rows(arch: int, largest: int, rows: int) -> int:
    """The largest block of rows, down to 16, that still gives every multiprocessor something to do."""
    block = largest
    while block > 16 and -(-rows // block) < ENOUGH_BLOCKS[arch]:
        block //= 2
    return block


def config(op: str, arch: int, dtype: torch.dtype, d: int, rows: int) -> Config:
    """The launch of ``op`` (``"state"`` or ``"grad"``) for ``rows`` rows of ``d`` numbers of ``dtype``."""
    size = dtype.itemsize
    which = bucket(size, d)
    block_m, block_n, block_k, block_out, num_warps, num_stages = TABLE[arch][(op, size, which)]
    if block_k == 0:
        block_k = max(16, 1 << max(d - 1, 0).bit_length())
    block_m = block_rows(arch, block_m, rows)
    return Config(block_m, block_n, block_k, block_out or block_k, num_warps, num_stages, which != 0)
