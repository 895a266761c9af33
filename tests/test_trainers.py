"""Trainers on scikit-learn's digits: the peer's numbers from the same script, and runs taken up at the identical next step."""

from __future__ import annotations

import copy
import io
import math
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_metric_learning.losses as peer_losses
import pytorch_metric_learning.miners as peer_miners
import pytorch_metric_learning.trainers as peer_trainers
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from pml_fast import losses, miners, samplers, trainers

SIZES = {"trunk": (64, 32), "embedder": (32, 16), "classifier": (16, 10)}


@lru_cache
def digits() -> TensorDataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return TensorDataset(torch.from_numpy((bunch.data / 16).astype(np.float32)), torch.from_numpy(bunch.target))


class TwoViews(Dataset[Any]):
    """A digit, another view of it, its label."""

    def __len__(self) -> int:
        return len(digits())

    def __getitem__(self, k: int) -> Any:
        x, label = digits()[k]
        return x, x.flip(0), label


def mlp(rows: int, columns: int) -> nn.Module:
    return nn.Sequential(nn.Linear(rows, columns), nn.ReLU(), nn.Dropout(0.1), nn.Linear(columns, columns))


class Run:
    """A trainer's arguments, and the losses that its hook saw."""

    def __init__(self, names: tuple[str, ...] = ("trunk", "embedder"), loss_funcs: Any = None, **options: Any) -> None:
        torch.manual_seed(0)
        self.models: dict[str, nn.Module] = {name: mlp(*SIZES[name]) for name in names}
        self.optimizers: dict[str, Any] = {
            f"{name}_optimizer": torch.optim.Adam(model.parameters(), lr=0.01) for name, model in self.models.items()
        }
        self.seen: list[dict[str, float]] = []
        self.arguments: dict[str, Any] = {
            "models": self.models,
            "optimizers": self.optimizers,
            "batch_size": 48,
            "loss_funcs": {"metric_loss": losses.TripletMarginLoss()} if loss_funcs is None else loss_funcs,
            "dataset": digits(),
            "dataloader_num_workers": 0,
            "iterations_per_epoch": 5,
            "end_of_iteration_hook": self.record,
            **options,
        }

    def record(self, trainer: Any) -> None:
        self.seen.append({name: float(torch.as_tensor(value).detach()) for name, value in trainer.losses.items()})

    def train(self, cls: Any, *first: Any, epochs: int = 2, **more: Any) -> list[dict[str, float]]:
        torch.manual_seed(1)
        np.random.seed(1)
        cls(*first, **{**self.arguments, **more}).train(num_epochs=epochs)
        return self.seen

    def in_float64(self, cls: Any, *first: Any, **options: Any) -> Run:
        """Trains in float64, in which sums of another order do not drift apart."""
        for model in self.models.values():
            model.double()
        self.train(cls, *first, dtype=torch.float64, **options)
        return self

    def weights(self) -> dict[str, torch.Tensor]:
        return {f"{name}.{key}": value for name, model in self.models.items() for key, value in model.state_dict().items()}


def assert_same_numbers(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(mine) == len(theirs) > 5
    for got, expected in zip(mine, theirs):
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-4)


def assert_same_weights(a: Run, b: Run, tolerance: float = 1e-4) -> None:
    for key, value in a.weights().items():
        torch.testing.assert_close(value, b.weights()[key], rtol=tolerance, atol=tolerance)


# The peer's script, with its numbers


@pytest.mark.parametrize("mined", [False, True])
def test_metric_loss_only_has_the_peers_numbers(mined: bool) -> None:
    runs = []
    for cls, loss_module, miner_module in (
        (trainers.MetricLossOnly, losses, miners),
        (peer_trainers.MetricLossOnly, peer_losses, peer_miners),
    ):
        run = Run(loss_funcs={"metric_loss": loss_module.ContrastiveLoss()})
        options: dict[str, Any] = {"loss_weights": {"metric_loss": 0.5}}
        if mined:
            options["mining_funcs"] = {"tuple_miner": miner_module.MultiSimilarityMiner()}
        options["lr_schedulers"] = {
            "trunk_scheduler_by_iteration": torch.optim.lr_scheduler.StepLR(run.optimizers["trunk_optimizer"], 3),
            "embedder_scheduler_by_epoch": torch.optim.lr_scheduler.StepLR(run.optimizers["embedder_optimizer"], 1),
        }
        trunk = run.models["trunk"]
        options["gradient_clippers"] = {
            "trunk_grad_clipper": lambda trunk=trunk: nn.utils.clip_grad_norm_(trunk.parameters(), 0.01)
        }
        run.in_float64(cls, **options)
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)
    assert_same_weights(*runs)


