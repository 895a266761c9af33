"""Block sizes by architecture, input type and D: a table, so that no call ever stops to tune."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    """Tile of a launch; a block that its kernel lacks is 0. ``block_k`` chunks D (``resident``: one chunk holds it all).

    ``maxnreg`` is the number of registers a thread may take, where the compiler's own choice is overruled. ``block_out`` is the
    slice of D that a program writes; 0 where it writes coefficients instead, for a product to follow. ``turned``: the gradient
    multiplies columns that were transposed beforehand.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    resident: bool = False
    maxnreg: int | None = None
    block_out: int = 0
    turned: bool = False


@dataclass(frozen=True)
class Tunable:
    """A kernel whose tile ``pml-fast tune`` may choose: what it is for, and the blocks that a tile of it has.

    ``holds_all``: its rows may lie in one block whole. ``writes_out``: the gradient of a D that no block holds is left as
    coefficients, and may be for any D. ``turns``: it may read transposed columns. ``products``: it multiplies on tensor cores,
    at some precision.
    """

    title: str
    blocks: tuple[str, ...] = ("block_m", "block_n", "block_k")
    holds_all: bool = False
    writes_out: bool = False
    turns: bool = False
    products: bool = True


TUNABLE: dict[str, Tunable] = {
    "state": Tunable("forward of pair losses", holds_all=True),
    "grad": Tunable("gradient of pair losses", holds_all=True, writes_out=True, turns=True),
    "pulls": Tunable("gradient of pair losses whose derivative fills the registers"),
    "two-sweeps": Tunable("forward of lifted structure and intra-pair variance, both sweeps"),
    "histogram": Tunable("forward of FastAP"),
    "soft-ranks": Tunable("forward of SmoothAP and PNP"),
    "soft-ranks-grad": Tunable("gradient of SmoothAP and PNP"),
    "extreme": Tunable("hardest pair of each row", holds_all=True),
    "small": Tunable("gradient of pair losses of up to 1024 rows", ("block_m", "block_n", "block_k", "block_out")),
    "triplet": Tunable("forward of triplet losses"),
    "triplet-grad": Tunable("gradient of triplet losses", ("block_m", "block_n", "block_k", "block_out"), writes_out=True),
    "nearest": Tunable("nearest neighbours", ("block_m", "block_k")),
    "ranks": Tunable("ranks of the positives, for the metrics"),
    "listed": Tunable("scores of listed pairs", ("block_m", "block_k"), products=False),
    "listed-grad": Tunable("gradient of listed pairs", ("block_m", "block_out"), products=False),
}


def table_arch(capability: tuple[int, int]) -> int:
    """The table that serves a device's compute capability."""
    return 90 if capability >= (9, 0) else 80


