"""The CUDA C++ kernels compile without a card for every architecture that the toolkit knows, and spill no register."""

from __future__ import annotations

import pytest

pytest.importorskip("rich", reason="the benchmarks need the bench extra")

from benchmarks import cuda_resources

if cuda_resources.compiler() is None:
    pytest.skip("there is no nvcc", allow_module_level=True)


@pytest.mark.parametrize("arch", cuda_resources.ARCHES)
def test_kernels_compile_and_spill_nothing(arch: int) -> None:
    if not cuda_resources.can_compile(arch):
        pytest.skip(f"this nvcc does not know sm_{arch}")
    kernels = cuda_resources.resources(arch)
    assert {kernel.kernel for kernel in kernels} >= {"anchors", "count_pairs", "write_pairs", "nearest_columns"}
    assert [kernel for kernel in kernels if kernel.spills] == []
    # Two blocks of 256 threads and more fit a multiprocessor.
    assert max(kernel.registers for kernel in kernels) <= 128
