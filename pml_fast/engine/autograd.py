"""Autograd inside an operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_KEYS = ("AutogradFunctionality", "AutogradOther", "AutogradCPU", "AutogradCUDA")


@contextmanager
def autograd_enabled() -> Iterator[None]:
    """Record gradients also where an operator's implementation runs: torch hides autograd's dispatch keys from it."""
    hidden = torch._C._dispatch_tls_local_exclude_set()
    for name in _KEYS:
        hidden = hidden.remove(getattr(torch._C.DispatchKey, name))
    shown = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(shown, hidden), torch.enable_grad():
        yield
