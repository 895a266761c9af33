"""Exact neighbours: by the streaming engine, or by the matrix of a distance of one's own."""

from __future__ import annotations

import json
import os
import zipfile
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pml_fast._retrieval import check_k
from pml_fast.distances import BatchedDistance
from pml_fast.engine import operator
from pml_fast.engine.score import NAMED_SCORES, Score, named_score

from . import common_functions as c_f
from .files import write_atomically

VERSION = 1


class Comparison:
    """What the engine computes for a distance: a name of :data:`~pml_fast.engine.score.NAMED_SCORES`, a Score, or an object."""

    def __init__(self, distance: Any) -> None:
        if isinstance(distance, str | Score):
            self.score, self.name = named_score(distance), "Score"
            self._object = None
            return
        score = distance.engine_score() if hasattr(distance, "engine_score") else None
        if score is None:
            why = distance.engine_refusal() if hasattr(distance, "engine_refusal") else f"{type(distance).__name__} is its own"
            raise ValueError(
                f"distance must be one of {', '.join(NAMED_SCORES)}, a Score, or a distance that the engine can compute; "
                f"use CustomKNN: {why}"
            )
        self.score, self.name, self._object = score, type(distance).__name__, distance

    def rows(self, query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns as the engine takes them, of one type."""
        if query.dtype != reference.dtype:
            wide = torch.promote_types(query.dtype, reference.dtype)
            query, reference = query.to(wide), reference.to(wide)
        return (query, reference) if self._object is None else self._object.engine_rows(query, reference)

    def nearest(self, query: Tensor, k: int, reference: Tensor, itself: bool) -> tuple[Tensor, Tensor]:
        """Scores and indices ``[N, k]``, closest first."""
        check_sets(query, reference, itself)
        check_k(k, len(reference) - int(itself))
        with torch.no_grad():
            rows, cols = self.rows(query.detach(), reference.detach())
            scores, indices = operator.call("nearest", rows, cols, k, self.score.encode(), itself)
        return scores, indices

    def encode(self) -> str:
        """What a saved index must agree in."""
        return f"{self.name}|{self.score.encode()}"


def comparison_of(distance: Any) -> Comparison | None:
    """How the engine computes a distance, or ``None``: only its matrix will do."""
    score = distance.engine_score() if hasattr(distance, "engine_score") else None
    return None if score is None else Comparison(distance)


def check_sets(query: Tensor, reference: Tensor, itself: bool) -> None:
    """``TypeError`` or ``ValueError`` unless both are matrices of floating-point rows of one length."""
    for name, rows in (("query", query), ("reference", reference)):
        if not torch.is_tensor(rows) or not rows.is_floating_point():
            got = rows.dtype if torch.is_tensor(rows) else type(rows).__name__
            raise TypeError(f"{name} must be a floating-point tensor of shape (N, D), got {got}")
        if rows.ndim != 2:
            raise ValueError(f"{name} must have shape (N, D), got {tuple(rows.shape)}")
    if query.shape[1] != reference.shape[1]:
        raise ValueError(f"reference must have rows of the query's length, {query.shape[1]}, got {reference.shape[1]}")
    if itself and len(reference) < len(query):
        raise ValueError(
            f"reference must hold the {len(query)} queries where ref_includes_query is True, got {len(reference)} rows"
        )


class EmbeddingIndex(ABC):
    """Embeddings that are searched without a reference: filled by ``train`` and ``add``, saved to files and loaded."""

    FORMAT: ClassVar[str]

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    @abstractmethod
    def _distance_key(self) -> str:
        """What a saved index must agree in."""

    @property
    def embeddings(self) -> Tensor:
        """The rows of the index ``[M, D]``; ``ValueError`` where there is none."""
        if not self._parts:
            raise ValueError("there is no index to search: call train() or add() first, or pass a reference")
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def __len__(self) -> int:
        return sum(len(part) for part in self._parts)

    def train(self, embeddings: Any) -> None:
        """Make a new index of these embeddings ``[M, D]``."""
        self._parts = [self._checked(embeddings, None)]

    def add(self, embeddings: Any) -> None:
        """Add embeddings to the index, or start one with them; their indices follow those before."""
        first = self._parts[0] if self._parts else None
        self._parts.append(self._checked(embeddings, first))

    def reset(self) -> None:
        """Forget the index."""
        self._parts = []

    @staticmethod
    def _checked(embeddings: Any, first: Tensor | None) -> Tensor:
        rows = c_f.numpy_to_torch(embeddings)
        if not torch.is_tensor(rows) or rows.ndim != 2 or not rows.is_floating_point():
            raise TypeError("embeddings must be a floating-point tensor or array of shape (M, D)")
        rows = rows.detach()
        if first is None:
            return rows.clone()
        if rows.shape[1] != first.shape[1]:
            raise ValueError(f"embeddings must have rows of the index's length, {first.shape[1]}, got {rows.shape[1]}")
        return rows.to(first)

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Write the index (an uncompressed npz archive); a file that was there stays until the new one is complete."""
        rows = self.embeddings.cpu()
        header = {"format": self.FORMAT, "version": VERSION, "distance": self._distance_key(), "dtype": str(rows.dtype)}
        if rows.dtype == torch.bfloat16:
            rows = rows.float()  # numpy has no bfloat16
        text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)

        def write(path: str) -> None:
            with open(path, "wb") as file:
                np.savez(file, header=text, embeddings=rows.numpy())

        write_atomically(filename, write)

    def load(self, filename: str | os.PathLike[str]) -> None:
        """Read an index; nothing in the file is executed.

        Raises ``ValueError`` for a file that is damaged, of another format or a later version, or that was made for another
        distance; the index then stays as it was.
        """
        name = os.fspath(filename)
        try:
            with np.load(filename, allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes())
                rows = torch.from_numpy(archive["embeddings"])
            form, version, distance = header["format"], header["version"], header["distance"]
            dtype = getattr(torch, header["dtype"].removeprefix("torch."))
        except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            raise ValueError(f"{name!r} is not a whole index of {type(self).__name__}: {error}") from error
        if form != self.FORMAT or version != VERSION:
            raise ValueError(f"{name!r} must hold {self.FORMAT} of version {VERSION}, got {form} of version {version}")
        if distance != self._distance_key():
            raise ValueError(
                f"{name!r} was made for the distance {distance}, and this {type(self).__name__} compares by "
                f"{self._distance_key()}; make one with the same distance"
            )
        self._parts = [self._checked(rows, None).to(dtype)]


