"""State dicts in files: written whole or not at all, and read without executing anything.

Files hold tensors, numbers, strings and containers of these, which `torch.load(weights_only=True)` takes.
"""

from __future__ import annotations

import glob
import json
import os
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import logger
from .files import flush, write_atomically

__all__ = [
    "delete_dict_of_models",
    "finish_interrupted",
    "latest_version",
    "load_dict_of_models",
    "load_model",
    "load_state",
    "local",
    "modelpath_creator",
    "operate_on_dict_of_models",
    "save_dict_of_models",
    "save_model",
    "save_state",
    "save_together",
    "unwrapped",
]

PathLike = str | os.PathLike[str]

_JOURNAL = "interrupted_save.json"
_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.Size, torch.Tensor)


# States


def plain(state: Any, where: str = "state") -> Any:
    """`state` with NumPy scalars as Python's; TypeError for what could not be read back without executing code."""
    if isinstance(state, np.generic):
        return state.item()
    if isinstance(state, _PLAIN):
        return state
    if isinstance(state, Mapping):
        kept = {key: plain(value, f"{where}[{key!r}]") for key, value in state.items()}
        if isinstance(state, Counter):
            return Counter(kept)
        return OrderedDict(kept) if isinstance(state, OrderedDict) else kept
    if isinstance(state, (list, tuple)):
        items = [plain(value, f"{where}[{k}]") for k, value in enumerate(state)]
        return tuple(items) if isinstance(state, tuple) else items
    raise TypeError(
        f"{where} must hold tensors, numbers, strings and containers of these alone, which load without executing code, "
        f"got {type(state).__module__}.{type(state).__qualname__}"
    )


def save_state(state: Any, filename: PathLike) -> None:
    """Write a state to a file; a run that is killed leaves the file that was there."""
    safe = plain(state)
    write_atomically(filename, lambda temporary: torch.save(safe, temporary))


def load_state(filename: PathLike, device: torch.device | str | None = "cpu") -> Any:
    """Read a state; ValueError for a file that is damaged, or that holds more than tensors, numbers and strings."""
    try:
        _check_sums(filename)
        return torch.load(filename, map_location=device, weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{filename} cannot be read as a checkpoint: it is damaged, or holds objects that would execute code ({error})"
        ) from error


def _check_sums(filename: PathLike) -> None:
    """ValueError where bytes have changed since they were written: `torch.load` does not look at a file's checksums."""
    if not zipfile.is_zipfile(filename):  # torch's older format has none; a file cut short fails to load
        return
    with zipfile.ZipFile(filename) as archive:
        if not any(info.CRC for info in archive.infolist()):  # `torch.serialization.set_crc32_options(False)`
            return
        changed = archive.testzip()
    if changed is not None:
        raise ValueError(f"the checksum of {changed} is another")


def save_together(states: Mapping[str, Any], folder: PathLike) -> None:
    """Write several states, by file name, so that either all of the files are replaced or none is.

    They are first written under other names; a journal then lists what remains to be renamed, and
    `finish_interrupted` does so where a run was killed over it.
    """
    root = Path(folder)
    finish_interrupted(root)
    for leftover in (*root.glob(".*.new"), *root.glob("..*.new.*.tmp")):  # of a run that was killed before its journal
        leftover.unlink(missing_ok=True)
    journal = root / _JOURNAL
    pending = {f".{name}.new": name for name in states}
    for temporary, name in pending.items():
        save_state(states[name], root / temporary)
    write_atomically(journal, lambda path: Path(path).write_text(json.dumps(pending)))
    finish_interrupted(root)


def finish_interrupted(folder: PathLike) -> None:
    """Complete the renaming of a `save_together` whose run was killed; nothing otherwise."""
    root = Path(folder)
    journal = root / _JOURNAL
    try:
        pending = json.loads(journal.read_text())
    except FileNotFoundError:
        return
    for temporary, name in pending.items():
        if os.path.basename(temporary) != temporary or os.path.basename(name) != name:
            raise ValueError(f"{journal} must name files of its own folder, got {temporary!r} and {name!r}: remove it")
        if (root / temporary).exists():
            os.replace(root / temporary, root / name)
    flush(root)
    journal.unlink()


