"""Run a function in a child process under a memory bound and a time bound, and measure peak memory.

The benchmarks and the demo run other libraries with this: a step that would need more memory than the machine
has, or minutes of time, ends as a result that says so instead of taking the whole run down.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

OK = "ok"
OUT_OF_MEMORY = "out of memory"
TIMED_OUT = "timed out"
FAILED = "failed"

_POLL_SECONDS = 0.02
_OUT_OF_MEMORY_TEXTS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "Cannot allocate memory",
)


@dataclass(frozen=True)
class Outcome:
    """How a bounded run ended.

    status is one of "ok", "out of memory", "timed out" and "failed"; value is what the function returned
    (None unless ok); error tells why it is not ok; seconds is the wall time of the child, its start included;
    peak_bytes is the growth of its resident memory as seen from outside, sampled every 20 ms (None where
    /proc is missing).
    """

    status: str
    value: Any
    error: str | None
    seconds: float
    peak_bytes: int | None

    @property
    def ok(self) -> bool:
        return self.status == OK


def run(
    function: Callable[..., Any],
    *args: Any,
    memory_bytes: int | None = None,
    seconds: float | None = None,
    preload: Sequence[str] = (),
) -> Outcome:
    """Call ``function(*args)`` in a child process; never raises for what the child does.

    function must be importable from a module and its arguments and result picklable (return NumPy arrays or
    numbers rather than tensors). memory_bytes bounds what the child may allocate on top of what it starts
    with: the kernel enforces it on Linux, elsewhere there is no memory bound. seconds bounds the wall time.
    preload names modules that are imported once in a server process from which children are forked, so that
    each child starts in milliseconds; a module that is not installed is left out. Raises ValueError for a
    bound that is not positive.
    """
    for name, bound in (("memory_bytes", memory_bytes), ("seconds", seconds)):
        if bound is not None and bound <= 0:
            raise ValueError(f"{name} must be positive or None (no bound), got {bound!r}; pass None for no bound")
    context = _context(preload)
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(sender, function, args, memory_bytes), daemon=True)
    began = time.monotonic()
    child.start()
    sender.close()
    watch = _Watch(child.pid)
    try:
        while True:
            elapsed = time.monotonic() - began
            watch.sample()
            if receiver.poll(_POLL_SECONDS):
                status, value, error = _receive(receiver, child)
                break
            if seconds is not None and elapsed > seconds:
                status, value, error = TIMED_OUT, None, f"stopped after {seconds:g} s"
                break
            if not child.is_alive() and not receiver.poll(0):
                status, value, error = _death(child)
                break
        return Outcome(status, value, error, time.monotonic() - began, watch.peak_bytes)
    finally:
        _stop(child)
        receiver.close()


def run_here(function: Callable[..., Any], *args: Any) -> Outcome:
    """Call ``function(*args)`` in this process, unbounded: what it raises is the outcome's error, as of :func:`run`."""
    began = time.monotonic()
    status, value, error = _called(function, args)
    return Outcome(status, value, error, time.monotonic() - began, None)


