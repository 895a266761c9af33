"""The base of losses that wrap another loss."""

from __future__ import annotations

from typing import Any

import torch


class BaseLossWrapper(torch.nn.Module):
    """A loss around another one, which has to be among :meth:`supported_losses`.

    A subclass implements :meth:`supported_losses`; one that accepts anything overrides :meth:`check_loss_support`.
    """

    def __init__(self, loss: torch.nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not isinstance(loss, torch.nn.Module):
            raise TypeError(f"loss must be a loss object, got {loss!r}; pass for example ContrastiveLoss()")
        self.check_loss_support(type(loss).__name__)

    @staticmethod
    def supported_losses() -> list[str]:
        """The names of the classes that can be wrapped. Subclasses implement it."""
        raise NotImplementedError

    @classmethod
    def check_loss_support(cls, loss_name: str) -> None:
        """``ValueError`` unless a loss of that class can be wrapped."""
        supported = cls.supported_losses()
        if loss_name not in supported:
            raise ValueError(f"loss of {cls.__name__} must be one of {', '.join(supported)}, got {loss_name}")
