"""A weighted sum of losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f


class MultipleLosses(torch.nn.Module):
    """``sum of weight * loss(embeddings, labels, tuple)``, each loss with its own miner or the tuple that is handed over.

    Args:
        losses: a list of losses, or a dictionary of them.
        miners: as ``losses``: a list of the same length, ``None`` for a loss without one; or a dictionary of some of the keys.
        weights: as ``losses``, a number for each; ``None`` for ones.
    """

    losses: Any
    miners: Any
    weights: Any

    def __init__(
        self,
        losses: Sequence[torch.nn.Module] | Mapping[str, torch.nn.Module],
        miners: Sequence[torch.nn.Module | None] | Mapping[str, torch.nn.Module] | None = None,
        weights: Sequence[float] | Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.is_dict = isinstance(losses, dict | torch.nn.ModuleDict)
        if isinstance(losses, torch.nn.ModuleList):
            losses = list(losses)
        if not (self.is_dict or c_f.is_list_or_tuple(losses)):
            raise TypeError(f"losses must be a list or a dict of losses, got {type(losses).__name__}")
        self.losses = _modules(losses, self.is_dict)
        self.miners = None
        if miners is not None:
            self._check("miners", miners, match_all_keys=False)
            self.miners = _modules(miners, self.is_dict)
        if weights is not None:
            self._check("weights", weights, match_all_keys=True)
            self.weights = weights
        else:
            self.weights = dict.fromkeys(self.losses.keys(), 1) if self.is_dict else [1] * len(losses)

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None) -> Any:
        """The weighted sum; ``ValueError`` for an ``indices_tuple`` where there are miners."""
        if self.miners and indices_tuple is not None:
            raise ValueError("indices_tuple was given to a MultipleLosses that has miners; leave one of them out")
        total: Any = 0
        for i, loss in self._items():
            mined = self.get_indices_tuple(i, embeddings, labels, indices_tuple)
            total = total + loss(embeddings, labels, mined) * self.weights[i]
        return total

    def _items(self) -> Iterable[tuple[Any, torch.nn.Module]]:
        return self.losses.items() if self.is_dict else enumerate(self.losses)

    def get_indices_tuple(self, i: Any, embeddings: Tensor, labels: Tensor, indices_tuple: Any) -> Any:
        """What the miner of loss ``i`` finds, or ``indices_tuple`` where there is none."""
        miner = self.miner_of(i)
        return indices_tuple if miner is None else miner(embeddings, labels)

    def miner_of(self, i: Any) -> torch.nn.Module | None:
        """The miner of loss ``i``, where it has one."""
        if not self.miners or (self.is_dict and i not in self.miners):
            return None
        miner: torch.nn.Module | None = self.miners[i]
        return miner

    def assertions_if_not_none(self, x: Any, match_all_keys: bool) -> None:
        """``TypeError``/``ValueError`` unless ``x`` is ``None`` or has an entry for each loss (or names only losses)."""
        if x is not None:
            self._check("miners or weights", x, match_all_keys)

    def _check(self, name: str, x: Any, match_all_keys: bool) -> None:
        if not self.is_dict:
            if not c_f.is_list_or_tuple(x):
                raise TypeError(f"{name} must be a list as losses is, got {type(x).__name__}")
            if len(x) != len(self.losses):
                raise ValueError(f"{name} must have one entry for each of the {len(self.losses)} losses, got {len(x)}")
            return
        if not isinstance(x, dict):
            raise TypeError(f"{name} must be a dict as losses is, got {type(x).__name__}")
        unknown = [key for key in x if key not in self.losses]
        missing = [key for key in self.losses if key not in x] if match_all_keys else []
        if unknown or missing:
            raise ValueError(
                f"{name} must have {'exactly' if match_all_keys else 'only'} the keys of losses ({', '.join(self.losses)}), "
                f"got {', '.join(map(str, x)) or 'none'}"
            )


def _modules(parts: Any, is_dict: bool) -> torch.nn.Module:
    return torch.nn.ModuleDict(parts) if is_dict else torch.nn.ModuleList(parts)
