"""All triplets of a batch in Triton: linear memory, no host synchronisation, no atomics, one owner for every row of an
output.

Rows and columns are put in the order of their labels, so that the positives of an anchor are one range of columns; the
ends of the ranges stay on the device. Triplets are taken ``width`` positives of every anchor at a time. Each such slab
is

1. ``triplet_positives_kernel``: a table ``[width, N]`` of the scores of the positives, by differences for distances;
2. ``triplet_counts_kernel``: streams the negatives; gives each anchor its sum and count and each positive its *hits*,
the sum of the slopes of its triplets, which for the hinge is its number of active negatives; 3.
``triplet_grads_kernel``: streams again. The coefficient of an (anchor, negative) is the number of active positives,
compared anew with the table; that of an (anchor, positive) is its hits. A batch against itself plays both roles in one
sweep, because the score is symmetric: three products of matrices in all. Rows wider than a block get theirs of the
first slab, which is all of it in most batches, as ``triplet_pulls_kernel`` and a product of torch's, a strip at a time.

How many positives there are is known to the device alone: the host launches the slabs of the worst case, and those
past the largest class find nothing to do. Each negative is compared with each positive, O(N M P): for the few
positives that an anchor has in most batches this is cheaper than sorting them. For many, sorted positives and prefix
sums (``triplet_strips``) are the better kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import TripletProblem
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.aot import Kernel
from pml_fast.engine.triton.launch import on
from pml_fast.engine.triton.triplet_kernels import (
    triplet_counts_kernel,
    triplet_grads_kernel,
    triplet_positives_kernel,
    triplet_pulls_kernel,
)
from pml_fast.engine.triton.wide import pull, strips


@dataclass(frozen=True)
class Tiles:
    """A launch's tile of scores, its step along D, and the slice of D that a program of a gradient writes.

    The first slab's gradient of a wider D comes in strips.
    """

    block_m: int
    block_n: int
    block_k: int = 32
    block_out: int = 128
    num_warps: int = 8
    num_stages: int = 2


# The largest tiles that keep everything in registers on sm_80 and sm_90; the three-term split takes many.
TILES = {
    ("counts", "tf32x3"): Tiles(64, 32),
    ("counts", "tf32"): Tiles(64, 64),
    ("grads", "tf32x3"): Tiles(32, 32),
    ("grads", "tf32"): Tiles(64, 32),
    ("pulls", "tf32x3"): Tiles(64, 32),
    ("pulls", "tf32"): Tiles(64, 64),
}
# Positives whose hits a program keeps in registers.
HITS = 16

# The two tables of a slab together take at most 64 MiB, unless the fewest positives of a slab ask for more.
TABLE_ELEMENTS = 1 << 23
MIN_WIDTH, MAX_WIDTH = 128, 2048

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def refuse_triplet(problem: TripletProblem) -> str | None:
    """``None`` where these kernels can run the problem, else the reason."""
    score, dtypes = problem.score, {problem.x.dtype, problem.y.dtype}
    if problem.spec.swap:
        return "its triplet kernels have no swap"
    if (score.kind, float(score.power)) not in layout.KINDS:
        return (
            "its triplet kernels know the inner product and the l2 distance to the power 1 or 2, "
            f"not {score.kind!r} with p={score.p:g}, power={score.power:g}"
        )
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"its triplet kernels take float32, float16 or bfloat16 rows of one dtype, not {dtypes}"
    return None


def triplet_rows(
    problem: TripletProblem, need_x: bool, need_y: bool, uniform: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """``rows [2, N]`` (float64 sum and count of each anchor) and, where ``uniform``, the float32 gradients of the
    plain sum.
    """
    w = torch.ones(problem.x.shape[0], dtype=torch.float32, device=problem.x.device)
    sweep = _Sweep(problem, w, need_x and uniform, need_y and uniform)
    sweep.run()
    return sweep.rows(), *sweep.grads()


def triplet_grads(problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool) -> tuple[Tensor | None, Tensor | None]:
    """Float32 gradients of ``sum(w * row value)`` by ``x`` and ``y``, ``w [N]``."""
    sweep = _Sweep(problem, w.to(torch.float32), need_x, need_y)
    sweep.run()
    return sweep.grads()


def slab_width(n: int, m: int, step: int) -> int:
    """Positives of a slab: as many as the tables' bound allows, within what pays, a multiple of ``step``."""
    width = min(max(TABLE_ELEMENTS // max(n, 1), MIN_WIDTH), MAX_WIDTH, max(m, 1))
    return triton.cdiv(width, step) * step


class _Sweep:
    """The launches of one problem, over rows and columns in the order of their labels."""

    def __init__(self, problem: TripletProblem, w: Tensor, need_x: bool, need_y: bool) -> None:
        self.problem = problem
        self.order_x = torch.argsort(problem.x_labels, stable=True)
        self.order_y = self.order_x if problem.itself else torch.argsort(problem.y_labels, stable=True)
        kind = layout.score_kind(problem.score)
        self.x = layout.operand(problem.x[self.order_x], problem.x_labels[self.order_x], kind)
        self.y = self.x
        if not problem.itself:
            self.y = layout.operand(problem.y[self.order_y], problem.y_labels[self.order_y], kind)
        # int32: in the kernels every pair of a tile is compared with them, and wide integers take two registers.
        self.start = torch.searchsorted(self.y.labels, self.x.labels, out_int32=True)
        self.stop = torch.searchsorted(self.y.labels, self.x.labels, right=True, out_int32=True)
        self.w = w[self.order_x].contiguous()
        rule = problem.rule
        self.rule = self.w if rule is None else rule[:, self.order_x].to(torch.float32).contiguous()
        (self.n, self.d), self.m = problem.x.shape, problem.y.shape[0]
        self.precision = layout.dot_precision(self.x.rows.dtype)
        self.width = slab_width(self.n, self.m, HITS)
        self.table = self._empty(self.width, self.n)
        self.hits = self._empty(self.width, self.n)
        self.value = torch.zeros(self.n, dtype=torch.float64, device=w.device)
        self.count = torch.zeros(self.n, dtype=torch.int64, device=w.device)
        # Slabs are added up.
        self.dx = self._empty(self.n, self.d).zero_() if need_x else None
        self.dy = self._empty(self.m, self.d).zero_() if need_y and not problem.itself else None

    def _empty(self, *shape: int) -> Tensor:
        return layout.empty(shape, dtype=torch.float32, device=self.w.device)

    def run(self) -> None:
        """Launch every slab of positives; nothing is read back."""
        if self.n == 0:
            return
        self.most = (self.stop - self.start).amax()
        with on(self.w):
            for first in range(0, self.m, self.width):
                self._positives(first)
                self._counts(first)
                if self.dx is not None:
                    self._grads(first, self.x, self.y, self.dx, True, self.problem.itself)
                if self.dy is not None:
                    self._grads(first, self.y, self.x, self.dy, False, True)

    def _positives(self, first: int) -> None:
        x, y, t = self.x.rows, self.y.rows, TILES["counts", self.precision]
        triplet_positives_kernel[(triton.cdiv(self.n, t.block_m), triton.cdiv(self.width, HITS))](
            x, y, self.start, self.stop, self.rule, self.table,
            x.stride(0), y.stride(0), self.n, self.d, self.problem.score.sign, first, self.width,
            KIND=layout.score_kind(self.problem.score), ITSELF=self.problem.itself,
            HAS_RULE=self.problem.rule is not None, BLOCK_M=t.block_m, BLOCK_K=t.block_k, HITS=HITS,
            num_warps=t.num_warps, num_stages=t.num_stages,
        )  # fmt: skip

    def _numbers(self, first: int) -> tuple[float, ...]:
        spec, (low, high) = self.problem.spec, self.problem.limits
        return (self.problem.score.sign, first, self.width, spec.margin, spec.select_margin, low, high)

    def _choices(self, t: Tiles) -> dict[str, Any]:
        problem = self.problem
        return {
            "KIND": layout.score_kind(problem.score),
            "HAS_RULE": problem.rule is not None,
            "SELECT": problem.spec.select,
            "SMOOTH": problem.spec.smooth,
            "PRECISION": self.precision,
            "BLOCK_M": t.block_m,
            "BLOCK_N": t.block_n,
            "BLOCK_K": t.block_k,
            "num_warps": t.num_warps,
            "num_stages": t.num_stages,
        }

    def _counts(self, first: int) -> None:
        x, y, t = self.x, self.y, TILES["counts", self.precision]
        triplet_counts_kernel[(triton.cdiv(self.n, t.block_m),)](
            x.rows, y.rows, x.norms, y.norms, self.start, self.stop, self.rule, self.table, self.hits,
            self.value, self.count, x.rows.stride(0), y.rows.stride(0), self.n, self.m, self.d,
            *self._numbers(first), HITS=HITS, **self._choices(t),
        )  # fmt: skip

    def _grads(self, first: int, own: layout.Operand, other: layout.Operand, out: Tensor, by_row: bool, by_col: bool) -> None:
        """Add the slab's gradient by the rows of ``own``; the anchors are its rows, those of ``other``, or both."""
        (n, d), m = out.shape, len(other.rows)
        t = TILES["grads", self.precision]
        low, high = self.problem.limits
        inputs = (
            own.rows, other.rows, own.norms, other.norms, self.start, self.stop, self.w, self.rule, self.table, self.hits,
        )  # fmt: skip
        sizes = (n, m, d, *self._numbers(first))
        roles = {"ROW_ANCHORS": by_row, "COL_ANCHORS": by_col, "BOUNDED": low > 0 or high < float("inf")}
        # Whether a later slab has any work is known to the device alone, and a product of torch's cannot ask there.
        if d > t.block_out and first == 0:
            self._wide(own, other, out, inputs, sizes, roles)
            return
        block_out = min(t.block_out, max(16, triton.next_power_of_2(d)))
        triplet_grads_kernel[(triton.cdiv(n, t.block_m), triton.cdiv(d, block_out))](
            *inputs, self.most, out, own.rows.stride(0), other.rows.stride(0), out.stride(0), *sizes, BLOCK_OUT=block_out,
            **roles, **self._choices(t),
        )  # fmt: skip

    def _wide(
        self, own: layout.Operand, other: layout.Operand, out: Tensor, inputs: tuple[Tensor, ...], sizes: tuple[float, ...],
        roles: dict[str, bool],
    ) -> None:  # fmt: skip
        """The gradient of rows wider than a block: a slice of D a program would take the scores again for each."""
        t, m = TILES["pulls", self.precision], len(other.rows)
        kind, pulled = layout.score_kind(self.problem.score), other.rows.float()
        for begin, h in strips(len(own.rows), m, pulled):
            end = begin + len(h)
            triplet_pulls_kernel[(triton.cdiv(len(h), t.block_m), triton.cdiv(m, t.block_n))](
                *inputs, h, begin, end, own.rows.stride(0), other.rows.stride(0), h.stride(0), *sizes, **roles,
                **self._choices(t),
            )  # fmt: skip
            pull(out[begin:end], h, own.rows[begin:end], pulled, kind, add=True)

    def rows(self) -> Tensor:
        """Sum and count of each anchor, in the problem's order."""
        rows = torch.stack([self.value, self.count.double()])
        return torch.empty_like(rows).index_copy_(1, self.order_x, rows)

    def grads(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients, in the problem's order."""
        dx = None if self.dx is None else torch.empty_like(self.dx).index_copy_(0, self.order_x, self.dx)
        dy = None if self.dy is None else torch.empty_like(self.dy).index_copy_(0, self.order_y, self.dy)
        return dx, dy


# ---- ahead-of-time compilation ----

_POINTERS = {
    "table_ptr": "*fp32", "hits_ptr": "*fp32", "rule_ptr": "*fp32", "w_ptr": "*fp32", "out_ptr": "*fp32",
    "x_norm_ptr": "*fp32", "y_norm_ptr": "*fp32", "start_ptr": "*i32", "stop_ptr": "*i32",
    "h_ptr": "*fp32", "most_ptr": "*i32", "value_ptr": "*fp64", "count_ptr": "*i64",
}  # fmt: skip
_FLOATS = ("sign", "margin", "select_margin", "low", "high")


def _kernel(label: str, fn: Any, rows: str, t: Tiles, chosen: dict[str, Any], quick: bool = False) -> Kernel:
    types = {**_POINTERS, "x_ptr": f"*{rows}", "y_ptr": f"*{rows}", **dict.fromkeys(_FLOATS, "fp32")}
    every = {"BLOCK_M": t.block_m, "BLOCK_N": t.block_n, "BLOCK_K": t.block_k, "BLOCK_OUT": t.block_out}
    every |= {"HITS": HITS, "HAS_RULE": False, "ITSELF": True, "BOUNDED": False, **chosen}
    constexprs = {a: every[a] for a in fn.arg_names if a in every}
    signature = {a: "constexpr" if a in constexprs else types.get(a, "i32") for a in fn.arg_names}
    aligned = tuple(a for a in fn.arg_names if a.endswith("_ptr") or a.startswith("stride_") or a == "D")
    return Kernel(label, fn, signature, constexprs, t.num_warps, t.num_stages, aligned, quick=quick)


def _configurations() -> list[Kernel]:
    found = []
    for rows, kind, select, smooth, ruled in [
        ("fp32", 0, "every", False, False), ("fp32", 1, "every", False, False),
        ("fp32", 2, "semihard", False, True), ("fp32", 1, "every", True, False),
        ("bf16", 0, "every", False, False), ("fp16", 1, "semihard", True, False),
    ]:  # fmt: skip
        precision = "tf32x3" if rows == "fp32" else "tf32"
        chosen = {"KIND": kind, "SELECT": select, "SMOOTH": smooth, "HAS_RULE": ruled, "PRECISION": precision}
        counts, grads, wide = (TILES[name, precision] for name in ("counts", "grads", "pulls"))
        quick = (rows, kind, smooth) == ("fp32", 1, False)
        label = f"{rows}_{('dot', 'l2', 'l2_squared')[kind]}_{select}{'_smooth' if smooth else ''}"
        found += [
            _kernel(f"triplet_positives_{label}", triplet_positives_kernel, rows, counts, chosen),
            _kernel(f"triplet_counts_{label}", triplet_counts_kernel, rows, counts, chosen, quick),
        ]
        for roles, by_row, by_col in [("both", True, True), ("rows", True, False), ("columns", False, True)]:
            roled = {**chosen, "ROW_ANCHORS": by_row, "COL_ANCHORS": by_col}
            name = f"triplet_grads_{roles}_{label}"
            found.append(_kernel(name, triplet_grads_kernel, rows, grads, roled, quick and roles == "both"))
            name = f"triplet_pulls_{roles}_{label}"
            found.append(_kernel(name, triplet_pulls_kernel, rows, wide, roled, quick and roles == "both"))
    return found


KERNELS = _configurations()
