"""Losses and miners over the batches of all processes of a ``torch.distributed`` group (gloo, nccl).

What every rank returns, and what its gradients are, is in :class:`DistributedLossWrapper`. Batches may differ in size between
ranks. Rows of several ranks stand in order of rank everywhere, on every rank.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.copies import without_copies
from pml_fast.engine.lazy import LazyIndices
from pml_fast.losses import BaseMetricLossFunction, CrossBatchMemory, MultipleLosses, SelfSupervisedLoss
from pml_fast.losses.base_metric_loss_function import prepare_call
from pml_fast.miners import BaseMiner
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu
from pml_fast.utils.gathered import Batch, all_rows, all_sizes, gathered
from pml_fast.utils.index_types import named_indices

__all__ = [
    "DistributedLossWrapper",
    "DistributedMinerWrapper",
    "all_gather",
    "all_gather_embeddings_and_labels",
    "gather",
    "gather_emb_and_ref",
    "gather_enqueue_mask",
    "get_indices_tuple",
    "is_distributed",
    "select_ref_or_regular",
]

OBJECTIVES = ("global", "local_anchor")


def is_distributed() -> bool:
    """Whether this process belongs to a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


# ---- gathering ---------------------------------------------------------------------------------------------------------------


def all_gather(x: Tensor) -> Tensor | None:
    """The rows of the *other* ranks, in order of rank, without a graph; ``None`` in a world of one."""
    if torch.distributed.get_world_size() == 1:
        return None
    sizes = all_sizes(x)
    rank = torch.distributed.get_rank()
    first = sum(sizes[:rank])
    rows = all_rows(x, sizes)
    return torch.cat([rows[:first], rows[first + sizes[rank] :]])


