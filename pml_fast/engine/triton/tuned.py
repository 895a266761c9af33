"""Configurations that ``pml-fast tune`` timed on this user's cards: they go before the shipped table.

They lie in ``$XDG_CACHE_HOME/pml_fast/triton.json`` (``~/.cache`` where that is not set). ``PML_FAST_TUNED=0`` leaves them
alone.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from pml_fast.engine.triton.configs import TUNABLE, Config

FORMAT = 1
BLOCKS, WARPS, STAGES, REGISTERS = (16, 512), (1, 16), (1, 8), (16, 255)
LEAST_D, LEAST_ROWS = 64, 256


class Key(NamedTuple):
    """What a configuration was timed for; ``d`` and ``rows`` are rounded up to powers of two."""

    card: str
    arch: int
    triton: str
    kernel: str
    product: str
    distance: bool
    d: int
    rows: int


@dataclass(frozen=True)
class Entry:
    """A configuration, and the milliseconds that it and the shipped one took when it was chosen."""

    config: Config
    milliseconds: float
    shipped_milliseconds: float


Entries = dict[Key, Entry]


class TunedTableError(ValueError):
    """The file is not a table that ``pml-fast tune`` wrote."""


def power_of_two(size: int, least: int) -> int:
    """``size`` rounded up to a power of two that is no smaller than ``least``."""
    return max(least, 1 << (max(size, 1) - 1).bit_length())


def key(card: str, arch: int, triton: str, kernel: str, product: str, distance: bool, d: int, rows: int) -> Key:
    """The key of a problem of ``rows`` rows in ``d`` dimensions."""
    return Key(
        card, arch, triton, kernel, product, distance, power_of_two(d, LEAST_D), power_of_two(rows, LEAST_ROWS)
    )  # fmt: skip


def path() -> Path:
    """Where the table lies."""
    root = os.environ.get("XDG_CACHE_HOME")
    # The specification has relative paths ignored.
    base = Path(root) if root and os.path.isabs(root) else Path.home() / ".cache"
    return base / "pml_fast" / "triton.json"


def read(source: Path) -> Entries:
    """The table of a file, empty where there is none; ``TunedTableError`` where it is damaged."""
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise TunedTableError(f"cannot be read: {error}") from error
    try:
        found = json.loads(text)
        if found["format"] != FORMAT:
            raise TunedTableError(f"has format {found['format']!r}, this version reads {FORMAT}")
        return dict(_entry(item) for item in found["entries"])
    except TunedTableError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TunedTableError(f"is damaged: {type(error).__name__}: {error}") from error


def write(target: Path, entries: Mapping[Key, Entry]) -> None:
    """Replace the file at once: whoever reads it sees the old table or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    listed = [{**k._asdict(), **asdict(entry)} for k, entry in sorted(entries.items())]
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "entries": listed}, file, indent=1)
            file.write("\n")
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _entry(item: dict[str, Any]) -> tuple[Key, Entry]:
    k = Key(**{name: _typed(name, item[name], type_) for name, type_ in _KEY_TYPES.items()})
    times = [float(item[name]) for name in ("milliseconds", "shipped_milliseconds")]
    return k, Entry(_config(item["config"], k.kernel, k.d), *times)


_KEY_TYPES = {
    "card": str, "arch": int, "triton": str, "kernel": str, "product": str, "distance": bool, "d": int, "rows": int
}  # fmt: skip


def _typed(name: str, value: Any, wanted: type) -> Any:
    if type(value) is not wanted:
        raise ValueError(f"{name} must be of type {wanted.__name__}, got {value!r}")
    return value


_OPTIONS = {"num_warps": WARPS, "num_stages": STAGES}
_BLOCK_NAMES = ("block_m", "block_n", "block_k", "block_out")


def _config(values: dict[str, Any], kernel: str, d: int) -> Config:
    # What a launch could not run, or would run wrongly, must not reach one.
    if kernel not in TUNABLE:
        raise ValueError(f"kernel must be one of {', '.join(TUNABLE)}, got {kernel!r}")
    # Tables written before these were there were of kernels that had neither.
    values = {"block_out": 0, "turned": False, **values}
    for name in _BLOCK_NAMES:
        _check_block(kernel, name, _typed(name, values[name], int))
    for name, (low, high) in _OPTIONS.items():
        value = _typed(name, values[name], int)
        if not (low <= value <= high and (name == "num_stages" or _is_power_of_two(value))):
            raise ValueError(f"{name} must lie between {low} and {high} and warps be a power of two, got {value}")
    registers = values["maxnreg"]
    if registers is not None and not REGISTERS[0] <= _typed("maxnreg", registers, int) <= REGISTERS[1]:
        raise ValueError(f"maxnreg must lie between {REGISTERS[0]} and {REGISTERS[1]}, got {registers}")
    if _typed("resident", values["resident"], bool):
        if not TUNABLE[kernel].holds_all:
            raise ValueError(f"resident must be False for the kernel {kernel!r}, got True")
        if values["block_k"] != d:
            raise ValueError(f"a block that holds all of D must be {d} wide, got {values['block_k']}")
    if _typed("turned", values["turned"], bool) and not (TUNABLE[kernel].turns and values["resident"]):
        raise ValueError(f"turned must be False for this kernel and tile ({kernel!r}), got True")
    return Config(**{field.name: values[field.name] for field in fields(Config)})


def _check_block(kernel: str, name: str, value: int) -> None:
    has = TUNABLE[kernel]
    if value == 0 and (name not in has.blocks or (name == "block_out" and has.writes_out)):
        return
    if name not in has.blocks:
        raise ValueError(f"{name} must be 0 for the kernel {kernel!r}, got {value}")
    low, high = BLOCKS
    if not (low <= value <= high and _is_power_of_two(value)):
        raise ValueError(f"{name} must be a power of two between {low} and {high}, got {value}")


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


_table: Mapping[Key, Entry] | None = None


def table() -> Mapping[Key, Entry]:
    """The table in force: the user's, read once in a process. A damaged one is warned of, and not used."""
    global _table
    if _table is None:
        _table = {}
        if os.environ.get("PML_FAST_TUNED", "1") != "0":
            try:
                _table = read(path())
            except TunedTableError as error:
                warnings.warn(
                    f"the tuned table {path()} {error}; the shipped configurations are used. "
                    "Delete the file, and run `pml-fast tune` again if you want one",
                    RuntimeWarning,
                    stacklevel=2,
                )
    return _table


def forget() -> None:
    """Read the file again when a launch next asks."""
    global _table
    _table = None


@contextmanager
def using(entries: Mapping[Key, Entry]) -> Iterator[None]:
    """Launch by this table in place of the user's."""
    global _table
    before, _table = _table, entries
    try:
        yield
    finally:
        _table = before
