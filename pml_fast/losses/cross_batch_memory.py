"""Cross-batch memory: a batch against a queue of past embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pml_fast.engine.copies import AllPairs, without_copies
from pml_fast.engine.lazy import Source
from pml_fast.losses.base_loss_wrapper import BaseLossWrapper
from pml_fast.losses.embedding_queue import EmbeddingQueue
from pml_fast.utils import common_functions as c_f
from pml_fast.utils import loss_and_miner_utils as lmu


@dataclass
class QueueCall:
    """How the wrapped loss is called, and what goes into the queue when it has returned."""

    embeddings: Tensor
    labels: Tensor
    indices: Sequence[Tensor]
    ref_emb: Tensor
    ref_labels: Tensor
    new_emb: Tensor
    new_labels: Tensor


class CrossBatchMemory(BaseLossWrapper, EmbeddingQueue):
    """A loss of the batch against a queue of the last ``memory_size`` embeddings, the batch included.

    Wang et al., "Cross-Batch Memory for Embedding Learning", CVPR 2020. The queue streams through the loss's engine: no
    ``batch x memory_size`` matrix and no list of pairs is made, also with a miner whose rule the loss folds. A sample and its
    own copy in the queue are no pair. Gradients go to the batch alone.

    The state dict holds the queue (``embedding_memory``, ``label_memory``) and its position (``queue_idx``,
    ``has_been_filled``), and a call that raises leaves them as they were. A state dict without position, as
    pytorch-metric-learning writes it, is loaded as an empty queue, with a warning.

    Args:
        loss: one of :meth:`supported_losses`.
        embedding_size: ``D``.
        memory_size: rows of the queue.
        miner: called with the batch and the queue for every batch.
    """

    def __init__(
        self,
        loss: torch.nn.Module,
        embedding_size: int,
        memory_size: int = 1024,
        miner: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(loss=loss, **kwargs)
        for name, value in (("embedding_size", embedding_size), ("memory_size", memory_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive int, got {value!r}")
        self.loss = loss
        self.miner = miner
        self.embedding_size = embedding_size
        self.memory_size = memory_size
        self.reset_queue()
        self.add_to_recordable_attributes(list_of_names=["embedding_size", "memory_size", "queue_idx"], is_stat=False)

    @staticmethod
    def supported_losses() -> list[str]:
        return [
            "AngularLoss",
            "CircleLoss",
            "ContrastiveLoss",
            "GeneralizedLiftedStructureLoss",
            "IntraPairVarianceLoss",
            "LiftedStructureLoss",
            "MarginLoss",
            "MultiSimilarityLoss",
            "NCALoss",
            "NTXentLoss",
            "SignalToNoiseRatioContrastiveLoss",
            "SupConLoss",
            "TripletMarginLoss",
            "TupletMarginLoss",
        ]

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None, enqueue_mask: Tensor | None = None) -> Any:
        """The loss of the batch against the queue.

        Args:
            embeddings: ``[N, embedding_size]``, at most ``memory_size`` rows where all of them are enqueued.
            labels: ``[N]``.
            indices_tuple: pairs or triplets beside those of the queue. Positives and negatives index ``embedding_memory`` as it
                is when the batch is in it: row ``i`` of the batch is its row ``(queue_idx + i) % memory_size``, with the
                ``queue_idx`` from before the call.
            enqueue_mask: bool ``[N]``: only these rows are enqueued, and only the others are anchors.

        Raises:
            TypeError, ValueError: naming the argument that does not fit.
        """
        if torch.compiler.is_compiling():
            # The position in the queue changes with every call: a graph of it would be compiled anew for every batch.
            return torch.compiler.disable(self._forward)(embeddings, labels, indices_tuple, enqueue_mask)
        return self._forward(embeddings, labels, indices_tuple, enqueue_mask)

    def _forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, enqueue_mask: Tensor | None) -> Any:
        self.reset_stats()
        if self._follows_own_steps():
            return self._forward_by_steps(embeddings, labels, indices_tuple, enqueue_mask)
        call = self.queue_call(embeddings, labels, indices_tuple, enqueue_mask)
        loss = self.loss(call.embeddings, call.labels, call.indices, call.ref_emb, call.ref_labels)
        self._take_types(call.new_emb, call.new_labels)
        self.add_to_memory(call.new_emb, call.new_labels, len(call.new_emb))
        return loss

    def queue_call(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None, enqueue_mask: Tensor | None = None
    ) -> QueueCall:
        """What :meth:`forward` calls the wrapped loss with; the queue stays as it is.

        The reference set is the queue as the batch will have changed it, turned so that what is new comes first.
        """
        labels = self._check(embeddings, labels, indices_tuple, enqueue_mask)
        anchors, anchor_labels, new_emb, new_labels = _split(embeddings, labels, enqueue_mask)
        ref_emb, ref_labels = self._turned(new_emb, new_labels)
        if self.miner is not None:
            mined = self.miner(anchors, anchor_labels, ref_emb, ref_labels)
        else:
            mined = AllPairs(Source.of(anchors, anchor_labels, ref_emb, ref_labels, False))
        if enqueue_mask is None:
            mined = without_copies(mined)
        if indices_tuple is not None:
            mined = _joined(mined, self._turned_indices(indices_tuple, len(ref_emb)), labels)
        return QueueCall(anchors, anchor_labels, mined, ref_emb, ref_labels, new_emb, new_labels)

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Sequence[Tensor]:
        """Index tensors of the batch, which is in the memory already, against the memory's rows in their own order.

        :meth:`forward` makes lazy tuples in its place, unless a subclass overrides this method or :meth:`add_to_memory`.
        """
        if self.miner is not None:
            indices = self.miner(embeddings, labels, E_mem, L_mem)
        else:
            indices = lmu.get_all_pairs_indices(labels, L_mem)
        if do_remove_self_comparisons:
            indices = lmu.remove_self_comparisons(indices, self.curr_batch_idx, self.memory_size)
        return indices if input_indices_tuple is None else _joined(indices, input_indices_tuple, labels)

    # ---- a subclass's own steps ----

    def _follows_own_steps(self) -> bool:
        own = type(self)
        ours = CrossBatchMemory
        return own.add_to_memory is not ours.add_to_memory or own.create_indices_tuple is not ours.create_indices_tuple

    def _forward_by_steps(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, enqueue_mask: Tensor | None) -> Any:
        """Enqueue, list the pairs, call the loss; where any of it raises, the queue is put back."""
        labels = self._check(embeddings, labels, indices_tuple, enqueue_mask)
        anchors, anchor_labels, new_emb, new_labels = _split(embeddings, labels, enqueue_mask)
        before = self.embedding_memory, self.label_memory, self.queue_idx, self.has_been_filled
        self.embedding_memory, self.label_memory = before[0].clone(), before[1].clone()
        try:
            self._take_types(new_emb, new_labels)
            self.add_to_memory(new_emb, new_labels, len(new_emb))
            end = self.memory_size if self.has_been_filled else self.queue_idx
            ref_emb, ref_labels = self.embedding_memory[:end], self.label_memory[:end]
            indices = self.create_indices_tuple(
                anchors, anchor_labels, ref_emb, ref_labels, indices_tuple, enqueue_mask is None
            )
            return self.loss(anchors, anchor_labels, indices, ref_emb, ref_labels)
        except BaseException:
            self.embedding_memory, self.label_memory, self.queue_idx, self.has_been_filled = before
            raise

    # ---- the arguments ----

    def _check(self, embeddings: Any, labels: Any, indices_tuple: Any, enqueue_mask: Any) -> Tensor:
        """Labels on the embeddings' device; ``TypeError``/``ValueError`` where the arguments do not fit."""
        if not torch.is_tensor(embeddings) or not torch.is_tensor(labels):
            name, value = ("labels", labels) if torch.is_tensor(embeddings) else ("embeddings", embeddings)
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embedding_size:
            raise ValueError(
                f"embeddings must have shape (batch_size, {self.embedding_size}), as embedding_size says, "
                f"got {tuple(embeddings.shape)}"
            )
        c_f.check_shapes(embeddings, labels)
        if enqueue_mask is None:
            if len(embeddings) > self.memory_size:
                raise ValueError(
                    f"embeddings must have at most memory_size = {self.memory_size} rows, got {len(embeddings)}; "
                    "give CrossBatchMemory a larger memory_size"
                )
        elif indices_tuple is not None:
            raise ValueError("indices_tuple and enqueue_mask are mutually exclusive; leave one of them out")
        elif not torch.is_tensor(enqueue_mask) or enqueue_mask.dtype != torch.bool:
            kind = enqueue_mask.dtype if torch.is_tensor(enqueue_mask) else type(enqueue_mask).__name__
            raise TypeError(f"enqueue_mask must be a bool tensor, got {kind}")
        elif tuple(enqueue_mask.shape) != (len(embeddings),):
            raise ValueError(f"enqueue_mask must have shape ({len(embeddings)},), got {tuple(enqueue_mask.shape)}")
        return c_f.to_device(labels, embeddings)


def _split(embeddings: Tensor, labels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Anchors and their labels, and what is to be enqueued, without its graph."""
    if mask is None:
        return embeddings, labels, embeddings.detach(), labels
    mask = mask.to(embeddings.device)
    return embeddings[~mask], labels[~mask], embeddings.detach()[mask], labels[mask]


def _joined(mined: Sequence[Tensor], given: Any, labels: Tensor) -> Sequence[Tensor]:
    """Both tuples in one, the user's in the form of the other."""
    if len(given) == 3 and len(mined) == 4:
        given = lmu.convert_to_pairs(given, labels)
    elif len(given) == 4 and len(mined) == 3:
        given = lmu.convert_to_triplets(given, labels)
    return c_f.concatenate_indices_tuples(tuple(mined), tuple(given))
