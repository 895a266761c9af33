"""Trunk, embedder and one metric loss."""

from __future__ import annotations

from typing import Any

from .base_trainer import BaseTrainer


class MetricLossOnly(BaseTrainer):
    """Trains trunk and embedder with `loss_funcs["metric_loss"]`, on what `mining_funcs["tuple_miner"]` finds if there."""

    def calculate_loss(self, curr_batch: Any) -> None:
        """The metric loss of the batch."""
        data, labels = curr_batch
        embeddings = self.embed(data)
        indices_tuple = self.maybe_mine_embeddings(embeddings, labels)
        self.losses["metric_loss"] = self.maybe_get_metric_loss(embeddings, labels, indices_tuple)

    def maybe_get_metric_loss(self, embeddings: Any, labels: Any, indices_tuple: Any) -> Any:
        """The metric loss, or 0 where its weight is."""
        if self.loss_weights.get("metric_loss", 0) > 0:
            return self.loss_funcs["metric_loss"](embeddings, labels, indices_tuple)
        return 0
