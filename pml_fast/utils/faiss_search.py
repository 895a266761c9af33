"""Neighbours and clusters by faiss, where a user asks for it. Importing this module does not import faiss."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import common_functions as c_f
from .files import write_atomically

# The most neighbours that faiss finds on a GPU.
MAX_K_ON_GPU = 2048
# What stands at the end of a file, after what faiss wrote, which faiss itself leaves unread: version and checksum.
_MAGIC, VERSION = b"pml_fast.FaissKNN", 1
_FOOTER_BYTES = len(_MAGIC) + 4 + hashlib.sha256().digest_size
_CHUNK = 1 << 20


def import_faiss() -> ModuleType:
    """The faiss module; ``ImportError`` says how to get it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            f'faiss is needed here, and its import failed ({error}); install it with: pip install "pml-fast[faiss-cpu]" '
            'or "pml-fast[faiss-gpu]", or use pml_fast.utils.inference.ExactKNN, which needs nothing'
        ) from error
    return faiss


def _array(rows: Any) -> np.ndarray:
    return np.ascontiguousarray(c_f.to_numpy(rows), dtype=np.float32)


class FaissKNN:
    """Neighbours by a faiss index: for approximate search, or for an index that other programs share.

    Called as ``knn(query, k, reference=None, ref_includes_query=False)`` it returns distances and indices ``[N, k]`` on the
    query's device. ``reference`` is added to the index before the search.

    Args:
        reset_before: start from a new index in every call.
        reset_after: forget the index after every call.
        index_init_fn: takes the embedding size and returns an index; ``faiss.IndexFlatL2`` if ``None``: squared distances.
        gpus: numbers of the GPUs to use; with ``None`` all of them, for queries that are on a GPU.

    Raises ``ImportError`` without faiss. Nothing moves to the CPU unsaid: where ``gpus`` are named, a search that they cannot
    do is an error; where a query lies on a GPU that faiss cannot use, a warning says so and why.
    """

    index: Any

    def __init__(
        self,
        reset_before: bool = True,
        reset_after: bool = True,
        index_init_fn: Callable[[int], Any] | None = None,
        gpus: Sequence[int] | None = None,
    ) -> None:
        faiss = import_faiss()
        if gpus is not None:
            if not isinstance(gpus, (list, tuple)):
                raise TypeError(f"gpus must be a list of numbers of GPUs, or None, got {type(gpus).__name__}")
            if not gpus:
                raise ValueError("gpus must name at least one GPU, got an empty list; pass None to use all of them")
        self.reset()
        self.reset_before = reset_before
        self.reset_after = reset_after
        self.index_init_fn = faiss.IndexFlatL2 if index_init_fn is None else index_init_fn
        self.gpus = gpus

    def __call__(
        self, query: Tensor, k: int, reference: Tensor | None = None, ref_includes_query: bool = False
    ) -> tuple[Tensor, Tensor]:
        if self.reset_before:
            self.index = self.index_init_fn(query.shape[1])
        if self.index is None:
            raise ValueError("there is no index to search: call train() or add() first, or set reset_before=True")
        self._check_width("query", query)
        if reference is not None:
            self._check_width("reference", reference)
        if not self.index.is_trained:
            self.index.train(_array(query if reference is None else reference))
        found = try_gpu(self.index, query, reference, k + int(ref_includes_query), query.is_cuda, self.gpus)
        distances, indices = (torch.as_tensor(part, device=query.device) for part in found)
        if self.reset_after:
            self.reset()
        return return_results(distances, indices, ref_includes_query)

    def train(self, embeddings: Any) -> None:
        """Make a new index of these embeddings."""
        index = self.index_init_fn(embeddings.shape[1])
        rows = _array(embeddings)
        if not index.is_trained:
            index.train(rows)
        index.add(rows)
        self.index = index

    def add(self, embeddings: Any) -> None:
        """Add embeddings to the index, or start one with them."""
        if self.index is None:
            self.train(embeddings)
        else:
            self._check_width("embeddings", embeddings)
            self.index.add(_array(embeddings))

    def _check_width(self, name: str, rows: Any) -> None:
        if rows.ndim != 2 or rows.shape[1] != self.index.d:
            raise ValueError(f"{name} must have shape (N, {self.index.d}), as the index has it, got {tuple(rows.shape)}")

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Write the index as faiss does, and a checksum; a file that was there stays until the new one is complete.

        faiss, and other programs that use it, read the file as any of theirs.
        """
        if self.index is None:
            raise ValueError("there is no index to save: call train() or add() first")
        index, faiss = convert_to_cpu_index(self.index), import_faiss()

        def write(path: str) -> None:
            faiss.write_index(index, path)
            digest = _digest(path, os.path.getsize(path))
            with open(path, "ab") as file:
                file.write(_MAGIC + VERSION.to_bytes(4, "little") + digest)

        write_atomically(filename, write)

    def load(self, filename: str | os.PathLike[str]) -> None:
        """Read an index, one of ``save`` or any that faiss wrote.

        Raises ``ValueError`` for a file that is damaged, none, or of another version; the index then stays as it was.
        """
        if not os.path.isfile(filename):
            raise FileNotFoundError(f"there is no file {os.fspath(filename)!r}")
        _check_file(os.fspath(filename))
        try:
            self.index = import_faiss().read_index(os.fspath(filename))
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"{os.fspath(filename)!r} is not a whole faiss index: {error}") from error

    def reset(self) -> None:
        """Forget the index."""
        self.index = None


def _check_file(filename: str) -> None:
    """``ValueError`` where a file of :meth:`FaissKNN.save` is of another version, or has changed since."""
    size = os.path.getsize(filename) - _FOOTER_BYTES
    if size < 0:
        return
    with open(filename, "rb") as file:
        file.seek(size)
        footer = file.read()
    if not footer.startswith(_MAGIC):
        return
    version = int.from_bytes(footer[len(_MAGIC) : len(_MAGIC) + 4], "little")
    if version != VERSION:
        raise ValueError(
            f"{filename!r} must be an index of version {VERSION}, got version {version}: save it with this pml_fast"
        )
    if _digest(filename, size) != footer[len(_MAGIC) + 4 :]:
        raise ValueError(f"{filename!r} is not a whole faiss index: it has changed since it was saved; save it again")


def _digest(filename: str, size: int) -> bytes:
    """SHA-256 of a file's first bytes."""
    digest = hashlib.sha256()
    with open(filename, "rb") as file:
        while size > 0:
            chunk = file.read(min(size, _CHUNK))
            digest.update(chunk)
            size -= len(chunk)
    return digest.digest()


