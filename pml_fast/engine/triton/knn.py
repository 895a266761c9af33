"""Nearest neighbours and ranks in Triton: linear memory, no order of adding that could show.

*Ranks.* Rows and columns are put in the order of their labels, and rows are taken some at a time: their positives' keys are
tabled (a sweep over the columns of their own classes), sorted by torch, and all other columns are streamed once, each looked up
in its row's table and counted at the place it comes before, O(N M (D + log P)). How many positives there are decides the
table's width: reading that number waits for the device, once.

*Neighbours.* Each program keeps the lowest keys of its rows and merges a tile into them where the tile holds a lower one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip, from_order
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.aot import Kernel
from pml_fast.engine.triton.configs import MOST_REGISTERS
from pml_fast.engine.triton.knn_kernels import nearest_kernel, positive_keys_kernel, rank_counts_kernel
from pml_fast.engine.triton.launch import on

LAST = 2**63 - 1
# Keys of the positives that are held at a time (their counts take half as much).
TABLE_KEYS = 1 << 23
MOST_NEIGHBORS = 64
# Programs that share a card's multiprocessors.
ENOUGH_PROGRAMS = 512


@dataclass(frozen=True)
class Tiles:
    """A launch's tile of scores, and its step along D."""

    block_m: int
    block_n: int
    block_k: int = 32
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int | None = None  # as of configs.Config


RANK_TILES = Tiles(32, 64, num_warps=8)
NEAREST_TILES = Tiles(16, 0, maxnreg=MOST_REGISTERS)  # the compiler would spill to fit one more block on a multiprocessor


def refuse_knn(problem: NearestProblem | RankProblem) -> str | None:
    """``None`` where these kernels can run the problem, else the reason."""
    if isinstance(problem, RankProblem) and problem.relation is not None:
        return "a label comparison of one's own is a function of torch's, and has no kernel"
    if isinstance(problem, NearestProblem) and problem.k > MOST_NEIGHBORS:
        return f"its kernel keeps at most {MOST_NEIGHBORS} neighbors a row, and {problem.k} are asked for"
    return None


def _operands(problem: NearestProblem | RankProblem, x: Tensor, y: Tensor) -> tuple[layout.Operand, layout.Operand, int]:
    # Squares order as distances do, and have fewer ties.
    kind = 0 if problem.score.kind == "dot" else 2
    rows = _operand(x, kind)
    return rows, rows if y is x else _operand(y, kind), kind


def _operand(x: Tensor, kind: int) -> layout.Operand:
    laid_out = layout.operand(x, torch.zeros(1, dtype=torch.int64, device=x.device), kind)
    if kind:
        # Without a root: squares of whole numbers are exact, and so are their ties.
        laid_out.norms = laid_out.rows.float().square().sum(dim=1)
    return laid_out


def _turn(problem: NearestProblem | RankProblem) -> float:
    return -1.0 if problem.score.inverted else 1.0


def nearest(problem: NearestProblem) -> tuple[Tensor, Tensor]:
    """Scores (float32) and columns ``[N, k]``."""
    n, m = len(problem.x), len(problem.y)
    keep = max(16, triton.next_power_of_2(max(problem.k, 1)))
    keys = layout.empty((n, keep), dtype=torch.int64, device=problem.x.device)
    if n and m and problem.k:
        x, y, kind = _operands(problem, problem.x, problem.y)
        t = NEAREST_TILES
        with on(x.rows):
            nearest_kernel[(triton.cdiv(n, t.block_m),)](
                x.rows, y.rows, x.norms, y.norms, keys, x.rows.stride(0), y.rows.stride(0), n, m, x.rows.shape[1],
                _turn(problem), KIND=kind, ITSELF=problem.itself, PRECISION=layout.dot_precision(x.rows.dtype), KEEP=keep,
                BLOCK_M=t.block_m, BLOCK_K=t.block_k, num_warps=t.num_warps, num_stages=t.num_stages, maxnreg=t.maxnreg,
            )  # fmt: skip
    keys = keys[:, : problem.k]
    bits = (keys >> 32).to(torch.int32)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return from_order(problem.score, order), keys & 0xFFFFFFFF


