"""FastAP (Cakir et al., "Deep Metric Learning to Rank", CVPR 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pml_fast.engine.score import Score
from pml_fast.engine.soft_rank import dense_mask
from pml_fast.engine.spec import Losses, PairSpec, Some, Term, register_pair_spec
from pml_fast.engine.views import View


@register_pair_spec
@dataclass(frozen=True)
class FastAP(PairSpec):
    """``1 - average precision``, ranks being soft histograms of the distances in ``num_bins`` bins of ``[0, 2 ** power]``.

    A similarity ``s`` is binned as ``1 - s``. A row without positives has no loss.
    """

    num_bins: float = 10.0

    name: ClassVar[str] = "fast_ap"
    terms: ClassVar[tuple[Term, ...]] = (Term("loss", "element", partial=True),)
    width: ClassVar[int] = 4
    scales: ClassVar[tuple[str, ...]] = ("num_bins",)

    def formula(self, view: View, score: Score) -> Losses:
        bins = int(self.num_bins)
        x = (1 - view.pos.s if score.inverted else view.pos.s) * (bins / largest_score(score))
        pos, neg = dense_mask(view.pos), dense_mask(view.neg)
        pos_below, neg_below = _below(x, pos, neg, bins + 1)
        hits = pos_below.diff(dim=1, prepend=torch.zeros_like(pos_below[:, :1]))
        product, total = hits * pos_below, pos_below + neg_below
        # Written so that a NaN stays; bins without a positive add nothing.
        none = (product <= 0) | (total <= 0)
        precision = torch.where(none, 0.0, product / torch.where(none, 1.0, total)).sum(dim=1)
        count = view.pos.count()
        return [Some(1 - precision / count.clamp(min=1), count > 0)]


def largest_score(score: Score) -> float:
    """Where the bins end: at the largest distance of unit vectors."""
    return 2.0 if score.kind == "dot" else 2.0**score.power


def _below(x: Tensor, pos: Tensor, neg: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """``[rows, nodes]`` a side: the sum over a row's pairs of ``clamp(k + 1 - x, 0, 1)``, the soft count up to node ``k``.

    It is the running sum of triangular pulses of width 1 at the nodes, so ``x`` counts in full from the node above it on.
    """
    below: Tensor = _Below.apply(x, pos, neg, nodes)
    return below[:, 0], below[:, 1]


class _Below(torch.autograd.Function):
    """``[rows, 2, nodes]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pos: Tensor, neg: Tensor, nodes: int) -> Tensor:
        n = x.shape[0]
        node = x.floor().nan_to_num_().clamp_(0, nodes)
        # The node of a pair's own row and side; the last key of a row takes what is no pair, the last of a side what is beyond.
        width = 2 * (nodes + 1) + 1
        key = torch.where(pos | neg, node + neg * (nodes + 1), width - 1).long()
        key += torch.arange(0, n * width, width, device=x.device).unsqueeze(1)
        ctx.save_for_backward(key, x > node)
        # Adding up by keys would be atomic on an accelerator, and in any order.
        return by_keys(x - node, key, nodes) if x.device.type == "cpu" else by_passes(x, pos, neg, nodes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        key, above = ctx.saved_tensors
        n, nodes = grad.shape[0], grad.shape[2]
        # Only the node at or below a pair moves with it; on a node itself the slope is 0, as autograd of the pulses has it.
        slopes = torch.nn.functional.pad(-grad, (0, 1)).view(n, 2 * (nodes + 1))
        slopes = torch.nn.functional.pad(slopes, (0, 1)).flatten()
        return torch.where(above, slopes[key], 0.0), None, None, None


def by_keys(part: Tensor, key: Tensor, nodes: int) -> Tensor:
    """One pass over the pairs: each adds ``1 - part`` at the node below it and 1 from the next one on."""
    n, width, flat = part.shape[0], 2 * (nodes + 1) + 1, key.flatten()
    count = torch.bincount(flat, minlength=n * width)
    parts = torch.bincount(flat, weights=part.clamp(0, 1).flatten(), minlength=n * width)
    count, parts = (z.view(n, width)[:, :-1].view(n, 2, nodes + 1)[..., :-1] for z in (count, parts))
    return (count.cumsum(dim=2) - parts).to(part.dtype)


def by_passes(x: Tensor, pos: Tensor, neg: Tensor, nodes: int) -> Tensor:
    """The same sums, with a pass over the pairs for every node."""
    sides = ([torch.where(mask, (k + 1 - x).clamp_(0, 1), 0.0).sum(dim=1) for k in range(nodes)] for mask in (pos, neg))
    return torch.stack([torch.stack(sums, dim=1) for sums in sides], dim=1)
