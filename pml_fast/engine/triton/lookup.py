"""Which configuration a launch takes: the user's tuned table first, then the shipped one."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

import triton
from pml_fast.engine.triton import layout, tuned
from pml_fast.engine.triton.configs import ARCHES, TUNABLE, Config, config, table_arch


def on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Launch on the tensor's own device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


INTERPRETER = "interpreter"


@lru_cache(maxsize=64)
def card_of(device: torch.device) -> tuple[str, int]:
    """Name and table of a device; an interpreted launch takes the newest table."""
    if device.type != "cuda":
        return INTERPRETER, ARCHES[-1]
    found = torch.cuda.get_device_properties(device)
    return found.name, table_arch((found.major, found.minor))


def product_of(op: str, dtype: torch.dtype, split: bool = False) -> str:
    """The type of a kernel's products, its key in the tables; of one without products the type of its rows.

    ``split`` rows are bfloat16 parts of float32: the tables have them apart from rows of bfloat16, because the coefficients of
    their gradients come in parts as well.
    """
    if split:
        return "bf16x3"
    product = layout.product_type(dtype)
    return "fp32" if dtype == torch.float32 and op in TUNABLE and not TUNABLE[op].products else product


def tuning_key(op: str, x: Tensor, kind: int, split: bool = False) -> tuned.Key:
    """What a configuration of ``op`` on rows ``x`` (``split``: as they lie in parts) is timed and looked up for."""
    n, d = x.shape
    return tuned.key(*card_of(x.device), triton.__version__, op, product_of(op, x.dtype, split), kind != 0, d, n)


def launch_config(op: str, x: Tensor, kind: int, split: bool = False) -> Config:
    """What the user tuned for the tensor's device and shape, else the shipped table's entry."""
    table = tuned.table()
    if table and (entry := table.get(tuning_key(op, x, kind, split))) is not None:
        return entry.config
    n, d = x.shape
    return config(op, card_of(x.device)[1], product_of(op, x.dtype, split), kind != 0, d, n)


def tile_arguments(cfg: Config) -> dict[str, Any]:
    """A launch's tile as the kernels' keyword arguments."""
    return {
        "RESIDENT": cfg.resident,
        "BLOCK_M": cfg.block_m,
        "BLOCK_N": cfg.block_n,
        "BLOCK_K": cfg.block_k,
        "num_warps": cfg.num_warps,
        "num_stages": cfg.num_stages,
        "maxnreg": cfg.maxnreg,
    }
