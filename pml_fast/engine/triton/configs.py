"""Block sizes by architecture, input type and D: a table, so that no call ever stops to tune."""

from __future__ import annotations

from dataclasses import dataclass

ARCHES = (80, 90)
# Fewer row blocks than this leave multiprocessors idle (an A100 has 108, an H100 132).
ENOUGH_BLOCKS = {80: 108, 90: 132}
# Registers a thread can have.
MOST_REGISTERS = 255

# Warps of a chunked gradient, whose epilogue holds the derivatives of both anchors of a pair, and of a heavy state.
HEAVY_WARPS = 8

Entry = tuple[int, int, int, int, int]
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Config:
    """Tile of a launch. ``block_k`` chunks D (``resident``: one chunk holds it all).

    ``maxnreg`` is the number of registers a thread may take, where the compiler's own choice is overruled.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    resident: bool
    maxnreg: int | None = None


def table_arch(capability: tuple[int, int]) -> int:
    """The table that serves a device's compute capability."""
    return 90 if capability >= (9, 0) else 80


def block_rows(arch: int, largest: int, rows: int) -> int:
    """The largest block of rows, down to 16, that still gives every multiprocessor something to do."""
    block = largest
    while block > 16 and -(-rows // block) < ENOUGH_BLOCKS[arch]:
        block //= 2
    return block


def config(op: str, arch: int, product: str, distance: bool, d: int, rows: int) -> Config:
    """The launch of ``op`` for ``rows`` rows: ``"state"``, ``"extreme"`` (which has its tiles), ``"grad"``, ``"pulls"``,
    ``"heavy"`` or ``"ranks"``.

    A gradient whose D no block holds (not ``resident``), and any that is asked for as ``pulls``, writes out what multiplies
    the columns, by the chunked tiles of a state over a grid of both rows and columns, which is never short of blocks. A
    ``heavy`` state, of more than a few numbers a row, has those tiles as well, whose rows take no registers, and soft
    ``ranks``, which compare each score of a tile with many, half of their columns.

    ``product`` is a :func:`layout.product_type`; ``distance`` whether the score is one rather than an inner product.
    """
    geometry = "distance" if distance else "dot"
    bucket = max(64, 1 << (d - 1).bit_length())
    key = ("grad" if op == "grad" else "state", product, geometry)
    if op in ("pulls", "heavy", "ranks") or bucket not in TABLE[arch].get(key, {}):
        bucket, key = 0, ("state", product, geometry)
    block_m, block_n, block_k, num_warps, num_stages = TABLE[arch][key][bucket]
    of_both = op in ("grad", "pulls") and not bucket
    rows_a_block = block_m if of_both else block_rows(arch, block_m, rows)
    if of_both or op in ("heavy", "ranks"):
        num_warps = HEAVY_WARPS
    if op == "ranks":
        block_n //= 2
    if rows_a_block < block_m and (arch, key, bucket) in HALVED:
        block_n //= 2
    # ptxas spills to fit one more block on a multiprocessor. A shrunken block has no other to make room for, and the
    # loop of an extreme, or of one tile, is short.
    registers = MOST_REGISTERS if rows_a_block < block_m or op in ("extreme", "heavy", "ranks") or of_both else None
    return Config(rows_a_block, block_n, bucket or block_k, num_warps, num_stages, bucket != 0, registers)


# (op, product, geometry) -> D rounded up to a power of two -> block_m, block_n, block_k, num_warps, num_stages. Entry 0
# serves every other D, in chunks of block_k; the others hold D in one block, which is their block_k. Each is the largest tile
# tried that compiles without a spilled register for every loss (tests/test_triton_compile.py); none was timed.
TABLE: dict[int, dict[Key, dict[int, Entry]]] = {
    80: {
        ("state", "bf16", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 4, 2),
            256: (64, 64, 0, 4, 2),
            0: (64, 64, 64, 8, 3),
        },
        ("state", "bf16", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
            256: (64, 64, 0, 8, 2),
            0: (64, 64, 32, 8, 2),
        },
        ("grad", "bf16", "dot"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
            256: (64, 64, 0, 8, 2),
        },
        ("grad", "bf16", "distance"): {
            64: (64, 32, 0, 4, 2),
        },
        ("state", "tf32", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 4, 2),
            0: (64, 64, 32, 4, 3),
        },
        ("state", "tf32", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
            0: (64, 64, 32, 8, 2),
        },
        ("grad", "tf32", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 8, 2),
        },
        ("grad", "tf32", "distance"): {
            64: (64, 32, 0, 4, 2),
        },
        ("state", "tf32x3", "dot"): {
            64: (64, 32, 0, 4, 2),
            0: (64, 32, 32, 4, 2),
        },
        ("state", "tf32x3", "distance"): {
            64: (64, 32, 0, 4, 2),
            0: (64, 32, 32, 8, 2),
        },
        ("grad", "tf32x3", "dot"): {
            64: (64, 16, 0, 8, 2),
        },
        ("grad", "tf32x3", "distance"): {
            64: (64, 16, 0, 8, 2),
        },
        ("state", "fp16", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 4, 2),
            256: (64, 64, 0, 4, 2),
            0: (64, 64, 64, 8, 3),
        },
        ("state", "fp16", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
            256: (64, 64, 0, 8, 2),
            0: (64, 64, 32, 8, 2),
        },
        ("grad", "fp16", "dot"): {
            64: (64, 64, 0, 8, 2),
            256: (64, 64, 0, 8, 2),
        },
        ("grad", "fp16", "distance"): {
            64: (64, 32, 0, 8, 2),
        },
    },
    90: {
        ("state", "bf16", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 4, 2),
            256: (64, 64, 0, 4, 2),
            0: (64, 64, 64, 4, 3),
        },
        ("state", "bf16", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
            256: (64, 64, 0, 8, 2),
            0: (64, 64, 32, 8, 2),
        },
        ("grad", "bf16", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 8, 2),
            256: (64, 32, 0, 8, 2),
        },
        ("grad", "bf16", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
        },
        ("state", "tf32", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 4, 2),
            0: (64, 64, 64, 4, 3),
        },
        ("state", "tf32", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
            0: (64, 64, 32, 8, 2),
        },
        ("grad", "tf32", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 32, 0, 4, 2),
        },
        ("grad", "tf32", "distance"): {
            64: (64, 32, 0, 4, 2),
        },
        ("state", "tf32x3", "dot"): {
            64: (64, 64, 0, 4, 2),
            0: (64, 64, 32, 4, 3),
        },
        ("state", "tf32x3", "distance"): {
            0: (64, 64, 32, 8, 2),
        },
        ("grad", "tf32x3", "dot"): {
            64: (64, 32, 0, 4, 2),
        },
        ("state", "fp16", "dot"): {
            64: (64, 64, 0, 4, 2),
            128: (64, 64, 0, 4, 2),
            256: (64, 64, 0, 4, 2),
            0: (64, 64, 64, 4, 3),
        },
        ("state", "fp16", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 64, 0, 8, 2),
            256: (64, 64, 0, 8, 2),
            0: (64, 64, 32, 8, 2),
        },
        ("grad", "fp16", "dot"): {
            64: (64, 32, 0, 4, 2),
            128: (64, 32, 0, 4, 2),
            256: (64, 16, 0, 8, 2),
        },
        ("grad", "fp16", "distance"): {
            64: (64, 64, 0, 8, 2),
            128: (64, 32, 0, 8, 2),
        },
    },
}

# Entries whose smaller blocks of rows, which multiply by other instructions, would spill at the whole block_n.
HALVED: set[tuple[int, Key, int]] = {
    (90, ("state", "bf16", "dot"), 256),
    (90, ("state", "fp16", "dot"), 256),
    (90, ("state", "tf32", "dot"), 128),
}