# Models


def unwrapped(model: Any) -> Any:
    """The model inside of DataParallel or DistributedDataParallel."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    return model.module if isinstance(model, wrappers) else model


def local(model: Any) -> Any:
    """The model inside of DistributedDataParallel, which runs without the other processes."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model


def modelpath_creator(folder: PathLike, basename: str, identifier: Any, extension: str = ".pth") -> str:
    """The path of a model's file: `folder/basename_identifier.pth`."""
    return os.path.join(folder, f"{basename}{'' if identifier is None else f'_{identifier}'}{extension}")


def save_model(model: Any, filepath: PathLike) -> None:
    """Write the state dict of a model, an optimizer, a scheduler; of what is inside of a parallel wrapper."""
    save_state(unwrapped(model).state_dict(), filepath)


def load_model(model_def: Any, model_filename: PathLike, device: torch.device | str | None) -> None:
    """Load a state dict, with or without the `module.` of a parallel wrapper before its names."""
    load_into(model_def, load_state(model_filename, device))


def load_into(model: Any, state: Any) -> None:
    """Load a state dict into a model or what is inside of its parallel wrapper."""
    if isinstance(model, torch.nn.Module) and state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    unwrapped(model).load_state_dict(state)


def operate_on_dict_of_models(
    input_dict: Mapping[str, Any],
    suffix: Any,
    folder: PathLike,
    operation: Callable[[Any, str], object],
    logging_string: str = "",
    log_if_successful: bool = False,
    assert_success: bool = False,
) -> None:
    """`operation(object, path)` for each; a file that cannot be read or written is a warning, or raises if asked to."""
    for name, obj in input_dict.items():
        path = modelpath_creator(folder, name, suffix)
        try:
            operation(obj, path)
        except OSError as error:
            if assert_success:
                raise
            logger.current().warning("Could not %s %s: %s", logging_string, path, error)
        else:
            if log_if_successful:
                logger.current().info("%s %s", logging_string, path)


def save_dict_of_models(input_dict: Mapping[str, Any], suffix: Any, folder: PathLike, **kwargs: Any) -> None:
    """Write each to its file."""
    operate_on_dict_of_models(input_dict, suffix, folder, save_model, "SAVE", **kwargs)


def load_dict_of_models(
    input_dict: Mapping[str, Any], suffix: Any, folder: PathLike, device: torch.device | str | None, **kwargs: Any
) -> None:
    """Load each from its file."""
    operate_on_dict_of_models(input_dict, suffix, folder, lambda obj, path: load_model(obj, path, device), "LOAD", **kwargs)


def delete_dict_of_models(input_dict: Mapping[str, Any], suffix: Any, folder: PathLike, **kwargs: Any) -> None:
    """Remove the file of each, where there is one."""
    operate_on_dict_of_models(
        input_dict, suffix, folder, lambda _, path: Path(path).unlink(missing_ok=True), "DELETE", **kwargs
    )


def latest_version(folder: PathLike, string_to_glob: str = "trunk_*.pth", best: bool = False) -> tuple[int, Any]:
    """Epoch and suffix of the newest files, of those of best epochs if `best`; `(0, None)` where there are none."""
    found = [os.path.basename(path) for path in glob.glob(os.path.join(glob.escape(os.fspath(folder)), string_to_glob))]
    matches = (re.search(r"(best)?([0-9]+)\.pth$", name) for name in found)
    epochs = [int(match[2]) for match in matches if match and bool(match[1]) == best]
    if not epochs:
        return 0, None
    return max(epochs), f"best{max(epochs)}" if best else max(epochs)
