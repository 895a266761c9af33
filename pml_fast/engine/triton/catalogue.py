"""The pairwise kernels' default configurations: every entry of the tables, at every block of rows."""

from __future__ import annotations

from typing import Any

import pml_fast.engine.specs  # noqa: F401  (fills the registry)
from pml_fast.engine.spec import PAIR_SPECS
from pml_fast.engine.triton.aot import Kernel
from pml_fast.engine.triton.configs import ARCHES, ENOUGH_BLOCKS, TABLE, config
from pml_fast.engine.triton.epilogues import EPILOGUES, HISTOGRAM, RANKS, Epilogue
from pml_fast.engine.triton.histograms import BLOCK, CHUNK
from pml_fast.engine.triton.lookup import tile_arguments
from pml_fast.engine.triton.pairwise import extreme_kernel, pair_state_kernel
from pml_fast.engine.triton.pairwise_given import given_back_kernel, given_state_kernel
from pml_fast.engine.triton.pairwise_grad import pair_grad_kernel, pair_pulls_kernel
from pml_fast.engine.triton.pairwise_histogram import histogram_kernel, precision_kernel
from pml_fast.engine.triton.soft_rank_kernels import own_logits_kernel, soft_rank_pulls_kernel, soft_ranks_kernel
from pml_fast.engine.triton.soft_ranks import HITS

ELEMENTS = {"bf16": "bf16", "fp16": "fp16", "tf32": "fp32", "tf32x3": "fp32"}
# A D that the chunked entry of a table (bucket 0) serves.
CHUNKED_D = 512
# At smaller blocks of rows these stand for all: two sweeps, and two weights with limits.
HEAVIEST = ("ntxent", "contrastive")
# And these, for the sweeps of more than a few numbers a row.
HEAVY_STATES = (("given", "intra_pair_variance"), ("ranks", "smooth_ap"))
QUICK = (("supcon", "dot"), ("ntxent", "distance"), ("contrastive", "distance"))
QUICK_STATES = (("ranks", "smooth_ap", "distance"),)
# Losses with weights of their own for either side.
TWO_TERMS = ("contrastive", "intra_pair_variance")

_POINTERS = {
    **dict.fromkeys(("x_norm_ptr", "y_norm_ptr", "rule_ptr", "rows_ptr", "saved_ptr", "w_ptr", "out_ptr"), "*fp32"),
    **dict.fromkeys(("col_saved_ptr", "col_w_ptr"), "*fp32"),
    **dict.fromkeys(("norm_ptr", "levels_ptr", "slopes_ptr", "back_ptr", "table_ptr"), "*fp32"),
    **dict.fromkeys(("count_ptr", "start_ptr", "stop_ptr"), "*i32"),
    **dict.fromkeys(("low_ptr", "high_ptr", "value_ptr"), "*fp32"),
    **dict.fromkeys(("x_label_ptr", "y_label_ptr", "label_ptr", "index_ptr"), "*i64"),
    "seen_ptr": "*i8",
}
FLOATS = ("sign", "low_pos", "high_pos", "low_neg", "high_neg", "p0", "p1", "p2", "p3", "p4")


def _kernel(
    label: str,
    fn: Any,
    op: str,
    arch: int,
    product: str,
    kind: int,
    d: int,
    rows: int,
    chosen: dict[str, Any],
    quick: bool,
) -> Kernel:
    cfg = config(op, arch, product, kind != 0, d, rows)
    tile = tile_arguments(cfg)
    warps, stages, registers = (tile.pop(name) for name in ("num_warps", "num_stages", "maxnreg"))
    precision = "tf32x3" if product == "tf32x3" else "tf32"
    constexprs = {**chosen, **tile, "KIND": kind, "ITSELF": True, "PRECISION": precision, "TURNED": cfg.turned}
    constexprs = {argument: value for argument, value in constexprs.items() if argument in fn.arg_names}
    element = f"*{ELEMENTS[product]}"
    pulled = "*bf16" if product == "bf16" else "*fp32"  # as the launcher has it
    types = {
        **_POINTERS,
        **dict.fromkeys(FLOATS, "fp32"),
        "x_ptr": element,
        "y_ptr": element,
        "turned_ptr": element,
        "h_ptr": pulled,
        **dict.fromkeys(constexprs, "constexpr"),
    }
    # What is left are strides and sizes.
    signature = {name: types.get(name, "i32") for name in fn.arg_names}
    strides = ("stride_xm", "stride_ym", "stride_td", "stride_om", "stride_hm", "D")
    aligned = tuple(n for n in fn.arg_names if n.endswith("_ptr") or n in strides)
    name = f"{label}-kind{kind}-{product}-d{d}-bm{cfg.block_m}"
    return Kernel(name, fn, signature, constexprs, warps, stages, aligned, quick, (arch,), registers)


