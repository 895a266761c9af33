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
        largest = 2.0 if score.kind == "dot" else 2.0**score.power
        x = (1 - view.pos.s if score.inverted else view.pos.s) * (bins / largest)
        pos, neg = dense_mask(view.pos), dense_mask(view.neg)
        pos_below, neg_below = _below(x, pos, bins + 1), _below(x, neg, bins + 1)
        hits = pos_below.diff(dim=1, prepend=torch.zeros_like(pos_below[:, :1]))
        product, total = hits * pos_below, pos_below + neg_below
        # Written so that a NaN stays; bins without a positive add nothing.
        none = (product <= 0) | (total <= 0)
        precision = torch.where(none, 0.0, product / torch.where(none, 1.0, total)).sum(dim=1)
        count = view.pos.count()
        return [Some(1 - precision / count.clamp(min=1), count > 0)]


def _below(x: Tensor, mask: Tensor, nodes: int) -> Tensor:
    """``[rows, nodes]``: the sum over a row's marked pairs of ``clamp(k + 1 - x, 0, 1)``, the soft count up to node ``k``.

    It is the running sum of triangular pulses of width 1 at the nodes, so ``x`` counts in full from the node above it on.
    """
    result: Tensor = _Below.apply(x, mask, nodes)
    return result


class _Below(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, nodes: int) -> Tensor:
        ctx.save_for_backward(x, mask)
        if x.device.type == "cpu":
            return _counted(x, mask, nodes)
        # Pass by pass: adding up by keys would be atomic there, and in any order.
        sums = [torch.where(mask, (k + 1 - x).clamp_(0, 1), 0.0).sum(dim=1) for k in range(nodes)]
        return torch.stack(sums, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mask = ctx.saved_tensors
        nodes = grad.shape[1]
        node = x.floor().nan_to_num_().clamp_(0, nodes - 1)
        # Only the node at or below a pair moves with it; on a node itself the slope is 0, as autograd of the pulses has it.
        moves = mask & (x > node) & (x < nodes)
        return torch.where(moves, -grad.gather(1, node.long()), 0.0), None, None


def _counted(x: Tensor, mask: Tensor, nodes: int) -> Tensor:
    """One pass over the pairs: each adds ``1 - a`` at the node below it and 1 from the next one on."""
    n = x.shape[0]
    node = x.floor().nan_to_num_().clamp_(0, nodes)
    part = torch.where(mask, (x - node).clamp_(0, 1), 0.0)
    # The last key of each row takes what is not marked.
    key = torch.where(mask, node, nodes + 1).long() + torch.arange(n).unsqueeze(1) * (nodes + 2)
    size = n * (nodes + 2)
    count = torch.bincount(key.flatten(), minlength=size).view(n, nodes + 2)[:, :nodes]
    parts = torch.bincount(key.flatten(), weights=part.flatten(), minlength=size).view(n, nodes + 2)[:, :nodes]
    return (count.cumsum(dim=1) - parts).to(x.dtype)
