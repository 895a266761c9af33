"""Training of the demo's embedder: class-balanced batches, mined pairs, a fused loss."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from pml_fast import losses, miners, samplers
from pml_fast.demo.augment import distort
from pml_fast.demo.data import DemoError, Split

_MAX_PER_CLASS = 32
_MIN_PER_CLASS = 4
_MAX_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 0.05


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
    loader = _loader(split, batch_shape(len(split.class_names), batch_size), steps, seed)
    loss_function = losses.MultiSimilarityLoss()
    miner = miners.MultiSimilarityMiner(epsilon=0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_MAX_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=_MAX_LEARNING_RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    history: list[float] = []
    model.train()
    # Redrawing ten times a second suits a terminal; a log file gets a line now and then.
    interval = 0.1 if sys.stderr.isatty() else 5.0
    with tqdm(loader, total=steps, desc="training", unit="step", mininterval=interval) as bar:
        for images, labels in bar:
            embeddings = model(distort(images, generator).to(device))
            labels = labels.to(device)
            loss = loss_function(embeddings, labels, miner(embeddings, labels))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            history.append(_finite(loss, len(history)))
            bar.set_postfix(loss=f"{history[-1]:.4f}", refresh=False)
    return history


def _loader(split: Split, shape: BatchShape, steps: int, seed: int) -> DataLoader[tuple[Tensor, ...]]:
    sampler = samplers.MPerClassSampler(
        split.labels,
        m=shape.per_class,
        batch_size=shape.size,
        length_before_new_iter=steps * shape.size,
        seed=seed,
    )
    return DataLoader(TensorDataset(split.images, split.labels), batch_size=shape.size, sampler=sampler)


def _finite(loss: Tensor, step: int) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise DemoError(f"the loss is {value} at step {step}: training has diverged; try another --seed")
    return value
