"""The logger that the whole package writes to; `common_functions.LOGGER` is the same one."""

from __future__ import annotations

import logging

name = "PML"


def rename(new_name: str) -> None:
    """Log under `new_name` from now on."""
    global name
    name = new_name


def current() -> logging.Logger:
    """The logger of the name that was set last."""
    return logging.getLogger(name)
