"""Builds the compiled extension where it can be built, and the pure-Python package where it cannot.

The environment variable PML_FAST_BUILD decides: ``auto`` (the default) builds when a C++ compiler and
Python's headers are found, ``on`` insists, ``off`` never builds. A compiler that fails is always an error.

    pip install .                    # through scikit-build-core's setuptools plug-in
    python setup.py build_inplace    # incremental: puts pml_fast/_C beside the sources, for development
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar

from setuptools import Command, setup

ROOT = Path(__file__).resolve().parent


def build_mode() -> str:
    """PML_FAST_BUILD: ``auto``, ``on`` or ``off``."""
    mode = os.environ.get("PML_FAST_BUILD", "").strip().lower() or "auto"
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"PML_FAST_BUILD must be auto, on or off, got {mode!r}; unset it for auto")
    return mode


def missing_tools() -> str | None:
    """What keeps this machine from building the extension, with the remedy; None when nothing does."""
    if sys.platform == "win32":
        # The compiler is not on the PATH there; CMake asks the Visual Studio installer.
        program_files = Path(os.environ.get("PROGRAMFILES(X86)", r"C:\Program Files (x86)"))
        vswhere = program_files / "Microsoft Visual Studio" / "Installer" / "vswhere.exe"
        if not vswhere.is_file() and not shutil.which("cl"):
            return "no C++ compiler: install the Visual Studio build tools with the C++ workload"
    else:
        asked_for = os.environ.get("CXX")
        candidates = [shlex.split(asked_for)[0]] if asked_for else ["c++", "g++", "clang++"]
        if not any(shutil.which(name) for name in candidates):
            return f"no C++ compiler (looked for {', '.join(candidates)}): install one, on Debian g++"
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        return f"no Python.h in {headers}: install Python's headers, on Debian python3-dev"
    return None


def should_build() -> bool:
    """Whether to build the extension; says why not, and raises where PML_FAST_BUILD=on cannot be met."""
    mode = build_mode()
    if mode == "off":
        print("pml_fast: PML_FAST_BUILD=off, so the package is pure Python", file=sys.stderr)
        return False
    reason = missing_tools()
    if reason is None:
        return True
    if mode == "on":
        raise RuntimeError(f"PML_FAST_BUILD=on, but there is {reason}")
    print(f"pml_fast: WARNING: the package is pure Python, for there is {reason}", file=sys.stderr)
    return False


class BuildInplace(Command):
    """Configure, compile what changed, and put the extension beside the Python sources."""

    description = "build pml_fast/_C in the source tree, incrementally"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None:
        """No options."""

    def finalize_options(self) -> None:
        """No options."""

    def run(self) -> None:
        if not should_build() or not self._has_build_tools():
            for stale in [*ROOT.glob("pml_fast/_C.*.so"), *ROOT.glob("pml_fast/_C.*.pyd")]:
                stale.unlink()
            return
        # A generator keeps its own folder: CMake refuses to change it.
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        kind = "ninja" if generator else "default"
        build_dir = ROOT / "build" / f"inplace-{sysconfig.get_config_var('SOABI') or sys.platform}-{kind}"
        configure = [
            *("cmake", "--log-level=WARNING", "-S", str(ROOT), "-B", str(build_dir), *generator),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        build = ["cmake", "--build", str(build_dir), "--config", "Release", "--parallel"]
        install = ["cmake", "--install", str(build_dir), "--config", "Release", "--prefix", str(ROOT)]
        for command in (configure, build, install):
            if subprocess.run(command).returncode:
                raise SystemExit(f"pml_fast: building the extension failed: {shlex.join(command)}")

    @staticmethod
    def _has_build_tools() -> bool:
        """CMake and pybind11, which an isolated build fetches but an in-place one must find."""
        absent = [] if shutil.which("cmake") else ["cmake"]
        if subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True).returncode:
            absent.append("pybind11")
        if not absent:
            return True
        message = f"{' and '.join(absent)} not found: pip install {' '.join(absent)}"
        if build_mode() == "on":
            raise RuntimeError(f"PML_FAST_BUILD=on, but {message}")
        print(f"pml_fast: WARNING: the extension is not built, {message}", file=sys.stderr)
        return False


# `build_inplace` drives CMake itself, and needs no scikit-build-core.
builds_a_distribution = "build_inplace" not in sys.argv
setup(
    cmdclass={"build_inplace": BuildInplace},
    **({"cmake_source_dir": "."} if builds_a_distribution and should_build() else {}),
)