@pytest.mark.parametrize(
    "options", [{}, {"freeze_these": ["trunk"]}, {"label_hierarchy_level": 0, "set_min_label_to_zero": True}]
)
def test_train_with_classifier_has_the_peers_numbers(options: dict[str, Any]) -> None:
    runs = []
    labels = digits().tensors[1].numpy()
    mapped = {"dataset_labels": labels} if "set_min_label_to_zero" in options else {}
    for cls, module in ((trainers.TrainWithClassifier, losses), (peer_trainers.TrainWithClassifier, peer_losses)):
        loss_funcs = {"metric_loss": module.TripletMarginLoss(margin=0.2), "classifier_loss": nn.CrossEntropyLoss()}
        run = Run(("trunk", "embedder", "classifier"), loss_funcs=loss_funcs)
        run.in_float64(cls, **options, **mapped)
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)
    assert_same_weights(*runs)


def test_two_streams_have_the_peers_numbers() -> None:
    runs = []
    for cls, module in ((trainers.TwoStreamMetricLoss, losses), (peer_trainers.TwoStreamMetricLoss, peer_losses)):
        run = Run(loss_funcs={"metric_loss": module.TripletMarginLoss()}, dataset=TwoViews(), batch_size=24)
        run.in_float64(cls)
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)


def test_two_streams_with_a_miner_have_the_peers_numbers() -> None:
    runs = []
    for cls, module, miner in (
        (trainers.TwoStreamMetricLoss, losses, miners.BatchHardMiner()),
        (peer_trainers.TwoStreamMetricLoss, peer_losses, peer_miners.BatchHardMiner()),
    ):
        run = Run(loss_funcs={"metric_loss": module.TripletMarginLoss()}, dataset=TwoViews(), batch_size=24)
        run.in_float64(cls, mining_funcs={"tuple_miner": miner})
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)


def test_cascaded_embeddings_have_the_peers_numbers() -> None:
    runs = []
    for cls, module, mined in (
        (trainers.CascadedEmbeddings, losses, miners),
        (peer_trainers.CascadedEmbeddings, peer_losses, peer_miners),
    ):
        loss_funcs = {
            "metric_loss_0": module.ContrastiveLoss(), "metric_loss_1": module.ContrastiveLoss(),
            "classifier_loss_1": nn.CrossEntropyLoss(),
        }  # fmt: skip
        run = Run(loss_funcs=loss_funcs)
        run.models["classifier_1"] = nn.Linear(10, 10)
        mining = {"tuple_miner_0": mined.PairMarginMiner(), "tuple_miner_1": mined.HDCMiner(0.3)}
        run.in_float64(cls, [6, 10], mining_funcs=mining)
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)


def test_adversarial_training_has_the_peers_numbers() -> None:
    """Three epochs: the metric alone, the generator alone, both. The peer's synthetic rows are float32 always."""
    runs = []
    for cls, module in (
        (trainers.DeepAdversarialMetricLearning, losses),
        (peer_trainers.DeepAdversarialMetricLearning, peer_losses),
    ):
        run = adversarial(module)
        run.train(cls, 1, 1, "all", epochs=3)
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)
    assert_same_weights(*runs, tolerance=1e-3)


