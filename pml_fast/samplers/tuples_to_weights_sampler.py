"""Samples drawn as often as a miner names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from pml_fast.testers import BaseTester
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu

from .seeded_sampler import IndexSampler


class TuplesToWeightsSampler(IndexSampler):
    """Embeds `dataset` at the start of each epoch, mines it, and draws samples as often as the miner's tuples name them.

    Draws are with replacement; what no tuple names is not drawn, and everything is equally likely where there is no tuple.
    `weights` `[len(dataset)]`, float32, are those of the newest epoch: how often each sample is named, as a share of the most
    named one. The order depends on seed, epoch and the model as it is when the epoch begins; the state holds the weights of an
    epoch that is taken up in the middle.

    Args:
        model: embeds the data; in evaluation mode meanwhile, and in its own mode again afterwards.
        miner: takes all embeddings and their labels.
        dataset: yields data and labels, in the column `label_hierarchy_level` where these are 2D.
        subset_size: embed and draw from so many random samples; all if `None`. Also how many are drawn.
        tester_kwargs: of :class:`~pml_fast.testers.BaseTester`, which embeds.
        seed: as in `SeededSampler`.
    """

    weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        miner: Any,
        dataset: Any,
        subset_size: int | None = None,
        *,
        seed: int | None = None,
        **tester_kwargs: Any,
    ) -> None:
        super().__init__(seed)
        if subset_size is not None and (not isinstance(subset_size, int) or subset_size < 1):
            raise ValueError(f"subset_size must be a positive int, or None for the whole dataset, got {subset_size!r}")
        if len(dataset) == 0:
            raise ValueError("dataset must hold at least one sample, got none")
        self.model = model
        self.miner = miner
        self.dataset = dataset
        self.subset_size = subset_size
        self.tester = BaseTester(**tester_kwargs)
        if not isinstance(self.tester.label_hierarchy_level, int):
            raise ValueError(f"label_hierarchy_level must be one column, got {self.tester.label_hierarchy_level!r}")
        self.device = self.tester.data_device
        self.weights = None
        self._weighed: int | None = None  # the epoch that the weights are of

    def __len__(self) -> int:
        return len(self.dataset) if self.subset_size is None else self.subset_size

    def _items(self, generator: np.random.Generator, epoch: int) -> Iterator[int]:
        chosen = np.arange(len(self.dataset))
        if self.subset_size is not None and self.subset_size < len(chosen):
            chosen = c_f.safe_random_choice(chosen, self.subset_size, generator)
        rows = torch.as_tensor(chosen, device=self.device)
        if self.weights is None or self._weighed != epoch:
            weights = self._weights(chosen)
            self.weights, self._weighed = torch.zeros(len(self.dataset), device=self.device), epoch
            self.weights[rows] = weights
        share = self.weights[rows].double().cpu().numpy()
        yield from generator.choice(chosen, len(self), p=share / share.sum()).tolist()

    def set_epoch(self, epoch: int) -> None:
        """Make the next iterator that of `epoch`, embedded anew unless it is the one of a loaded state."""
        if epoch != self.epoch:
            self._weighed = None
        super().set_epoch(epoch)

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict(position)
        if self.weights is not None and self._weighed == state["epoch"]:
            state["weights"] = self.weights.cpu()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        weights = state_dict.get("weights")
        if weights is not None and tuple(weights.shape) != (len(self.dataset),):
            raise ValueError(
                f"state_dict must have weights of shape ({len(self.dataset)},), one a sample, got {tuple(weights.shape)}: "
                "make the sampler with the dataset of the one that was saved"
            )
        super().load_state_dict(state_dict)
        self._weighed = None if weights is None else self.epoch
        if weights is not None:
            self.weights = weights.to(self.device, torch.float32)

    def _weights(self, chosen: np.ndarray) -> Tensor:
        """How often the miner names each of the chosen samples."""
        c_f.LOGGER.info("%s embeds %d samples", type(self).__name__, len(chosen))
        modes = [(module, module.training) for module in self.model.modules()]
        try:
            subset = self.dataset if len(chosen) == len(self.dataset) else Subset(self.dataset, chosen.tolist())
            embeddings, labels = self.tester.get_all_embeddings(subset, self.model)
        finally:
            for module, mode in modes:
                module.training = mode
        labels = labels[:, self.tester.label_hierarchy_level]
        return lmu.convert_to_weights(self.miner(embeddings, labels), labels, dtype=torch.float32)
