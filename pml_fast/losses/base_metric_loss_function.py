"""The base of all losses."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.engine.lazy import LazyIndices
from pml_fast.engine.plan import MATERIALISED, Call, Plan
from pml_fast.losses.joined import all_pairs, joined_losses
from pml_fast.losses.mixins import EmbeddingRegularizerMixin
from pml_fast.reducers import MultipleReducers
from pml_fast.utils import common_functions as c_f
from pml_fast.utils.index_types import named_indices
from pml_fast.utils.module_with_records_and_reducer import ModuleWithRecordsReducerAndDistance

LossDict = dict[str, dict[str, Any]]


class BaseMetricLossFunction(EmbeddingRegularizerMixin, ModuleWithRecordsReducerAndDistance):
    """A loss over a batch of embeddings.

    A subclass of your own implements :meth:`compute_loss` and returns a loss dictionary; the reducer turns it into a scalar.
    Losses of this package also implement :meth:`plan` and :meth:`run_plan`: where every single loss need not exist, the
    reduction happens inside the kernels.
    """

    def compute_loss(
        self,
        embeddings: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor,
        ref_labels: Tensor | None,
    ) -> LossDict:
        """The losses as ``{name: {"losses", "indices", "reduction_type"}}``. Subclasses implement it."""
        raise NotImplementedError

    def plan(self, call: Call) -> Plan:
        """How a call would run."""
        return Plan(MATERIALISED, "dense", notes=[f"{type(self).__name__} computes its losses in its own compute_loss"])

    def run_plan(self, plan: Plan, call: Call) -> Tensor | None:
        """The reduced loss of a plan that needs no loss dictionary, else ``None``."""
        return None

    def read_call(self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Tensor | None, ref_labels: Any) -> Call:
        """The checked inputs of a call; ``ValueError`` or ``TypeError`` says what is wrong with them."""
        return prepare_call(embeddings, labels, indices_tuple, ref_emb, ref_labels)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: Sequence[Tensor] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The loss, a scalar (float32 for half-precision embeddings).

        Args:
            embeddings: ``[N, D]``.
            labels: ``[N]``; may be ``None`` where ``indices_tuple`` is given.
            indices_tuple: triplets ``(a, p, n)`` or pairs ``(a1, p, a2, n)``, from a miner or made by hand; ``None`` for all.
            ref_emb: ``[M, D]`` to take positives and negatives from; ``None`` for the batch itself.
            ref_labels: ``[M]``.
        """
        self.reset_stats()
        call = self.read_call(embeddings, labels, indices_tuple, ref_emb, ref_labels)
        plan = self.plan(call)
        loss = self.run_plan(plan, call)
        if loss is not None:
            if self.embedding_regularizer is not None:
                loss = loss + self.reduced_regularization(call.embeddings, call.labels)
            return loss
        loss_dict = self.compute_loss(call.embeddings, call.labels, call.indices, call.ref_emb, call.ref_labels)
        self.add_embedding_regularization_to_loss_dict(loss_dict, embeddings)
        return self.reducer(loss_dict, embeddings, self.reduction_labels(call))

    def reduced_regularization(self, embeddings: Tensor, labels: Tensor | None) -> Any:
        """What the embedding regularizer adds to a loss that is reduced already, by the reducer of its name."""
        entries: LossDict = {}
        self.add_embedding_regularization_to_loss_dict(entries, embeddings)
        total: Any = 0
        for name, entry in entries.items():
            reducer = self.reducer._reducer_of(name) if isinstance(self.reducer, MultipleReducers) else self.reducer
            total = total + reducer({name: entry}, embeddings, labels)
        return total

    # Why the anchors of a batch cannot be computed apart from each other; empty where they can.
    joint_anchors: ClassVar[str] = ""
    # Whether anchors are compared with other embeddings, rather than with weights of the loss alone.
    meets_references: ClassVar[bool] = True

    def joined_loss(self, call: Call, copies: bool, everyone: Any) -> Tensor:
        """The loss over the anchors of all processes, of which this call holds some.

        ``copies`` says that the reference set begins with the call's rows, which are no pairs with themselves; ``everyone``
        (:class:`pml_fast.losses.joined.Everyone`) brings the processes together. Embedding regularizers are left out.
        """
        indices = all_pairs(call, copies) if call.indices is None else call.indices
        losses = self.compute_loss(call.embeddings, call.labels, indices, call.ref_emb, call.ref_labels)
        losses = joined_losses(losses, self.all_regularization_loss_names(), call, everyone)
        for name in self.sub_loss_names():
            losses.setdefault(name, self.zero_loss())
        loss = self.reducer(losses, everyone.embeddings, everyone.labels)
        return loss + call.embeddings[:0].sum() if torch.is_tensor(loss) else loss

    def reduction_labels(self, call: Call) -> Tensor | None:
        """The labels of what the loss dictionary's indices name: by default the batch."""
        return call.labels

    def zero_loss(self) -> dict[str, Any]:
        """The entry of a loss without usable pairs."""
        return {"losses": 0, "indices": None, "reduction_type": "already_reduced"}

    def zero_losses(self) -> LossDict:
        """:meth:`zero_loss` for every sub-loss."""
        return {name: self.zero_loss() for name in self.sub_loss_names()}

    def _sub_loss_names(self) -> list[str]:
        return ["loss"]

    def sub_loss_names(self) -> list[str]:
        """The names of all sub-losses, those of regularizers included."""
        return self._sub_loss_names() + self.all_regularization_loss_names()

    def all_regularization_loss_names(self) -> list[str]:
        """The names of the regularizers' sub-losses."""
        names = []
        for cls in inspect.getmro(type(self)):
            suffix = "RegularizerMixin"
            if cls.__name__.endswith(suffix):
                attribute = f"{cls.__name__.removesuffix(suffix).lower()}_regularizer"
                if getattr(self, attribute):
                    names.extend(cls.regularization_loss_names(self))  # type: ignore[attr-defined]
        return names