class FaissKMeans:
    """k-means by faiss: ``kmeans(x, nmb_clusters)`` returns the cluster of each row ``[N]``, int64.

    Keyword arguments are those of ``faiss.Kmeans``, such as ``niter`` and ``gpu``. Raises ``ImportError`` without faiss.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = kwargs

    def __call__(self, x: Tensor, nmb_clusters: int) -> Tensor:
        rows = _array(x)
        kmeans = import_faiss().Kmeans(rows.shape[1], nmb_clusters, **self.kwargs)
        kmeans.train(rows)
        _, nearest = kmeans.index.search(rows, 1)
        return torch.as_tensor(nearest[:, 0], dtype=torch.int64, device=x.device)


def add_to_index_and_search(index: Any, query: Any, reference: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances and indices of the ``k`` nearest, after the reference, where there is one, was added."""
    if reference is not None:
        index.add(_array(reference))
    distances, indices = index.search(_array(query), k)
    return distances, indices


def convert_to_gpu_index(index: Any, gpus: Sequence[int] | None) -> Any:
    """The index on the GPUs of these numbers, or on all."""
    faiss = import_faiss()
    if "Gpu" in type(index).__name__:
        return index
    return faiss.index_cpu_to_all_gpus(index) if gpus is None else faiss.index_cpu_to_gpus_list(index, gpus=list(gpus))


def convert_to_cpu_index(index: Any) -> Any:
    """The index in the memory of the host."""
    return import_faiss().index_gpu_to_cpu(index) if "Gpu" in type(index).__name__ else index


def try_gpu(
    index: Any, query: Any, reference: Any, k: int, is_cuda: bool, gpus: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Search on GPUs where they are asked for or the query is on one, else on the CPU.

    Whatever faiss raises on a GPU is raised. ``ValueError`` where ``gpus`` are named and cannot be used.
    """
    if not is_cuda and gpus is None:
        return add_to_index_and_search(convert_to_cpu_index(index), query, reference, k)
    refusal = None
    if import_faiss().get_num_gpus() == 0:
        refusal = "this build of faiss can use no GPU (the extra faiss-gpu has one that can)"
    elif k > MAX_K_ON_GPU:
        refusal = f"faiss finds at most {MAX_K_ON_GPU} neighbors on a GPU, and {k} are asked for"
    if refusal is None:
        return add_to_index_and_search(convert_to_gpu_index(index, gpus), query, reference, k)
    if gpus is not None:
        raise ValueError(f"gpus={list(gpus)} cannot be used: {refusal}; pass gpus=None to search on the CPU")
    c_f.LOGGER.warning("faiss searches on the CPU although the query is on a GPU: %s", refusal)
    return add_to_index_and_search(convert_to_cpu_index(index), query, reference, k)


def run_pca(x: Tensor, output_dimensionality: int) -> Tensor:
    """The rows' first principal components ``[N, output_dimensionality]``, by faiss."""
    rows = _array(x)
    matrix = import_faiss().PCAMatrix(rows.shape[1], output_dimensionality)
    matrix.train(rows)
    return torch.as_tensor(matrix.apply_py(rows), device=x.device)


def mask_reshape_knn_idx(x: Tensor, matches_self_idx: Tensor) -> Tensor:
    """``x [N, k + 1]`` without the one marked entry of each row."""
    return x[~matches_self_idx].view(x.shape[0], -1)


def return_results(D: Tensor, I: Tensor, ref_includes_query: bool) -> tuple[Tensor, Tensor]:  # noqa: E741
    """Distances and indices without each row's own index, or without the last where it is not among them."""
    if not ref_includes_query:
        return D, I
    own = torch.arange(len(I), device=I.device).unsqueeze(1) == I
    own[:, -1] |= ~own.any(dim=1)
    return mask_reshape_knn_idx(D, own), mask_reshape_knn_idx(I, own)
