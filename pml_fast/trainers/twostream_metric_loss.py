"""Anchors of one stream against positives and negatives of another."""

from __future__ import annotations

from typing import Any

import torch

from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu

from .base_trainer import BaseTrainer


class TwoStreamMetricLoss(BaseTrainer):
    """The loader yields `(anchors, positives and negatives, labels)`; row k of both streams has label k.

    Pairs and triplets go from a row of the first stream to rows of the second; without a miner they are all triplets.
    """

    def calculate_loss(self, curr_batch: Any) -> None:
        """The metric loss between the two streams."""
        (anchors, posnegs), labels = curr_batch
        embeddings = (self.embed(anchors), self.embed(posnegs))
        indices_tuple = self.maybe_mine_embeddings(embeddings, labels)
        self.losses["metric_loss"] = self.maybe_get_metric_loss(embeddings, labels, indices_tuple)

    def get_batch(self) -> Any:
        """The next batch: two streams and labels of the chosen level."""
        self.dataloader_iter, curr_batch = c_f.try_next_on_generator(self.dataloader_iter, self.dataloader)
        anchors, posnegs, labels = self.data_and_label_getter(curr_batch)
        labels = c_f.process_label(labels, self.label_hierarchy_level, self.label_mapper)
        return self.maybe_do_batch_mining((anchors, posnegs), labels)

    def maybe_get_metric_loss(self, embeddings: Any, labels: Any, indices_tuple: Any) -> Any:
        """The metric loss of both streams in one batch, or 0 where its weight is."""
        if self.loss_weights.get("metric_loss", 0) > 0:
            indices_tuple = c_f.shift_indices_tuple(indices_tuple, embeddings[0].shape[0])
            return self.loss_funcs["metric_loss"](torch.cat(embeddings), torch.cat([labels, labels]), indices_tuple)
        return 0

    def maybe_mine_embeddings(self, embeddings: Any, labels: Any) -> Any:
        """What the miner finds between the streams, or all triplets."""
        anchors, posnegs = embeddings
        labels = labels.to(anchors.device)
        # A reference set of its own, though equal: a row's counterpart is no comparison with itself.
        if "tuple_miner" in self.mining_funcs:
            return self.mining_funcs["tuple_miner"](anchors, labels, posnegs, labels.clone())
        return lmu.get_all_triplets_indices(labels, labels.clone())

    def modify_schema(self) -> None:
        """No miner of whole rows."""
        self.schema["mining_funcs"].keys = ["tuple_miner"]
