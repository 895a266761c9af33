"""What the tests of the ranking, histogram and other losses share: reducers, tuples, and a loss of each kind ready to call."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pml_fast import losses

REDUCERS: dict[str, Callable[[SimpleNamespace], Any]] = {
    "default": lambda m: None,
    "sum": lambda m: m.reducers.SumReducer(),
    "avg_non_zero": lambda m: m.reducers.AvgNonZeroReducer(),
    "between": lambda m: m.reducers.ThresholdReducer(low=0.3, high=0.9),
    "per_anchor": lambda m: m.reducers.PerAnchorReducer(),
    "class_weighted": lambda m: m.reducers.ClassWeightedReducer(torch.linspace(0.1, 2, 20, dtype=torch.float64)),
    "do_nothing": lambda m: m.reducers.DoNothingReducer(),
    "multiple": lambda m: m.reducers.MultipleReducers({"loss": m.reducers.SumReducer()}),
}
WITH_LABELS: dict[str, Callable[[], torch.nn.Module]] = {
    "fast_ap": losses.FastAPLoss,
    "smooth_ap": lambda: losses.SmoothAPLoss(0.1),
    "pnp": lambda: losses.PNPLoss(anneal=0.1, variant="Ds"),
    "histogram": losses.HistogramLoss,
    "soft_margin": losses.DynamicSoftMarginLoss,
}
# Numbers that every type can hold.
VIEW = torch.randn(24, 6, generator=torch.Generator().manual_seed(1)).bfloat16().float()
WITHOUT: dict[str, tuple[Callable[[], torch.nn.Module], dict[str, Any]]] = {
    "manifold": (lambda: losses.ManifoldLoss(6, K=4), {"indices_tuple": torch.arange(24) % 4}),
    "vicreg": (losses.VICRegLoss, {"ref_emb": VIEW}),
    "soft_margin_rows": (
        losses.DynamicSoftMarginLoss,
        {"ref_emb": VIEW},
    ),
}
EVERY = [*WITH_LABELS, *WITHOUT]


def made(name: str) -> tuple[torch.nn.Module, Callable[[torch.nn.Module, Tensor], Tensor], Tensor]:
    """A loss, how to call it, and embeddings."""
    torch.manual_seed(4)
    x = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
    if name in WITH_LABELS:
        labels = torch.arange(24) // 4
        return WITH_LABELS[name](), lambda loss, x: loss(x, labels), x
    make, options = WITHOUT[name]

    def call(loss: torch.nn.Module, x: Tensor) -> Tensor:
        like = {k: v.to(x.dtype) if v.is_floating_point() else v for k, v in options.items()}
        return loss(x, **like)  # type: ignore[no-any-return]

    return make(), call, x


def tuples(kind: str, labels: Tensor, gen: torch.Generator) -> Any:
    same = labels.unsqueeze(1) == labels
    pos = same & ~torch.eye(len(labels), dtype=torch.bool)
    if kind == "pairs":
        keep = torch.rand(same.shape, generator=gen) < 0.4
        return (*torch.where(pos & keep), *torch.where(~same & keep))
    index = torch.where(pos.unsqueeze(2) & ~same.unsqueeze(1))
    keep = torch.rand(len(index[0]), generator=gen) < 0.4
    return tuple(part[keep] for part in index)


def close(got: Tensor, want: Tensor, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    torch.testing.assert_close(got.to(want.dtype), want, rtol=rtol, atol=atol)