def block_rows(arch: int, largest: int, rows: int) -> int:
    """The largest block of rows, down to 16, that still gives every multiprocessor something to do."""
    block = largest
    while block > 16 and -(-rows // block) < ENOUGH_BLOCKS[arch]:
        block //= 2
    return block


# States of more than a few numbers a row, and gradients that write out coefficients whatever their D.
_HEAVY = ("two-sweeps", "histogram", "soft-ranks")
_PULLS = ("pulls", "soft-ranks-grad")


def config(op: str, arch: int, product: str, distance: bool, d: int, rows: int) -> Config:
    """The launch of ``op`` for ``rows`` rows: a key of :data:`TUNABLE`, or of :data:`TILES`.

    An ``extreme`` has the tiles of a ``state``. A gradient whose D no block holds (not ``resident``), and any that is asked
    for as ``pulls``, writes out what multiplies the columns, by the chunked tiles of a state over a grid of both rows and
    columns, which is never short of blocks; so does that of soft ranks. A state of more than a few numbers a row has those
    tiles as well, whose rows take no registers, and ``soft-ranks``, which compare each score of a tile with many, half of
    their columns.

    ``product`` is a :func:`layout.product_type`, or ``bf16x3`` of rows in bfloat16 parts; ``distance`` whether the score is one
    rather than an inner product.
    """
    if product == "bf16x3":
        product = "bf16"
    if op in TILES:
        return _tile(op, product, d)
    geometry = "distance" if distance else "dot"
    bucket = max(64, 1 << (d - 1).bit_length())
    key = ("grad" if op == "grad" else "state", product, geometry)
    if op in (*_PULLS, *_HEAVY) or bucket not in TABLE[arch].get(key, {}):
        bucket, key = 0, ("state", product, geometry)
    block_m, block_n, block_k, num_warps, num_stages = TABLE[arch][key][bucket]
    of_both = op in ("grad", *_PULLS) and not bucket
    rows_a_block = block_m if of_both else block_rows(arch, block_m, rows)
    if of_both or op in _HEAVY:
        num_warps = HEAVY_WARPS
    if op == "soft-ranks":
        block_n //= 2
    if rows_a_block < block_m and (arch, key, bucket) in HALVED:
        block_n //= 2
    # ptxas spills to fit one more block on a multiprocessor. A shrunken block has no other to make room for, and the
    # loop of an extreme, or of one tile, is short.
    registers = MOST_REGISTERS if rows_a_block < block_m or op in ("extreme", *_HEAVY) or of_both else None
    turned = (arch, key, bucket) in TURNED
    return Config(rows_a_block, block_n, bucket or block_k, num_warps, num_stages, bucket != 0, registers, turned=turned)


def _tile(op: str, product: str, d: int) -> Config:
    if op == "triplet-grad" and d > WIDEST_TRIPLETS:
        op = "triplet-pulls"
    tile = TILES[op].get(product) or TILES[op][""]
    width = max(16, 1 << (d - 1).bit_length())
    return tile if tile.block_out <= width else replace(tile, block_out=width)


# Beyond this D the gradient of triplets is written out as coefficients (``triplet-pulls``), for a product to follow; what
# comes after the first slab of positives (``triplet-slabs``) then has a program for each slice of D.
WIDEST_TRIPLETS = 128

# Kernels with one tile for every architecture, geometry, N and D, by type of products ("" for all others): the largest that
# keep everything in registers on sm_80 and sm_90. The three-term split takes many. At small batches a multiprocessor has a
# block or two, and what counts is how many have one; at those and at neighbours the compiler would spill to fit one more.
TILES: dict[str, dict[str, Config]] = {
    "small": {"": Config(16, 32, 32, 4, 2, maxnreg=MOST_REGISTERS, block_out=64)},
    "triplet": {"tf32x3": Config(64, 32, 32, 8, 2), "": Config(64, 64, 32, 8, 2)},
    "triplet-grad": {
        "tf32x3": Config(32, 32, 32, 8, 2, block_out=WIDEST_TRIPLETS),
        "": Config(64, 32, 32, 8, 2, block_out=WIDEST_TRIPLETS),
    },
    "triplet-pulls": {"tf32x3": Config(64, 32, 32, 8, 2), "": Config(64, 64, 32, 8, 2)},
    "nearest": {"": Config(16, 0, 32, 4, 2, maxnreg=MOST_REGISTERS)},
    "ranks": {"": Config(32, 64, 32, 8, 2)},
    "listed": {"": Config(32, 0, 64, 4, 2)},
    "listed-grad": {"": Config(32, 0, 0, 4, 2, block_out=128)},
}
TILES["triplet-slabs"] = TILES["triplet-grad"]

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

# Gradients whose columns are transposed beforehand, for asynchronous loads of 32-bit numbers (docs/gpu.md has the counts): all
# that compile without a spill so.
TURNED: set[tuple[int, Key, int]] = {
    (80, ("grad", "tf32", "dot"), 64),
    (90, ("grad", "tf32", "dot"), 64),
    (90, ("grad", "tf32", "dot"), 128),
    (90, ("grad", "tf32", "distance"), 64),
}