def _called(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[str, Any, str | None]:
    try:
        return OK, function(*args), None
    except Exception as error:
        status = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
        summary = f"{type(error).__name__}: {error}"
        return status, None, summary if status == OUT_OF_MEMORY else summary + "\n" + traceback.format_exc()


def measure_peak(function: Callable[[], Any]) -> tuple[Any, int]:
    """Call ``function()``; returns its result and by how many bytes resident memory rose meanwhile.

    On Linux the kernel's own high-water mark is reset and read, so no short peak is missed; where that is
    refused a thread samples resident memory every millisecond, and on a system without /proc this raises
    OSError.
    """
    gc.collect()
    _release_scratch()
    _return_free_heap()
    if _reset_high_water_mark():
        baseline = _status_bytes("VmRSS")
        result = function()
        return result, max(0, _status_bytes("VmHWM") - baseline)
    baseline = _status_bytes("VmRSS")
    with _Sampler() as sampler:
        result = function()
    return result, max(0, sampler.peak - baseline)


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping, or None where the system does not say."""
    try:
        with open("/proc/meminfo") as file:
            match = re.search(r"MemAvailable:\s+(\d+) kB", file.read())
    except OSError:
        return None
    return int(match.group(1)) * 1024 if match else None


def _context(preload: Sequence[str]) -> Any:
    # Forking a process that has already run parallel code is unsafe, so children come from a server that has
    # only imported modules; on macOS even that is unsafe, and Windows has no fork.
    if sys.platform.startswith("linux"):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([name for name in preload if _is_installed(name)])
        return context
    return multiprocessing.get_context("spawn")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name is missing
        return False


def _child(sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], memory_bytes: int | None) -> None:
    if hasattr(os, "setsid"):
        os.setsid()  # so that what the function starts (a compiler, say) is stopped together with it
    try:
        if memory_bytes is not None:
            _limit_memory(memory_bytes)
        sender.send(_called(function, args))
    except BaseException as error:  # every ending is reported: this is the child's outermost frame
        sender.send((FAILED, None, f"{type(error).__name__}: {error}\n" + traceback.format_exc()))
    finally:
        sender.close()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that an allocation failed, on the CPU or on a GPU."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def _limit_memory(memory_bytes: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import resource

    # Private writable memory (RLIMIT_DATA) is what a computation allocates; RLIMIT_AS would also count the
    # address space that threads and CUDA merely reserve.
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _status_bytes("VmData") + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _receive(receiver: Connection, child: Any) -> tuple[str, Any, str | None]:
    try:
        status, value, error = receiver.recv()
    except EOFError:  # the pipe closed without a message: the child died
        return _death(child)
    return status, value, error


def _death(child: Any) -> tuple[str, None, str]:
    child.join(5)
    code = child.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        # Nothing here sends SIGKILL before the outcome is known, so it was the kernel, short of memory.
        status = OUT_OF_MEMORY if name == "SIGKILL" else FAILED
        return status, None, f"the process was ended by {name}"
    return FAILED, None, f"the process ended with exit code {code} without a result"


def _stop(child: Any) -> None:
    child.join(0.5)
    if child.is_alive():
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (
            AttributeError,
            ProcessLookupError,
        ):  # no process groups here, or the child has none of its own yet
            child.kill()
        child.join()
    child.close()


class _Watch:
    """Follows the resident memory of another process."""

    def __init__(self, pid: int) -> None:
        self._path = f"/proc/{pid}/statm"
        self._first: int | None = None
        self._peak: int | None = None

    @property
    def peak_bytes(self) -> int | None:
        return None if self._peak is None or self._first is None else self._peak - self._first

    def sample(self) -> None:
        try:
            with open(self._path) as file:
                now = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # the process has ended, or there is no /proc
            return
        self._first = now if self._first is None else self._first
        self._peak = max(now, self._peak or 0)


class _Sampler:
    """Samples this process's resident memory in a thread."""

    def __init__(self) -> None:
        self.peak = _status_bytes("VmRSS")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _loop(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, _status_bytes("VmRSS"))

    def __enter__(self) -> _Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = max(self.peak, _status_bytes("VmRSS"))
        self._done.set()
        self._thread.join()


def _status_bytes(key: str) -> int:
    with open("/proc/self/status") as file:
        match = re.search(rf"^{key}:\s+(\d+) kB", file.read(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status has no {key}: memory cannot be measured on this system")
    return int(match.group(1)) * 1024


def _reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _release_scratch() -> None:
    # What this library's step has left to the next one counts as the next one's. Children may measure without the library.
    scratch = sys.modules.get("pml_fast.engine.cpu.scratch")
    if scratch is not None:
        scratch.release()


def _return_free_heap() -> None:
    # Freed blocks that the C library keeps would be reused without showing up as growth.
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