def _states(loss: str, epilogue: Epilogue) -> list[tuple[str, Any, str, dict[str, Any]]]:
    """The sweeps that leave a loss's state: each one's name, kernel, operation and functions."""
    ruled, first = {"LOGIT": epilogue.logit, "HAS_RULE": True}, epilogue.first
    if epilogue.shape == HISTOGRAM:
        nodes = epilogue.nodes(PAIR_SPECS[loss]())
        return [("histogram", histogram_kernel, "histogram", {**ruled, "TABLE": nodes, "CHUNK": CHUNK})]
    if epilogue.shape == RANKS:
        ranks = {"FINISH": epilogue.finish, "AMONG": epilogue.among, "ALONE": epilogue.among, "HITS": HITS}
        return [("ranks", soft_ranks_kernel, "soft-ranks", {**ruled, **ranks}), ("own", own_logits_kernel, "soft-ranks", ruled)]
    if first is None:
        return [("state", pair_state_kernel, "state", {**ruled, "SHAPE": epilogue.shape, "FINISH": epilogue.finish})]
    pairs = {**ruled, "PAIR": epilogue.finish}
    found: list[tuple[str, Any, str, dict[str, Any]]] = [
        ("first", pair_state_kernel, "two-sweeps", {**ruled, "SHAPE": first.sweep.shape, "FINISH": first.sweep.finish}),
        ("given", given_state_kernel, "two-sweeps", {**pairs, "BOTH_SIDES": loss in TWO_TERMS}),
    ]
    return [*found, ("back", given_back_kernel, "two-sweeps", pairs)] if first.across else found


def _losses(arch: int, product: str, geometry: str, d: int, op: str, rows: int, full: bool) -> list[Kernel]:
    kind = 0 if geometry == "dot" else 1
    found = []
    for loss, epilogue in EPILOGUES.items():
        if epilogue.cosines and kind:
            continue
        quickest = full and product == "bf16" and d == CHUNKED_D
        quick = quickest and (loss, geometry) in QUICK
        if op == "state":
            for name, fn, by, of in _states(loss, epilogue):
                if not (full or loss in HEAVIEST or (name, loss) in HEAVY_STATES) or (by != op and d != CHUNKED_D):
                    continue
                quick = quickest and ((loss, geometry) in QUICK or (name, loss, geometry) in QUICK_STATES)
                found.append(_kernel(f"{name}-{loss}", fn, by, arch, product, kind, d, rows, of, quick))
            continue
        if not (full or loss in HEAVIEST):
            continue
        by_block = config(op, arch, product, kind != 0, d, rows).resident
        if epilogue.shape == RANKS and by_block:
            continue
        # A miner's rule is the heavier variant, as is a batch against itself with both of its roles.
        chosen = {"LOGIT": epilogue.logit, "HAS_RULE": True, "TERMS": 2 if loss in TWO_TERMS else 1, "SAVED": epilogue.levels}
        chosen["TABLE"] = epilogue.nodes(PAIR_SPECS[loss]())
        chosen |= {"DERIVATIVE": epilogue.derivative, "STATE": epilogue.state, "ROW_ANCHORS": True, "COL_ANCHORS": True}
        if by_block and not epilogue.heavy:
            found.append(_kernel(f"{op}-{loss}", pair_grad_kernel, op, arch, product, kind, d, rows, chosen, quick))
        elif not by_block:
            # Coefficients in bfloat16 parts are those of float32 rows at the precision bf16x3.
            for split in (False, True) if (product, kind, full) == ("bf16", 0, True) else (False,):
                label = f"{op}-split-{loss}" if split else f"{op}-{loss}"
                by_part = chosen | {"SPLIT": split}
                ranks = epilogue.shape == RANKS
                fn, by = (soft_rank_pulls_kernel, "soft-ranks-grad") if ranks else (pair_pulls_kernel, "pulls")
                found.append(_kernel(label, fn, by, arch, product, kind, d, rows, by_part, quick))
    return found


def _extremes(arch: int, product: str, geometry: str, d: int, rows: int, full: bool) -> Kernel:
    kind = 0 if geometry == "dot" else 1
    chosen = {"POSITIVE": False, "LARGEST": kind == 0, "HAS_LOW": True, "HAS_HIGH": True}
    quick = full and product == "tf32x3" and d == CHUNKED_D
    return _kernel("extreme", extreme_kernel, "extreme", arch, product, kind, d, rows, chosen, quick)


def _catalogue() -> list[Kernel]:
    found: list[Kernel] = []
    for arch in ARCHES:
        # Numbers of rows that get the whole block, the half and the smallest.
        for rows in (1 << 20, 32 * ENOUGH_BLOCKS[arch], 1):
            full = rows == 1 << 20
            for (op, product, geometry), entries in TABLE[arch].items():
                # The chunked tiles of a state are those of a gradient without a block for its D, too.
                for bucket in entries if op == "state" else {**entries, 0: ()}:
                    d = bucket or CHUNKED_D
                    found += _losses(arch, product, geometry, d, op, rows, full)
                    if op == "state":
                        found.append(_extremes(arch, product, geometry, d, rows, full))
    # What is written out as coefficients has one tile for all numbers of rows.
    unique: dict[tuple[str, tuple[int, ...]], Kernel] = {}
    for kernel in found:
        unique.setdefault((kernel.name, kernel.arches), kernel)
    return list(unique.values())


def _precision() -> Kernel:
    signature = {"table_ptr": "*fp32", "count_ptr": "*i32", "rows_ptr": "*fp32", "N": "i32"}
    constexprs = {"TABLE": EPILOGUES["fast_ap"].nodes(PAIR_SPECS["fast_ap"]()), "BLOCK": BLOCK}
    types = {**signature, **dict.fromkeys(constexprs, "constexpr")}
    return Kernel("precision-fast_ap", precision_kernel, types, constexprs, aligned=("table_ptr", "count_ptr", "rows_ptr"))


KERNELS: list[Kernel] = [*_catalogue(), _precision()]
