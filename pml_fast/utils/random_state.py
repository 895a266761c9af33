"""The state of every default generator of random numbers, as what a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from . import common_functions as c_f


def get_random_state() -> dict[str, Any]:
    """Of torch on the CPU and on every GPU, of NumPy, of Python, and of `common_functions.NUMPY_RANDOM`."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": _of_numpy(np.random),
        "python": [version, list(words), gauss],
    }
    if c_f.NUMPY_RANDOM is not np.random:
        state["NUMPY_RANDOM"] = _of_numpy(c_f.NUMPY_RANDOM)
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `get_random_state` returned; GPUs that are not there now are passed over."""
    torch.set_rng_state(state["torch"].cpu())
    if torch.cuda.is_available():
        for device, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda.cpu(), device)
    _to_numpy(np.random, state["numpy"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    if "NUMPY_RANDOM" in state and c_f.NUMPY_RANDOM is not np.random:
        _to_numpy(c_f.NUMPY_RANDOM, state["NUMPY_RANDOM"])


def get_generators(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """The state of the `generator` of each module that has one, in order; `None` for one that has not drawn yet."""
    return [None if m.generator is None else m.generator.get_state() for m in _drawing(modules)]


def check_generators(modules: Iterable[torch.nn.Module], states: list[Any]) -> None:
    """ValueError where `get_generators` was called with other modules."""
    drawing = len(_drawing(modules))
    if drawing != len(states):
        raise ValueError(
            f"{len(states)} generators were saved, and {drawing} modules here have one: "
            "make the losses and miners as for the run that was saved"
        )


def set_generators(modules: Iterable[torch.nn.Module], states: list[Any], device: torch.device | str) -> None:
    """Put back what `get_generators` returned for these modules."""
    for module, state in zip(_drawing(modules), states, strict=True):
        if state is None:
            module.generator = None
            continue
        if module.generator is None:
            module.generator = torch.Generator(device)
        module.generator.set_state(state.cpu())


def _drawing(modules: Iterable[torch.nn.Module]) -> list[Any]:
    """Those with a generator of their own, or with a seed that one will be made of."""
    found: list[Any] = [part for module in modules if isinstance(module, torch.nn.Module) for part in module.modules()]
    return [m for m in found if isinstance(getattr(m, "generator", 0), (torch.Generator, type(None)))]


def _of_numpy(source: Any) -> Any:
    if isinstance(source, np.random.Generator):
        return _plain(source.bit_generator.state)
    name, words, position, has_gauss, gauss = source.get_state(legacy=True)
    return [name, torch.from_numpy(words.astype(np.int64)), int(position), int(has_gauss), float(gauss)]


def _to_numpy(source: Any, state: Any) -> None:
    if isinstance(source, np.random.Generator):
        source.bit_generator.state = _arrays(state)
        return
    name, words, *rest = state
    source.set_state((name, words.cpu().numpy().astype(np.uint32), *rest))


def _plain(state: Any) -> Any:
    """Arrays as tensors and integers of any size as text, which a file loads without executing code."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, np.ndarray):
        return [str(state.dtype), torch.from_numpy(state.astype(np.uint64).view(np.int64))]
    return f"int:{int(state)}" if isinstance(state, (int, np.integer)) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    if isinstance(state, list):
        dtype, words = state
        return words.cpu().numpy().view(np.uint64).astype(dtype)
    return int(state.removeprefix("int:")) if isinstance(state, str) and state.startswith("int:") else state
