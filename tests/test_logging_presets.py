"""Hooks on scikit-learn's digits: records, the files of the newest and best epochs, patience, what a killed run leaves."""

from __future__ import annotations

import csv
import random
import sqlite3
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import pytorch_metric_learning.testers as peer_testers
import torch
from pytorch_metric_learning.distances import LpDistance as PeerDistance
from pytorch_metric_learning.utils import logging_presets as peer_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator as PeerCalculator
from pytorch_metric_learning.utils.inference import CustomKNN as PeerKNN
from torch import nn
from torch.utils.data import TensorDataset

from pml_fast import losses, samplers, testers, trainers
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import logging_presets
from pml_fast.utils.accuracy_calculator import AccuracyCalculator

METRICS = ("precision_at_1", "mean_average_precision_at_r")


@lru_cache
def digits(first: int, last: int) -> TensorDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return TensorDataset(
        torch.from_numpy((bunch.data[first:last] / 16).astype(np.float32)), torch.from_numpy(bunch.target[first:last])
    )


class Experiment:
    """A trainer, a tester and hooks; `accuracies` replaces what is measured, epoch by epoch."""

    def __init__(self, folder: Path, keeper: Any = None, accuracies: Any = None, **epoch_hook: Any) -> None:
        torch.manual_seed(0)
        self.folder = folder
        if keeper is None:
            keeper, _, _ = logging_presets.get_record_keeper(folder / "logs")
        self.hooks: Any = logging_presets.get_hook_container(keeper, log_freq=2)
        self.calculator = AccuracyCalculator(include=METRICS)
        if accuracies is not None:
            values = iter(accuracies)
            self.calculator.get_accuracy = lambda *args: dict.fromkeys(METRICS, next(values))  # type: ignore[method-assign]
        self.tester = testers.GlobalEmbeddingSpaceTester(
            end_of_testing_hook=self.hooks.end_of_testing_hook, accuracy_calculator=self.calculator, dataloader_num_workers=0
        )
        self.seen: list[float] = []
        trunk = nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.1))
        optimizer = torch.optim.Adam(trunk.parameters(), lr=0.01)
        self.trainer = trainers.MetricLossOnly(
            {"trunk": trunk}, {"trunk_optimizer": optimizer}, 32, {"metric_loss": losses.ContrastiveLoss()}, digits(0, 300),
            sampler=samplers.MPerClassSampler(digits(0, 300).tensors[1], 4, 32, length_before_new_iter=128, seed=2),
            lr_schedulers={"trunk_scheduler_by_plateau": torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "max")},
            dataloader_num_workers=0, end_of_iteration_hook=self.iteration,
            end_of_epoch_hook=self.hooks.end_of_epoch_hook(
                self.tester, {"val": digits(300, 400)}, folder / "models", **epoch_hook
            ),
        )  # fmt: skip

    def iteration(self, trainer: Any) -> None:
        self.seen.append(float(trainer.losses["total_loss"].detach()))
        self.hooks.end_of_iteration_hook(trainer)

    def files(self) -> set[str]:
        return {path.name for path in (self.folder / "models").iterdir()}


def assert_close(mine: dict[str, list[float]], theirs: dict[str, list[float]], tolerance: float = 1e-6) -> None:
    assert mine.keys() == theirs.keys() and len(mine) > 1
    for name, values in theirs.items():
        assert mine[name] == pytest.approx(values, abs=tolerance), name


def epoch_files(suffix: object) -> set[str]:
    objects = ("trunk", "embedder", "trunk_optimizer", "trunk_scheduler_by_plateau", "metric_loss", "trainer")
    return {f"{name}_{suffix}.pth" for name in objects}


def test_the_newest_and_the_best_epoch_are_kept(tmp_path: Path) -> None:
    run = Experiment(tmp_path, accuracies=[0.3, 0.5, 0.4])
    run.trainer.train(num_epochs=3)
    assert run.files() == epoch_files(3) | epoch_files("best2")
    assert run.hooks.get_best_epoch_and_accuracy(run.tester, "val") == (2, 0.5)
    history = run.hooks.get_accuracy_history(run.tester, "val")
    assert history == {"epoch": [1, 2, 3], "mean_average_precision_at_r_level0": [0.3, 0.5, 0.4]}
    everything = run.hooks.get_accuracy_history(run.tester, "val", return_all_metrics=True)
    assert everything["best_epoch"] == [1, 2, 2] and everything["best_accuracy"] == [0.3, 0.5, 0.5]
    rows, key = run.hooks.get_accuracies_of_best_epoch(run.tester, "val")
    assert rows[0]["epoch"] == 2 and key == "mean_average_precision_at_r_level0"
    losses_seen = run.hooks.get_loss_history(["total_loss"])["total_loss"]
    assert losses_seen == pytest.approx([loss for k, loss in enumerate(run.seen) if k % 4 in (0, 2)])
    with pytest.raises(sqlite3.OperationalError):
        run.hooks.get_loss_history(["no_such_loss"])


