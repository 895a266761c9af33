"""Autograd inside an operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_KEYS = ("AutogradFunctionality", "AutogradOther", "AutogradCPU", "AutogradCUDA")


@contextmanager
def autograd_enabled() -> Iterator[None]:
    """Record gradients also where an operator's implementation runs: torch hides autograd's dispatch keys from it."""
    hidden = torch._C._dispatch_tls_local_exclude_set()
    for name in _KEYS:
        hidden = hidden.remove(getattr(torch._C.DispatchKey, name))
    shown = torch._C._dispatch_tls_local_include_set()
    # Hooks on saved tensors (checkpoints, offloading) are for the graph outside: this one is gone when the operator returns.
    unhooked = torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)
    with torch._C._ForceDispatchKeyGuard(shown, hidden), torch.enable_grad(), unhooked:
        yield


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
