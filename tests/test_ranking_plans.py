"""How ranking, histogram and other losses would run, and the memory that takes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from ranking_cases import EVERY, WITH_LABELS, made

from pml_fast import _extension, explain, losses, miners, reducers, use
from pml_fast._bounded import measure_peak


@pytest.mark.parametrize(
    ("name", "engine", "compiled"),
    [
        ("fast_ap", "pairwise", True),
        ("smooth_ap", "pairwise", True),
        ("pnp", "pairwise", True),
        ("histogram", "histogram", True),
        ("soft_margin", "histogram", True),
    ],
)
def test_the_plan_of_a_call_with_labels(name: str, engine: str, compiled: bool) -> None:
    loss, _, x = made(name)
    labels = torch.arange(24) // 4
    plan = explain(loss, x, labels)
    backend = "cpu" if compiled and _extension.load() is not None else "chunked"
    assert (plan.mode, plan.engine, plan.backend) == ("fused", engine, backend)
    assert plan.costs is not None and plan.costs.memory_bytes > 0
    assert {c.name: c.status for c in plan.candidates}["triton"] == "refused"
    with use(backend="triton"):
        assert explain(loss, x, labels).error is not None
        with pytest.raises(ValueError, match="triton"):
            loss(x, labels)


def test_the_plans_of_other_calls() -> None:
    x, labels = torch.randn(24, 6), torch.arange(24) // 4
    pairs = miners.MultiSimilarityMiner()(x, labels)
    plans = [
        explain(losses.FastAPLoss(), x, labels, indices_tuple=pairs),
        explain(losses.FastAPLoss(reducer=reducers.DoNothingReducer()), x, labels),
        explain(losses.HistogramLoss(), x, labels, indices_tuple=pairs),
        explain(losses.DynamicSoftMarginLoss(), x, labels, indices_tuple=pairs),
        explain(losses.DynamicSoftMarginLoss(), x, None, ref_emb=x.clone()),
        explain(losses.VICRegLoss(), x, None, ref_emb=x.clone()),
        explain(losses.ManifoldLoss(6, K=5), x, None),
    ]
    assert [(plan.mode, plan.engine) for plan in plans] == [
        ("partly fused", "pairwise"),
        ("partly fused", "pairwise"),
        ("partly fused", "indexed"),
        ("partly fused", "indexed"),
        ("partly fused", "extremes"),
        ("fused", "covariance"),
        ("materialised", "dense"),
    ]
    assert "weighs each row" in str(plans[0]) and "29 x 29" in str(plans[-1])
    for plan in plans:
        assert str(plan)


@pytest.mark.parametrize("name", EVERY)
def test_the_memory_of_a_plan_is_a_bound(name: str) -> None:
    torch.manual_seed(0)
    n = 600 if name == "manifold" else 3000
    x, y = torch.randn(n, 24, requires_grad=True), torch.randn(n, 24)
    loss = losses.ManifoldLoss(24, K=20) if name == "manifold" else made(name)[0]
    labels = torch.arange(n) // 4 if name in WITH_LABELS else None
    ref_emb = y if name in ("vicreg", "soft_margin_rows") else None
    loss(x, labels, ref_emb=ref_emb).backward()
    _, peak = measure_peak(lambda: loss(x, labels, ref_emb=ref_emb).backward())
    costs = explain(loss, x, labels, ref_emb=ref_emb).costs
    assert costs is not None
    # What the allocator keeps for itself varies by a little.
    assert peak <= costs.memory_bytes + (4 << 20)


MEMORY = """
import torch
from pml_fast import losses
from pml_fast._bounded import measure_peak
def step(n):
    x = torch.randn(n, 32, requires_grad=True)
    losses.{loss}(x, torch.arange(n) // 4).backward()
step(256)
_, peak = measure_peak(lambda: step({n}))
print(peak)
"""


@pytest.mark.parametrize("loss", ["FastAPLoss()", "SmoothAPLoss()", "PNPLoss()", "HistogramLoss()", "DynamicSoftMarginLoss()"])
def test_no_matrix_is_held(loss: str) -> None:
    """At N = 5000 one matrix is 100 MB (one table of pairs 200 MB, one of triplets 300 MB for each index)."""
    run_ = subprocess.run(
        [sys.executable, "-c", MEMORY.format(loss=loss, n=5000)], capture_output=True, text=True, timeout=300, check=False
    )
    assert run_.returncode == 0, run_.stderr
    assert int(run_.stdout) < 64 << 20
