"""Queries against references of the same parent class."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch

from .base_tester import BaseTester
from .dataset_embedder import Splits


class WithSameParentLabelTester(BaseTester):
    """Measures within each parent class: rows of one label at level k + 1 are told apart by their labels at level k.

    Labels have a column a level, the finest first. A metric is the mean over the parent classes.
    """

    def do_knn_and_accuracies(
        self,
        accuracies: dict[str, Any],
        embeddings_and_labels: Splits,
        query_split_name: str,
        reference_split_names: list[str],
        tag_suffix: str = "",
    ) -> None:
        """The accuracy calculator's metrics of each level that has a parent, and their means where there are several."""
        query, query_labels, reference, reference_labels = self.set_reference_and_query(
            embeddings_and_labels, query_split_name, reference_split_names
        )
        levels = query_labels.shape[1]
        self.label_levels = [level for level in self.label_levels_to_evaluate(query_labels) if level < levels - 1]
        if not self.label_levels:
            raise ValueError(
                f"label_hierarchy_level must name a level with a parent, below {levels - 1} for these labels of {levels} "
                f"levels, got {self.label_hierarchy_level!r}"
            )
        included = self.ref_includes_query(query_split_name, reference_split_names)
        for level in self.label_levels:
            by_metric = defaultdict(list)
            for parent in torch.unique(query_labels[:, level + 1]):
                asked = query_labels[:, level + 1] == parent
                searched = reference_labels[:, level + 1] == parent
                found = self.accuracy_calculator.get_accuracy(
                    query[asked], query_labels[asked, level], reference[searched], reference_labels[searched, level], included
                )
                for metric, value in found.items():
                    by_metric[metric].append(value)
            for metric, values in by_metric.items():
                accuracies[self.accuracies_keyname(metric, label_hierarchy_level=level)] = np.mean(values)
        if len(self.label_levels) > 1:
            self.calculate_average_accuracies(accuracies, self.accuracy_calculator.get_curr_metrics(), self.label_levels)