def prepare_call(
    embeddings: Tensor, labels: Any, indices: Any, ref_emb: Tensor | None, ref_labels: Any, ref_name: str = "ref_emb"
) -> Call:
    """Check the arguments of a loss and bring labels to the embeddings' device.

    Raises ``ValueError``/``TypeError`` naming the argument that does not fit; ``ref_name`` is what the caller calls
    ``ref_emb``. Inside of ``torch.autocast`` two floating types become the wider of them.
    """
    _check_embeddings("embeddings", embeddings)
    if ref_emb is not None:
        _check_embeddings(ref_name, ref_emb)
        if ref_emb.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"{ref_name} must have rows of the length of the embeddings', {embeddings.shape[1]}, got {ref_emb.shape[1]}"
            )
        embeddings, ref_emb = _of_one_type(embeddings, ref_emb, ref_name)
        if ref_labels is None and labels is not None and indices is None:
            raise ValueError(f"ref_labels must be given with {ref_name}, got None; pass the labels of the reference set")
    elif ref_labels is not None:
        raise ValueError(f"ref_labels were given without {ref_name}; pass both, or neither")
    itself = ref_emb is None or (ref_emb is embeddings and (ref_labels is labels or ref_labels is None))
    labels = _as_labels("labels", labels, embeddings)
    indices = _as_indices(indices, embeddings, embeddings if ref_emb is None else ref_emb)
    if itself:
        return Call(embeddings, labels, indices, embeddings, labels, True)
    assert ref_emb is not None
    ref_labels = _as_labels("ref_labels", ref_labels, ref_emb)
    if ref_labels is labels and labels is not None and not torch.compiler.is_compiling():
        # Whoever lists pairs takes one tensor of labels for one set.
        ref_labels = labels.detach()
    return Call(embeddings, labels, indices, ref_emb, ref_labels, False)


