"""Launchers of the pairwise kernels, and the configurations of them that are compiled ahead of time."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import triton
from torch import Tensor

from pml_fast.engine.problem import ExtremeProblem, PairProblem, PairRows
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.aot import ARCHES, Kernel
from pml_fast.engine.triton.configs import Config, config, table_arch
from pml_fast.engine.triton.epilogues import EPILOGUES, EXP_THEN_PAIRS, Epilogue
from pml_fast.engine.triton.pairwise import extreme_kernel, pair_grad_kernel, pair_state_kernel

MAX_PARAMS = 3


def on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on the tensor's own device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def launch_config(op: str, x: Tensor) -> Config:
    """The table's entry for the tensor's device (an interpreted launch takes the newest table)."""
    arch = table_arch(torch.cuda.get_device_capability(x.device)) if x.is_cuda else ARCHES[-1]
    return config(op, arch, x.dtype, x.shape[1], x.shape[0])


def _scalars(problem: PairProblem) -> tuple[float, ...]:
    # sign, limits of the positive and of the negative side, parameters
    pos, neg = problem.limits[0], problem.limits[-1]
    params = [float(p) for p in problem.spec.params()]
    return (problem.score.sign, *pos, *neg, *params, *([0.0] * (MAX_PARAMS - len(params))))


def _rule(problem: PairProblem) -> Tensor:
    rule = problem.rule
    return problem.x if rule is None else rule.to(torch.float32).contiguous()


def _tile(cfg: Config) -> dict[str, Any]:
    return {
        "RESIDENT": cfg.resident,
        "BLOCK_M": cfg.block_m,
        "BLOCK_N": cfg.block_n,
        "BLOCK_K": cfg.block_k,
        "num_warps": cfg.num_warps,
        "num_stages": cfg.num_stages,
    }


def pair_rows(problem: PairProblem) -> PairRows:
    """The forward sweep: each row's values and counts, and the levels its derivative needs as ``saved [3, N]``."""
    epilogue = EPILOGUES[problem.spec.name]
    if epilogue.shape == EXP_THEN_PAIRS and problem.y.shape[0] >= layout.SORT_FROM:
        sorted_problem, place = layout.class_sorted(problem)
        rows, saved, seen = _state(sorted_problem, epilogue)
        rows, saved = rows[:, :, place], saved[:, place]
    else:
        rows, saved, seen = _state(problem, epilogue)
    return PairRows(rows, seen.any(dim=1), saved)


def _state(problem: PairProblem, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    (n, d), m = problem.x.shape, problem.y.shape[0]
    device = problem.x.device
    rows = layout.empty((len(problem.spec.terms), 2, n), dtype=torch.float32, device=device)
    saved = layout.empty((epilogue.levels, n), dtype=torch.float32, device=device)
    seen = layout.empty((2, n), dtype=torch.int8, device=device)
    if n == 0:
        return rows, saved, seen
    kind = layout.score_kind(problem.score)
    x = layout.operand(problem.x, problem.x_labels, kind)
    y = x if problem.itself else layout.operand(problem.y, problem.y_labels, kind)
    cfg = launch_config("state", x.rows)
    with on(x.rows):
        pair_state_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, _rule(problem), rows, saved, seen,
            x.rows.stride(0), y.rows.stride(0), n, m, d, *_scalars(problem),
            SHAPE=epilogue.shape, LOGIT=epilogue.logit, FINISH=epilogue.finish, KIND=kind, ITSELF=problem.itself,
            HAS_RULE=problem.rule is not None, PRECISION=layout.dot_precision(x.rows.dtype), **_tile(cfg),
        )  # fmt: skip
    return rows, saved, seen


