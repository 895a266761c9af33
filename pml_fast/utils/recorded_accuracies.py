"""What has been recorded, read back: the histories of losses and accuracies, and the best epoch."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .records import quoted


class RecordedAccuracies:
    """Queries of a `record_keeper`; `primary_metric` decides which epoch is best."""

    record_keeper: Any
    record_group_name_prefix: str | None
    primary_metric: str

    # The best epoch

    def is_new_best_accuracy(self, tester: Any, split_name: str, epoch: int) -> tuple[bool, Any, Any, Any]:
        """Whether this epoch is better than all others; its accuracy; the best epoch and its accuracy."""
        accuracy = self.get_curr_primary_metric(tester, split_name)
        # A run that was killed may have recorded this epoch, and not saved its files.
        best_epoch, best_accuracy = self.get_best_epoch_and_accuracy(tester, split_name, ignore_epoch=(-1, epoch))
        if best_epoch is None or accuracy > best_accuracy:
            return True, accuracy, epoch, accuracy
        return False, accuracy, best_epoch, best_accuracy

    # Histories

    def get_loss_history(self, loss_names: Sequence[str] = ()) -> dict[str, list[Any]]:
        """The recorded losses by name, all of them or those named."""
        table = "loss_histories"
        if not self.record_keeper.table_exists(table):
            return {}
        columns = ", ".join(map(quoted, loss_names)) or "*"
        output: dict[str, list[Any]] = self.record_keeper.query(f"SELECT {columns} FROM {quoted(table)}", return_dict=True)
        output.pop("id", None)
        return output

    def get_accuracy_history(
        self, tester: Any, split_name: str, return_all_metrics: bool = False, metrics: Sequence[str] = ()
    ) -> dict[str, list[Any]]:
        """The recorded accuracies of a split: the primary metric, or those named, or all."""
        table = self.record_group_name(tester, split_name)
        if not self.record_keeper.table_exists(table):
            return {}

        def history(keys: str) -> dict[str, list[Any]]:
            columns = "*" if return_all_metrics else f"epoch, {keys}"
            found: dict[str, list[Any]] = self.record_keeper.query(f"SELECT {columns} FROM {quoted(table)}", return_dict=True)
            return found

        output = self.try_keys(metrics if len(metrics) > 0 else [self.primary_metric], tester, history)
        output.pop("id", None)
        return output

    def get_curr_primary_metric(self, tester: Any, split_name: str) -> Any:
        """The primary metric of the last test."""
        return self.try_primary_metric(tester, lambda key: tester.all_accuracies[split_name][key])

    def try_keys(self, input_keys: Iterable[str], tester: Any, input_func: Callable[[str], Any]) -> Any:
        """`input_func` of the metrics' key names, of their means over levels first; KeyError where neither is recorded."""
        tried = []
        for average in (True, False):
            names = [
                tester.accuracies_keyname(key, average=average, label_hierarchy_level=tester.label_hierarchy_level)
                for key in input_keys
            ]
            try:
                return input_func(", ".join(names))
            except (KeyError, sqlite3.OperationalError):
                tried.append(", ".join(names))
        raise KeyError(f"neither {' nor '.join(tried)} is recorded")

    def try_primary_metric(self, tester: Any, input_func: Callable[[str], Any]) -> Any:
        """`try_keys` of the primary metric."""
        return self.try_keys([self.primary_metric], tester, input_func)

    def get_accuracies_of_epoch(self, tester: Any, split_name: str, epoch: int, select_all: bool = True) -> Any:
        """The recorded rows of an epoch."""
        table = self.record_group_name(tester, split_name)
        if not self.record_keeper.table_exists(table):
            return []

        def accuracies(key: str) -> Any:
            columns = "*" if select_all else f"epoch, {key}"
            return self.record_keeper.query(f"SELECT {columns} FROM {quoted(table)} WHERE epoch=?", (epoch,))

        return self.try_primary_metric(tester, accuracies)

    def get_accuracies_of_best_epoch(
        self, tester: Any, split_name: str, select_all: bool = True, ignore_epoch: tuple[int, ...] = (-1,)
    ) -> Any:
        """The recorded rows of the best epoch, and the key name of the metric that decides; `([], None)` without records."""
        table = self.record_group_name(tester, split_name)
        if not self.record_keeper.table_exists(table):
            return [], None

        def accuracies(key: str) -> Any:
            columns = "*" if select_all else f"epoch, {key}"
            kept = f"epoch NOT IN ({', '.join('?' * len(ignore_epoch))})"
            best = f"SELECT max({key}) FROM {quoted(table)} WHERE {kept}"
            query = f"SELECT {columns} FROM {quoted(table)} WHERE {key}=({best}) AND {kept}"
            return self.record_keeper.query(query, (*ignore_epoch, *ignore_epoch)), key

        return self.try_primary_metric(tester, accuracies)

    def get_best_epoch_and_accuracy(self, tester: Any, split_name: str, ignore_epoch: tuple[int, ...] = (-1,)) -> Any:
        """The best recorded epoch and its primary metric; `(None, 0)` without records."""
        rows, key = self.get_accuracies_of_best_epoch(tester, split_name, select_all=False, ignore_epoch=ignore_epoch)
        return (rows[0]["epoch"], rows[0][key]) if len(rows) > 0 else (None, 0)

    # Names of tables

    def base_record_group_name(self, tester: Any) -> str:
        """The name of a tester's tables without the splits."""
        prefix = f"{self.record_group_name_prefix}_" if self.record_group_name_prefix else ""
        return f"{prefix}{tester.description_suffixes('accuracies')}"

    def record_group_name(self, tester: Any, split_name: str) -> str:
        """The name of the table of a split's accuracies."""
        query = split_name.upper()
        references = "_and_".join(name.upper() for name in sorted(tester.reference_split_names[split_name]))
        name = f"{self.base_record_group_name(tester)}_{query}_vs_{'self' if references == query else references}"
        return next((short for short, full in self.record_keeper.hash_map.items() if full == name), name)