def _of_one_type(embeddings: Tensor, ref_emb: Tensor, ref_name: str) -> tuple[Tensor, Tensor]:
    """Both as they are, or in the wider type inside of autocast, where models hand out mixed types."""
    if ref_emb.dtype == embeddings.dtype and ref_emb.device == embeddings.device:
        return embeddings, ref_emb
    if ref_emb.device == embeddings.device and torch.is_autocast_enabled(embeddings.device.type):
        wider = torch.promote_types(embeddings.dtype, ref_emb.dtype)
        return embeddings.to(wider), ref_emb.to(wider)
    raise TypeError(
        f"{ref_name} must be {embeddings.dtype} on {embeddings.device} as the embeddings are, got {ref_emb.dtype} on "
        f"{ref_emb.device}; call {ref_name}.to(embeddings)"
    )


def _check_embeddings(name: str, value: Any) -> None:
    if not torch.is_tensor(value):
        raise TypeError(f"{name} must be a tensor of shape (batch_size, embedding_size), got {type(value).__name__}")
    if value.ndim != 2:
        raise ValueError(f"{name} must be a 2-D tensor of shape (batch_size, embedding_size), got shape {tuple(value.shape)}")
    if value.shape[1] == 0:
        raise ValueError(f"{name} must have at least one feature a row, got shape {tuple(value.shape)}")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}; call .float() on them")


def _as_labels(name: str, labels: Any, embeddings: Tensor) -> Tensor | None:
    if labels is None:
        return None
    if not torch.is_tensor(labels):
        raise TypeError(f"{name} must be a tensor of shape (batch_size,), got {type(labels).__name__}")
    if labels.ndim != 1 or labels.shape[0] != embeddings.shape[0]:
        raise ValueError(
            f"{name} must be a 1-D tensor with one label an embedding, shape ({embeddings.shape[0]},), "
            f"got shape {tuple(labels.shape)}"
        )
    labels = c_f.to_device(labels, embeddings)
    return labels.to(torch.int64) if labels.dtype in _UNSORTED else labels


# What torch can compare and not sort.
_UNSORTED = (torch.bool, torch.uint16, torch.uint32, torch.uint64)


def _as_indices(indices: Any, embeddings: Tensor, ref_emb: Tensor) -> Sequence[Tensor] | None:
    """An index tuple as int64 tensors on the embeddings' device; a lazy one as it is."""
    if indices is None or isinstance(indices, LazyIndices):
        return indices
    if torch.is_tensor(indices) or not isinstance(indices, Sequence):
        raise TypeError(
            f"indices_tuple must be a tuple of 3 or 4 index tensors, got {type(indices).__name__}; pass what a miner returned"
        )
    names = ["anchors", "positives", "negatives"] if len(indices) == 3 else ["anchors", "positives", "anchors", "negatives"]
    parts = named_indices(indices)
    checked = []
    for name, part in zip(names, parts, strict=True):
        _check_index(name, part, len(embeddings if name == "anchors" else ref_emb))
        checked.append(part.to(device=embeddings.device, dtype=torch.int64))
    sizes = [len(part) for part in checked]
    matched = sizes[0] == sizes[1] and sizes[-2] == sizes[-1]
    if not matched:
        raise ValueError(f"indices_tuple must hold tensors of matching lengths, got {sizes}")
    return named_indices(checked)


def _check_index(name: str, part: Any, size: int) -> None:
    if not torch.is_tensor(part):
        raise TypeError(f"{name} of indices_tuple must be a tensor, got {type(part).__name__}")
    if part.ndim != 1:
        raise ValueError(f"{name} of indices_tuple must be a 1-D tensor, got shape {tuple(part.shape)}")
    # torch.tensor([]) is float32: an empty tuple made by hand.
    if (part.is_floating_point() and len(part) > 0) or part.dtype == torch.bool:
        raise TypeError(f"{name} of indices_tuple must be integers, got {part.dtype}; call .long() on them")
    # On a GPU the answer would stop the queue; indexing itself complains there.
    if part.device.type == "cpu" and len(part) > 0 and not torch.compiler.is_compiling():
        low, high = int(part.min()), int(part.max())
        if low < 0 or high >= size:
            raise ValueError(f"{name} of indices_tuple must be from 0 to {size - 1}, the rows they index, got {low} to {high}")
