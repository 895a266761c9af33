"""What a result must say about where it was measured: hardware, versions and commit; never a host name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "pytorch-metric-learning": "pytorch-metric-learning",
    "faiss": "faiss-cpu",
    "scikit-learn": "scikit-learn",
    "pml_fast": "pml-fast",
}
_NOISE = re.compile(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b|\b\d+-Core\b", re.IGNORECASE)


@dataclass(frozen=True)
class Machine:
    """cpu and gpu are model names; cores those this process may use; memory_bytes the installed memory."""

    cpu: str
    cores: int
    memory_bytes: int | None
    system: str
    gpu: str | None = None

    @property
    def slug(self) -> str:
        """A folder name made from the hardware alone, such as "amd-epyc-2c"."""
        name = self.gpu if self.gpu else f"{_NOISE.sub(' ', self.cpu)} {self.cores}c"
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@dataclass(frozen=True)
class Revision:
    """The commit that was measured (None outside a repository) and whether files differed from it."""

    commit: str | None
    dirty: bool


@dataclass(frozen=True)
class Versions:
    """Versions of Python and of the packages measured; None for what is not installed."""

    python: str = field(default_factory=platform.python_version)
    packages: dict[str, str | None] = field(default_factory=dict)


def describe_machine(device: str) -> Machine:
    gpu = None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name(device)
    return Machine(_cpu_model(), _usable_cores(), _installed_memory(), f"{platform.system()} {platform.machine()}", gpu)


def describe_versions() -> Versions:
    return Versions(packages={name: _version(distribution) for name, distribution in PACKAGES.items()})


def describe_revision() -> Revision:
    """The repository's commit; results written by earlier runs do not make it dirty."""
    commit = _git("rev-parse", "HEAD")
    status = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return Revision(commit, bool(status))


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        module = sys.modules.get(distribution.replace("-", "_"))
        return getattr(module, "__version__", None)


def _git(*arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # git is not installed
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _cpu_model() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _installed_memory() -> int | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
