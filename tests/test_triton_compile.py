"""The Triton kernels' default configurations compile for sm_80 and sm_90, without a card and without a spill."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pml_fast.engine.triton import configs

ROOT = Path(__file__).resolve().parents[1]
EVERYTHING = os.environ.get("PML_FAST_TEST_ALL") == "1"
# Bytes of shared memory a block may have (CUDA programming guide, technical specifications by compute capability).
SHARED = {80: 163 * 1024, 90: 227 * 1024}

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is published for Linux alone")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which kernels are compiled, whatever this one does."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@needs_triton
@pytest.mark.parametrize("arch", configs.ARCHES)
def test_default_configurations_compile_without_spills(arch: int, tmp_path: Path) -> None:
    choice = [] if EVERYTHING else ["--quick"]
    ran = python("-m", "pml_fast.engine.triton.aot", "--out", str(tmp_path), "--arch", str(arch), *choice)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    report = json.loads((tmp_path / f"sm_{arch}.json").read_text())
    kernels = report["kernels"]
    # Each of the five kernel families is there: states, gradients, extremes, triplets, listed pairs.
    assert len(kernels) >= 10
    assert {"state", "grad", "extreme"} <= {k["name"].split("-")[0] for k in kernels}
    assert [k["name"] for k in kernels if k["spills"]] == []
    assert [k["name"] for k in kernels if k["shared"] > SHARED[arch]] == []
    assert all(0 < k["registers"] <= 255 for k in kernels)
    for kernel in kernels:
        assert_instructions(kernel, arch)


def assert_instructions(kernel: dict[str, Any], arch: int) -> None:
    """Every kernel with products has them on tensor cores: Hopper's own instructions where four warps have 64 rows."""
    if "PRECISION" not in kernel["constexprs"]:
        assert kernel["mma"] == kernel["wgmma"] == 0
    elif arch == 90 and int(kernel["constexprs"]["BLOCK_M"]) % 64 == 0:
        assert kernel["wgmma"] > 0, kernel["name"]
    else:
        assert (kernel["mma"] > 0, kernel["wgmma"]) == (True, 0), kernel["name"]


@pytest.mark.parametrize("arch", configs.ARCHES)
def test_the_report_of_every_configuration_is_clean(arch: int) -> None:
    """The one that the repository holds."""
    report = json.loads((ROOT / "benchmarks" / "results" / "aot" / f"sm_{arch}.json").read_text())
    assert len(report["kernels"]) > 1100
    for kernel in report["kernels"]:
        assert (kernel["spills"], kernel["shared"] <= SHARED[arch]) == (0, True)
        assert_instructions(kernel, arch)


@needs_triton
def test_a_spill_fails_the_run(tmp_path: Path) -> None:
    # The same harness on a tile far too large for two warps must say so.
    script = (
        "from dataclasses import replace\n"
        "from pml_fast.engine.triton import aot, catalogue\n"
        "k = next(k for k in catalogue.KERNELS if k.quick and k.name.startswith('grad-supcon'))\n"
        "k = replace(k, num_warps=2, constexprs={**k.constexprs, 'BLOCK_M': 128, 'BLOCK_N': 256})\n"
        "print(aot.compile_kernel(k, 90).spills)\n"
    )
    ran = python("-c", script)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 0


@needs_triton
def test_transposed_columns_are_copied_asynchronously() -> None:
    # Without, the tile is loaded into registers and stored to shared memory twice, once an order; with, it is copied there
    # twice (before the loop and in it, as another tile is), and only the rows are stored.
    script = (
        "from dataclasses import replace\n"
        "from pml_fast.engine.triton import aot, catalogue\n"
        "k = next(k for k in catalogue.KERNELS if k.name == 'grad-supcon-kind0-tf32-d128-bm64' and 90 in k.arches)\n"
        "assert k.constexprs['TURNED']\n"
        "for turned in (False, True):\n"
        "    text = aot.build(replace(k, constexprs={**k.constexprs, 'TURNED': turned}), 90).asm['ttgir']\n"
        "    print(text.count('ttg.async_copy_global_to_local'), text.count('ttg.local_alloc %'))\n"
    )
    ran = python("-c", script)
    assert ran.returncode == 0, ran.stderr
    (copies, stored), (more_copies, less_stored) = ([int(n) for n in line.split()] for line in ran.stdout.splitlines())
    assert more_copies == copies + 4
    assert (stored, less_stored) == (3, 1)


def test_importing_the_backend_does_not_import_triton() -> None:
    script = (
        "import sys\n"
        "from pml_fast.engine.triton.backend import TritonBackend\n"
        "TritonBackend().available()\n"
        "print('triton' in sys.modules)\n"
    )
    ran = python("-c", script)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["False"]


def test_the_harness_refuses_to_run_interpreted(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pml_fast.engine.triton.aot", "--out", str(tmp_path)],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode != 0
    assert "TRITON_INTERPRET" in ran.stderr


@pytest.mark.parametrize("arch", configs.ARCHES)
@pytest.mark.parametrize("product", ["bf16", "fp16", "tf32", "tf32x3"])
@pytest.mark.parametrize("d", [1, 16, 17, 64, 65, 128, 129, 256, 257, 4096])
def test_the_tables_serve_every_width(arch: int, product: str, d: int) -> None:
    for op in ("state", "grad"):
        for distance in (True, False):
            tile = configs.config(op, arch, product, distance, d, 1000)
            assert tile.block_m in (16, 32, 64)
            assert tile.block_k >= 16
            assert not tile.resident or d <= tile.block_k


@pytest.mark.parametrize("arch", configs.ARCHES)
def test_blocks_shrink_until_every_multiprocessor_has_one(arch: int) -> None:
    assert configs.block_rows(arch, 64, 1 << 20) == 64
    assert configs.block_rows(arch, 64, 32 * configs.ENOUGH_BLOCKS[arch]) == 32
    assert configs.block_rows(arch, 64, 1) == 16
