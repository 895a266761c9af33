"""What the miners that draw at random share."""

from __future__ import annotations

from typing import Any

import torch

from pml_fast.miners.base_miner import BaseMiner


class DrawnMiner(BaseMiner):
    """A miner whose result is a draw, made on the embeddings' device.

    Args:
        seed: of the miner's own stream of random numbers. ``None``: every call starts from a number that torch's default
            generator gives, so that ``torch.manual_seed`` repeats a run.
        generator: draw from this one instead.
    """

    def __init__(self, *, seed: int | None = None, generator: torch.Generator | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be an int or None, got {seed!r}")
        if seed is not None and generator is not None:
            raise ValueError("seed and generator were both given; pass one of them")
        self.seed = seed
        self.generator = generator

    def stream(self, device: torch.device) -> torch.Generator:
        """The generator that this call draws from."""
        if self.generator is not None:
            return self.generator
        if self.seed is not None:
            self.generator = torch.Generator(device).manual_seed(self.seed)
            return self.generator
        return torch.Generator(device).manual_seed(int(torch.randint(1 << 62, ())))
