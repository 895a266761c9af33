"""The anchors of one stream against the rows of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.progress import Progress

from .dataset_embedder import Splits
from .global_embedding_space import GlobalEmbeddingSpaceTester


class GlobalTwoStreamEmbeddingSpaceTester(GlobalEmbeddingSpaceTester):
    """Loaders yield `(anchors, positives and negatives, labels)`; the first stream is the query, the second the reference."""

    def compute_all_embeddings(self, dataloader: Any, trunk_model: Any, embedder_model: Any) -> Any:
        """Embeddings `[N, D]` of both streams, and labels `[N, levels]`."""
        anchors, posnegs, labels = [], [], []
        with torch.no_grad():
            for batch in Progress(dataloader, "embedding"):
                first, second, label = self.data_and_label_getter(batch)
                labels.append(self._label_columns(c_f.process_label(label, "all", self.label_mapper)))
                anchors.append(self.get_embeddings_for_eval(trunk_model, embedder_model, first))
                posnegs.append(self.get_embeddings_for_eval(trunk_model, embedder_model, second))
        return self._joined(anchors), self._joined(posnegs), self._joined(labels)

    def get_all_embeddings(  # type: ignore[override]
        self, dataset: Any, trunk_model: Any, embedder_model: Any, collate_fn: Any
    ) -> tuple[Tensor, Tensor]:
        """Embeddings `[2 N, D]`, the anchors' first, and labels `[2 N, levels]`."""
        dataloader = c_f.get_eval_dataloader(dataset, self.batch_size, self.dataloader_num_workers, collate_fn)
        anchors, posnegs, labels = self.compute_all_embeddings(dataloader, trunk_model, embedder_model)
        return torch.cat([self.maybe_normalize(anchors), self.maybe_normalize(posnegs)]), torch.cat([labels, labels])

    def set_reference_and_query(
        self, embeddings_and_labels: Splits, query_split_name: str, reference_split_names: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first stream and the second, of one split."""
        if list(reference_split_names) != [query_split_name]:
            raise ValueError(
                f"{type(self).__name__} compares the two streams of one split: splits_to_eval must be "
                f"({query_split_name!r}, [{query_split_name!r}]), got references {list(reference_split_names)}"
            )
        embeddings, labels = embeddings_and_labels[query_split_name]
        half = len(embeddings) // 2
        return embeddings[:half], labels[:half], embeddings[half:], labels[:half]

    def ref_includes_query(self, query_split_name: str, reference_split_names: Sequence[str]) -> bool:
        """The streams differ."""
        return False