class ExactKNN(EmbeddingIndex):
    """Exact neighbours by the streaming engine of this package, in memory that grows with the rows alone.

    Called as ``knn(query, k, reference=None, ref_includes_query=False)`` it returns scores and indices ``[N, k]``, closest
    first, equal ones by their index. Without ``reference`` the index is searched that ``train`` and ``add`` filled. With
    ``ref_includes_query`` the reference begins with the queries, and none is its own neighbor.

    Args:
        distance: ``"cosine"``, ``"dot"``, ``"l2"``, ``"squared_l2"``, a distance of :mod:`pml_fast.distances`, or a ``Score``.
            The default gives the numbers of ``faiss.IndexFlatL2``.
    """

    FORMAT = "pml_fast.ExactKNN"

    def __init__(self, distance: Any = "squared_l2") -> None:
        super().__init__()
        self.comparison = Comparison(distance)

    def _distance_key(self) -> str:
        return self.comparison.encode()

    def __call__(
        self, query: Tensor, k: int, reference: Tensor | None = None, ref_includes_query: bool = False
    ) -> tuple[Tensor, Tensor]:
        if reference is None:
            reference = self.embeddings
        return self.comparison.nearest(query, k, reference.to(query.device), ref_includes_query)


class CustomKNN(EmbeddingIndex):
    """Exact neighbours by any distance of this package or of one's own.

    Called as ``knn(query, k, reference=None, ref_includes_query=False)`` it returns distances and indices ``[N, k]``, closest
    first. Without ``reference`` the index is searched that ``train`` and ``add`` filled. A distance that the engine can compute
    is streamed; the matrix of any other is computed whole, or ``batch_size`` rows at a time.
    """

    FORMAT = "pml_fast.CustomKNN"

    def __init__(self, distance: Any, batch_size: int | None = None) -> None:
        super().__init__()
        self.distance = BatchedDistance(distance, batch_size=batch_size) if batch_size else distance

    @property
    def comparison(self) -> Comparison | None:
        """How the engine computes the distance, or ``None`` where only its matrix will do."""
        return comparison_of(self.distance)

    def _distance_key(self) -> str:
        comparison = self.comparison
        if comparison is not None:
            return comparison.encode()
        inside = self.distance.distance if isinstance(self.distance, BatchedDistance) else self.distance
        settings = ("normalize_embeddings", "p", "power", "is_inverted")
        return "|".join([type(inside).__qualname__, *(f"{name}={getattr(inside, name, None)}" for name in settings)])

    def __call__(
        self, query: Tensor, k: int, reference: Tensor | None = None, ref_includes_query: bool = False
    ) -> tuple[Tensor, Tensor]:
        reference = (self.embeddings if reference is None else reference).to(query.device)
        comparison = self.comparison
        if comparison is not None:
            return comparison.nearest(query, k, reference, ref_includes_query)
        check_sets(query, reference, ref_includes_query)
        check_k(k, len(reference) - int(ref_includes_query))
        largest = self.distance.is_inverted
        indices = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
        # The distance chooses the type of its values.
        found: list[Tensor] = []

        def closest(mat: Tensor, start: int, end: int) -> None:
            if ref_includes_query:
                own = torch.arange(len(mat), device=mat.device)
                mat[own, own + start] = float("-inf") if largest else float("inf")
            values, indices[start:end] = torch.topk(mat, k, largest=largest, dim=1)
            found.append(values)

        with torch.no_grad():
            if isinstance(self.distance, BatchedDistance):
                self.distance.iter_fn = closest
                self.distance(query, reference)
            else:
                closest(self.distance(query, reference), 0, len(query))
        return (torch.cat(found) if found else query.new_empty(0, k)), indices


def get_topk(distances: Tensor, indices: Tensor, k: int, get_largest: bool) -> Any:
    """A function ``fn(mat, s, e)`` that puts the closest ``k`` of rows ``s:e`` into the two tensors."""

    def fn(mat: Tensor, s: int, e: int) -> None:
        distances[s:e], indices[s:e] = torch.topk(mat, k, largest=get_largest, dim=1)

    return fn