def pair_grads(
    problem: PairProblem, saved: Tensor, w: Tensor, need_x: bool, need_y: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The backward: float32 gradients of ``sum(w * value)``, one launch a side."""
    kind = layout.score_kind(problem.score)
    x = layout.operand(problem.x, problem.x_labels, kind)
    w = w.to(torch.float32).contiguous()
    if problem.itself:
        return (_grad(problem, x, x, saved, w, True, True) if need_x else None), None
    y = layout.operand(problem.y, problem.y_labels, kind)
    dx = _grad(problem, x, y, saved, w, True, False) if need_x else None
    dy = _grad(problem, y, x, saved, w, False, True) if need_y else None
    return dx, dy


def _grad(
    problem: PairProblem, x: layout.Operand, y: layout.Operand, saved: Tensor, w: Tensor, by_row: bool, by_col: bool
) -> Tensor:
    """Gradient by the rows of ``x`` against the columns ``y``; the anchors are the rows, the columns, or both."""
    epilogue = EPILOGUES[problem.spec.name]
    (n, d), m = x.rows.shape, y.rows.shape[0]
    out = layout.empty((n, d), dtype=torch.float32, device=x.rows.device)
    if out.numel() == 0:
        return out
    cfg = launch_config("grad", x.rows)
    with on(x.rows):
        pair_grad_kernel[(triton.cdiv(n, cfg.block_m), triton.cdiv(d, cfg.block_out))](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, _rule(problem), saved, w, out,
            x.rows.stride(0), y.rows.stride(0), out.stride(0), n, m, d, *_scalars(problem),
            TERMS=len(problem.spec.terms), SAVED=epilogue.levels > 0, LOGIT=epilogue.logit,
            DERIVATIVE=epilogue.derivative, KIND=layout.score_kind(problem.score), ITSELF=problem.itself,
            ROW_ANCHORS=by_row, COL_ANCHORS=by_col, HAS_RULE=problem.rule is not None,
            PRECISION=layout.dot_precision(x.rows.dtype), BLOCK_OUT=cfg.block_out, **_tile(cfg),
        )  # fmt: skip
    return out


def extremes(problem: ExtremeProblem) -> tuple[Tensor, Tensor]:
    """Each row's largest or smallest score (float32) and its column (int64, the lowest of equals, -1 for none)."""
    (n, d), m = problem.x.shape, problem.y.shape[0]
    value = layout.empty((n,), dtype=torch.float32, device=problem.x.device)
    index = layout.empty((n,), dtype=torch.int64, device=problem.x.device)
    if n == 0:
        return value, index
    kind = layout.score_kind(problem.score)
    x = layout.operand(problem.x, problem.x_labels, kind)
    y = x if problem.itself else layout.operand(problem.y, problem.y_labels, kind)
    low, high = (
        problem.x if b is None else b.to(torch.float32).contiguous() for b in (problem.low, problem.high)
    )
    cfg = launch_config("state", x.rows)
    with on(x.rows):
        extreme_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, low, high, value, index,
            x.rows.stride(0), y.rows.stride(0), n, m, d,
            POSITIVE=problem.positive, LARGEST=problem.largest, HAS_LOW=problem.low is not None,
            HAS_HIGH=problem.high is not None, KIND=kind, ITSELF=problem.itself,
            PRECISION=layout.dot_precision(x.rows.dtype), **_tile(cfg),
        )  # fmt: skip
    return value, index


# What is compiled ahead of time: every loss, score kind, type and bucket of D that the table serves.
_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_BUCKETS = {"fp32": (64, 128, 512), "bf16": (64, 128, 256, 512), "fp16": (64, 128, 256, 512)}
# More rows than any block_rows needs: the blocks of the table itself.
_MANY = 1 << 20
_SIZES = {"N": "i32", "M": "i32", "D": "i32"}
_FLOATS = ("sign", "low_pos", "high_pos", "low_neg", "high_neg", "p0", "p1", "p2")


def _signature(fn: Any, pointers: dict[str, str], constexprs: dict[str, Any]) -> dict[str, str]:
    """Types of every argument of a kernel: pointers as given, strides and sizes ``i32``, scalars ``fp32``."""
    types = {**pointers, **_SIZES, **dict.fromkeys(_FLOATS, "fp32"), **dict.fromkeys(constexprs, "constexpr")}
    return {name: types.get(name, "i32") for name in fn.arg_names}


