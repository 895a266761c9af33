"""A step of any loss takes memory that grows with the batch, not with its square."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from backend_cases import skip_unless

from pml_fast import losses

MEMORY = """
import torch
from pml_fast import losses, miners, use
from pml_fast._bounded import measure_peak
N, P, D = 8192, 3, 64
use(backend={backend!r})
def step(n):
    x = torch.randn(n, D, requires_grad=True)
    labels = torch.arange(n) // (P + 1)
    loss = losses.{loss}
    {call}.backward()
    return x.grad
step(256)
x = torch.empty(0)
_, peak = measure_peak(lambda: step(N))
print(peak - 4 * N * D)
"""
# Class losses: about as many classes as labels, so that the batch times the classes is N x N / 4.
SIZES = {
    **dict.fromkeys(
        ("ArcFaceLoss", "CosFaceLoss", "LargeMarginSoftmaxLoss", "NormalizedSoftmaxLoss", "ProxyAnchorLoss", "ProxyNCALoss"),
        "N // (P + 1), D",
    ),
    "P2SGradLoss": "D, N // (P + 1)",
    "SphereFaceLoss": "N // (P + 1), D",
    "SoftTripleLoss": "N // (P + 1), D, centers_per_class=2",
    "SubCenterArcFaceLoss": "N // (P + 1), D",
}
STEPS = {
    **{
        name: (f"{name}({SIZES.get(name, '')})", "loss(x, labels)")
        for name in losses.__all__
        # These two take no labels.
        if name.endswith("Loss") and name not in ("ManifoldLoss", "VICRegLoss")
    },
    "RankedListLoss": ("RankedListLoss(0.4, 5)", "loss(x, labels)"),
    "CLIPLoss": ("CLIPLoss()", "loss(x, ref_emb=x.detach().clone())"),
    # Strips of label similarities, and positives listed by the labels that they share: of masks, for numbers would be 16 MiB of
    # input that is held until the loss returns.
    "MultiSupConLoss": ("MultiSupConLoss(threshold=0)", "loss(x, torch.nn.functional.one_hot(labels % 16))"),
    "listed_positives": ("MultiSupConLoss()", "loss(x, torch.nn.functional.one_hot(labels % 256).bool())"),
    "two_sets": ("SigLIPLoss()", "loss(x, ref_emb=x.detach().clone())"),
    "mined": ("MultiSimilarityLoss()", "loss(x, labels, miners.MultiSimilarityMiner()(x, labels))"),
    "batch_hard": ("TripletMarginLoss()", "loss(x, labels, miners.BatchHardMiner()(x, labels))"),
}
# The base of losses that users write over the matrix.
del STEPS["GenericPairLoss"]
# It takes another loss, and is that loss of two views.
del STEPS["SelfSupervisedLoss"]


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("backend", ["cpu"])
def test_a_step_takes_linear_memory(backend: str, step: str) -> None:
    """At N = 8192 the peak over the start stays below the gradients + 8 N (P + 8) bytes + 64 MiB (N x N alone is 256 MiB)."""
    skip_unless(backend)
    loss, made = STEPS[step]
    script = MEMORY.format(backend="auto", loss=loss, call=made)
    # Buffers of a strip go back to the system at once: what is measured is what is held, not the holes of the allocator's heap.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    n, p, d = 8192, 3, 64
    # Columns that are not the rows: they and their gradients as well, prepared for each direction.
    more = 32 * n * d if "ref_emb" in made or loss.startswith("SignalToNoise") else 0
    assert int(run.stdout) < 4 * n * d + 8 * n * (p + 8) + (64 << 20) + more
