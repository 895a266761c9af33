"""Ahead-of-time compilation of every kernel, without a GPU: registers, shared memory and spills by architecture.

Each kernel module lists what it launches by default as :data:`KERNELS`, a list of :class:`Kernel`. Run as
``python -m pml_fast.engine.triton.aot --out DIR`` to compile them all and write ``DIR/sm_80.json`` and
``DIR/sm_90.json``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pml_fast.engine.triton.configs import ARCHES

MODULES = ("catalogue", "small_catalogue", "triplet", "indexed", "knn")
# Most shared memory one block may ask for (CUDA programming guide, table of technical specifications), bytes.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Kernel:
    """One default configuration of one kernel.

    ``signature`` gives each argument its Triton type (``"*fp32"``, ``"i32"``, ``"fp32"``) or ``"constexpr"``;
    ``constexprs`` the values of the latter (jit functions may be values). ``aligned`` names the pointers and
    integers known to be divisible by 16, as the launcher's arguments are in the common case. ``quick`` puts the
    configuration in the small set that the default test run compiles. ``arches`` are those whose tables hold it;
    ``maxnreg`` is the number of registers a thread may take, ``None`` leaving it to the compiler.
    """

    name: str
    fn: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    aligned: tuple[str, ...] = ()
    quick: bool = False
    arches: tuple[int, ...] = ARCHES
    maxnreg: int | None = None


@dataclass(frozen=True)
class Resources:
    """What one compiled configuration takes of a multiprocessor; ``spills`` and ``shared`` are bytes.

    ``mma`` and ``wgmma`` are the program's tensor-core instructions: those of a warp, and Hopper's asynchronous ones of four.
    """

    name: str
    registers: int
    shared: int
    spills: int
    mma: int
    wgmma: int
    num_warps: int
    num_stages: int
    constexprs: dict[str, str] = field(default_factory=dict)


def kernels(modules: Iterable[str] = MODULES) -> list[Kernel]:
    """The configurations that the kernel modules list."""
    found: list[Kernel] = []
    for module in modules:
        found += importlib.import_module(f"pml_fast.engine.triton.{module}").KERNELS
    return found


def build(kernel: Kernel, arch: int) -> Any:
    """Compile for ``sm_<arch>``: Triton's compiled kernel, whose ``asm`` has the program at every stage."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(kernel.fn.arg_names)
    missing = [n for n in names if n not in kernel.signature]
    if missing:
        raise ValueError(f"signature of {kernel.name} must name every argument of the kernel; missing {missing}")
    # Arguments are looked up by position.
    signature = {n: kernel.signature[n] for n in names}
    attrs = {(names.index(n),): [["tt.divisibility", 16]] for n in kernel.aligned}
    source = ASTSource(fn=kernel.fn, signature=signature, constexprs=kernel.constexprs, attrs=attrs)
    options = {"num_warps": kernel.num_warps, "num_stages": kernel.num_stages, "maxnreg": kernel.maxnreg}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def compile_kernel(kernel: Kernel, arch: int) -> Resources:
    """Compile for ``sm_<arch>`` and read the resource report of the machine code."""
    built = build(kernel, arch)
    registers, spills = _resource_usage(built.asm["cubin"])
    mma, wgmma = (built.asm["ptx"].count(instruction) for instruction in ("mma.sync.aligned", "wgmma.mma_async"))
    shown = {n: getattr(v, "__name__", str(v)) for n, v in kernel.constexprs.items()}
    return Resources(
        kernel.name, registers, built.metadata.shared, spills, mma, wgmma, kernel.num_warps, kernel.num_stages, shown
    )


def _resource_usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread: these kernels have no arrays, so their stack is what was spilled."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        report = subprocess.run(
            [_cuobjdump(), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+)\s+STACK:(\d+).*?LOCAL:(\d+)", report)
    if found is None:
        raise RuntimeError(f"cuobjdump reported no resource usage: {report!r}")
    registers, stack, local = (int(v) for v in found.groups())
    return registers, stack + local


def _cuobjdump() -> str:
    from triton import knobs

    return str(knobs.nvidia.cuobjdump.path)


def _compile_named(module: str, name: str, arch: int) -> Resources:
    # A worker finds the kernel again by name: jit functions do not travel between processes.
    return compile_kernel(next(k for k in kernels([module]) if k.name == name and arch in k.arches), arch)


def report(arch: int, modules: Iterable[str] = MODULES, quick: bool = False, jobs: int = 1) -> dict[str, Any]:
    """Resources of the kernels whose tables cover ``sm_<arch>``, compiled by ``jobs`` processes, ready for JSON."""
    import triton

    names = [(m, k.name) for m in modules for k in kernels([m]) if arch in k.arches and (k.quick or not quick)]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        rows = [asdict(r) for r in pool.map(_compile_named, *zip(*names), [arch] * len(names))]
    return {"arch": f"sm_{arch}", "triton": triton.__version__, "kernels": rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the Triton kernels ahead of time and report their resources.")
    parser.add_argument("--out", type=Path, required=True, help="folder for sm_80.json and sm_90.json")
    parser.add_argument("--quick", action="store_true", help="only the representative configurations")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHES, help="only this architecture")
    parser.add_argument("--modules", nargs="+", default=list(MODULES), choices=MODULES, help="only these modules")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes that compile")
    args = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET must not be set: interpreted kernels cannot be compiled; unset it")
    args.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for arch in args.arch or ARCHES:
        made = report(arch, args.modules, args.quick, args.jobs)
        (args.out / f"sm_{arch}.json").write_text(json.dumps(made, indent=1) + "\n")
        over = [k["name"] for k in made["kernels"] if k["spills"] or k["shared"] > SHARED_LIMIT[arch]]
        worst = max(worst, len(over))
        print(f"sm_{arch}: {len(made['kernels'])} configurations, over budget: {over or 'none'}")
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main())
