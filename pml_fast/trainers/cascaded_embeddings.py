"""Parts of the embedding, each with its own loss, miner and classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pml_fast import miners
from pml_fast.utils import common_functions as c_f

from .base_trainer import BaseTrainer


class CascadedEmbeddings(BaseTrainer):
    """Cuts the embedding into parts of `embedding_sizes`; part k has "metric_loss_k", and if wanted "tuple_miner_k",
    "classifier_k" and "classifier_loss_k".

    A later HDCMiner chooses among what the miner before it found: Yuan et al., Hard-Aware Deeply Cascaded Embedding
    (ICCV 2017).
    """

    def __init__(self, embedding_sizes: Sequence[int], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.embedding_sizes = embedding_sizes

    def calculate_loss(self, curr_batch: Any) -> None:
        """The losses of every part."""
        data, labels = curr_batch
        embeddings = self.embed(data)
        if embeddings.shape[1] != sum(self.embedding_sizes):
            raise ValueError(
                f"embedding_sizes must add up to the {embeddings.shape[1]} columns of the embeddings, got "
                f"{list(self.embedding_sizes)}, {sum(self.embedding_sizes)} in all"
            )
        logits = []
        indices_tuple = None
        for i, part in enumerate(embeddings.split(list(self.embedding_sizes), dim=1)):
            name = f"metric_loss_{i}"
            indices_tuple = self.maybe_mine_embeddings(part, labels, indices_tuple, f"tuple_miner_{i}")
            if name in self.losses:
                self.losses[name] += self.maybe_get_metric_loss(part, labels, indices_tuple, name)
            logits.append(self.maybe_get_logits(part, f"classifier_{i}"))
        for i, output in enumerate(logits):
            if output is not None:
                name = f"classifier_loss_{i}"
                self.losses[name] += self.maybe_get_classifier_loss(output, labels, name)

    def maybe_get_metric_loss(self, embeddings: Any, labels: Any, indices_tuple: Any, curr_loss_name: str) -> Any:
        """A part's metric loss, or 0 where its weight is."""
        if self.loss_weights.get(curr_loss_name, 0) > 0:
            return self.loss_funcs[curr_loss_name](embeddings, labels, indices_tuple)
        return 0

    def maybe_mine_embeddings(  # type: ignore[override]
        self, embeddings: Any, labels: Any, prev_indices_tuple: Any, curr_miner_name: str
    ) -> Any:
        """What a part's miner finds; an HDCMiner among what the part before it found."""
        miner = self.mining_funcs.get(curr_miner_name)
        if miner is None:
            return None
        if not isinstance(miner, miners.HDCMiner):
            return miner(embeddings, labels)
        miner.set_idx_externally(prev_indices_tuple, labels)
        found = miner(embeddings, labels)
        miner.reset_idx()
        return found

    def maybe_get_logits(self, embeddings: Any, curr_classifier_name: str) -> Any:
        """What a part's classifier makes of it; None without one."""
        return self.models[curr_classifier_name](embeddings) if curr_classifier_name in self.models else None

    def maybe_get_classifier_loss(self, logits: Any, labels: Any, curr_loss_name: str) -> Any:
        """A part's classification loss, or 0 where its weight is."""
        if self.loss_weights.get(curr_loss_name, 0) > 0:
            return self.loss_funcs[curr_loss_name](logits, c_f.to_device(labels, logits))
        return 0

    def modify_schema(self) -> None:
        """Names with the number of their part."""
        self.schema["models"].keys += ["classifier_[0-9]+"]
        self.schema["loss_funcs"].keys = ["metric_loss_[0-9]+", "classifier_loss_[0-9]+"]
        self.schema["mining_funcs"].keys = ["tuple_miner_[0-9]+"]
