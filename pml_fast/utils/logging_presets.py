"""Hooks for trainers and testers: records, checkpoints of the newest and the best epoch, patience.

record_keeper, _, _ = get_record_keeper("logs")
hooks = get_hook_container(record_keeper)
tester = GlobalEmbeddingSpaceTester(end_of_testing_hook=hooks.end_of_testing_hook)
end_of_epoch = hooks.end_of_epoch_hook(tester, {"val": val_dataset}, "models", patience=3)
MetricLossOnly(..., end_of_iteration_hook=hooks.end_of_iteration_hook, end_of_epoch_hook=end_of_epoch).train(num_epochs=50)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from . import common_functions as c_f
from .model_files import finish_interrupted, load_into, load_state, local, modelpath_creator, save_together, unwrapped
from .recorded_accuracies import RecordedAccuracies
from .records import RecordKeeper, RecordWriter

__all__ = ["EmptyContainer", "HookContainer", "get_hook_container", "get_record_keeper"]

_TRAINER = "trainer"


class HookContainer(RecordedAccuracies):
    """Records losses and accuracies, and keeps the files of the newest and of the best epoch.

    An epoch's files are replaced together: a run that is killed at any moment leaves the files of one epoch, whole. Files
    hold tensors and numbers alone, and are loaded without executing code. Beside PML's files, one for each model,
    optimizer, scheduler, loss and miner, "trainer_<epoch>.pth" holds the random states and the place in the data, from
    which `load_latest_saved_models` lets a trainer of this package go on at the identical next step.

    Patience counts epochs, not tests: training ends at the first test more than `patience` epochs after the best one. The
    best epoch is read from the records, so patience goes on where a killed run left it. The files of the newest and of the
    best epoch are written before training ends; the trainer is left with the newest weights, and
    `load_latest_saved_models(..., best=True)` loads the best.

    In a process group give the hooks to rank 0 alone: they write files and test without the other ranks, and the trainer's file
    is then left to its own `save_checkpoint`. What the hook of an epoch returns, and the schedulers by plateau that it steps,
    concern rank 0 alone: hand the answer on (docs/training.md), or the other ranks wait until the group's timeout.

    Args:
        record_keeper: what `get_record_keeper` makes, or record-keeper's RecordKeeper.
        record_group_name_prefix: comes before the names of tables.
        primary_metric: decides which epoch is best.
        validation_split_name: the split whose metric decides.
        save_models: whether files are written.
        log_freq: iterations from one record of the losses to the next.
    """

    def __init__(
        self,
        record_keeper: Any,
        record_group_name_prefix: str | None = None,
        primary_metric: str = "mean_average_precision_at_r",
        validation_split_name: str = "val",
        save_models: bool = True,
        log_freq: int = 50,
    ) -> None:
        self.record_keeper = record_keeper
        self.record_group_name_prefix = record_group_name_prefix
        self.saveable_trainer_objects = ["models", "optimizers", "lr_schedulers", "loss_funcs", "mining_funcs"]
        self.primary_metric = primary_metric
        self.validation_split_name = validation_split_name
        self.do_save_models = save_models
        self.log_freq = log_freq

    # Hooks

    def end_of_iteration_hook(self, trainer: Any) -> None:
        """Record losses, their weights, and what models, losses and miners list for recording."""
        if trainer.iteration % self.log_freq != 0:
            return
        record: list[tuple[Any, dict[str, Any]]] = [
            (trainer.loss_tracker.losses, {"parent_name": "loss_histories"}),
            (trainer.loss_tracker.loss_weights, {"parent_name": "loss_weights"}),
            (trainer.loss_funcs, {"recursive_types": [torch.nn.Module, dict]}),
            (trainer.mining_funcs, {}),
            (trainer.models, {}),
            (trainer.optimizers, {"custom_attr_func": self.optimizer_custom_attr_func}),
        ]
        for these, options in record:
            self.record_keeper.update_records(_without_graphs(these), trainer.get_global_iteration(), **options)

    def end_of_epoch_hook(
        self,
        tester: Any,
        dataset_dict: Any,
        model_folder: str | os.PathLike[str],
        test_interval: int = 1,
        patience: int | None = None,
        splits_to_eval: Any = None,
        test_collate_fn: Any = None,
    ) -> Callable[[Any], bool]:
        """A hook that tests, records and saves every `test_interval` epochs, and ends training when patience does."""
        known = tester.accuracy_calculator.get_curr_metrics()
        if self.primary_metric not in known:
            raise ValueError(f"primary_metric must be one of {', '.join(known)}, got {self.primary_metric!r}")
        os.makedirs(model_folder, exist_ok=True)

        def actual_hook(trainer: Any) -> bool:
            if trainer.epoch % test_interval != 0:
                return True
            best_epoch = self.save_models_and_eval(
                trainer, dataset_dict, model_folder, test_interval, tester, splits_to_eval, test_collate_fn
            )
            return self.patience_remaining(trainer.epoch, best_epoch, patience)

        return actual_hook

    def end_of_testing_hook(self, tester: Any) -> None:
        """Record the accuracies of every split, and the best of each so far."""
        for split_name, accuracies in tester.all_accuracies.items():
            epoch, group = accuracies["epoch"], self.record_group_name(tester, split_name)
            self.record_keeper.update_records(accuracies, epoch, parent_name=group)
            _, _, best_epoch, best_accuracy = self.is_new_best_accuracy(tester, split_name, epoch)
            best = {"best_epoch": best_epoch, "best_accuracy": best_accuracy}
            self.record_keeper.update_records(best, epoch, parent_name=group)

    # Files

    def load_latest_saved_models(
        self, trainer: Any, model_folder: str | os.PathLike[str], device: Any = None, best: bool = False
    ) -> int:
        """Load the files of the newest epoch, or of the best; the epoch to go on with, 1 where there is none."""
        if device is None:
            device = c_f.use_cuda_if_available()
        if os.path.isdir(model_folder):
            finish_interrupted(model_folder)
        epoch, suffix = c_f.latest_version(model_folder, "trunk_*.pth", best=best)
        if suffix is None:
            return 1
        found: list[tuple[Any, Any]] = []
        for name in self.saveable_trainer_objects:
            stateful = {key: obj for key, obj in (getattr(trainer, name, None) or {}).items() if hasattr(obj, "state_dict")}
            c_f.operate_on_dict_of_models(
                stateful, suffix, model_folder, lambda obj, path: found.append((obj, load_state(path, device))), "LOAD", True
            )
        path = modelpath_creator(model_folder, _TRAINER, suffix)
        progress = load_state(path) if hasattr(trainer, "load_progress") and os.path.exists(path) else None
        # Every file has been read: a damaged one leaves the trainer as it was.
        for obj, state in found:
            load_into(obj, state)
        if progress is not None:
            try:
                trainer.load_progress(progress)
            except ValueError as error:
                c_f.LOGGER.warning("Models are loaded, the random states and the place in the data are not: %s", error)
        return epoch + 1

    def save_models(
        self, trainer: Any, model_folder: str | os.PathLike[str], curr_suffix: Any, prev_suffix: Any = None
    ) -> None:
        """Write the files of an epoch, all or none, then remove those of the one before."""
        if not self.do_save_models:
            return
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if not alone and torch.distributed.get_rank() > 0:
            return
        states = {
            os.path.basename(modelpath_creator(model_folder, key, curr_suffix)): unwrapped(obj).state_dict()
            for key, obj in self._saved(trainer)
        }
        # In a process group it is the ranks' together, and hooks may be rank 0's alone: `save_checkpoint` holds it.
        if alone and hasattr(trainer, "progress"):
            states[os.path.basename(modelpath_creator(model_folder, _TRAINER, curr_suffix))] = trainer.progress()
        save_together(states, model_folder)
        if prev_suffix is not None and str(prev_suffix) != str(curr_suffix):
            before = {**dict(self._saved(trainer)), _TRAINER: None}
            c_f.delete_dict_of_models(before, prev_suffix, model_folder)

    def _saved(self, trainer: Any) -> list[tuple[str, Any]]:
        dictionaries = [getattr(trainer, name, None) or {} for name in self.saveable_trainer_objects]
        return [(key, obj) for objects in dictionaries for key, obj in objects.items() if hasattr(obj, "state_dict")]

    def save_models_and_eval(
        self,
        trainer: Any,
        dataset_dict: Any,
        model_folder: str | os.PathLike[str],
        test_interval: int,
        tester: Any,
        splits_to_eval: Any = None,
        collate_fn: Any = None,
    ) -> int | None:
        """Test, record, and save the newest epoch, and the best if it is this one; the best epoch so far."""
        epoch = trainer.epoch
        # Of a DistributedDataParallel the model inside: it would exchange buffers with ranks that do not test.
        trunk, embedder = (local(trainer.models[name]) for name in ("trunk", "embedder"))
        tester.test(dataset_dict, epoch, trunk, embedder, splits_to_eval, collate_fn)
        split = self.validation_split_name
        if split not in tester.all_accuracies:
            raise ValueError(
                f"validation_split_name must be among what was tested, {', '.join(tester.all_accuracies)}, got {split!r}"
            )
        previous_best, _ = self.get_best_epoch_and_accuracy(tester, split, ignore_epoch=(-1, epoch))
        is_new_best, accuracy, best_epoch, _ = self.is_new_best_accuracy(tester, split, epoch)
        self.record_keeper.save_records()
        trainer.step_lr_plateau_schedulers(accuracy)
        self.save_models(trainer, model_folder, epoch, epoch - test_interval)
        if is_new_best:
            c_f.LOGGER.info("New best accuracy! %s", accuracy)
            before = None if previous_best is None else f"best{previous_best}"
            self.save_models(trainer, model_folder, f"best{best_epoch}", before)
        return best_epoch

    # Patience, and tests outside of training

    def patience_remaining(self, epoch: int, best_epoch: int | None, patience: int | None) -> bool:
        """Whether no more than `patience` epochs have passed since the best."""
        if patience is not None and best_epoch is not None and epoch - best_epoch > patience:
            c_f.LOGGER.info("Validation accuracy has plateaued. Exiting.")
            return False
        return True

    def run_tester_separately(
        self,
        tester: Any,
        dataset_dict: Any,
        epoch: int,
        trunk: Any,
        embedder: Any,
        splits_to_eval: Any = None,
        collate_fn: Any = None,
        skip_eval_if_already_done: bool = True,
    ) -> bool:
        """Test outside of training; False where everything has been recorded already."""
        if skip_eval_if_already_done:
            splits_to_eval = self.get_splits_to_eval(tester, dataset_dict, epoch, splits_to_eval)
            if len(splits_to_eval) == 0:
                c_f.LOGGER.info("Already evaluated")
                return False
        tester.test(dataset_dict, epoch, trunk, embedder, splits_to_eval, collate_fn)
        return True

    def get_splits_to_eval(self, tester: Any, dataset_dict: Any, epoch: int, input_splits_to_eval: Any) -> list[Any]:
        """The splits, as `BaseTester.test` takes them, that are not recorded for this epoch."""
        wanted = [(name, [name]) for name in dataset_dict] if input_splits_to_eval is None else list(input_splits_to_eval)
        missing = []
        for query, references in ((x, [x]) if isinstance(x, str) else x for x in wanted):
            tester.reference_split_names[query] = list(references)
            if len(self.get_accuracies_of_epoch(tester, query, epoch)) == 0:
                missing.append((query, list(references)))
        return missing

    def optimizer_custom_attr_func(self, optimizer: Any) -> dict[str, float]:
        """What is recorded of an optimizer: its learning rate."""
        return {"lr": optimizer.param_groups[0]["lr"]}


class EmptyContainer:
    """Hooks that do nothing."""

    end_of_iteration_hook = None
    end_of_testing_hook = None

    def end_of_epoch_hook(self, *args: Any) -> None:
        """No hook."""
        return None


def get_record_keeper(
    csv_folder: str | os.PathLike[str],
    tensorboard_folder: str | os.PathLike[str] | None = None,
    global_db_path: str | os.PathLike[str] | None = None,
    experiment_name: str | None = None,
    is_new_experiment: bool = True,
    save_lists: bool = False,
) -> tuple[Any, Any, Any]:
    """A record keeper, its writer of CSV files and an SQLite file, and its TensorBoard writer (None without a folder).

    The writer is this package's: nothing need be installed, but tensorboard where its folder is given. `global_db_path`
    is record-keeper's, an SQLite file of several experiments: with it that package makes the keeper, and must be installed.
    """
    tensorboard_writer = None
    if tensorboard_folder is not None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "tensorboard_folder needs tensorboard: pip install 'pml-fast[with-hooks-cpu]', or leave it as None"
            ) from error
        tensorboard_writer = SummaryWriter(log_dir=os.fspath(tensorboard_folder))
    names = c_f.list_of_recordable_attributes_list_names()
    if global_db_path is None:
        writer: Any = RecordWriter(csv_folder, save_lists=save_lists)
        return RecordKeeper(tensorboard_writer, writer, names), writer, tensorboard_writer
    try:
        import record_keeper
    except ImportError as error:
        raise ImportError(
            "global_db_path needs record-keeper: pip install 'pml-fast[with-hooks-cpu]', or leave it as None"
        ) from error
    writer = record_keeper.RecordWriter(
        folder=os.fspath(csv_folder),
        global_db_path=os.fspath(global_db_path),
        experiment_name=experiment_name,
        is_new_experiment=is_new_experiment,
        save_lists=save_lists,
    )
    keeper = record_keeper.RecordKeeper(
        tensorboard_writer=tensorboard_writer, record_writer=writer, attributes_to_search_for=names
    )
    return keeper, writer, tensorboard_writer


def get_hook_container(record_keeper: Any, **kwargs: Any) -> HookContainer | EmptyContainer:
    """A HookContainer, or hooks that do nothing where there is no record keeper."""
    if record_keeper:
        return HookContainer(record_keeper, **kwargs)
    c_f.LOGGER.warning("No record_keeper, so no preset hooks are being returned.")
    return EmptyContainer()


def _without_graphs(these: Any) -> Any:
    """Losses as what they are worth: a record must not hold on to a graph."""
    if not isinstance(these, dict):
        return dict(these.items())
    return {key: value.detach() if isinstance(value, torch.Tensor) else value for key, value in these.items()}
