"""Queries against all references."""

from __future__ import annotations

from typing import Any

from .base_tester import BaseTester
from .dataset_embedder import Splits


class GlobalEmbeddingSpaceTester(BaseTester):
    """Measures each query split against all of its references, level by level of the labels."""

    def do_knn_and_accuracies(
        self,
        accuracies: dict[str, Any],
        embeddings_and_labels: Splits,
        query_split_name: str,
        reference_split_names: list[str],
    ) -> None:
        """The accuracy calculator's metrics of each level, and their means where there are several."""
        query, query_labels, reference, reference_labels = self.set_reference_and_query(
            embeddings_and_labels, query_split_name, reference_split_names
        )
        self.label_levels = self.label_levels_to_evaluate(query_labels)
        included = self.ref_includes_query(query_split_name, reference_split_names)
        for level in self.label_levels:
            found = self.accuracy_calculator.get_accuracy(
                query, query_labels[:, level], reference, reference_labels[:, level], included
            )
            for metric, value in found.items():
                accuracies[self.accuracies_keyname(metric, label_hierarchy_level=level)] = value
        if len(self.label_levels) > 1:
            self.calculate_average_accuracies(accuracies, self.accuracy_calculator.get_curr_metrics(), self.label_levels)
