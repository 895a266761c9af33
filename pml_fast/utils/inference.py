"""Trained models at work: embeddings of images or of any list of inputs, matches, and nearest neighbours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pml_fast.distances import BatchedDistance, CosineSimilarity

from . import common_functions as c_f
from .exact_search import CustomKNN, ExactKNN, get_topk
from .faiss_search import (
    FaissKMeans,
    FaissKNN,
    add_to_index_and_search,
    convert_to_cpu_index,
    convert_to_gpu_index,
    mask_reshape_knn_idx,
    return_results,
    run_pca,
    try_gpu,
)
from .progress import Progress

__all__ = [
    "BatchedDistance",
    "CosineSimilarity",
    "CustomKNN",
    "ExactKNN",
    "FaissKMeans",
    "FaissKNN",
    "InferenceModel",
    "MatchFinder",
    "add_to_index_and_search",
    "convert_to_cpu_index",
    "convert_to_gpu_index",
    "get_topk",
    "mask_reshape_knn_idx",
    "return_results",
    "run_pca",
    "try_gpu",
]

# Elements of a matrix of distances that is held at a time.
_STRIP_ELEMENTS = 1 << 22


class MatchFinder:
    """Which embeddings match: those whose distance is within a threshold.

    Args:
        distance: a distance or similarity; a similarity must reach the threshold, a distance must not exceed it.
        threshold: what calls use that give none.
    """

    def __init__(self, distance: Any, threshold: float | None = None) -> None:
        self.distance = distance
        self.threshold = threshold

    def operate_on_emb(
        self, input_func: Callable[..., Any], query_emb: Tensor, ref_emb: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """``input_func(query_emb, ref_emb, ...)``, the query compared with itself where ``ref_emb`` is ``None``."""
        return input_func(query_emb, query_emb if ref_emb is None else ref_emb, *args, **kwargs)

    def get_matching_pairs(
        self, query_emb: Tensor, ref_emb: Tensor | None = None, threshold: float | None = None, return_tuples: bool = False
    ) -> Any:
        """The bool array ``[N, M]`` of matches, or with ``return_tuples`` the list of ``(query, reference)`` indices."""
        threshold = self._threshold(threshold)
        with torch.no_grad():
            return self.operate_on_emb(self._matching_pairs, query_emb, ref_emb, threshold, return_tuples)

    def _matching_pairs(self, query_emb: Tensor, ref_emb: Tensor, threshold: float, return_tuples: bool) -> Any:
        rows = max(1, _STRIP_ELEMENTS // max(1, len(ref_emb)))
        strips = [
            self._within(self.distance(part, ref_emb), threshold).cpu().numpy() if not return_tuples
            else self._pairs(part, ref_emb, threshold, k * rows)
            for k, part in enumerate(query_emb.split(rows))
        ]  # fmt: skip
        if return_tuples:
            return [pair for strip in strips for pair in strip]
        return np.concatenate(strips) if strips else np.zeros((0, len(ref_emb)), dtype=bool)

    def _pairs(self, query_emb: Tensor, ref_emb: Tensor, threshold: float, first: int) -> list[tuple[int, int]]:
        i, j = torch.nonzero(self._within(self.distance(query_emb, ref_emb), threshold), as_tuple=True)
        return list(zip((i + first).tolist(), j.tolist()))

    def is_match(self, x: Tensor, y: Tensor, threshold: float | None = None) -> Any:
        """Whether the rows of ``x`` and ``y`` match, two by two: a bool array, or a bool for a single pair."""
        threshold = self._threshold(threshold)
        with torch.no_grad():
            output = self._within(self.distance.pairwise_distance(x, y), threshold)
        return output.item() if output.nelement() == 1 else output.cpu().numpy()

    def _within(self, distances: Tensor, threshold: float) -> Tensor:
        return distances >= threshold if self.distance.is_inverted else distances <= threshold

    def _threshold(self, threshold: float | None) -> float:
        threshold = self.threshold if threshold is None else threshold
        if threshold is None:
            raise ValueError("threshold must be a number, got None: pass one here or to MatchFinder")
        return threshold


class InferenceModel:
    """A trained model with an index of neighbours and a finder of matches.

    Inputs are tensors, lists of tensors of one shape (which are stacked), datasets where they are embedded in batches, or lists
    of anything that ``trunk`` takes, or that ``transform`` makes tensors of. Models are put into evaluation mode.

    Args:
        trunk: takes a batch of inputs.
        embedder: takes what ``trunk`` returns; nothing if ``None``.
        match_finder: cosine similarity of at least 0.9 if ``None``.
        normalize_embeddings: divide embeddings by their Euclidean norm.
        knn_func: what searches; :class:`ExactKNN` if ``None``, whose squared distances are those of PML's FaissKNN.
        data_device: where inputs are put; a GPU where there is one if ``None``.
        dtype: the type of tensor inputs; as they are if ``None``.
        transform: makes a tensor of each input of a list, such as an image or its path, when its batch is embedded.
    """

    def __init__(
        self,
        trunk: torch.nn.Module,
        embedder: torch.nn.Module | None = None,
        match_finder: MatchFinder | None = None,
        normalize_embeddings: bool = True,
        knn_func: Any = None,
        data_device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        transform: Callable[[Any], Tensor] | None = None,
    ) -> None:
        self.trunk = trunk
        self.embedder = torch.nn.Identity() if embedder is None else embedder
        self.match_finder = MatchFinder(CosineSimilarity(), threshold=0.9) if match_finder is None else match_finder
        self.knn_func = ExactKNN() if knn_func is None else knn_func
        self.normalize_embeddings = normalize_embeddings
        self.data_device = c_f.use_cuda_if_available() if data_device is None else data_device
        self.dtype = dtype
        self.transform = transform

    def get_embeddings_from_tensor_or_dataset(self, inputs: Any, batch_size: int) -> Tensor:
        """Embeddings ``[N, D]``, ``batch_size`` inputs at a time; of a dataset's items ``(input, label)`` the inputs."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
        embeddings = [self.get_embeddings(batch) for batch in Progress(self._batches(inputs, batch_size), "embedding")]
        if not embeddings:
            raise ValueError("inputs must not be empty: there is nothing to embed")
        return torch.cat(embeddings)

    def _batches(self, inputs: Any, batch_size: int) -> Sequence[Any] | Iterable[Any]:
        if isinstance(inputs, (Tensor, list)):
            return [inputs[first : first + batch_size] for first in range(0, len(inputs), batch_size)]
        if isinstance(inputs, Dataset):
            return _InputsOnly(DataLoader(inputs, batch_size=batch_size))
        raise TypeError(f"inputs must be a tensor, a list or a torch Dataset, got {type(inputs).__name__}")

    def train_knn(self, inputs: Any, batch_size: int = 64) -> None:
        """Make a new index of the inputs' embeddings."""
        self.call_knn(self.knn_func.train, inputs, batch_size)

    def add_to_knn(self, inputs: Any, batch_size: int = 64) -> None:
        """Add the inputs' embeddings to the index."""
        self.call_knn(self.knn_func.add, inputs, batch_size)

    def call_knn(self, func: Callable[[Tensor], Any], inputs: Any, batch_size: int) -> None:
        """``func`` of the inputs' embeddings."""
        func(self.get_embeddings_from_tensor_or_dataset(inputs, batch_size))

    def get_nearest_neighbors(self, query: Any, k: int, batch_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Distances and indices ``[N, k]`` of each query's neighbours in the index, embedded ``batch_size`` at a time."""
        distances, indices = self.knn_func(self._embedded(query, batch_size), k)
        return distances, indices

    def _embedded(self, inputs: Any, batch_size: int | None) -> Tensor:
        """All at once where there is no batch size."""
        return (
            self.get_embeddings(inputs)
            if batch_size is None
            else self.get_embeddings_from_tensor_or_dataset(inputs, batch_size)
        )

    def get_embeddings(self, x: Any) -> Tensor:
        """The embeddings of one batch, without a graph."""
        x = self.process_if_list(x)
        if isinstance(x, Tensor):
            x = c_f.to_device(x, device=self.data_device, dtype=self.dtype)
        self.trunk.eval()
        self.embedder.eval()
        with torch.no_grad():
            embeddings: Tensor = self.embedder(self.trunk(x))
        return torch.nn.functional.normalize(embeddings, p=2, dim=1) if self.normalize_embeddings else embeddings

    def get_matches(
        self,
        query: Any,
        ref: Any = None,
        threshold: float | None = None,
        return_tuples: bool = False,
        batch_size: int | None = None,
    ) -> Any:
        """:meth:`MatchFinder.get_matching_pairs` of the embeddings; the query is compared with itself without ``ref``."""
        query_emb = self._embedded(query, batch_size)
        ref_emb = query_emb if ref is None else self._embedded(ref, batch_size)
        return self.match_finder.get_matching_pairs(query_emb, ref_emb, threshold, return_tuples)

    def is_match(self, x: Any, y: Any, threshold: float | None = None, batch_size: int | None = None) -> Any:
        """:meth:`MatchFinder.is_match` of the embeddings, two by two."""
        return self.match_finder.is_match(self._embedded(x, batch_size), self._embedded(y, batch_size), threshold)

    def save_knn_func(self, filename: str | os.PathLike[str]) -> None:
        """Write the index to a file."""
        self.knn_func.save(filename)

    def load_knn_func(self, filename: str | os.PathLike[str]) -> None:
        """Read the index from a file."""
        self.knn_func.load(filename)

    def process_if_list(self, x: Any) -> Any:
        """A list of tensors, or of what ``transform`` makes tensors of, as one tensor; anything else as it is."""
        if isinstance(x, list) and self.transform is not None:
            x = [self.transform(item) for item in x]
        if isinstance(x, list) and x and all(isinstance(item, Tensor) for item in x):
            return torch.stack(x)
        return x


class _InputsOnly:
    """The batches of a loader without their labels."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        for batch in self.loader:
            yield batch[0] if isinstance(batch, (list, tuple)) else batch
