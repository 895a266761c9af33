"""Ranking and histogram losses equal plain loops over their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from ranking_cases import close
from torch import Tensor

from pml_fast import losses
from pml_fast.engine import grad_sum


def loop_smooth_ap(s: Tensor, pos: Tensor, t: float) -> Tensor:
    rows = []
    for i in range(len(s)):
        mine = [j for j in range(s.shape[1]) if pos[i, j]]
        if not mine:
            continue
        total = s.new_zeros(())
        for j in mine:
            above = torch.sigmoid((s[i] - s[i, j]) / t)
            above = torch.cat([above[:j], above[j + 1 :].new_zeros(1), above[j + 1 :]])
            total = total + (1 + above[pos[i]].sum()) / (1 + above.sum())
        rows.append(1 - total / len(mine))
    return torch.stack(rows)


def loop_pnp(s: Tensor, pos: Tensor, neg: Tensor, t: float, needed: int) -> Tensor:
    rows = [
        torch.stack([torch.sigmoid((s[i][neg[i]] - s[i, j]) / t).sum() for j in range(s.shape[1]) if pos[i, j]]).mean()
        for i in range(len(s))
        if pos[i].sum() >= needed
    ]
    return torch.stack(rows)


def loop_fast_ap(d: Tensor, pos: Tensor, neg: Tensor, bins: int, top: float) -> Tensor:
    nodes = torch.linspace(0, top, bins + 1, dtype=d.dtype)
    pulses = torch.relu(1 - (d.unsqueeze(2) - nodes).abs() * bins / top)
    hits, misses = (torch.where(side.unsqueeze(2), pulses, 0).sum(dim=1) for side in (pos, neg))
    every = (hits + misses).cumsum(1)
    terms = torch.where(every > 0, hits * hits.cumsum(1) / every.clamp(min=1e-300), 0)
    there = pos.any(dim=1)
    return 1 - terms.sum(dim=1)[there] / pos.sum(dim=1)[there]


def loop_histogram(s: Tensor, pos: Tensor, neg: Tensor, bins: int) -> Tensor:
    nodes = torch.linspace(-1, 1, bins + 1, dtype=s.dtype)
    opened = (pos.any(dim=1) & neg.any(dim=1)).unsqueeze(1)
    densities = []
    for side in (pos, neg):
        values = s[side & opened]
        densities.append(torch.relu(1 - (values.unsqueeze(1) - nodes).abs() * bins / 2).mean(dim=0))
    return (densities[1] * densities[0].cumsum(0)).sum()


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("name", ["smooth_ap", "pnp", "fast_ap", "histogram"])
def test_plain_loops_in_float64(monkeypatch: pytest.MonkeyPatch, name: str, separate: bool) -> None:
    """Any sizes and order of classes, a reference set, several strips and several blocks of positives."""
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", 61)
    gen = torch.Generator().manual_seed(8)
    n, m = 17, (13 if separate else 17)
    x, y = (torch.randn(k, 4, generator=gen, dtype=torch.float64).requires_grad_() for k in (n, m))
    labels, ref_labels = torch.randint(0, 5, (n,), generator=gen), torch.randint(0, 4, (m,), generator=gen)
    labels[3] = 99
    if not separate:
        y, ref_labels = x, labels
    u, v = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    s, same = u @ v.T, labels.unsqueeze(1) == ref_labels
    self_pairs = torch.eye(n, m, dtype=torch.bool) & (not separate)
    refs = (y, ref_labels) if separate else ()
    if name == "smooth_ap":
        got, want = losses.SmoothAPLoss(0.1)(x, labels, None, *refs), loop_smooth_ap(s, same, 0.1).mean()
    elif name == "pnp":
        got = losses.PNPLoss(anneal=0.1)(x, labels, None, *refs)
        want = loop_pnp(s, same, ~same, 0.1, 1 if separate else 2).mean()
    elif name == "fast_ap":
        d = (u.unsqueeze(1) - v).square().sum(dim=2)
        got, want = losses.FastAPLoss()(x, labels, None, *refs), loop_fast_ap(d, same & ~self_pairs, ~same, 10, 4.0).mean()
    else:
        got = losses.HistogramLoss(20)(x, labels, None, *refs)
        if separate:
            want = loop_histogram(s, same, ~same, 20)
        else:
            # Each pair once, where either of its rows has a positive and a negative.
            useful = (same & ~self_pairs).any(dim=1)
            above = torch.ones(n, n, dtype=torch.bool).triu(1) & (useful.unsqueeze(1) | useful)
            nodes = torch.linspace(-1, 1, 21, dtype=torch.float64)
            both = [torch.relu(1 - (s[above & side].unsqueeze(1) - nodes).abs() * 10).mean(dim=0) for side in (same, ~same)]
            want = (both[1] * both[0].cumsum(0)).sum()
    close(got, want, rtol=1e-10)
    leaves = (x, y) if separate else (x,)
    for mine, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves), strict=True):
        close(mine, theirs, rtol=1e-7, atol=1e-10)