def all_gather_embeddings_and_labels(emb: Tensor, labels: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """:func:`all_gather` of both; ``None`` for both where there is no process group."""
    if not is_distributed():
        return None, None
    return all_gather(emb), None if labels is None else all_gather(labels)


def gather(emb: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Embeddings and labels of all ranks, in order of rank, and ``labels`` on the embeddings' device.

    ``emb`` gets ``world_size`` times the gradient of its own rows, see :class:`DistributedLossWrapper`.
    """
    batch = gathered(emb, labels)
    return batch.attached(emb), batch.labels, None if labels is None else c_f.to_device(labels, emb)


def gather_emb_and_ref(
    emb: Tensor, labels: Tensor | None, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """:func:`gather` of the batch and of the reference set: all embeddings, labels, references, their labels; own labels."""
    all_emb, all_labels, labels = gather(emb, labels)
    if ref_emb is None:
        return all_emb, all_labels, None, None, labels
    references = gathered(ref_emb, ref_labels, "references")
    return all_emb, all_labels, references.attached(ref_emb), references.labels, labels


def gather_enqueue_mask(enqueue_mask: Tensor | None, device: torch.device | str) -> Tensor | None:
    """The mask of all ranks, in order of rank."""
    if enqueue_mask is None:
        return None
    mask = c_f.to_device(enqueue_mask, device=device)
    return all_rows(mask, all_sizes(mask))


def get_indices_tuple(
    labels: Tensor,
    ref_labels: Tensor,
    embeddings: Tensor | None = None,
    ref_emb: Tensor | None = None,
    miner: Any = None,
) -> Any:
    """All pairs, or the miner's, of this rank's rows against those of all ranks, in order of rank; no row with itself."""
    if miner is None:
        indices: Any = lmu.get_all_pairs_indices(labels, ref_labels)
    else:
        indices = miner(embeddings, labels, ref_emb, ref_labels)
    sizes = [len(labels)]
    if is_distributed():
        sizes = all_sizes(labels)
    rank = torch.distributed.get_rank() if is_distributed() else 0
    own = torch.arange(len(labels), device=labels.device) + sum(sizes[:rank])
    return lmu.remove_self_comparisons(indices, own, len(ref_labels))


def select_ref_or_regular(regular: Any, ref: Any) -> Any:
    """``ref`` where there is one, else ``regular``."""
    return regular if ref is None else ref


class _InOrder(LazyIndices):
    """A lazy tuple over a reference set that begins with this rank's rows, as positions in order of rank."""

    def __init__(self, of: LazyIndices, batch: Batch) -> None:
        super().__init__()
        self.of, self.batch, self.size = of, batch, of.size

    def _make(self) -> Any:
        return _moved(self.of.materialise(), self.batch.in_order)

    def describe(self) -> str:
        return self.of.describe()


def _moved(indices: Any, move: Any) -> Any:
    """An index tuple with moved positives and negatives."""
    parts = list(named_indices(tuple(indices)))
    for k in (1, len(parts) - 1):
        parts[k] = move(parts[k])
    if len(parts) == 3:
        return named_indices([parts[0], parts[1], parts[2]])
    return named_indices(parts)


# ---- the wrappers ------------------------------------------------------------------------------------------------------------


class DistributedLossWrapper(torch.nn.Module):
    """A loss over the batches of all ranks, equal to one process on their concatenation in order of rank.

    Let ``L`` be that one loss. **Every rank returns** ``L``. Its ``backward`` leaves ``world_size * dL/dx`` in this rank's
    embeddings, so that the *mean* over ranks that DistributedDataParallel takes of a model's gradients is ``dL/d(model)``. The
    mean over ranks of the gradients of the loss's own parameters is ``dL/d(parameter)``, too: wrap what has parameters,
    ``DistributedDataParallel(DistributedLossWrapper(loss))``. All ranks must call it, and its backward, alike.

    ``objective="global"``: every rank gathers the embeddings of all and computes the whole loss. One exchange of the
    embeddings, none in the backward. Random draws of the loss are the same on all ranks. An ``indices_tuple`` names rows of
    the gathered batch and must be the same on all ranks, as from :class:`DistributedMinerWrapper`.

    ``objective="local_anchor"`` (``efficient=True``): every rank computes the losses of its own anchors against the gathered
    references; what is reduced over anchors is exchanged, a few numbers a row, and so are the references' gradients in the
    backward. Same value and gradients, a ``world_size``-th of the work and of the memory beside the embeddings. For losses
    whose anchors can be computed apart; others raise ValueError. Anchors of an ``indices_tuple`` name this rank's rows, the
    others rows of the gathered batch. Losses that list their pairs or triplets list those of this rank's anchors.

    Args:
        loss: a BaseMetricLossFunction, CrossBatchMemory, SelfSupervisedLoss or MultipleLosses (the last for ``"global"``).
        efficient: pytorch-metric-learning's name for ``objective="local_anchor"``.
        objective: ``"global"`` or ``"local_anchor"``; the default follows ``efficient``.
    """

    def __init__(self, loss: torch.nn.Module, efficient: bool = False, *, objective: str | None = None) -> None:
        super().__init__()
        if not isinstance(loss, (BaseMetricLossFunction, CrossBatchMemory, SelfSupervisedLoss, MultipleLosses)):
            raise TypeError(
                "loss must be a BaseMetricLossFunction, CrossBatchMemory, SelfSupervisedLoss or MultipleLosses, "
                f"got {type(loss).__name__}"
            )
        if objective is None:
            objective = "local_anchor" if efficient else "global"
        if objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {objective!r}")
        self.loss = loss
        self.objective = objective
        self.efficient = objective == "local_anchor"
        if self.efficient:
            _check_anchors(loss)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Any = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Any:
        """The loss of all ranks' batches.

        Args:
            embeddings: ``[n, D]``, this rank's.
            labels: ``[n]``.
            indices_tuple: see the class.
            ref_emb: ``[m, D]``, this rank's part of a reference set, or the second view of a SelfSupervisedLoss.
            ref_labels: ``[m]``.
            enqueue_mask: bool ``[n]``, for a CrossBatchMemory.
        """
        alone = not is_distributed()
        if alone:
            warnings.warn("there is no process group: DistributedLossWrapper returns the loss of this process", stacklevel=2)
        if ref_emb is embeddings and (ref_labels is None or ref_labels is labels):
            ref_emb = ref_labels = None
        if isinstance(self.loss, CrossBatchMemory):
            world_size = 1 if alone else torch.distributed.get_world_size()
            return self.forward_cross_batch(embeddings, labels, indices_tuple, ref_emb, ref_labels, world_size, enqueue_mask)
        if enqueue_mask is not None:
            raise ValueError("enqueue_mask belongs to a CrossBatchMemory, and the loss is none: leave it out")
        world_size = 1 if alone else torch.distributed.get_world_size()
        return self.forward_regular_loss(embeddings, labels, indices_tuple, ref_emb, ref_labels, world_size)

    def forward_regular_loss(
        self,
        emb: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        world_size: int,
    ) -> Any:
        """The loss of anything but a CrossBatchMemory."""
        if world_size <= 1:
            return _call(self.loss, emb, labels, indices_tuple, ref_emb, ref_labels)
        if self.efficient:
            return self._of_own_anchors(emb, labels, indices_tuple, ref_emb, ref_labels)
        batch = gathered(emb, labels)
        all_emb, all_labels, all_ref_emb, all_ref_labels, _ = gather_emb_and_ref(emb, labels, ref_emb, ref_labels)
        with batch.same_draws(emb.device):
            return _call(self.loss, all_emb, all_labels, indices_tuple, all_ref_emb, all_ref_labels)

    def forward_cross_batch(
        self,
        emb: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        world_size: int,
        enqueue_mask: Tensor | None,
    ) -> Any:
        """The loss against the queue, into which every rank puts the batches of all, in order of rank."""
        if ref_emb is not None or ref_labels is not None:
            raise ValueError("CrossBatchMemory has a reference set of its own: leave ref_emb and ref_labels as None")
        if labels is None:
            raise ValueError("labels must be given to a CrossBatchMemory, got None")
        if world_size <= 1:
            return self.loss(emb, labels, indices_tuple, enqueue_mask)
        batch = gathered(emb, labels)
        with batch.same_draws(emb.device):
            mask = gather_enqueue_mask(enqueue_mask, emb.device)
            return self.loss(batch.attached(emb), batch.labels, indices_tuple, mask)

    def _of_own_anchors(
        self, emb: Tensor, labels: Tensor | None, indices_tuple: Any, ref_emb: Tensor | None, ref_labels: Tensor | None
    ) -> Any:
        loss: Any = self.loss
        if isinstance(loss, SelfSupervisedLoss):
            emb, labels, ref_emb, ref_labels = _views(loss, emb, ref_emb)
            loss = loss.loss
        loss.reset_stats()
        batch = gathered(emb, labels)
        call = prepare_call(emb, labels, None, ref_emb, ref_labels)
        if ref_emb is None and loss.meets_references:
            call.ref_emb, call.ref_labels = batch.own_first(emb), batch.labels_own_first
            call.itself = False
        elif ref_emb is not None:
            references = gathered(ref_emb, ref_labels, "references")
            call.ref_emb, call.ref_labels = references.attached(ref_emb, summed=True), references.labels
        call.indices = self._own_indices(indices_tuple, batch, turned=ref_emb is None)
        if call.labels is None:
            raise ValueError("labels must be given for objective='local_anchor', got None")
        total = loss.joined_loss(call, ref_emb is None and loss.meets_references, batch)
        if loss.embedding_regularizer is not None:
            total = total + loss.reduced_regularization(batch.attached(emb), None)
        # Ties every rank to the references, so that all of them take part in the exchange of gradients.
        return total + call.ref_emb[:0].sum() + emb[:0].sum()

    @staticmethod
    def _own_indices(indices: Any, batch: Batch, turned: bool) -> Any:
        if indices is None or not turned:
            return indices
        if isinstance(indices, _InOrder) and indices.batch is batch:
            return indices.of
        return _moved(indices, batch.turned)


class DistributedMinerWrapper(torch.nn.Module):
    """A miner over the batches of all ranks.

    By default every rank mines the whole gathered batch, in order of rank, and gets the tuple of one process; random draws
    are the same on all ranks. With ``efficient`` a rank's anchors are its own rows, mined against all: for
    ``DistributedLossWrapper(objective="local_anchor")``. Where a miner chooses anchor by anchor the ranks' tuples are then
    together those of one process; HDCMiner and UniformHistogramMiner choose among the pairs of the rank's own anchors.
    """

    def __init__(self, miner: torch.nn.Module, efficient: bool = False) -> None:
        super().__init__()
        if not isinstance(miner, BaseMiner):
            raise TypeError(f"miner must be a BaseMiner, got {type(miner).__name__}")
        self.miner = miner
        self.efficient = efficient

    def forward(self, emb: Tensor, labels: Tensor, ref_emb: Tensor | None = None, ref_labels: Tensor | None = None) -> Any:
        """The tuple; ``emb`` and ``labels`` are this rank's, ``ref_emb`` its part of a reference set."""
        if not is_distributed():
            warnings.warn("there is no process group: DistributedMinerWrapper mines the batch of this process", stacklevel=2)
            return self.miner(emb, labels, ref_emb, ref_labels)
        if torch.distributed.get_world_size() <= 1:
            return self.miner(emb, labels, ref_emb, ref_labels)
        batch = gathered(emb, labels)
        references = None if ref_emb is None else gathered(ref_emb, ref_labels, "references")
        given = (None, None) if references is None else (references.embeddings, references.labels)
        if not self.efficient:
            with batch.same_draws(emb.device):
                return self.miner(batch.embeddings, batch.labels, *given)
        if references is not None:
            return self.miner(emb, labels, *given)
        mined = without_copies(self.miner(emb, labels, batch.embeddings_own_first, batch.labels_own_first))
        return _InOrder(mined, batch) if isinstance(mined, LazyIndices) else _moved(mined, batch.in_order)


def _check_anchors(loss: Any) -> None:
    """``ValueError`` unless the anchors of a loss can be computed apart."""
    inner = loss.loss if isinstance(loss, SelfSupervisedLoss) else loss
    if isinstance(inner, BaseMetricLossFunction):
        reason = inner.joint_anchors
    else:
        reason = "the queue is compared with the whole batch" if isinstance(inner, CrossBatchMemory) else "it holds several"
    if reason:
        raise ValueError(
            f"the anchors of {type(inner).__name__} cannot be shared between ranks: {reason}; use objective='global'"
        )


def _call(loss: Any, emb: Tensor, labels: Any, indices: Any, ref_emb: Any, ref_labels: Any) -> Any:
    """A loss with the arguments its kind takes."""
    if isinstance(loss, SelfSupervisedLoss):
        if ref_emb is None:
            raise ValueError("ref_emb must be given to a SelfSupervisedLoss, got None: pass the second view as ref_emb")
        return loss(emb, ref_emb)
    if isinstance(loss, MultipleLosses):
        return loss(emb, labels, indices)
    return loss(emb, labels, indices, ref_emb, ref_labels)


def _views(
    loss: SelfSupervisedLoss, emb: Tensor, ref_emb: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Two views as a batch whose labels are the samples' positions among those of all ranks."""
    if ref_emb is None or emb.shape != ref_emb.shape:
        raise ValueError("ref_emb must be the second view, of the shape of embeddings, for a SelfSupervisedLoss")
    sizes = all_sizes(emb)
    first = sum(sizes[: torch.distributed.get_rank()])
    labels = torch.arange(first, first + len(emb), device=emb.device)
    if loss.symmetric:
        return torch.cat([emb, ref_emb]), torch.cat([labels, labels]), None, None
    return emb, labels, ref_emb, labels.clone()
