"""The base of all distances."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.utils.checks import check_number, check_positive
from pml_fast.utils.module_with_records import ModuleWithRecords


class BaseDistance(ModuleWithRecords):
    """A distance or similarity between rows of two sets.

    Called as ``distance(query_emb, ref_emb=None)`` it returns the whole ``[N, M]`` matrix. Losses and miners of this package do
    not call it so: they ask :meth:`engine_score` what a streaming engine must compute. A subclass of your own needs only
    ``compute_mat`` (and ``pairwise_distance``); it gives no engine score and so takes the materialised path.

    Args:
        normalize_embeddings: divide rows by their p-norm first.
        p: the order of the norm, above 0; may be infinite.
        power: the matrix is raised to this power.
        is_inverted: larger values mean closer (a similarity).
    """

    def __init__(
        self,
        normalize_embeddings: bool = True,
        p: float = 2,
        power: float = 1,
        is_inverted: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive("p", p, infinite=True)
        check_number("power", power)
        self.normalize_embeddings = normalize_embeddings
        self.p = p
        self.power = power
        self.is_inverted = is_inverted
        self.add_to_recordable_attributes(list_of_names=["p", "power"], is_stat=False)
        self.add_to_recordable_attributes(
            list_of_names=[
                "initial_avg_query_norm",
                "initial_avg_ref_norm",
                "final_avg_query_norm",
                "final_avg_ref_norm",
            ],
            is_stat=True,
        )

    def forward(self, query_emb: Tensor, ref_emb: Tensor | None = None) -> Tensor:
        """The ``[N, M]`` matrix of all distances; ``ref_emb=None`` compares ``query_emb`` with itself."""
        self.reset_stats()
        self.check_shapes(query_emb, ref_emb)
        query = self.maybe_normalize(query_emb)
        ref = query if ref_emb is None else self.maybe_normalize(ref_emb)
        self.set_default_stats(query_emb, query_emb if ref_emb is None else ref_emb, query, ref)
        mat = self.compute_mat(query, ref)
        if self.power != 1:
            mat = mat**self.power
        expected = (query.shape[0], ref.shape[0])
        if tuple(mat.shape) != expected:
            raise ValueError(
                f"compute_mat of {type(self).__name__} must return a matrix of shape {expected}, got {tuple(mat.shape)}"
            )
        return mat

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """The matrix between rows that are already normalised. Subclasses implement it."""
        raise NotImplementedError

    def pairwise_distance(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        """The distances of rows taken two by two. Subclasses implement it."""
        raise NotImplementedError

    def engine_score(self) -> Score | None:
        """What a streaming engine must compute for this distance, or ``None``: only the matrix will do."""
        return None

    def engine_refusal(self) -> str:
        """Why :meth:`engine_score` is ``None``."""
        if self.collect_stats:
            return f"{type(self).__name__} collects statistics of the norms, which its own forward takes"
        return f"{type(self).__name__} is a distance of its own: only its compute_mat is known"

    def engine_rows(self, query_emb: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns as the engine takes them (differentiable)."""
        return query_emb, ref_emb

    def _divided_before(self) -> str:
        """By what rows are divided before the engine gets them, which knows the Euclidean norm only; empty for nothing."""
        return f"divided by their {float(self.p)!r}-norms" if self.normalize_embeddings and self.p != 2 else ""

    def _rows_divided_before(self, query_emb: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
        if not self._divided_before():
            return query_emb, ref_emb
        query = self.normalize(query_emb)
        return query, query if ref_emb is query_emb else self.normalize(ref_emb)

    def _is_plain(self, cls: type) -> bool:
        """Whether nothing of the maths of ``cls`` is overridden, and no statistics are wanted."""
        watched = self.collect_stats or self._forward_hooks or self._forward_pre_hooks
        return not watched and _is_of_class(self, _MATHS, cls)

    def smallest_dist(self, *args: Any, **kwargs: Any) -> Any:
        """``torch.max`` for similarities, ``torch.min`` for distances: the closest."""
        return torch.max(*args, **kwargs) if self.is_inverted else torch.min(*args, **kwargs)

    def largest_dist(self, *args: Any, **kwargs: Any) -> Any:
        """``torch.min`` for similarities, ``torch.max`` for distances: the furthest."""
        return torch.min(*args, **kwargs) if self.is_inverted else torch.max(*args, **kwargs)

    def margin(self, x: Any, y: Any) -> Any:
        """How much further ``x`` is than ``y``."""
        return y - x if self.is_inverted else x - y

    def normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """Rows divided by their p-norm."""
        check_positive("p", self.p, infinite=True)
        return torch.nn.functional.normalize(embeddings, p=self.p, dim=dim, **kwargs)

    def maybe_normalize(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """:meth:`normalize`, where ``normalize_embeddings`` is on."""
        return self.normalize(embeddings, dim=dim, **kwargs) if self.normalize_embeddings else embeddings

    def get_norm(self, embeddings: Tensor, dim: int = 1, **kwargs: Any) -> Tensor:
        """The p-norm of each row."""
        return torch.norm(embeddings, p=self.p, dim=dim, **kwargs)

    def set_default_stats(
        self, query_emb: Tensor, ref_emb: Tensor, query_emb_normalized: Tensor, ref_emb_normalized: Tensor
    ) -> None:
        """Record the mean norms before and after normalising, where statistics are collected."""
        if not self.collect_stats:
            return
        with torch.no_grad():
            self.initial_avg_query_norm = self.get_norm(query_emb).mean().item()
            self.initial_avg_ref_norm = self.get_norm(ref_emb).mean().item()
            self.final_avg_query_norm = self.get_norm(query_emb_normalized).mean().item()
            self.final_avg_ref_norm = self.get_norm(ref_emb_normalized).mean().item()

    def check_shapes(self, query_emb: Tensor, ref_emb: Tensor | None) -> None:
        """``ValueError`` unless both are matrices with rows of one length."""
        for name, value in (("query_emb", query_emb), ("ref_emb", ref_emb)):
            if value is not None and value.ndim != 2:
                raise ValueError(
                    f"{name} must be a 2-D tensor of shape (batch_size, embedding_size), got shape {tuple(value.shape)}"
                )
        if ref_emb is not None and ref_emb.shape[1] != query_emb.shape[1]:
            raise ValueError(
                f"ref_emb must have rows of the length of query_emb's, {query_emb.shape[1]}, got {ref_emb.shape[1]}"
            )


_MARGIN = frozenset({"margin"})
_MATHS = _MARGIN | {"forward", "compute_mat", "normalize", "maybe_normalize", "smallest_dist"}


def _is_of_class(distance: BaseDistance, names: frozenset[str], cls: type) -> bool:
    """Whether methods are those of ``cls``: every call of a loss asks."""
    if not names.isdisjoint(vars(distance)):
        return False
    own = type(distance)
    return own is cls or all([getattr(own, name) is getattr(cls, name) for name in names])


def own_margin(distance: BaseDistance) -> bool:
    """Whether a subclass, or a patch, has replaced ``margin``."""
    return not _is_of_class(distance, _MARGIN, BaseDistance)


def refuse_own_margin(module: Any) -> None:
    """``TypeError`` where the distance of a loss or miner, which compares scores itself, has replaced ``margin``."""
    if own_margin(module.distance):
        raise TypeError(
            f"{type(module).__name__} compares scores by their difference, and does not take the margin() of "
            f"{type(module.distance).__name__}; put the change into compute_mat, or write the loss on BaseMetricLossFunction"
        )
