"""A trainer's whole state, in a file that a run is taken up from at the identical next step."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.model_files import load_into, load_state, save_state, unwrapped
from pml_fast.utils.random_state import (
    check_generators,
    get_generators,
    get_random_state,
    set_generators,
    set_random_state,
)

from .resumable_loader import sampler_state

FORMAT = "pml_fast trainer 1"
_DICTIONARIES = ("models", "optimizers", "lr_schedulers", "loss_funcs", "mining_funcs")
_HOOKS = ("end_of_iteration_hook", "end_of_epoch_hook")


def rank() -> int:
    """Of this process; 0 without a process group."""
    return torch.distributed.get_rank() if _in_group() else 0


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class Checkpoints:
    """Saving and loading of a trainer: models, optimizers, schedulers, losses, miners, grad scaler, the state of hooks that
    have one (EarlyStopping), every random state, and the place in the data.

    Checkpoints are taken in hooks, or between calls of `train`. Files hold tensors and numbers alone and load without
    executing code; they are written beside the old one and renamed. In a process group every rank calls
    `save_checkpoint`, rank 0 writes, and every rank loads.
    """

    # "start", within a "step", after an "iteration" or an "epoch": what follows after a checkpoint.
    _phase = "start"
    _running = False
    _resumed: dict[str, Any] | None = None
    epoch = 0
    iteration = 0
    # The trainer's own.
    sampler: Any
    grad_scaler: Any
    data_device: Any
    if TYPE_CHECKING:

        def initialize_dataloader(self) -> None: ...
        def step_lr_schedulers(self, end_of_epoch: bool = False) -> None: ...

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`state_dict` to a file; one that is there stays whole until it is replaced."""
        state = self.state_dict()
        if rank() == 0:
            save_state(state, path)
        if _in_group():
            torch.distributed.barrier()

    def load_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Read a file of `save_checkpoint`; ValueError for a damaged one, or of another trainer, and nothing is changed."""
        self.load_state_dict(load_state(path))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on. A collective call in a process group."""
        state = self.progress()
        for name in _DICTIONARIES:
            state[name] = {key: unwrapped(obj).state_dict() for key, obj in self._stateful(name)}
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a :meth:`state_dict`: the next call of `train` goes on from it, whatever its `start_epoch`."""
        self._check_progress(state)
        self._check_dictionaries(state)
        for name in _DICTIONARIES:
            for key, obj in self._stateful(name):
                load_into(obj, state[name][key])
        self.load_progress(state)

    def progress(self) -> dict[str, Any]:
        """The part of :meth:`state_dict` that is in no object of the dictionaries: random states, and the place in the data."""
        if self._phase == "step":
            raise RuntimeError("a checkpoint cannot be taken within a step: take it in a hook, or between calls of train")
        mine = self._state_of_rank()
        ranks: list[Any] = [mine]
        if _in_group():
            ranks = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, mine)
        return {
            "format": FORMAT,
            "phase": self._phase,
            "epoch": self.epoch,
            "iteration": self.iteration,
            "hooks": {name: hook.state_dict() for name, hook in self._stateful_hooks()},
            "grad_scaler": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "ranks": ranks,
        }

    def load_progress(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`progress` returned; ValueError for one of another trainer, and nothing is changed."""
        self._check_progress(state)
        mine = state["ranks"][rank()]
        set_generators(self._drawing(), mine["generators"], self.data_device)
        for name, hook in self._stateful_hooks():
            if name in state["hooks"]:
                hook.load_state_dict(state["hooks"][name])
        if self.grad_scaler is not None:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        self._phase, self.epoch, self.iteration = state["phase"], state["epoch"], state["iteration"]
        self._resumed = mine

    # Where the loop goes on

    def _begin(self, start_epoch: int) -> tuple[int, int]:
        """Make the loader; the epoch and the iteration to begin with."""
        resumed = self._resumed
        if resumed is not None and resumed["loader"] is None:
            # The checkpoint is from between two calls of `train`: the next one makes its iterator anew.
            if resumed["sampler"] is not None:
                self.sampler.load_state_dict(resumed["sampler"])
            set_random_state(resumed["random_state"])
        self.initialize_dataloader()
        self._running, self._resumed = True, None
        if resumed is None:
            return start_epoch, 0
        if resumed["loader"] is not None:
            set_random_state(resumed["random_state"])
        if self._phase == "iteration":
            self.step_lr_schedulers(end_of_epoch=False)
            return self.epoch, self.iteration + 1
        return (start_epoch if self._phase == "start" else self.epoch + 1), 0

    def _iterator(self, loader: Any) -> Iterator[Any]:
        """A new iterator of the loader, or one that goes on where the checkpoint's was."""
        if self._resumed is not None and self._resumed["loader"] is not None:
            resumed: Iterator[Any] = loader.resumed(self._resumed["loader"])
            return resumed
        return iter(loader)

    def _state_of_rank(self) -> dict[str, Any]:
        iterator: Any = getattr(self, "dataloader_iter", None)
        loader = iterator.state_dict() if self._running and hasattr(iterator, "state_dict") else None
        return {
            "random_state": get_random_state(),
            "loader": loader,
            "sampler": sampler_state(self.sampler, ended=True) if loader is None else None,
            "generators": get_generators(self._drawing()),
        }

    def _drawing(self) -> list[Any]:
        return [obj for name in ("loss_funcs", "mining_funcs") for obj in getattr(self, name).values()]

    def _stateful(self, name: str) -> list[tuple[str, Any]]:
        return [(key, obj) for key, obj in (getattr(self, name) or {}).items() if hasattr(obj, "state_dict")]

    def _stateful_hooks(self) -> list[tuple[str, Any]]:
        hooks = [(name, getattr(self, name)) for name in _HOOKS]
        return [(name, hook) for name, hook in hooks if hasattr(hook, "state_dict") and hasattr(hook, "load_state_dict")]

    def _check_progress(self, state: Mapping[str, Any]) -> None:
        """ValueError unless the state is of a trainer made as this one is."""
        if not isinstance(state, Mapping) or state.get("format") != FORMAT:
            raise ValueError(f"this is no checkpoint of a trainer of this version ({FORMAT!r})")
        if len(state["ranks"]) != (torch.distributed.get_world_size() if _in_group() else 1):
            raise ValueError(f"the checkpoint is of {len(state['ranks'])} processes: resume it with as many")
        if (state["grad_scaler"] is None) != (self.grad_scaler is None):
            raise ValueError("the checkpoint and this trainer must both have a grad scaler, or neither: make it alike")
        check_generators(self._drawing(), state["ranks"][rank()]["generators"])
        if self._lacks_order(state):
            c_f.LOGGER.warning("The checkpoint does not hold the place in the data, which begins anew")

    def _check_dictionaries(self, state: Mapping[str, Any]) -> None:
        """ValueError unless the state has this trainer's names and shapes."""
        for name in _DICTIONARIES:
            here, saved = {key for key, _ in self._stateful(name)}, set(state[name])
            if here != saved:
                raise ValueError(f"the checkpoint has the {name} {sorted(saved)}, this trainer {sorted(here)}: make it alike")
            for key, obj in self._stateful(name):
                if isinstance(obj, torch.nn.Module):
                    _check_shapes(f"{name}[{key!r}]", unwrapped(obj).state_dict(), state[name][key])
                if isinstance(obj, torch.optim.Optimizer):
                    _check_groups(f"{name}[{key!r}]", obj.state_dict(), state[name][key])

    def _lacks_order(self, state: Mapping[str, Any]) -> bool:
        return state["phase"] == "iteration" and state["ranks"][rank()]["loader"] is None


def _check_shapes(name: str, here: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    if here.keys() != saved.keys():
        raise ValueError(f"{name} of the checkpoint has other entries than here: {sorted(here.keys() ^ saved.keys())}")
    for key, value in here.items():
        shapes = [tuple(getattr(x, "shape", ())) for x in (value, saved[key])]
        # A memory queue or lazily made buffers may grow: their own load_state_dict decides.
        if shapes[0] != shapes[1] and isinstance(value, torch.Tensor) and value.numel():
            raise ValueError(f"{name} of the checkpoint has {key} of shape {shapes[1]}, here it is {shapes[0]}")


def _check_groups(name: str, here: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, here)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{name} of the checkpoint has groups of {sizes[0]} parameters, here they have {sizes[1]}: make it alike"
        )
