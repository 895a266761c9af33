"""What ``explain`` says of memory and operations follows the configuration that the user tuned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import DEVICE, interpreter, interpreting  # noqa: F401  (one is a fixture)

from pml_fast import explain, losses, use
from pml_fast.engine.cost import Cost

with interpreting():
    from pml_fast.engine.triton import layout, lookup, tuned
    from pml_fast.engine.triton.configs import Config

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter")]

# Past the batches that have a short cut, and with a matrix that fills the workspace.
N, D = 2048, 64


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tuned, "_table", None)


def cost_of(loss: Any, n: int = N, d: int = D, precision: str = "highest") -> Cost:
    x = torch.randn(n, d, device=DEVICE, requires_grad=True)
    with use(backend="triton", precision=precision):
        found = explain(loss, x, torch.arange(n, device=DEVICE) // 4).costs
    assert found is not None
    return found


@contextmanager
def tile_in_force(op: str, kind: int, tile: Config, n: int = N, d: int = D, precision: str = "highest") -> Iterator[None]:
    """As if this tile had been tuned for rows of such a size."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        key = lookup.tuning_key(op, torch.empty(1, device=DEVICE).expand(n, d), kind)
    finally:
        torch.set_float32_matmul_precision(before)
    with tuned.using({key: tuned.Entry(tile, 1.0, 2.0)}):
        yield


def test_a_gradient_tuned_to_write_out_coefficients_has_their_workspace() -> None:
    loss = losses.SupConLoss()
    with tile_in_force("grad", 0, Config(64, 16, D, 4, 2, True)):
        kept = cost_of(loss)
    with tile_in_force("grad", 0, Config(64, 64, 32, 8, 2)):
        written = cost_of(loss)
    assert written == replace(kept, memory_bytes=kept.memory_bytes + layout.WORKSPACE_BYTES)


def test_transposed_columns_are_counted_where_a_tile_reads_them() -> None:
    loss = losses.SupConLoss()
    turned = Config(64, 64, D, 4, 2, True, turned=True)
    with tile_in_force("grad", 0, turned, precision="high"):
        found = cost_of(loss, precision="high")
    with tile_in_force("grad", 0, replace(turned, turned=False), precision="high"):
        plain = cost_of(loss, precision="high")
    copied = 4 * N * D
    assert found.memory_bytes == plain.memory_bytes + copied
    assert found.read_bytes == plain.read_bytes + copied
    assert found.written_bytes == plain.written_bytes + copied


def test_a_triplet_gradient_tuned_to_slices_of_d_has_no_workspace_and_takes_scores_again() -> None:
    loss = losses.TripletMarginLoss()
    shipped = cost_of(loss, d=256)
    with tile_in_force("triplet-grad", 1, Config(32, 32, 32, 8, 2, block_out=64), d=256):
        sliced = cost_of(loss, d=256)
    assert sliced.memory_bytes == shipped.memory_bytes - layout.WORKSPACE_BYTES
    assert sliced.step_flops == shipped.step_flops + 3 * 2 * N * N * 256


def test_a_small_step_tuned_to_narrower_slices_takes_scores_again() -> None:
    loss = losses.SupConLoss()
    shipped = cost_of(loss, n=128)
    with tile_in_force("small", 0, Config(16, 32, 32, 4, 2, block_out=16), n=128):
        sliced = cost_of(loss, n=128)
    assert sliced.step_flops == shipped.step_flops + 3 * 2 * 128 * 128 * D
    assert sliced.memory_bytes == shipped.memory_bytes