@pytest.mark.parametrize(("patience", "epochs"), [(None, 6), (0, 3), (1, 4), (2, 5)])
def test_patience_ends_training(patience: int | None, epochs: int, tmp_path: Path) -> None:
    run = Experiment(tmp_path, accuracies=[0.3, 0.5, 0.4, 0.5, 0.2, 0.1], patience=patience)
    run.hooks.do_save_models = False
    run.trainer.train(num_epochs=6)
    assert len(run.seen) == 4 * epochs


def test_a_test_every_second_epoch(tmp_path: Path) -> None:
    run = Experiment(tmp_path, accuracies=[0.3, 0.2], test_interval=2)
    run.trainer.train(num_epochs=5)
    assert run.files() == epoch_files(4) | epoch_files("best2")


def test_a_run_goes_on_at_the_identical_next_step(tmp_path: Path) -> None:
    whole = Experiment(tmp_path / "a")
    whole.trainer.train(num_epochs=4)
    first = Experiment(tmp_path / "b")
    first.trainer.train(num_epochs=2)
    second = Experiment(tmp_path / "b")
    epoch = second.hooks.load_latest_saved_models(second.trainer, tmp_path / "b" / "models")
    assert epoch == 3
    second.trainer.train(start_epoch=epoch, num_epochs=4)
    assert first.seen + second.seen == whole.seen
    histories = [run.hooks.get_accuracy_history(run.tester, "val") for run in (whole, second)]
    assert histories[0] == histories[1] and len(histories[0]["epoch"]) == 4


def test_the_best_epoch_is_loaded_on_request(tmp_path: Path) -> None:
    run = Experiment(tmp_path, accuracies=[0.5, 0.4])
    kept = []
    hook = run.trainer.end_of_epoch_hook
    run.trainer.end_of_epoch_hook = lambda trainer: (kept.append(trainer.models["trunk"][0].weight.clone()), hook(trainer))[1]
    run.trainer.train(num_epochs=2)
    again = Experiment(tmp_path)
    assert again.hooks.load_latest_saved_models(again.trainer, tmp_path / "models", best=True) == 2
    assert torch.equal(again.trainer.models["trunk"][0].weight, kept[0])
    assert again.hooks.load_latest_saved_models(again.trainer, tmp_path / "none") == 1


def test_records_that_cannot_be_written_are_kept_and_the_file_is_left(tmp_path: Path) -> None:
    keeper, writer, _ = logging_presets.get_record_keeper(tmp_path)
    (tmp_path / "logs.db").write_bytes(b"this is no database, but something of the user's" * 99)
    before = (tmp_path / "logs.db").read_bytes()
    keeper.update_records({"a": 1.5}, 3, parent_name="group")
    with pytest.raises(ValueError, match=r"cannot be written to .*logs\.db \(file is not a database\)"):
        keeper.save_records()
    assert (tmp_path / "logs.db").read_bytes() == before
    (tmp_path / "logs.db").unlink()
    keeper.save_records()
    assert keeper.query("SELECT * FROM [group]", return_dict=True) == {"id": [1], "~iteration~": [3], "a": [1.5]}
    keeper.save_records()
    assert writer.records == {} and len(keeper.query("SELECT * FROM [group]")) == 1


@pytest.mark.parametrize("name", ["trunk_optimizer_1.pth", "trainer_1.pth"])
def test_a_damaged_file_leaves_the_trainer_as_it_was(name: str, tmp_path: Path) -> None:
    Experiment(tmp_path).trainer.train()
    path = tmp_path / "models" / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    run = Experiment(tmp_path)
    before = [parameter.clone() for parameter in run.trainer.models["trunk"].parameters()]
    with pytest.raises(ValueError, match=f"{name} cannot be read as a checkpoint"):
        run.hooks.load_latest_saved_models(run.trainer, tmp_path / "models")
    assert all(map(torch.equal, before, run.trainer.models["trunk"].parameters()))


