"""Embeds data sets and measures the embeddings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.accuracy_calculator import AccuracyCalculator

from .dataset_embedder import DatasetEmbedder, Splits


class BaseTester(DatasetEmbedder):
    """Embeds every split of a dictionary of data sets and measures each; subclasses say how (`do_knn_and_accuracies`).

    Args:
        normalize_embeddings: divide embeddings by their Euclidean norm.
        use_trunk_output: leave out the embedder.
        batch_size, dataloader_num_workers: of the data loaders.
        pca: components to reduce standardised embeddings to first, by scikit-learn; None for no reduction.
        data_device: where data is put; a GPU where there is one if None.
        dtype: what data is cast to; left as it is if None.
        data_and_label_getter: makes `(data, labels)` of what a loader yields.
        label_hierarchy_level: the column of 2D labels to measure, a list of columns, or "all".
        end_of_testing_hook: called with the tester after each test.
        dataset_labels, set_min_label_to_zero: map the labels of the data set to 0, 1, ...
        accuracy_calculator: AccuracyCalculator() if None.
        visualizer: has `fit_transform(array) -> array [N, 2]`, as UMAP or scikit-learn's PCA.
        visualizer_hook: called with (visualizer, reduced embeddings, labels, split name, key name, epoch), as
            :class:`pml_fast.utils.plots.MapHook`.
    """

    label_levels: Sequence[int]

    def __init__(
        self,
        normalize_embeddings: bool = True,
        use_trunk_output: bool = False,
        batch_size: int = 32,
        dataloader_num_workers: int = 2,
        pca: int | None = None,
        data_device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        data_and_label_getter: Callable[[Any], Any] | None = None,
        label_hierarchy_level: Any = 0,
        end_of_testing_hook: Callable[[Any], Any] | None = None,
        dataset_labels: Any = None,
        set_min_label_to_zero: bool = False,
        accuracy_calculator: Any = None,
        visualizer: Any = None,
        visualizer_hook: Callable[..., Any] | None = None,
    ) -> None:
        self.normalize_embeddings = normalize_embeddings
        self.pca = int(pca) if pca else None
        self.use_trunk_output = use_trunk_output
        self.batch_size = int(batch_size)
        self.data_device = c_f.use_cuda_if_available() if data_device is None else data_device
        self.dtype = dtype
        self.dataloader_num_workers = dataloader_num_workers
        self.data_and_label_getter: Any = c_f.return_input if data_and_label_getter is None else data_and_label_getter
        self.label_hierarchy_level = label_hierarchy_level
        self.end_of_testing_hook = end_of_testing_hook
        self.dataset_labels = dataset_labels
        self.set_min_label_to_zero = set_min_label_to_zero
        self.accuracy_calculator = accuracy_calculator
        self.visualizer = visualizer
        self.original_visualizer_hook = visualizer_hook
        self.initialize_label_mapper()
        self.initialize_accuracy_calculator()
        self.reference_split_names: dict[str, list[str]] = {}

    def initialize_label_mapper(self) -> None:
        """The map of the labels."""
        self.label_mapper = c_f.LabelMapper(self.set_min_label_to_zero, self.dataset_labels).map

    def initialize_accuracy_calculator(self) -> None:
        """All metrics."""
        if self.accuracy_calculator is None:
            self.accuracy_calculator = AccuracyCalculator()

    def visualizer_hook(self, *args: Any, **kwargs: Any) -> None:
        """Call the visualizer's hook, if there is one."""
        if self.original_visualizer_hook is not None:
            self.original_visualizer_hook(*args, **kwargs)

    # Maps

    def maybe_visualize(self, embeddings_and_labels: Splits, epoch: int) -> None:
        """Hand each split's embeddings, reduced by the visualizer, to its hook, once a level of labels."""
        if self.visualizer is None:
            return
        name = type(self.visualizer).__name__
        for split, (embeddings, labels) in embeddings_and_labels.items():
            c_f.LOGGER.info("Running %s on the %s set", name, split)
            reduced = self.visualizer.fit_transform(embeddings.cpu().numpy())
            for level in self.label_levels_to_evaluate(labels):
                key = self.accuracies_keyname(name, label_hierarchy_level=level)
                self.visualizer_hook(self.visualizer, reduced, labels[:, level].cpu().numpy(), split, key, epoch)

    # Names

    def description_suffixes(self, base_name: str) -> str:
        """`base_name` with what distinguishes this tester's numbers from another's."""
        parts = [base_name]
        if self.pca:
            parts.append(f"pca{self.pca}")
        if self.normalize_embeddings:
            parts.append("normalized")
        if self.use_trunk_output:
            parts.append("trunk")
        parts += [type(self).__name__, "level", self.label_hierarchy_level_to_str(self.label_hierarchy_level)]
        parts.append(self.accuracy_calculator.description())
        return "_".join(part for part in parts if part)

    def label_hierarchy_level_to_str(self, label_hierarchy_level: Any) -> str:
        """The level, or the levels joined."""
        levels = label_hierarchy_level if c_f.is_list_or_tuple(label_hierarchy_level) else [label_hierarchy_level]
        return "_".join(map(str, levels))

    def accuracies_keyname(self, metric: str, label_hierarchy_level: Any = 0, average: bool = False) -> str:
        """The key of a metric in `all_accuracies`."""
        if average:
            return f"AVERAGE_{metric}"
        several = label_hierarchy_level == "all" or c_f.is_list_or_tuple(label_hierarchy_level)
        if several and len(self.label_levels) == 1:
            label_hierarchy_level = self.label_levels[0]
        return f"{metric}_level{self.label_hierarchy_level_to_str(label_hierarchy_level)}"

    # Queries and references

    def maybe_combine_splits(self, embeddings_and_labels: Splits, splits: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Several splits as one."""
        embeddings, labels = zip(*(embeddings_and_labels[name] for name in splits))
        return torch.cat(embeddings), torch.cat(labels)

    def set_reference_and_query(
        self, embeddings_and_labels: Splits, query_split_name: str, reference_split_names: Sequence[str]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings and labels of the query, then of the references."""
        query = embeddings_and_labels[query_split_name]
        return (*query, *self.maybe_combine_splits(embeddings_and_labels, reference_split_names))

    def label_levels_to_evaluate(self, query_labels: Tensor) -> Sequence[int]:
        """The columns of the labels that `label_hierarchy_level` names."""
        available, wanted = query_labels.shape[1], self.label_hierarchy_level
        if isinstance(wanted, str) and wanted == "all":
            return range(available)
        levels: Sequence[int] = [wanted] if isinstance(wanted, int) else wanted
        if not c_f.is_list_or_tuple(levels) or max(levels) >= available:
            raise ValueError(
                f'label_hierarchy_level must be "all" or below the {available} levels of the labels, got {wanted!r}'
            )
        return levels

    def calculate_average_accuracies(
        self, accuracies: dict[str, Any], metrics: Iterable[str], label_levels: Sequence[int]
    ) -> None:
        """Add each metric's mean over the levels."""
        for metric in metrics:
            values = [accuracies[self.accuracies_keyname(metric, label_hierarchy_level=level)] for level in label_levels]
            accuracies[self.accuracies_keyname(metric, average=True)] = sum(values) / len(values)

    def get_splits_to_compute_embeddings(
        self, dataset_dict: Any, splits_to_eval: Any
    ) -> tuple[list[tuple[str, list[str]]], list[str]]:
        """Pairs of a query split and its reference splits, the query's own first among these; and all names once."""
        if splits_to_eval is None:
            splits_to_eval = [(name, [name]) for name in dataset_dict]
        queries = [query for query, _ in splits_to_eval]
        if len(set(queries)) != len(queries):
            raise ValueError(f"splits_to_eval must name each query split once, got {queries}")
        ordered: list[tuple[str, list[str]]] = []
        names: dict[str, None] = {}
        for query, references in splits_to_eval:
            own = [query] if query in references else []
            ordered.append((query, own + [name for name in references if name != query]))
            names |= dict.fromkeys([query, *references])
        unknown = [name for name in names if name not in dataset_dict]
        if unknown:
            raise ValueError(f"splits_to_eval must name splits of dataset_dict ({', '.join(dataset_dict)}), got {unknown}")
        return ordered, list(names)

    def ref_includes_query(self, query_split_name: str, reference_split_names: Sequence[str]) -> bool:
        """Whether queries are among the references, which then begin with them."""
        return query_split_name in reference_split_names

    # Measuring

    def do_knn_and_accuracies(
        self,
        accuracies: dict[str, Any],
        embeddings_and_labels: Splits,
        query_split_name: str,
        reference_split_names: list[str],
    ) -> None:
        """Put the metrics of a query split into `accuracies`; of the subclass."""
        raise NotImplementedError(f"{type(self).__name__} must define do_knn_and_accuracies")

    def test(
        self,
        dataset_dict: Any,
        epoch: int,
        trunk_model: Any,
        embedder_model: Any = None,
        splits_to_eval: Any = None,
        collate_fn: Any = None,
    ) -> dict[str, dict[str, Any]]:
        """The metrics by split: of each `(query, [references])` in `splits_to_eval`, or of each split against itself."""
        c_f.LOGGER.info("Evaluating epoch %s", epoch)
        if embedder_model is None:
            embedder_model = torch.nn.Identity()
        trunk_model.eval()
        embedder_model.eval()
        splits_to_eval, names = self.get_splits_to_compute_embeddings(dataset_dict, splits_to_eval)
        self.embeddings_and_labels = self.get_all_embeddings_for_all_splits(
            dataset_dict, trunk_model, embedder_model, names, collate_fn
        )
        self.maybe_visualize(self.embeddings_and_labels, epoch)
        self.all_accuracies: dict[str, dict[str, Any]] = defaultdict(dict)
        for query, references in splits_to_eval:
            c_f.LOGGER.info("Computing accuracy for the %s split w.r.t %s", query, references)
            self.all_accuracies[query]["epoch"] = epoch
            self.reference_split_names[query] = references
            self.do_knn_and_accuracies(self.all_accuracies[query], self.embeddings_and_labels, query, references)
        if self.end_of_testing_hook:
            self.end_of_testing_hook(self)
        else:
            c_f.LOGGER.info(self.all_accuracies)
        del self.embeddings_and_labels
        return self.all_accuracies
