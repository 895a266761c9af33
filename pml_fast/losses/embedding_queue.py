"""A queue of past embeddings: its rows, their order and its state dict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.index_types import named_indices
from pml_fast.utils.module_with_records import ModuleWithRecords

_POSITION = ("queue_idx", "has_been_filled")


class EmbeddingQueue(ModuleWithRecords):
    """The last ``memory_size`` embeddings in a ring; a subclass sets the sizes and calls :meth:`reset_queue`."""

    embedding_size: int
    memory_size: int
    embedding_memory: Tensor
    label_memory: Tensor
    queue_idx: int
    has_been_filled: bool
    curr_batch_idx: Tensor

    def reset_queue(self) -> None:
        """Forget all embeddings."""
        self.register_buffer("embedding_memory", torch.zeros(self.memory_size, self.embedding_size))
        self.register_buffer("label_memory", torch.zeros(self.memory_size, dtype=torch.int64))
        self.has_been_filled = False
        self.queue_idx = 0

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        """Write the batch over the oldest rows; of more than ``memory_size`` rows the last ones stay."""
        left_out = max(0, batch_size - self.memory_size)
        rows = torch.arange(self.queue_idx + left_out, self.queue_idx + batch_size, device=self.embedding_memory.device)
        self.curr_batch_idx = rows % self.memory_size
        self.embedding_memory[self.curr_batch_idx] = embeddings.detach()[left_out:].to(self.embedding_memory)
        self.label_memory[self.curr_batch_idx] = labels.detach()[left_out:].to(self.label_memory)
        self.has_been_filled = self.has_been_filled or self.queue_idx + batch_size >= self.memory_size
        self.queue_idx = (self.queue_idx + batch_size) % self.memory_size

    def _take_types(self, embeddings: Tensor, labels: Tensor) -> None:
        """The memory follows the embeddings to their device and type."""
        self.embedding_memory = self.embedding_memory.to(embeddings)
        self.label_memory = self.label_memory.to(labels)

    # ---- the queue in an order that begins with what is new ----

    def _turned(self, new_emb: Tensor, new_labels: Tensor) -> tuple[Tensor, Tensor]:
        """The queue with new rows written over the oldest ones, from the first of the new rows on."""
        new_emb, new_labels = new_emb[-self.memory_size :], new_labels[-self.memory_size :]
        start, end = self.queue_idx, self.queue_idx + len(new_emb)
        runs = [(end, self.memory_size), (0, start)] if self.has_been_filled else [(0, start)]
        if end >= self.memory_size:
            runs = [(end - self.memory_size, start)]
        return _stacked(new_emb, self.embedding_memory, runs), _stacked(new_labels, self.label_memory, runs)

    def _turned_indices(self, indices_tuple: Any, size: int) -> Sequence[Tensor]:
        """A user's tuple with rows of the memory as rows of the turned one."""
        parts = [part.to(torch.int64) for part in tuple(named_indices(indices_tuple))]
        others = (1, 2) if len(parts) == 3 else (1, 3)
        for k in others:
            if len(parts[k]) and not 0 <= int(parts[k].min()) <= int(parts[k].max()) < size:
                raise ValueError(
                    f"positives and negatives of indices_tuple must be rows of the memory, 0 to {size - 1}, "
                    f"got {int(parts[k].min())} to {int(parts[k].max())}"
                )
            parts[k] = (parts[k] - self.queue_idx) % size
        return named_indices(parts)

    # ---- the state dict ----

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in _POSITION:
            destination[prefix + name] = torch.tensor(getattr(self, name))

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in ("embedding_memory", "label_memory"):
            saved = state_dict.get(prefix + name)
            if torch.is_tensor(saved):
                # Copied into a narrower type the queue would not be the saved one.
                setattr(self, name, getattr(self, name).to(saved.dtype))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        unexpected_keys[:] = [key for key in unexpected_keys if key not in {prefix + name for name in _POSITION}]
        self._load_position(state_dict, prefix, error_msgs)

    def _load_position(self, state_dict: Any, prefix: str, error_msgs: list[str]) -> None:
        if prefix + "embedding_memory" not in state_dict:
            return
        if any(prefix + name not in state_dict for name in _POSITION):
            c_f.LOGGER.warning("the state dict of a CrossBatchMemory has no queue_idx: its queue is taken as empty")
            self.queue_idx, self.has_been_filled = 0, False
            return
        position, filled = (int(state_dict[prefix + name]) for name in _POSITION)
        if not 0 <= position < self.memory_size:
            error_msgs.append(f"queue_idx must be from 0 to memory_size - 1 = {self.memory_size - 1}, got {position}")
            return
        self.queue_idx, self.has_been_filled = position, bool(filled)


def _stacked(first: Tensor, memory: Tensor, runs: list[tuple[int, int]]) -> Tensor:
    """``first``, then runs of rows of the memory, in the type of ``first``."""
    # Not torch.cat: autocast has an opinion about its type.
    out = first.new_empty(len(first) + sum(b - a for a, b in runs), *first.shape[1:])
    out[: len(first)] = first
    done = len(first)
    for a, b in runs:
        out[done : done + b - a] = memory[a:b]
        done += b - a
    return out