def test_a_subset_batch_miner_has_the_peers_numbers() -> None:
    runs = []
    for cls, module in ((trainers.MetricLossOnly, losses), (peer_trainers.MetricLossOnly, peer_losses)):
        run = Run(loss_funcs={"metric_loss": module.ContrastiveLoss()})
        runs.append(run.in_float64(cls, mining_funcs={"subset_batch_miner": nearest_half}))
    assert_same_numbers(runs[0].seen, runs[1].seen)


def nearest_half(embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The rows nearest to the mean."""
    return (embeddings - embeddings.mean(0)).norm(dim=1).argsort()[: len(embeddings) // 2]


# More than the peer's


def test_wrong_keys_are_named() -> None:
    run = Run()
    for name, value, message in (
        ("models", {"trunk": nn.Identity(), "embeder": nn.Identity()}, "did you mean 'embedder'"),
        ("optimizers", {"trunk": None}, "optimizers keys must be one of trunk_optimizer"),
        ("loss_funcs", {"loss": losses.ContrastiveLoss()}, "loss_funcs keys must be one of metric_loss"),
        ("mining_funcs", {"miner": None}, "mining_funcs keys must be one of"),
        ("loss_weights", {}, "loss_weights must contain 'metric_loss'"),
        ("lr_schedulers", {"trunk_scheduler": None}, "did you mean 'trunk_scheduler_by_"),
        ("freeze_these", ["truk"], "freeze_these keys must be one of"),
        ("accumulation_steps", 0, "accumulation_steps must be a positive int"),
        ("encoder_chunk_size", 2.5, "encoder_chunk_size must be a positive int"),
    ):
        with pytest.raises(ValueError, match=message):
            trainers.MetricLossOnly(**{**run.arguments, name: value})


def test_a_trunk_alone_is_no_matter_for_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """It is a choice; a classifier that is missing is none."""
    trainers.MetricLossOnly(**Run(("trunk",)).arguments)
    assert not caplog.records
    funcs = {"metric_loss": losses.TripletMarginLoss(), "classifier_loss": nn.CrossEntropyLoss()}
    trainers.TrainWithClassifier(**Run(("trunk",), funcs).arguments)
    assert [record.message for record in caplog.records] == ['models is missing "classifier"']


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_the_losses_to_a_person(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tqdm")
    shown = io.StringIO()
    shown.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", shown)
    Run().train(trainers.MetricLossOnly, epochs=2)
    if not terminal:
        assert shown.getvalue() == ""
        return
    assert "epoch 2: 100%" in shown.getvalue() and "5/5" in shown.getvalue()
    assert re.search(r"metric_loss=0\.\d{5}, total_loss=0\.\d{5}", shown.getvalue())


def test_nothing_to_train_on_is_said() -> None:
    with pytest.raises(ValueError, match="loss_weights must have a positive weight"):
        Run().train(trainers.MetricLossOnly, loss_weights={"metric_loss": 0})
    with pytest.raises(ValueError, match="smaller"):
        Run(batch_size=5000, iterations_per_epoch=None).train(trainers.MetricLossOnly)


def test_accumulated_batches_have_their_mean_gradient() -> None:
    """Two batches of 48 with plain gradient descent: the mean of both gradients, and of both losses."""
    run = Run(names=("trunk",), iterations_per_epoch=1)
    trunk = nn.Linear(64, 8)
    reference, sgd = copy.deepcopy(trunk), torch.optim.SGD(trunk.parameters(), lr=1.0)
    loss_func = losses.ContrastiveLoss()
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0)).tolist()
    run.train(
        trainers.MetricLossOnly, epochs=1, models={"trunk": trunk}, optimizers={"trunk_optimizer": sgd}, accumulation_steps=2,
        loss_funcs={"metric_loss": loss_func}, sampler=order,
    )  # fmt: skip
    x, labels = digits()[order]
    total = sum(loss_func(reference(x[part]), labels[part]) for part in (slice(48), slice(48, 96))) / 2
    total.backward()
    torch.testing.assert_close(trunk.weight, reference.weight - reference.weight.grad)
    assert run.seen[0]["total_loss"] == pytest.approx(float(total), rel=1e-5)


@pytest.mark.parametrize("name", ["MetricLossOnly", "TrainWithClassifier", "TwoStreamMetricLoss"])
def test_an_encoder_in_chunks_trains_the_same(name: str) -> None:
    runs = []
    for chunk in (None, 10):
        loss_funcs: dict[str, Any] = {"metric_loss": losses.TripletMarginLoss()}
        names: tuple[str, ...] = ("trunk", "embedder")
        if name == "TrainWithClassifier":
            loss_funcs["classifier_loss"], names = nn.CrossEntropyLoss(), (*names, "classifier")
        dataset = TwoViews() if name == "TwoStreamMetricLoss" else digits()
        run = Run(names, loss_funcs=loss_funcs, dataset=dataset, batch_size=24, encoder_chunk_size=chunk)
        for model in run.models.values():
            model.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
        run.in_float64(getattr(trainers, name))
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)
    assert_same_weights(*runs)


def adversarial(loss_module: Any, **options: Any) -> Run:
    """A run of DeepAdversarialMetricLearning."""
    loss_funcs = {
        "metric_loss": loss_module.TripletMarginLoss(), "classifier_loss": nn.CrossEntropyLoss(),
        "synth_loss": loss_module.TripletMarginLoss(), "g_adv_loss": loss_module.TripletMarginLoss(),
    }  # fmt: skip
    run = Run(("trunk", "embedder", "classifier"), loss_funcs=loss_funcs, batch_size=20, iterations_per_epoch=3, **options)
    run.models["generator"] = nn.Linear(96, 32)
    run.optimizers["generator_optimizer"] = torch.optim.Adam(run.models["generator"].parameters(), lr=0.01)
    return run


def test_a_trunk_in_chunks_trains_the_same_beside_a_generator() -> None:
    runs = []
    for chunk in (None, 6):
        run = adversarial(losses, encoder_chunk_size=chunk)
        for model in run.models.values():
            model.apply(lambda m: setattr(m, "p", 0.0) if isinstance(m, nn.Dropout) else None)
        # In the generator's own epoch the trunk has no gradient, and its embeddings' are dropped.
        run.in_float64(trainers.DeepAdversarialMetricLearning, 1, 1, "all", epochs=3)
        runs.append(run)
    assert_same_numbers(runs[0].seen, runs[1].seen)


def test_chunks_that_a_trainer_does_not_use_are_an_error() -> None:
    class Own(trainers.MetricLossOnly):
        def calculate_loss(self, curr_batch: Any) -> None:
            data, labels = curr_batch
            self.losses["metric_loss"] = self.loss_funcs["metric_loss"](self.compute_embeddings(data), labels)

    Run().train(Own)
    with pytest.raises(ValueError, match=r"must embed by self\.embed\(data\)"):
        Run(encoder_chunk_size=8).train(Own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(dtype: torch.dtype) -> None:
    """Nearly the numbers of float32, and models that stay float32; clippers see gradients without the scale."""
    run, norms = Run(iterations_per_epoch=10, autocast_dtype=dtype), []
    trunk = run.models["trunk"]
    clipper = {"trunk_grad_clipper": lambda: norms.append(float(nn.utils.clip_grad_norm_(trunk.parameters(), 100.0)))}
    seen = run.train(trainers.MetricLossOnly, gradient_clippers=clipper)
    exact = Run(iterations_per_epoch=10).train(trainers.MetricLossOnly)
    assert seen[0]["total_loss"] == pytest.approx(exact[0]["total_loss"], rel=0.02)
    assert seen[-1]["total_loss"] < seen[0]["total_loss"] * 0.9 or seen[-1]["total_loss"] < 0.08
    # The first scales may be too large; such steps are left out.
    assert max(filter(math.isfinite, norms)) < 10 and trunk[0].weight.dtype is torch.float32


def test_gradients_beyond_half_precision_leave_the_weights_alone() -> None:
    run = Run(autocast_dtype=torch.float16, grad_scaler=torch.amp.GradScaler("cpu", init_scale=2.0**100))
    before = {key: value.clone() for key, value in run.weights().items()}
    run.train(trainers.MetricLossOnly, epochs=1, iterations_per_epoch=1)
    for key, value in run.weights().items():
        assert torch.equal(value, before[key]) and torch.isfinite(value).all()


def test_early_stopping_ends_training() -> None:
    values = iter([0.5, 0.7, 0.6, 0.7, 0.9])
    hook = trainers.EarlyStopping(lambda trainer: next(values), patience=1)
    run = Run(end_of_epoch_hook=hook)
    assert len(run.train(trainers.MetricLossOnly, epochs=9)) == 4 * 5
    assert (hook.best_epoch, hook.best) == (2, 0.7)


def test_early_stopping_of_what_shall_be_small() -> None:
    values = iter([3.0, 2.0, 1.99, 1.98])
    hook = trainers.EarlyStopping(lambda trainer: next(values), patience=1, mode="min", min_delta=0.1)
    assert len(Run(end_of_epoch_hook=hook).train(trainers.MetricLossOnly, epochs=9)) == 4 * 5
    with pytest.raises(ValueError, match='mode must be "max" or "min"'):
        trainers.EarlyStopping(lambda trainer: 0, 1, mode="best")


# Checkpoints


class Noisy(Dataset[Any]):
    """Digits with random noise: augmentation draws from the default generator."""

    def __len__(self) -> int:
        return 300

    def __getitem__(self, k: int) -> Any:
        x, label = digits()[k]
        return x + 0.1 * torch.randn(64), label


def resumable(kind: str) -> Run:
    options: dict[str, Any] = {"dataset": Noisy(), "iterations_per_epoch": 4}
    if kind == "sampler":
        labels = digits().tensors[1][:300]
        options |= {
            "sampler": samplers.MPerClassSampler(labels, 4, batch_size=40, length_before_new_iter=200),
            "batch_size": 40,
        }
    if kind == "batches":
        options["sampler"] = samplers.MPerClassSampler(digits().tensors[1][:300], 4, batch_size=40).batched()
    if kind == "workers":
        options["dataloader_num_workers"] = 1
    if kind == "float16":
        options["autocast_dtype"] = torch.float16
    if kind == "miner":
        options["mining_funcs"] = {"tuple_miner": miners.DistanceWeightedMiner(seed=3)}
    if kind == "torch's batches, shared":
        order = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(options["dataset"]), 40, drop_last=True)
        options["sampler"] = samplers.DistributedBatchSampler(order, num_replicas=1, rank=0)
    loss = losses.CrossBatchMemory(losses.ContrastiveLoss(), 16, 128) if kind == "memory" else losses.ContrastiveLoss()
    options["loss_funcs"] = {"metric_loss": loss}
    run = Run(**options)
    if kind == "weights":
        run.arguments["sampler"] = samplers.TuplesToWeightsSampler(
            run.models["trunk"], miners.BatchHardMiner(), TensorDataset(*digits()[:300]), dataloader_num_workers=0
        )
    run.arguments["lr_schedulers"] = {
        "trunk_scheduler_by_iteration": torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizers["trunk_optimizer"], 30),
        "embedder_scheduler_by_epoch": torch.optim.lr_scheduler.StepLR(run.optimizers["embedder_optimizer"], 1),
    }
    return run


@pytest.mark.parametrize(
    "kind",
    ["shuffled", "sampler", "batches", "workers", "float16", "miner", "memory", "weights", "torch's batches, shared"],
)
def test_a_run_is_taken_up_at_the_identical_next_step(kind: str, tmp_path: Path) -> None:
    """A checkpoint in the middle of the second epoch, and one at its end: the rest of the run is the same to the bit."""
    torch.manual_seed(5)
    first = resumable(kind)

    def save(trainer: Any) -> None:
        first.record(trainer)
        if trainer.get_global_iteration() == 5:
            trainer.save_checkpoint(tmp_path / "middle")

    def save_epoch(trainer: Any) -> None:
        if trainer.epoch == 2:
            trainer.save_checkpoint(tmp_path / "end")

    first.train(trainers.MetricLossOnly, epochs=3, end_of_iteration_hook=save, end_of_epoch_hook=save_epoch)
    for name, done in (("middle", 6), ("end", 8)):
        second = resumable(kind)
        torch.manual_seed(99)
        np.random.seed(99)
        trainer = trainers.MetricLossOnly(**second.arguments)
        trainer.load_checkpoint(tmp_path / name)
        torch.rand(7)
        trainer.train(num_epochs=3)
        assert second.seen == first.seen[done:]
        for key, value in second.weights().items():
            assert torch.equal(value, first.weights()[key])


def test_a_run_is_taken_up_between_two_calls_of_train(tmp_path: Path) -> None:
    first, second = resumable("sampler"), resumable("sampler")
    torch.manual_seed(1)
    trainer = trainers.MetricLossOnly(**first.arguments)
    trainer.train(num_epochs=1)
    trainer.save_checkpoint(tmp_path / "x")
    trainer.train(start_epoch=2, num_epochs=2)
    again = trainers.MetricLossOnly(**second.arguments)
    again.load_checkpoint(tmp_path / "x")
    again.train(num_epochs=2)
    assert second.seen == first.seen[4:]


def test_the_state_of_early_stopping_is_in_the_checkpoint() -> None:
    hooks = [trainers.EarlyStopping(lambda trainer: -trainer.epoch, patience=5) for _ in range(2)]
    runs = [Run(end_of_epoch_hook=hook) for hook in hooks]
    first, second = (trainers.MetricLossOnly(**run.arguments) for run in runs)
    first.train(num_epochs=2)
    second.load_state_dict(first.state_dict())
    assert (hooks[1].best_epoch, hooks[1].best) == (1, -1.0)


def test_a_checkpoint_of_another_trainer_changes_nothing(tmp_path: Path) -> None:
    run = Run()
    trainer = trainers.MetricLossOnly(**run.arguments)
    trainer.save_checkpoint(tmp_path / "x")
    other = Run()
    other.models["embedder"] = nn.Linear(32, 3)
    before = {key: value.clone() for key, value in other.weights().items()}
    with pytest.raises(ValueError, match=r"models\['embedder'\] of the checkpoint has other entries"):
        trainers.MetricLossOnly(**other.arguments).load_checkpoint(tmp_path / "x")
    assert all(torch.equal(value, before[key]) for key, value in other.weights().items())
    with pytest.raises(ValueError, match="optimizers"):
        trainers.MetricLossOnly(**{**run.arguments, "optimizers": {}}).load_checkpoint(tmp_path / "x")
    other = Run()
    groups = [{"params": [parameter]} for parameter in other.models["trunk"].parameters()]
    other.optimizers["embedder_optimizer"] = torch.optim.Adam(groups)
    drawing = {**run.arguments, "mining_funcs": {"tuple_miner": miners.DistanceWeightedMiner(seed=3)}}
    before = {key: value.clone() for key, value in other.weights().items()}
    with pytest.raises(ValueError, match=r"optimizers\['embedder_optimizer'\] of the checkpoint has groups of \[.\] param"):
        trainers.MetricLossOnly(**other.arguments).load_checkpoint(tmp_path / "x")
    with pytest.raises(ValueError, match="0 generators were saved, and 1 modules here have one"):
        trainers.MetricLossOnly(**{**drawing, "models": other.models}).load_state_dict(
            {**trainer.state_dict(), "mining_funcs": {"tuple_miner": drawing["mining_funcs"]["tuple_miner"].state_dict()}}
        )
    assert all(torch.equal(value, before[key]) for key, value in other.weights().items())
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:500])
    with pytest.raises(ValueError, match="damaged"):
        trainer.load_checkpoint(tmp_path / "x")
    with pytest.raises(ValueError, match="no checkpoint of a trainer"):
        trainer.load_state_dict({})


def test_a_checkpoint_within_a_step_is_refused() -> None:
    class Own(trainers.MetricLossOnly):
        def update_loss_weights(self) -> None:
            self.state_dict()

    with pytest.raises(RuntimeError, match="cannot be taken within a step"):
        Run().train(Own)
