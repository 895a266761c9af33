"""What a trainer makes of its arguments: defaults for those that are missing, and which keys its dictionaries may have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.key_checker import KeyChecker, KeyCheckerDict, default_important
from pml_fast.utils.loss_tracker import LossTracker


def _but_embedder(s: KeyChecker, d: Mapping[str, KeyChecker]) -> list[str]:
    return c_f.exclude(default_important(s, d), ["embedder"])


class Construction:
    """The part of a trainer that its constructor calls, each step of which a subclass may change."""

    models: Any
    optimizers: Any
    lr_schedulers: Any
    loss_names: list[str]
    loss_weights: Any
    freeze_these: Sequence[str]
    data_device: Any
    data_and_label_getter: Any
    dataset_labels: Any
    set_min_label_to_zero: bool
    end_of_iteration_hook: Any
    end_of_epoch_hook: Any
    autocast_dtype: torch.dtype | None
    grad_scaler: Any
    allowed_lr_scheduler_key_suffixes: Mapping[str, str]

    # Defaults

    def initialize_data_device(self) -> None:
        """A GPU where there is one."""
        if self.data_device is None:
            self.data_device = c_f.use_cuda_if_available()

    def initialize_label_mapper(self) -> None:
        """The map of the labels."""
        self.label_mapper = c_f.LabelMapper(self.set_min_label_to_zero, self.dataset_labels).map

    def initialize_loss_tracker(self) -> None:
        """The losses by name."""
        self.loss_tracker = LossTracker(self.loss_names)
        self.losses = self.loss_tracker.losses

    def initialize_data_and_label_getter(self) -> None:
        """What the loader yields is data and labels."""
        if self.data_and_label_getter is None:
            self.data_and_label_getter = c_f.return_input

    def initialize_loss_weights(self) -> None:
        """1 for each."""
        if self.loss_weights is None:
            self.loss_weights = dict.fromkeys(self.loss_names, 1)

    def initialize_hooks(self) -> None:
        """Hooks that do nothing."""
        if self.end_of_iteration_hook is None:
            self.end_of_iteration_hook = c_f.return_input
        if self.end_of_epoch_hook is None:
            self.end_of_epoch_hook = c_f.return_input

    def initialize_lr_schedulers(self) -> None:
        """None of them."""
        if self.lr_schedulers is None:
            self.lr_schedulers = {}

    def initialize_models(self) -> None:
        """An embedder that does nothing."""
        if "embedder" not in self.models:
            self.models["embedder"] = torch.nn.Identity()

    def initialize_grad_scaler(self) -> None:
        """One for float16, whose small gradients would be lost."""
        if self.grad_scaler is None and self.autocast_dtype is torch.float16:
            self.grad_scaler = torch.amp.GradScaler(torch.device(self.data_device).type)

    # Keys

    def verify_dict_keys(self) -> None:
        """ValueError for a key that no dictionary may have, or that one lacks."""
        self.set_schema()
        self.schema.verify(self)
        self.verify_freeze_these_keys()

    def modify_schema(self) -> None:
        """Change `self.schema` here for the keys of a subclass."""

    def set_schema(self) -> None:
        """The keys that each dictionary may and must have."""

        def of_models_and_losses(suffixes: Sequence[str]) -> Callable[[Any, Mapping[str, KeyChecker]], list[str]]:
            return lambda s, d: [key + end for end in suffixes for key in (*d["models"].keys, *d["loss_funcs"].keys)]

        scheduler_suffixes = list(self.allowed_lr_scheduler_key_suffixes.values())
        self.schema = KeyCheckerDict(
            {
                # Without an embedder the trunk's output is embedded as it is.
                "models": KeyChecker(
                    ["trunk", "embedder"],
                    essential=["trunk"],
                    important=lambda s, _: c_f.exclude(s.keys, ["trunk", "embedder"]),
                ),
                "loss_funcs": KeyChecker(["metric_loss"]),
                "mining_funcs": KeyChecker(["subset_batch_miner", "tuple_miner"], warn_empty=False, important=[]),
                "loss_weights": KeyChecker(self.loss_names, warn_empty=False, essential=self.loss_names),
                "optimizers": KeyChecker(
                    of_models_and_losses(["_optimizer"]), important=c_f.append_map(self.models.keys(), "_optimizer")
                ),
                "lr_schedulers": KeyChecker(of_models_and_losses(scheduler_suffixes), warn_empty=False, important=[]),
                "gradient_clippers": KeyChecker(of_models_and_losses(["_grad_clipper"]), warn_empty=False, important=[]),
            }
        )
        self.modify_schema()

    def verify_freeze_these_keys(self) -> None:
        """ValueError for a name in `freeze_these` that no model and no loss function may have."""
        allowed = [*self.schema["models"].keys, *self.schema["loss_funcs"].keys]
        for name in self.freeze_these:
            if not any(re.fullmatch(key, name) for key in allowed):
                raise ValueError(f"freeze_these keys must be one of {', '.join(allowed)}, got {name!r}")
            if f"{name}_optimizer" in self.optimizers:
                c_f.LOGGER.warning("There is an optimizer for %s, whose parameters are frozen", name)
