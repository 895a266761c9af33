"""Records of a run that a person can open: a CSV file and an SQLite table for each group of numbers, and TensorBoard.

The interface is that of record-keeper's RecordKeeper and RecordWriter, as far as hooks use it; so are the names of groups,
series and files.
"""

from __future__ import annotations

import csv
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch

from .files import write_atomically

__all__ = ["RecordKeeper", "RecordWriter", "quoted"]

# Containers say nothing in a name.
_PLAIN_NAMES = ("DataParallel", "DistributedDataParallel", "ModuleDict", "ModuleList", "Sequential")
_LONGEST_NAME = 200
_STEP = "~iteration~"


def quoted(name: str) -> str:
    """A name of a table or a column in SQL; in brackets a column that does not exist is an error, not a string."""
    if "]" in name:
        raise ValueError(f"names of groups and series must not have a bracket, got {name!r}")
    return f"[{name}]"


class RecordWriter:
    """Collects numbers by group and series; :meth:`save_records` writes them to `folder`.

    A group has the file `<group>.csv` and the table `<group>` of `logs.db`, a row an iteration: what a run that was killed
    records again takes the place of what it had recorded. The table is written in one transaction, and the
    CSV from it, whole or not at all; a run that is killed leaves what was saved before.
    """

    def __init__(self, folder: str | os.PathLike[str], save_lists: bool = False) -> None:
        self.folder = os.fspath(folder)
        self.save_lists = save_lists
        self.records: dict[str, dict[Any, dict[str, Any]]] = {}
        os.makedirs(folder, exist_ok=True)
        self.database = os.path.join(self.folder, "logs.db")

    def append(self, group_name: str, series_name: str, input_val: Any, iteration: Any) -> None:
        """Add a number, a string or a list to a series."""
        value = _plain(input_val)
        if isinstance(value, list) and not self.save_lists:
            return
        self.records.setdefault(group_name, {}).setdefault(iteration, {})[series_name] = value

    def save_records(self) -> None:
        """Write what was collected since; ValueError for a file that is no database, and what was collected is kept."""
        collected = self.records
        with closing(sqlite3.connect(self.database)) as db:
            try:
                with db:
                    for group, rows in collected.items():
                        _insert(db, group, rows)
            except sqlite3.DatabaseError as error:
                raise ValueError(
                    f"records cannot be written to {self.database} ({error}): free it, or move it away if it is damaged"
                ) from error
            self.records = {}
            for group in collected:
                self._write_csv(db, group)

    def _write_csv(self, db: sqlite3.Connection, group: str) -> None:
        cursor = db.execute(f"SELECT * FROM {quoted(group)} ORDER BY id")
        columns = [name for name, *_ in cursor.description]

        def write(path: str) -> None:
            with open(path, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(columns[1:])
                writer.writerows(row[1:] for row in cursor)

        write_atomically(os.path.join(self.folder, f"{group}.csv"), write)

    def query(self, query: str, values: Sequence[Any] = (), use_global_db: bool = False, return_dict: bool = False) -> Any:
        """The rows of an SQL query, or with `return_dict` a list for each column."""
        with closing(sqlite3.connect(self.database)) as db:
            db.row_factory = sqlite3.Row
            rows = db.execute(query, tuple(values)).fetchall()
        if not return_dict:
            return rows
        columns = rows[0].keys() if rows else []
        return {name: [row[name] for row in rows] for name in columns}

    def table_exists(self, table_name: str, use_global_db: bool = False) -> bool:
        """Whether a group has been saved."""
        if not os.path.exists(self.database):
            return False
        return len(self.query("SELECT name FROM sqlite_master WHERE type='table' AND name=?", (table_name,))) > 0


class RecordKeeper:
    """Finds numbers in dictionaries and objects, and hands them to a RecordWriter and to TensorBoard.

    Args:
        tensorboard_writer: a `SummaryWriter`, or None.
        record_writer: a `RecordWriter`, or None.
        attributes_to_search_for: names of attributes that hold lists of the names of attributes to record.
    """

    def __init__(
        self, tensorboard_writer: Any = None, record_writer: Any = None, attributes_to_search_for: Sequence[str] | None = None
    ) -> None:
        self.tensorboard_writer = tensorboard_writer
        self.record_writer = record_writer
        self.attributes_to_search_for = list(attributes_to_search_for or [])
        self.hash_map: dict[str, str] = {}

    def update_records(
        self,
        record_these: Mapping[str, Any],
        global_iteration: Any,
        custom_attr_func: Callable[[Any], Mapping[str, Any]] | None = None,
        parent_name: str = "",
        recursive_types: Sequence[type] | None = None,
    ) -> None:
        """Record numbers under `parent_name`, and of objects the attributes that they list, under their name and type."""
        for name, obj in record_these.items():
            if obj is None:
                continue
            if _is_value(obj):
                if not parent_name:
                    raise ValueError(f"parent_name must not be empty: {name!r} is a number without a group")
                self._append(parent_name, name, obj, global_iteration)
                continue
            if isinstance(obj, Mapping):
                group = f"{parent_name}_{name}" if parent_name else name
                self.update_records(obj, global_iteration, custom_attr_func, group, recursive_types)
                continue
            self._record_object(name, obj, global_iteration, custom_attr_func, parent_name, recursive_types)

    def _record_object(self, name: str, obj: Any, iteration: Any, custom: Any, parent_name: str, recursive_types: Any) -> None:
        inner = getattr(obj, "module", obj) if type(obj).__name__ in _PLAIN_NAMES else obj
        kind = type(inner).__name__
        own = name if kind in _PLAIN_NAMES else f"{name}_{kind}"
        group = f"{parent_name}_{own}" if parent_name else own
        listed = [attr for names in self.attributes_to_search_for for attr in getattr(inner, names, None) or []]
        values = {attr: getattr(inner, attr) for attr in listed} | (dict(custom(inner)) if custom is not None else {})
        self.update_records(values, iteration, custom, group, recursive_types)
        for part_name, part in _parts(obj, tuple(recursive_types or ())):
            self.update_records({f"{own}_{part_name}": part}, iteration, custom, "", recursive_types)

    def _append(self, group: str, series: str, value: Any, iteration: Any) -> None:
        if _size(value) > 1 and not getattr(self.record_writer, "save_lists", False):
            return
        if len(group) > _LONGEST_NAME:
            short = hashlib.sha256(group.encode()).hexdigest()
            self.hash_map[short] = group
            group = short
        value = _plain(value)
        if self.tensorboard_writer is not None and not isinstance(value, (str, list)):
            self.tensorboard_writer.add_scalar(f"{group}/{series}", value, iteration)
        if self.record_writer is not None:
            self.record_writer.append(group, series, value, iteration)

    def save_records(self) -> None:
        """Write what was collected since."""
        if self.record_writer is not None:
            self.record_writer.save_records()

    def query(self, query: str, *args: Any, **kwargs: Any) -> Any:
        """The record writer's."""
        return self.record_writer.query(query, *args, **kwargs)

    def table_exists(self, table_name: str, *args: Any, **kwargs: Any) -> bool:
        """The record writer's."""
        found: bool = self.record_writer.table_exists(table_name, *args, **kwargs)
        return found


def _insert(db: sqlite3.Connection, group: str, rows: Mapping[Any, Mapping[str, Any]]) -> None:
    """Rows for the iterations of a group, where it has none of them yet; columns that are new are added."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = quoted(group)
    db.execute(f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER PRIMARY KEY)")
    known = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
    for name in [_STEP, *names]:
        if name not in known:
            db.execute(f"ALTER TABLE {table} ADD COLUMN {quoted(name)}")
    there = dict(db.execute(f"SELECT {quoted(_STEP)}, id FROM {table}").fetchall())
    for iteration, row in rows.items():
        values = [str(value) if isinstance(value, list) else value for value in row.values()]
        if iteration in there:
            settings = ", ".join(f"{quoted(name)} = ?" for name in row)
            db.execute(f"UPDATE {table} SET {settings} WHERE id = ?", [*values, there[iteration]])
        else:
            columns = ", ".join(map(quoted, [_STEP, *row]))
            db.execute(f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * (1 + len(row)))})", [iteration, *values])


def _is_value(obj: Any) -> bool:
    return isinstance(obj, (bool, int, float, str, list, tuple, np.ndarray, np.generic, torch.Tensor))


def _size(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel()
    return int(np.size(value)) if isinstance(value, (list, tuple, np.ndarray)) else 1


def _plain(value: Any) -> Any:
    """A number, a string, or a list of numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return items[0] if len(items) == 1 else items
    return value


def _parts(obj: Any, types: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """The attributes of these types, and the members of lists of them."""
    if not types:
        return
    for name, value in getattr(obj, "__dict__", {}).items():
        if isinstance(value, types):
            yield name, value
        elif isinstance(value, (list, tuple)) and value and all(isinstance(item, types) for item in value):
            yield from ((f"{name}{k}", item) for k, item in enumerate(value))
