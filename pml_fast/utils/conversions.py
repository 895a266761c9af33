"""Numbers of a type, and values as tensors or arrays, on devices, of types."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pos_inf(dtype: torch.dtype) -> float:
    """The largest finite value of `dtype`."""
    return torch.finfo(dtype).max


def neg_inf(dtype: torch.dtype) -> float:
    """The lowest finite value of `dtype`."""
    return torch.finfo(dtype).min


def small_val(dtype: torch.dtype) -> float:
    """The smallest positive normal value of `dtype`."""
    return torch.finfo(dtype).tiny


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum `dtype` in: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def is_list_or_tuple(x: object) -> bool:
    """Whether `x` is a list or a tuple."""
    return isinstance(x, (list, tuple))


def to_dtype(x: Tensor, tensor: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Cast `x` to `dtype`, or to the dtype of `tensor`; under autocast leave it as it is."""
    if torch.is_autocast_enabled():
        return x
    return x.to(_wanted(dtype, tensor, "dtype"))


def to_device(
    x: Tensor,
    tensor: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Move `x` to `device`, or to that of `tensor`, and cast it as `to_dtype` does if `dtype` is given."""
    x = x.to(_wanted(device, tensor, "device"))
    return x if dtype is None else to_dtype(x, dtype=dtype)


def _wanted(value: Any, tensor: Tensor | None, name: str) -> Any:
    if value is not None:
        return value
    if tensor is None:
        raise TypeError(f"pass either `tensor` or `{name}`: there is nothing to take the {name} from")
    return getattr(tensor, name)


def numpy_to_torch(v: Any) -> Any:
    """The tensor that shares memory with array `v`; what cannot become a tensor is returned as it is."""
    try:
        return torch.from_numpy(v)
    except TypeError:
        return v


def to_numpy(v: Any) -> Any:
    """The array of tensor `v`; anything else is returned as it is."""
    return v.detach().cpu().numpy() if isinstance(v, Tensor) else v


def torch_arange_from_size(input: Tensor, size_dim: int = 0) -> Tensor:
    """0, 1, ... up to the size of `input` along `size_dim`, on its device."""
    return torch.arange(input.size(size_dim), device=input.device)


def torch_all_from_dim_to_end(x: Tensor, dim: int) -> Tensor:
    """Whether all of `x` is true over `dim` and every later dimension."""
    return x.flatten(start_dim=dim).all(dim=dim)


def torch_standard_scaler(x: Tensor) -> Tensor:
    """Columns of `x` (N, D) shifted to mean 0 and scaled to standard deviation 1."""
    std, mean = torch.std_mean(x, dim=0)
    return (x - mean) / std


def use_cuda_if_available() -> torch.device:
    """The CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
