"""Training of the demo's embedder, by the library's trainer: class-balanced batches, mined pairs, a fused loss."""

from __future__ import annotations

import math
import random
import sys
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pml_fast import losses, miners, samplers, trainers
from pml_fast.demo.augment import distort
from pml_fast.demo.data import DemoError, Split
from pml_fast.utils import logging_presets

_MAX_PER_CLASS = 32
_MIN_PER_CLASS = 4
_MAX_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 0.05
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class BatchShape:
    """A batch of classes x per_class images."""

    classes: int
    per_class: int

    @property
    def size(self) -> int:
        return self.classes * self.per_class


def batch_shape(class_count: int, batch_size: int) -> BatchShape:
    """The most even batch of at most about batch_size images: every class if 4 images of each fit."""
    per_class = min(_MAX_PER_CLASS, max(_MIN_PER_CLASS, batch_size // class_count))
    return BatchShape(min(class_count, max(2, batch_size // per_class)), per_class)


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch: equal seeds give equal runs on one machine."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def train(model: nn.Module, split: Split, steps: int, batch_size: int, seed: int, device: torch.device) -> list[float]:
    """Trains model in place for so many steps, with a progress bar; returns the loss of each step.

    MPerClassSampler makes the batches, MultiSimilarityMiner keeps their hard pairs and MultiSimilarityLoss
    weighs them (Wang et al., "Multi-Similarity Loss with General Pair Weighting", 2019).
    Raises DemoError if the loss stops being finite.
    """
    with tempfile.TemporaryDirectory() as folder:
        keeper, _, _ = logging_presets.get_record_keeper(folder)
        hooks = logging_presets.HookContainer(keeper, log_freq=1)
        _trainer(model, split, batch_shape(len(split.class_names), batch_size), steps, seed, device, hooks).train()
        keeper.save_records()
        return hooks.get_loss_history(["total_loss"])["total_loss"]


def _trainer(
    model: nn.Module,
    split: Split,
    shape: BatchShape,
    steps: int,
    seed: int,
    device: torch.device,
    hooks: logging_presets.HookContainer,
) -> trainers.MetricLossOnly:
    """A trainer whose one epoch has so many steps, each on newly distorted images."""
    sampler = samplers.MPerClassSampler(
        split.labels, m=shape.per_class, batch_size=shape.size, length_before_new_iter=steps * shape.size, seed=seed
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=_MAX_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=_MAX_LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    report = _Report(steps)

    def distorted(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        return distort(images, generator), labels

    def end_of_iteration(trainer: trainers.MetricLossOnly) -> None:
        report(_finite(trainer.losses["total_loss"], trainer.iteration), trainer.iteration)
        hooks.end_of_iteration_hook(trainer)

    return trainers.MetricLossOnly(
        models={"trunk": model},
        optimizers={"trunk_optimizer": optimiser},
        batch_size=shape.size,
        loss_funcs={"metric_loss": losses.MultiSimilarityLoss()},
        mining_funcs={"tuple_miner": miners.MultiSimilarityMiner(epsilon=0.1)},
        dataset=TensorDataset(split.images, split.labels),
        sampler=sampler,
        iterations_per_epoch=steps,
        lr_schedulers={"trunk_scheduler_by_iteration": schedule},
        data_device=device,
        dataloader_num_workers=0,
        data_and_label_getter=distorted,
        end_of_iteration_hook=end_of_iteration,
    )


class _Report:
    """A line now and then where no terminal shows the trainer's progress bar."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.last = -math.inf

    def __call__(self, loss: float, iteration: int) -> None:
        if not sys.stderr.isatty() and time.monotonic() - self.last >= _SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(f"training: step {iteration + 1} of {self.steps}, loss {loss:.4f}", file=sys.stderr)


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise DemoError(f"the loss is {value} at step {step}: training has diverged; try another --seed")
    return value