def rank_strips(problem: RankProblem) -> Iterator[RankStrip]:
    """Strips of rows, in the order of their class."""
    n, m = len(problem.x), len(problem.y)
    row_order = torch.argsort(problem.x_labels, stable=True)
    column_order = torch.argsort(problem.y_labels, stable=True)
    labels, ref_labels = problem.x_labels[row_order].contiguous(), problem.y_labels[column_order].contiguous()
    start = torch.searchsorted(ref_labels, labels, out_int32=True)
    stop = torch.searchsorted(ref_labels, labels, right=True, out_int32=True)
    counts = (stop - start).long()
    # One more place than positives: what comes after them all is counted there.
    width = triton.next_power_of_2(int(counts.max()) + 1) if n else 1
    if problem.itself:
        counts = counts - 1
    if m == 0:
        yield RankStrip(row_order, counts, counts.new_empty(0))
        return
    x, y, kind = _operands(problem, problem.x[row_order], problem.y[column_order])
    sweep = _Ranks(problem, x, y, kind, start, stop, row_order, column_order, width)
    height = max(RANK_TILES.block_m, TABLE_KEYS // width)
    for first in range(0, n, height):
        last = min(n, first + height)
        yield RankStrip(row_order[first:last], counts[first:last], sweep.ranks(first, last, counts[first:last]))


@dataclass
class _Ranks:
    """The launches of one problem, over rows and columns in the order of their labels."""

    problem: RankProblem
    x: layout.Operand
    y: layout.Operand
    kind: int
    start: Tensor
    stop: Tensor
    row_order: Tensor
    column_order: Tensor
    width: int

    def ranks(self, first: int, last: int, counts: Tensor) -> Tensor:
        """The ranks of some rows, row by row."""
        n, m, d = last - first, len(self.column_order), self.x.rows.shape[1]
        t, device = RANK_TILES, self.x.rows.device
        x = self.x.rows[first:last]
        x_norm = self.x.norms[first:last] if self.kind else x
        start, stop = self.start[first:last], self.stop[first:last]
        table = torch.full((n, self.width), LAST, dtype=torch.int64, device=device)
        seen = torch.zeros(n, self.width, dtype=torch.int32, device=device)
        blocks, tiles = triton.cdiv(n, t.block_m), triton.cdiv(m, t.block_n)
        shares = min(tiles, triton.cdiv(ENOUGH_PROGRAMS, blocks))
        shared: dict[str, Any] = {
            "KIND": self.kind, "PRECISION": layout.dot_precision(x.dtype), "BLOCK_M": t.block_m, "BLOCK_N": t.block_n,
            "BLOCK_K": t.block_k, "num_warps": t.num_warps, "num_stages": t.num_stages, "maxnreg": t.maxnreg,
        }  # fmt: skip
        sizes = (x.stride(0), self.y.rows.stride(0), n, m, d, self.width)
        with on(x):
            positive_keys_kernel[(blocks,)](
                x, self.y.rows, x_norm, self.y.norms, start, stop, self.row_order[first:last], self.column_order, table,
                *sizes, _turn(self.problem), ITSELF=self.problem.itself, **shared,
            )  # fmt: skip
            table = torch.sort(table, dim=1).values
            rank_counts_kernel[(blocks, shares)](
                x, self.y.rows, x_norm, self.y.norms, start, stop, self.column_order, table, seen,
                *sizes, triton.cdiv(tiles, shares), _turn(self.problem), **shared,
            )  # fmt: skip
        place = torch.arange(self.width, device=device)
        ranks = seen.cumsum(dim=1) + place
        return ranks[place < counts.unsqueeze(1)]


# ---- ahead-of-time compilation ----

_POINTERS = {
    "x_norm_ptr": "*fp32", "y_norm_ptr": "*fp32", "start_ptr": "*i32", "stop_ptr": "*i32", "own_ptr": "*i64",
    "index_ptr": "*i64", "table_ptr": "*i64", "seen_ptr": "*i32", "out_ptr": "*i64",
}  # fmt: skip


def _kernel(label: str, fn: Any, rows: str, kind: int, t: Tiles, quick: bool, keep: int = 64) -> Kernel:
    types = {**_POINTERS, "x_ptr": f"*{rows}", "y_ptr": f"*{rows}", "turn": "fp32"}
    every = {"BLOCK_M": t.block_m, "BLOCK_N": t.block_n, "BLOCK_K": t.block_k, "KIND": kind, "ITSELF": True, "KEEP": keep}
    every["PRECISION"] = "tf32x3" if rows == "fp32" else "tf32"
    constexprs = {a: every[a] for a in fn.arg_names if a in every}
    signature = {a: "constexpr" if a in constexprs else types.get(a, "i32") for a in fn.arg_names}
    aligned = tuple(a for a in fn.arg_names if a.endswith("_ptr") or a.startswith("stride_") or a == "D")
    return Kernel(label, fn, signature, constexprs, t.num_warps, t.num_stages, aligned, quick=quick, maxnreg=t.maxnreg)


def _configurations() -> list[Kernel]:
    found = []
    for rows in ("fp32", "bf16", "fp16"):
        for kind in (0, 2):
            label, quick = f"{rows}_{'l2' if kind else 'dot'}", (rows, kind) == ("fp32", 2)
            found += [
                _kernel(f"knn_positives_{label}", positive_keys_kernel, rows, kind, RANK_TILES, quick),
                _kernel(f"knn_ranks_{label}", rank_counts_kernel, rows, kind, RANK_TILES, quick),
            ]
            for keep in (16, 32, 64):
                name = f"knn_nearest_{label}_{keep}"
                found.append(_kernel(name, nearest_kernel, rows, kind, NEAREST_TILES, quick and keep == 64, keep))
    return found


KERNELS = _configurations()