def test_records_are_files_for_a_person(tmp_path: Path) -> None:
    run = Experiment(tmp_path)
    run.trainer.train(num_epochs=2)
    logs = tmp_path / "logs"
    table = "accuracies_normalized_GlobalEmbeddingSpaceTester_level_0_VAL_vs_self"
    assert run.hooks.record_group_name(run.tester, "val") == table
    with open(logs / f"{table}.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and 0 < float(rows[0]["precision_at_1_level0"]) <= 1
    with sqlite3.connect(logs / "logs.db") as db:
        assert [lr for (lr,) in db.execute("SELECT lr FROM trunk_optimizer_Adam")] == [0.01] * 4
    assert {"loss_histories.csv", "loss_weights.csv", "metric_loss_ContrastiveLoss.csv"} <= {p.name for p in logs.iterdir()}


def test_the_same_records_as_record_keepers(tmp_path: Path) -> None:
    """Both keepers are given the same run; the tables that hooks read have the same columns and rows."""
    record_keeper = pytest.importorskip("record_keeper")
    theirs = record_keeper.RecordKeeper(
        record_writer=record_keeper.RecordWriter(folder=str(tmp_path / "theirs")),
        attributes_to_search_for=c_f.list_of_recordable_attributes_list_names(),
    )
    runs = [Experiment(tmp_path / "a"), Experiment(tmp_path / "b", keeper=theirs)]
    for run in runs:
        torch.manual_seed(1)
        run.trainer.train(num_epochs=3)
    mine, other = (run.hooks for run in runs)
    assert_close(mine.get_loss_history(), other.get_loss_history())
    for return_all in (False, True):
        histories = [run.hooks.get_accuracy_history(run.tester, "val", return_all_metrics=return_all) for run in runs]
        assert_close(*histories)
    assert mine.get_best_epoch_and_accuracy(runs[0].tester, "val") == other.get_best_epoch_and_accuracy(runs[1].tester, "val")
    tables = [
        {row["name"] for row in run.hooks.record_keeper.query("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'")}
        for run in runs
    ]
    assert tables[0] == tables[1]
    assert runs[0].files() == runs[1].files() == epoch_files(3) | {n for n in runs[0].files() if "best" in n}


def test_the_peers_hooks_run_on_this_packages_trainer_and_record(tmp_path: Path) -> None:
    keeper, _, _ = logging_presets.get_record_keeper(tmp_path / "logs")
    hooks = peer_presets.get_hook_container(keeper, log_freq=2)
    calculator = PeerCalculator(include=METRICS, knn_func=PeerKNN(PeerDistance(normalize_embeddings=False)))
    tester = peer_testers.GlobalEmbeddingSpaceTester(
        end_of_testing_hook=hooks.end_of_testing_hook, accuracy_calculator=calculator, dataloader_num_workers=0
    )
    mine = Experiment(tmp_path / "mine")
    theirs = Experiment(tmp_path / "theirs")
    theirs.trainer.end_of_epoch_hook = hooks.end_of_epoch_hook(tester, {"val": digits(300, 400)}, str(tmp_path / "models"))
    for run in (mine, theirs):
        torch.manual_seed(1)
        run.trainer.train(num_epochs=2)
    assert mine.seen == theirs.seen
    histories = [h.get_accuracy_history(t, "val", True) for h, t in ((mine.hooks, mine.tester), (hooks, tester))]
    assert_close(*histories, tolerance=1e-4)


def test_tensorboard_has_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    keeper, _, writer = logging_presets.get_record_keeper(tmp_path / "logs", tmp_path / "board")
    run = Experiment(tmp_path, keeper=keeper)
    run.trainer.train(num_epochs=2)
    writer.close()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    scalars = board.Scalars("loss_histories/total_loss")
    assert [s.value for s in scalars] == pytest.approx(run.hooks.get_loss_history()["total_loss"])
    assert [s.step for s in scalars] == [0, 2, 4, 6]


def test_a_separate_test_is_done_once(tmp_path: Path) -> None:
    run = Experiment(tmp_path)
    data, trunk = {"val": digits(300, 400)}, run.trainer.models["trunk"]
    assert run.hooks.run_tester_separately(run.tester, data, 7, trunk, None) is True
    run.hooks.record_keeper.save_records()
    assert run.hooks.run_tester_separately(run.tester, data, 7, trunk, None) is False
    assert len(run.hooks.get_accuracies_of_epoch(run.tester, "val", 7)) == 1
    peer = peer_presets.HookContainer(run.hooks.record_keeper)
    with pytest.raises((KeyError, ValueError)):
        peer.run_tester_separately(peer_testers.GlobalEmbeddingSpaceTester(), data, 8, trunk, None)


def test_what_is_refused(tmp_path: Path) -> None:
    keeper, _, _ = logging_presets.get_record_keeper(tmp_path)
    hooks: Any = logging_presets.get_hook_container(keeper, primary_metric="NMI")
    tester = testers.GlobalEmbeddingSpaceTester(accuracy_calculator=AccuracyCalculator(include=METRICS))
    with pytest.raises(ValueError, match=r"primary_metric must be one of .*, got 'NMI'"):
        hooks.end_of_epoch_hook(tester, {}, tmp_path)
    empty = logging_presets.get_hook_container(None)
    assert isinstance(empty, logging_presets.EmptyContainer)
    assert empty.end_of_epoch_hook(tester, {}, tmp_path) is None and empty.end_of_iteration_hook is None
    run = Experiment(tmp_path)
    run.hooks.validation_split_name = "dev"
    with pytest.raises(ValueError, match="validation_split_name must be among what was tested, val, got 'dev'"):
        run.trainer.train()


def test_a_run_killed_after_its_records_keeps_the_files_of_the_best_epoch(tmp_path: Path) -> None:
    """Killed between the records of its best epoch and the files, a run measures that epoch anew, and keeps one row of it."""

    class Killed(Exception):
        pass

    run = Experiment(tmp_path, accuracies=[0.1, 0.5])
    write = run.hooks.save_models

    def killed(trainer: Any, folder: Any, suffix: Any, before: Any = None) -> None:
        if suffix == 2:
            raise Killed
        write(trainer, folder, suffix, before)

    run.hooks.save_models = killed
    with pytest.raises(Killed):
        run.trainer.train(num_epochs=2)
    again = Experiment(tmp_path, accuracies=[0.4, 0.45, 0.3])
    assert again.hooks.load_latest_saved_models(again.trainer, tmp_path / "models") == 2
    again.trainer.train(num_epochs=4)
    assert again.files() == epoch_files(4) | epoch_files("best3")
    history = again.hooks.get_accuracy_history(again.tester, "val", return_all_metrics=True)
    assert (history["epoch"], history["best_epoch"]) == ([1, 2, 3, 4], [1, 2, 3, 3])
    assert history["precision_at_1_level0"] == [0.1, 0.4, 0.45, 0.3]


KILLED = """
import sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
import test_logging_presets as t

run = t.Experiment(Path(sys.argv[1]))
epoch = run.hooks.load_latest_saved_models(run.trainer, Path(sys.argv[1]) / "models")
run.trainer.train(start_epoch=epoch, num_epochs=100000)
"""


def test_a_run_killed_at_any_moment_leaves_a_checkpoint_to_go_on_from(tmp_path: Path) -> None:
    """Killed again and again at random moments, each run goes on from the last; in the end the losses are one run's."""
    epochs = [0]
    for _ in range(2):
        log = tmp_path / "printed"
        run = forked.start(KILLED, str(tmp_path), str(Path(__file__).parent), log=log)
        while not list((tmp_path / "models").glob("trunk_*.pth")):
            assert run.is_alive(), log.read_text()
            time.sleep(0.01)
        time.sleep(0.3 * random.random())
        run.kill()
        run.join()
        left = Experiment(tmp_path)
        epochs.append(left.hooks.load_latest_saved_models(left.trainer, tmp_path / "models") - 1)
        assert epochs[-1] >= epochs[-2]
    assert epochs[-1] > 0
    left.trainer.train(num_epochs=epochs[-1] + 1)
    # The accuracies are measured here too: the plateau scheduler's steps follow them.
    whole = Experiment(tmp_path / "whole")
    whole.hooks.do_save_models = False
    whole.trainer.train(num_epochs=epochs[-1] + 1)
    assert left.seen == whole.seen[-4:]
