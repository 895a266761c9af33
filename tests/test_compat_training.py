"""A training and testing script of pytorch-metric-learning 2.9 runs as it is after `compat.install()`, to the same numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json
import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from pytorch_metric_learning import losses, miners, testers, trainers
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import logging_presets
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

folder = sys.argv[1]
bunch = load_digits()
x, y = torch.tensor(bunch.data / 16).float(), torch.tensor(bunch.target)
train, val = TensorDataset(x[:1200], y[:1200]), TensorDataset(x[1200:], y[1200:])

torch.manual_seed(0)
np.random.seed(0)
models = {
    "trunk": torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU()),
    "embedder": torch.nn.Linear(32, 16),
    "classifier": torch.nn.Linear(16, 10),
}
optimizers = {f"{name}_optimizer": torch.optim.SGD(model.parameters(), lr=0.05) for name, model in models.items()}
record_keeper, _, _ = logging_presets.get_record_keeper(f"{folder}/logs", f"{folder}/tensorboard")
hooks = logging_presets.get_hook_container(record_keeper, primary_metric="precision_at_1", log_freq=5)
tester = testers.GlobalEmbeddingSpaceTester(
    end_of_testing_hook=hooks.end_of_testing_hook,
    dataloader_num_workers=0,
    accuracy_calculator=AccuracyCalculator(include=("precision_at_1", "mean_average_precision_at_r", "NMI"), k="max_bin_count"),
)
trainer = trainers.TrainWithClassifier(
    models,
    optimizers,
    64,
    {"metric_loss": losses.TripletMarginLoss(margin=0.1), "classifier_loss": torch.nn.CrossEntropyLoss()},
    train,
    mining_funcs={"tuple_miner": miners.MultiSimilarityMiner(epsilon=0.1)},
    loss_weights={"metric_loss": 1, "classifier_loss": 0.5},
    dataloader_num_workers=0,
    end_of_iteration_hook=hooks.end_of_iteration_hook,
    end_of_epoch_hook=hooks.end_of_epoch_hook(tester, {"train": train, "val": val}, f"{folder}/models", patience=2),
)
trainer.train(num_epochs=3)
epoch = hooks.load_latest_saved_models(trainer, f"{folder}/models", best=True)
accuracies = {split: hooks.get_accuracy_history(tester, split, return_all_metrics=True) for split in ("train", "val")}
with open(f"{folder}/result.json", "w") as file:
    json.dump({"epoch": epoch, "losses": hooks.get_loss_history(), **accuracies}, file)
"""


def result(folder: Path, first_lines: str) -> dict[str, dict[str, list[float]]]:
    folder.mkdir()
    # An interpreter of its own: a fork may hold the peer already, which install() refuses.
    run = subprocess.run([sys.executable, "-c", f"{first_lines}\n{SCRIPT}", str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    found: dict[str, dict[str, list[float]]] = json.loads((folder / "result.json").read_text())
    return found


def test_a_script_of_the_peer_has_the_same_losses_and_metrics(tmp_path: Path) -> None:
    pytest.importorskip("record_keeper")
    theirs = result(tmp_path / "theirs", "")
    mine = result(tmp_path / "mine", "import pml_fast.compat\npml_fast.compat.install()")
    assert mine.keys() == theirs.keys() and mine.pop("epoch") == theirs.pop("epoch")
    for group, columns in theirs.items():
        assert mine[group].keys() == columns.keys()
        for name, values in columns.items():
            # The clusters of NMI are drawn, by other generators.
            tolerance = 0.05 if name.startswith("NMI") else 5e-5
            assert mine[group][name] == pytest.approx(values, abs=tolerance), (group, name)
    assert len(theirs["losses"]["total_loss"]) == 12 and len(theirs["val"]["epoch"]) == 3
    assert {path.name for path in (tmp_path / "theirs" / "models").iterdir()} <= {
        path.name for path in (tmp_path / "mine" / "models").iterdir()
    }
