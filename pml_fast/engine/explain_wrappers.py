"""How the loss inside of a wrapper would run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from pml_fast.engine.explanation import Explanation, Explanations

if TYPE_CHECKING:
    from pml_fast.losses.cross_batch_memory import CrossBatchMemory
    from pml_fast.losses.multiple_losses import MultipleLosses
    from pml_fast.losses.self_supervised_loss import SelfSupervisedLoss


def explain_queue(
    loss: CrossBatchMemory, embeddings: Tensor, labels: Tensor | None, indices_tuple: Sequence[Tensor] | None, given: bool
) -> Explanation:
    """The loss of a batch against the queue as it is now; ``given`` says that a miner or a reference set came with it."""
    from pml_fast.engine.explain import explain

    if given:
        raise ValueError("a CrossBatchMemory has a miner and a reference set of its own; leave miner and ref_emb out")
    if labels is None:
        raise ValueError("labels must be given to a CrossBatchMemory, got None")
    own = loss.queue_call(embeddings, labels, indices_tuple)
    wrapped: Any = loss.loss
    found = explain(
        wrapped, own.embeddings, own.labels, ref_emb=own.ref_emb, ref_labels=own.ref_labels, indices_tuple=own.indices
    )
    return replace(found, notes=(*found.notes, "the queue is copied once, turned so that the batch's rows come first"))


def explain_views(loss: SelfSupervisedLoss, embeddings: Tensor, ref_emb: Tensor | None, given: bool) -> Explanation:
    """The loss of two views; ``given`` says that labels, a miner or a tuple came with them."""
    from pml_fast.engine.explain import explain

    if given or ref_emb is None:
        raise ValueError("a SelfSupervisedLoss takes embeddings and ref_emb alone, two views of the same samples")
    rows, labels, others, other_labels = loss.labelled(embeddings, ref_emb)
    wrapped: Any = loss.loss
    return explain(wrapped, rows, labels, ref_emb=others, ref_labels=other_labels)


def explain_each(
    loss: MultipleLosses, embeddings: Tensor, labels: Tensor | None, indices_tuple: Sequence[Tensor] | None, given: bool
) -> Explanations:
    """Every loss with its own miner; ``given`` says that a miner or a reference set came with the call."""
    from pml_fast.engine.explain import explain

    if given:
        raise ValueError("a MultipleLosses has its own miners and takes no reference set; leave miner and ref_emb out")
    found: dict[str, Any] = {}
    part: Any
    for name, part in loss._items():
        miner = loss.miner_of(name)
        given_tuple = indices_tuple if miner is None else None
        found[f"{name}, weight {loss.weights[name]:g}"] = explain(part, embeddings, labels, miner, indices_tuple=given_tuple)
    return Explanations(found)
