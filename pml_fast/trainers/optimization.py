"""How a trainer takes its steps: schedulers, optimizers, gradient clippers, and what is in training mode."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pml_fast.utils import common_functions as c_f


class Optimization:
    """The part of a trainer that changes weights and modes."""

    models: Any
    optimizers: Any
    loss_funcs: Any
    lr_schedulers: Any
    gradient_clippers: Any
    grad_scaler: Any
    freeze_these: Sequence[str]
    freeze_trunk_batchnorm: bool

    allowed_lr_scheduler_key_suffixes: Mapping[str, str] = {
        "iteration": "_scheduler_by_iteration",
        "epoch": "_scheduler_by_epoch",
        "plateau": "_scheduler_by_plateau",
    }

    def step_lr_schedulers(self, end_of_epoch: bool = False) -> None:
        """Step the schedulers by iteration, or those by epoch."""
        suffix = self.allowed_lr_scheduler_key_suffixes["epoch" if end_of_epoch else "iteration"]
        for name, scheduler in (self.lr_schedulers or {}).items():
            if name.endswith(suffix):
                scheduler.step()

    def step_lr_plateau_schedulers(self, validation_info: Any) -> None:
        """Step the schedulers by plateau with the number they watch."""
        for name, scheduler in (self.lr_schedulers or {}).items():
            if name.endswith(self.allowed_lr_scheduler_key_suffixes["plateau"]):
                scheduler.step(validation_info)

    def optimizers_to_step(self) -> list[str]:
        """Those whose model is not frozen."""
        return [name for name in self.optimizers if re.sub("_optimizer$", "", name) not in self.freeze_these]

    def step_optimizers(self) -> None:
        """Step the optimizers; under a grad scaler only where the gradients are finite."""
        for name in self.optimizers_to_step():
            optimizer = self.optimizers[name]
            if self.grad_scaler is None:
                optimizer.step()
            elif _has_gradients(optimizer):
                self.grad_scaler.step(optimizer)

    def clip_gradients(self) -> None:
        """Call the gradient clippers, on gradients without the grad scaler's factor."""
        if not self.gradient_clippers:
            return
        if self.grad_scaler is not None:
            for name in self.optimizers_to_step():
                if _has_gradients(self.optimizers[name]):
                    self.grad_scaler.unscale_(self.optimizers[name])
        for clip in self.gradient_clippers.values():
            clip()

    def trainable_attributes(self) -> list[Any]:
        """The dictionaries of what is trained."""
        return [self.models, self.loss_funcs]

    def set_to_train(self) -> None:
        """Training mode; evaluation mode without gradients for what is frozen."""
        for modules in self.trainable_attributes():
            for name, module in modules.items():
                if name in self.freeze_these:
                    c_f.set_requires_grad(module, requires_grad=False)
                    module.eval()
                else:
                    module.train()
        self.maybe_freeze_trunk_batchnorm()

    def set_to_eval(self) -> None:
        """Evaluation mode."""
        for modules in self.trainable_attributes():
            for module in modules.values():
                module.eval()

    def maybe_freeze_trunk_batchnorm(self) -> None:
        """Put the trunk's batch normalization into evaluation mode, if asked to."""
        if self.freeze_trunk_batchnorm:
            self.models["trunk"].apply(c_f.set_layers_to_eval("BatchNorm"))


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