def _kernel(op: str, fn: Any, label: str, arch: int, dtype: str, d: int, rows: int, extra: dict[str, Any],
            pointers: dict[str, str], precision: str, quick: bool) -> Kernel:  # fmt: skip
    cfg = config("grad" if op == "grad" else "state", arch, _TYPES[dtype], d, rows)
    tile = _tile(cfg)
    warps, stages = tile.pop("num_warps"), tile.pop("num_stages")
    constexprs = {**extra, "PRECISION": precision, **tile}
    if op == "grad":
        constexprs["BLOCK_OUT"] = cfg.block_out
    inputs = {name: f"*{dtype}" for name in ("x_ptr", "y_ptr")}
    vectors = dict.fromkeys(("x_norm_ptr", "y_norm_ptr", "rule_ptr", "rows_ptr", "saved_ptr", "w_ptr", "out_ptr"), "*fp32")
    labels = dict.fromkeys(("x_label_ptr", "y_label_ptr"), "*i64")
    signature = _signature(fn, {**vectors, **labels, **inputs, **pointers}, constexprs)
    aligned = tuple(n for n in fn.arg_names if n.endswith("_ptr") or n in ("stride_xm", "stride_ym", "stride_om", "D"))
    name = f"{op}-{label}-{dtype}-{precision}-d{d}-bm{cfg.block_m}"
    return Kernel(name, fn, signature, constexprs, warps, stages, aligned, quick, (arch,))


def _cases() -> list[tuple[int, str, int, str, int]]:
    """(architecture, type, D, precision, rows) of every entry of the table, and of the smallest blocks."""
    found = []
    for arch in ARCHES:
        for dtype in _TYPES:
            for d in _BUCKETS[dtype]:
                for precision in ("tf32", "tf32x3") if dtype == "fp32" else ("tf32",):
                    found += [(arch, dtype, d, precision, rows) for rows in (_MANY, 1)]
    return found


def _catalogue() -> list[Kernel]:
    kernels: list[Kernel] = []
    for arch, dtype, d, precision, rows in _cases():
        where = (arch, dtype, d, rows)
        common = rows == _MANY and precision != "tf32x3" and d == 128 and dtype == "bf16"
        for loss, epilogue in EPILOGUES.items():
            terms = 2 if loss == "contrastive" else 1
            for kind in (0, 1):
                # A miner's rule is the heavier variant; a batch against itself with both roles likewise.
                shared = {"KIND": kind, "ITSELF": True, "HAS_RULE": True, "LOGIT": epilogue.logit}
                label = f"{loss}-kind{kind}"
                state = {"SHAPE": epilogue.shape, "FINISH": epilogue.finish, **shared}
                grad = {"TERMS": terms, "SAVED": epilogue.levels > 0, "DERIVATIVE": epilogue.derivative,
                        "ROW_ANCHORS": True, "COL_ANCHORS": True, **shared}  # fmt: skip
                quick = common and (loss, kind) in (("supcon", 0), ("ntxent", 1), ("contrastive", 1))
                kernels.append(_kernel("state", pair_state_kernel, label, *where, state, {"seen_ptr": "*i8"}, precision, quick))
                kernels.append(_kernel("grad", pair_grad_kernel, label, *where, grad, {}, precision, quick))
        for kind in (0, 1):
            extreme = {"POSITIVE": False, "LARGEST": kind == 0, "HAS_LOW": True, "HAS_HIGH": True,
                       "KIND": kind, "ITSELF": True}  # fmt: skip
            pointers = {"low_ptr": "*fp32", "high_ptr": "*fp32", "value_ptr": "*fp32", "index_ptr": "*i64"}
            kernels.append(_kernel("extreme", extreme_kernel, f"kind{kind}", *where, extreme, pointers, precision, common))
    return kernels


KERNELS: list[Kernel] = _catalogue()
