"""The default configurations of a small batch's own kernels, for the resource report."""

from __future__ import annotations

import itertools
from typing import Any

import pml_fast.engine.specs  # noqa: F401  (fills the registry)
from pml_fast.engine.spec import PAIR_SPECS
from pml_fast.engine.triton.aot import Kernel
from pml_fast.engine.triton.catalogue import ELEMENTS, FLOATS
from pml_fast.engine.triton.configs import ARCHES, config
from pml_fast.engine.triton.epilogues import EPILOGUES
from pml_fast.engine.triton.small_kernels import small_grad_kernel, small_rows_kernel
from pml_fast.engine.triton.small_step import ROWS_TILE, chosen

QUICK = (("circle", 0, "tf32x3"), ("contrastive", 1, "bf16"))


def _kernel(
    name: str,
    fn: Any,
    product: str,
    constexprs: dict[str, Any],
    warps: int,
    stages: int,
    quick: bool,
    registers: int | None = None,
) -> Kernel:
    element = f"*{ELEMENTS[product]}"
    types = {argument: "*fp32" for argument in fn.arg_names if argument.endswith("_ptr")}
    types |= dict.fromkeys(("x_ptr", "unit_ptr", "out_ptr"), element) | {"label_ptr": "*i64", "seen_ptr": "*i8"}
    types |= dict.fromkeys(FLOATS, "fp32") | dict.fromkeys(constexprs, "constexpr")
    signature = {argument: types.get(argument, "i32") for argument in fn.arg_names}
    aligned = tuple(argument for argument in fn.arg_names if argument.endswith("_ptr") or argument in ("stride_xm", "D"))
    return Kernel(f"small-{name}-{product}", fn, signature, constexprs, warps, stages, aligned, quick, maxnreg=registers)


def _rows(product: str) -> Kernel:
    tile = dict(ROWS_TILE)
    warps = tile.pop("num_warps")
    constexprs = {"NORMALIZE": True, "ROUND": product == "tf32", **tile}
    return _kernel("rows", small_rows_kernel, product, constexprs, warps, 2, product == "tf32")


def _grad(loss: str, kind: int, product: str) -> Kernel:
    spec = PAIR_SPECS[loss]()
    tile = config("small", ARCHES[-1], product, kind != 0, 128, 1)
    # A miner's rule and a gate are the heavier variant.
    constexprs = {
        **chosen(EPILOGUES[loss], True, spec.terms[0].kind == "element", len(spec.terms)),
        **{"SUM_POS": False, "SUM_NEG": False, "NEED": True, "NORMALIZE": True, "KIND": kind, "HAS_RULE": True},
        "PRECISION": "tf32x3" if product == "tf32x3" else "tf32",
        **{"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "BLOCK_K": tile.block_k, "BLOCK_OUT": tile.block_out},
    }
    quick = (loss, kind, product) in QUICK
    name = f"grad-{loss}-kind{kind}"
    return _kernel(name, small_grad_kernel, product, constexprs, tile.num_warps, tile.num_stages, quick, tile.maxnreg)


KERNELS: list[Kernel] = [_rows(product) for product in ELEMENTS]
KERNELS += [
    _grad(loss, kind, product)
    for loss, kind, product in itertools.product(EPILOGUES, (0, 1), ELEMENTS)
    if EPILOGUES[loss].small and not (EPILOGUES[loss].cosines and kind)
]
