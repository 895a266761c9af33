"""Compiles csrc/cuda without a card and reports what each kernel takes of a multiprocessor.

python -m benchmarks.cuda_resources --out benchmarks/results/aot
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.machine import REPOSITORY

ARCHES = (80, 90, 100)
SOURCES = REPOSITORY / "csrc" / "cuda"


@dataclass(frozen=True)
class KernelResources:
    """One kernel of one source file; ``spills`` and ``shared`` (static) are bytes."""

    source: str
    kernel: str
    registers: int
    shared: int
    spills: int


def compiler() -> str | None:
    """nvcc's path, or ``None``."""
    return shutil.which("nvcc")


def compiler_version() -> str:
    """The last line of ``nvcc --version``."""
    return subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]


def can_compile(arch: int) -> bool:
    """Whether this nvcc knows the architecture."""
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return f"compute_{arch}" in listed.split()


def compile_source(source: Path, arch: int) -> list[KernelResources]:
    """Compile one file for ``sm_<arch>`` and read ptxas's report; ``RuntimeError`` where it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v", "-c", str(source), "-o", f"{folder}/o"]
        ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{source.name} does not compile for sm_{arch}: {ran.stderr}")
    return [_read(source.name, part) for part in ran.stderr.split("Compiling entry function")[1:]]


def _read(source: str, report: str) -> KernelResources:
    mangled = re.search(r"'(\w+)'", report)
    spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))
    registers = re.search(r"Used (\d+) registers", report)
    shared = re.search(r"(\d+) bytes smem", report)
    if mangled is None or registers is None:
        raise RuntimeError(f"ptxas reported no resources of {source}: {report!r}")
    name = subprocess.run(["c++filt", mangled.group(1)], capture_output=True, text=True, check=True).stdout
    kernel = name.partition("(")[0] if "::" not in name else name.rpartition("(")[0].rpartition("::")[2]
    return KernelResources(source, kernel, int(registers.group(1)), int(shared.group(1)) if shared else 0, spills)


def resources(arch: int) -> list[KernelResources]:
    """All kernels of csrc/cuda."""
    return [kernel for source in sorted(SOURCES.glob("*.cu")) for kernel in compile_source(source, arch)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile csrc/cuda without a card and report the kernels' resources.")
    parser.add_argument("--out", type=Path, required=True, help="folder for cuda.json")
    arguments = parser.parse_args(argv)
    if compiler() is None:
        parser.error("nvcc is not on the PATH; install the CUDA toolkit, or add its bin folder")
    report = {f"sm_{arch}": [asdict(kernel) for kernel in resources(arch)] for arch in ARCHES if can_compile(arch)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "cuda.json").write_text(json.dumps({"nvcc": compiler_version(), **report}, indent=1) + "\n")
    spilled = [kernel["kernel"] for kernels in report.values() for kernel in kernels if kernel["spills"]]
    print(f"{', '.join(report)}: {sum(map(len, report.values()))} kernels, spilled: {spilled or 'none'}")
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
