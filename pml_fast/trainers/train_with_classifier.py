"""A metric loss and a classification loss on top of the embeddings."""

from __future__ import annotations

from typing import Any

from pml_fast.utils import common_functions as c_f

from .metric_loss_only import MetricLossOnly


class TrainWithClassifier(MetricLossOnly):
    """As MetricLossOnly, and `models["classifier"]` on the embeddings with `loss_funcs["classifier_loss"]`."""

    def calculate_loss(self, curr_batch: Any) -> None:
        """The metric loss and the classifier's."""
        data, labels = curr_batch
        embeddings = self.embed(data)
        logits = self.maybe_get_logits(embeddings)
        indices_tuple = self.maybe_mine_embeddings(embeddings, labels)
        self.losses["metric_loss"] = self.maybe_get_metric_loss(embeddings, labels, indices_tuple)
        self.losses["classifier_loss"] = self.maybe_get_classifier_loss(logits, labels)

    def maybe_get_classifier_loss(self, logits: Any, labels: Any) -> Any:
        """The classification loss, or 0 without logits."""
        if logits is None:
            return 0
        return self.loss_funcs["classifier_loss"](logits, c_f.to_device(labels, logits))

    def maybe_get_logits(self, embeddings: Any) -> Any:
        """What the classifier makes of the embeddings; None without one, or where its loss has no weight."""
        if "classifier" in self.models and self.loss_weights.get("classifier_loss", 0) > 0:
            return self.models["classifier"](embeddings)
        return None

    def modify_schema(self) -> None:
        """The classifier and its loss."""
        self.schema["models"].keys += ["classifier"]
        self.schema["loss_funcs"].keys += ["classifier_loss"]
