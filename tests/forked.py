"""Child processes that are forked from a server which has imported the heavy packages once: a second less each, or several.

It is the process's one server, which others may have started with packages of their own: a child that must import something
first is no child of it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

_PRELOADED = ["torch", "numpy", "sklearn.datasets", "sklearn.cluster", "torch.utils.tensorboard", "record_keeper"]


def start(code: str, *arguments: str, log: Path) -> ForkServerProcess:
    """Start a process that runs code as a script, with arguments in `sys.argv`; what it prints goes to the file `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(code, arguments, log), daemon=True)
    process.start()
    return process


def _run(code: str, arguments: tuple[str, ...], log: Path) -> None:
    import torch

    printed = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    torch.set_num_threads(1)
    sys.argv = ["script", *arguments]
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})
