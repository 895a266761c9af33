"""Processes that stay, and form process groups of one, two and four ranks: what the tests of distributed code run in."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def _serve(rank: int, tasks: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    while (task := tasks.get()) is not None:
        function, arguments, world_size, store = task
        try:
            if store is not None:
                if torch.distributed.is_initialized():
                    torch.distributed.destroy_process_group()
                if rank < world_size:
                    torch.distributed.init_process_group(
                        "gloo", init_method=f"file://{store}", rank=rank, world_size=world_size
                    )
            answer = function(*arguments) if rank < world_size and function is not None else None
            answers.put((True, answer))
        except BaseException:
            answers.put((False, traceback.format_exc()))


class Group:
    """``group.run(function, *arguments)``: what the function returns on each rank. Functions are of importable modules."""

    def __init__(self, most: int = 4) -> None:
        context = mp.get_context("spawn")
        self.queues = [(context.Queue(), context.Queue()) for _ in range(most)]
        self.processes = [
            context.Process(target=_serve, args=(rank, *queues), daemon=True) for rank, queues in enumerate(self.queues)
        ]
        for process in self.processes:
            process.start()
        self.world_size = 0
        self.directory = tempfile.TemporaryDirectory()
        self.count = 0

    def of(self, world_size: int) -> Group:
        """The same processes as a group of ``world_size``."""
        if world_size != self.world_size:
            self.count += 1
            self.world_size = world_size
            self._ask(None, (), str(Path(self.directory.name) / f"store-{os.getpid()}-{self.count}"))
        return self

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        return self._ask(function, arguments, None)[: self.world_size]

    def _ask(self, function: Any, arguments: tuple[Any, ...], store: str | None) -> list[Any]:
        for tasks, _ in self.queues:
            tasks.put((function, arguments, self.world_size, store))
        told = [answers.get(timeout=120) for _, answers in self.queues]
        failed = [answer for well, answer in told if not well]
        assert not failed, "\n".join(failed)
        return [answer for _, answer in told]

    def close(self) -> None:
        for tasks, _ in self.queues:
            tasks.put(None)
        for process in self.processes:
            process.join(10)
        self.directory.cleanup()
