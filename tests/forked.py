"""Child processes that are forked from a server which has imported the heavy packages once: a second less each, or several.

It is the process's one server, which others may have started with packages of their own: a child that must import something
first is no child of it.
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.context import ForkServerProcess

_PRELOADED = ["torch", "numpy", "sklearn.datasets", "sklearn.cluster", "torch.utils.tensorboard", "record_keeper"]


def start(code: str, *arguments: str) -> ForkServerProcess:
    """Start a process that runs code as a script, with arguments in `sys.argv`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    process = context.Process(target=_run, args=(code, arguments), daemon=True)
    process.start()
    return process


def _run(code: str, arguments: tuple[str, ...]) -> None:
    import torch

    torch.set_num_threads(1)
    sys.argv = ["script", *arguments]
    exec(compile(code, "script", "exec"), {"__name__": "__main__"})
