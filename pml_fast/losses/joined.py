"""A loss whose anchors are spread over several processes: each has its own, and all are reduced together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

import pml_fast.engine.anchor_rows  # noqa: F401  (defines the operators)
from pml_fast.engine import operator
from pml_fast.engine.copies import AllPairs, WithoutCopies
from pml_fast.engine.fold import Fold, reduce_rows
from pml_fast.engine.lazy import Source
from pml_fast.engine.plan import Call, Plan, with_copies
from pml_fast.engine.score import compute_type
from pml_fast.engine.spec import PairSpec, Term, TripletSpec

TRIPLET = Term("loss", "triplet")
# Indices a loss has, by the type of its reduction.
_PARTS = {"element": 1, "pos_pair": 2, "neg_pair": 2, "triplet": 3}
_TYPES = ("nothing", *_PARTS, "already_reduced")


class Everyone(Protocol):
    """The processes that share a batch, of which each has the rows ``first ..`` of it."""

    first: int
    embeddings: Tensor  # of all, [N, D], without a graph
    labels: Tensor | None

    def rows(self, own: Tensor) -> Tensor:
        """The rows of all processes, in order of rank; each gets the gradient of its own."""
        ...

    def numbers(self, own: Tensor) -> Tensor:
        """A small tensor of one shape, of all processes, ``[processes, ...]``; without a graph."""
        ...


def joined_pairs(plan: Plan, call: Call, rows: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], all_: Everyone) -> Tensor:
    """The loss of a plan of the pairwise engine, over the anchors of all."""
    assert isinstance(plan.spec, PairSpec) and plan.score is not None and plan.folds is not None
    call, score = with_copies(call, plan.score, plan.copies)
    limits = [bound for fold in plan.folds for bound in fold.pair_limits()]
    values, counts, exists = operator.call(
        "anchor_pairs", *rows, *labels, plan.rule, plan.spec.name, plan.spec.params(), score.encode(), call.itself, limits, None
    )
    values, counts = all_.rows(values.T).T, all_.rows(counts.T).T
    terms = [
        reduce_rows(fold, term, value, count, _weights(fold, all_, values.dtype))[0]
        for fold, term, value, count in zip(plan.folds, plan.spec.terms, values, counts, strict=True)
    ]
    total = torch.stack(terms).sum()
    return torch.where(all_.numbers(exists).any(0).all(), total, 0.0) if plan.spec.gated else total


def joined_triplets(
    plan: Plan, call: Call, rows: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], all_: Everyone
) -> Tensor:
    """The loss of a plan of the triplet engine, over the anchors of all."""
    spec = plan.spec
    assert isinstance(spec, TripletSpec) and plan.score is not None and plan.folds is not None
    call, score = with_copies(call, plan.score, plan.copies)
    (fold,) = plan.folds
    options = [spec.margin, float(spec.smooth), float(spec.swap), spec.select_margin]
    sums, counts = operator.call(
        "anchor_triplets",
        *rows, *labels, plan.rule, options, spec.select, score.encode(), call.itself, list(fold.pair_limits()),
    )  # fmt: skip
    sums, counts = all_.rows(sums), all_.rows(counts)
    loss = reduce_rows(fold, TRIPLET, sums, counts, _weights(fold, all_, sums.dtype))[0]
    return loss.to(compute_type(rows[0].dtype))


def _weights(fold: Fold, all_: Everyone, dtype: torch.dtype) -> Tensor | None:
    return fold.row_weights(all_.labels, dtype)


def refuse_row_weights(loss: Any, call: Call) -> None:
    """``ValueError`` where an index tuple weighs rows by how often it names them: that is counted over all processes."""
    if call.indices is not None:
        raise ValueError(
            f"indices_tuple of {type(loss).__name__} weighs rows by how often it names them in the whole batch: "
            "leave it out, or use objective='global'"
        )


def all_pairs(call: Call, copies: bool) -> Sequence[Tensor] | None:
    """What a call without indices means to a loss that lists pairs: the reference set may begin with the batch."""
    if not copies:
        return None
    assert call.labels is not None and call.ref_labels is not None
    return WithoutCopies(AllPairs(Source.of(call.embeddings, call.labels, call.ref_emb, call.ref_labels, False)))


def joined_losses(losses: dict[str, dict[str, Any]], passed_on: Sequence[str], call: Call, all_: Everyone) -> dict[str, Any]:
    """The loss dictionary of all anchors, from each process's own; ``passed_on`` names what every process has alike."""
    wide = compute_type(call.embeddings.dtype)
    # Of each loss: how it is reduced, its divisor, and whether it has one. Ranks without pairs learn it from the others.
    told = torch.zeros(len(losses), 3, dtype=torch.float64, device=call.embeddings.device)
    for k, (name, entry) in enumerate(losses.items()):
        if name in passed_on or not torch.is_tensor(entry["losses"]):
            continue
        told[k, 0] = _TYPES.index(entry["reduction_type"])
        if "divisor" in entry:
            told[k, 1], told[k, 2] = torch.as_tensor(entry["divisor"]).to(told).sum(), 1
    everyones = all_.numbers(told)
    joined: dict[str, Any] = {}
    for k, (name, entry) in enumerate(losses.items()):
        kind = _TYPES[int(everyones[:, k, 0].max())]
        if kind == "already_reduced":
            raise ValueError(f"{name} is one number already, for which all anchors are needed: use objective='global'")
        if name in passed_on or kind == "nothing":
            joined[name] = entry
            continue
        own = entry["losses"] if torch.is_tensor(entry["losses"]) else call.embeddings.new_empty(0, dtype=wide)
        indices = _index_parts(entry["indices"], own, _PARTS[kind])
        indices[0] = indices[0] + all_.first
        together = [all_.rows(part) for part in indices]
        joined[name] = {
            "losses": all_.rows(own.to(wide)),
            "indices": together[0] if kind == "element" else tuple(together),
            "reduction_type": kind,
        }
        if everyones[:, k, 2].any():
            joined[name]["divisor"] = everyones[:, k, 1].sum().to(wide)
    return joined


def _index_parts(indices: Any, losses: Tensor, count: int) -> list[Tensor]:
    if indices is None:
        return [torch.empty(0, dtype=torch.int64, device=losses.device) for _ in range(count)]
    return [indices] if torch.is_tensor(indices) else list(indices)
