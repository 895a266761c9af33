"""The loop that all trainers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.grad_cache import GradCache
from pml_fast.utils.progress import Progress

from .checkpoints import Checkpoints, rank
from .construction import Construction
from .optimization import Optimization
from .resumable_loader import ResumableLoader


class BaseTrainer(Checkpoints, Construction, Optimization):
    """Trains models on batches of data and labels; subclasses say what the losses are (`calculate_loss`).

    Args:
        models: by name: "trunk", and optionally "embedder" (the identity where it is missing), and what the subclass adds.
        optimizers: by name: "trunk_optimizer" for the model "trunk", likewise for any other model or loss function.
        batch_size: of the data loader; a `sampler` that yields batches decides for itself.
        loss_funcs: by name: "metric_loss", and what the subclass adds.
        dataset: what the data loader reads.
        mining_funcs: by name: "tuple_miner", "subset_batch_miner".
        iterations_per_epoch: one pass over the loader if None.
        data_device: where data is put; a GPU where there is one if None.
        dtype: what data is cast to; left as it is if None.
        loss_weights: by name of the loss; 1 for each if None.
        sampler, collate_fn, dataloader_num_workers: of the data loader.
        lr_schedulers: by name: "trunk_scheduler_by_iteration", "..._by_epoch" or "..._by_plateau".
        gradient_clippers: by name: "trunk_grad_clipper": called without arguments before each step.
        freeze_these: names of models and loss functions that are not trained.
        freeze_trunk_batchnorm: keep the batch normalization of the trunk in evaluation mode.
        label_hierarchy_level: the column of 2D labels to train on.
        data_and_label_getter: makes `(data, labels)` of what the loader yields.
        dataset_labels, set_min_label_to_zero: map the labels of the data set to 0, 1, ...
        end_of_iteration_hook, end_of_epoch_hook: called with the trainer; False from the latter ends training.
        autocast_dtype: mixed precision: losses are computed under `torch.autocast` of this type.
        grad_scaler: scales the loss; a `torch.amp.GradScaler` for float16 if None.
        accumulation_steps: batches whose mean gradient makes one step. Each batch is compared with itself alone: for more
            comparisons use `encoder_chunk_size`.
        encoder_chunk_size: embed a batch in chunks of so many rows with the gradients of the whole
            (:class:`pml_fast.utils.grad_cache.GradCache`).

    The last four are keywords, and not in PML. So are the checkpoints: `save_checkpoint`, `load_checkpoint`.
    """

    def __init__(
        self,
        models: Any,
        optimizers: Any,
        batch_size: int,
        loss_funcs: Any,
        dataset: Any,
        mining_funcs: Any = None,
        iterations_per_epoch: int | None = None,
        data_device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        loss_weights: dict[str, float] | None = None,
        sampler: Any = None,
        collate_fn: Any = None,
        lr_schedulers: Any = None,
        gradient_clippers: Any = None,
        freeze_these: Sequence[str] = (),
        freeze_trunk_batchnorm: bool = False,
        label_hierarchy_level: Any = 0,
        dataloader_num_workers: int = 2,
        data_and_label_getter: Callable[[Any], Any] | None = None,
        dataset_labels: Any = None,
        set_min_label_to_zero: bool = False,
        end_of_iteration_hook: Callable[[Any], Any] | None = None,
        end_of_epoch_hook: Callable[[Any], Any] | None = None,
        *,
        autocast_dtype: torch.dtype | None = None,
        grad_scaler: Any = None,
        accumulation_steps: int = 1,
        encoder_chunk_size: int | None = None,
    ) -> None:
        self.models = models
        self.optimizers = optimizers
        self.batch_size = batch_size
        self.loss_funcs = loss_funcs
        self.dataset = dataset
        self.mining_funcs = {} if mining_funcs is None else mining_funcs
        self.iterations_per_epoch: Any = iterations_per_epoch
        self.data_device: Any = data_device
        self.dtype = dtype
        self.loss_weights: Any = loss_weights
        self.sampler: Any = sampler
        self.collate_fn = collate_fn
        self.lr_schedulers = lr_schedulers
        self.gradient_clippers = gradient_clippers
        self.freeze_these = freeze_these
        self.freeze_trunk_batchnorm = freeze_trunk_batchnorm
        self.label_hierarchy_level = label_hierarchy_level
        self.dataloader_num_workers = dataloader_num_workers
        self.data_and_label_getter: Any = data_and_label_getter
        self.dataset_labels = dataset_labels
        self.set_min_label_to_zero = set_min_label_to_zero
        self.end_of_iteration_hook: Any = end_of_iteration_hook
        self.end_of_epoch_hook: Any = end_of_epoch_hook
        self.autocast_dtype = autocast_dtype
        self.grad_scaler: Any = grad_scaler
        self.accumulation_steps = _positive("accumulation_steps", accumulation_steps)
        self.encoder_chunk_size = None if encoder_chunk_size is None else _positive("encoder_chunk_size", encoder_chunk_size)
        self._cache: GradCache | None = None
        self.loss_names: list[str] = list(self.loss_funcs.keys())
        self.custom_setup()
        self.verify_dict_keys()
        self.initialize_models()
        self.initialize_data_device()
        self.initialize_label_mapper()
        self.initialize_loss_tracker()
        self.initialize_loss_weights()
        self.initialize_data_and_label_getter()
        self.initialize_hooks()
        self.initialize_lr_schedulers()
        self.initialize_grad_scaler()

    def custom_setup(self) -> None:
        """What a subclass does before keys are checked."""

    # Not abstract: its arguments are the subclass's.
    def calculate_loss(self, *_: Any) -> None:
        """Put the losses of a batch into `self.losses`; of the subclass."""
        raise NotImplementedError(f"{type(self).__name__} must define calculate_loss(self, curr_batch)")

    def update_loss_weights(self) -> None:
        """Called before each batch: change `self.loss_weights` here."""

    # The loop

    def train(self, start_epoch: int = 1, num_epochs: int = 1) -> None:
        """Epochs `start_epoch` to `num_epochs`, both included; after `load_checkpoint` from where that one was taken."""
        start_epoch, first_iteration = self._begin(start_epoch)
        try:
            for self.epoch in range(start_epoch, num_epochs + 1):
                self.set_to_train()
                c_f.LOGGER.info("TRAINING EPOCH %d", self.epoch)
                iterations = range(first_iteration, self.iterations_per_epoch)
                first_iteration = 0
                bar = Progress(iterations, f"epoch {self.epoch}", unit="it", hidden=rank() > 0)
                for self.iteration in bar:
                    self._phase = "step"
                    self.forward_and_backward()
                    self._phase = "iteration"
                    self.end_of_iteration_hook(self)
                    bar.show(self.losses)
                    self.step_lr_schedulers(end_of_epoch=False)
                self.step_lr_schedulers(end_of_epoch=True)
                self.zero_losses()
                self._phase = "epoch"
                if self.end_of_epoch_hook(self) is False:
                    break
        finally:
            self._running = False

    def initialize_dataloader(self) -> None:
        """Make the loader and its iterator."""
        c_f.LOGGER.info("Initializing dataloader")
        loader = c_f.get_train_dataloader(
            self.dataset, self.batch_size, self.sampler, self.dataloader_num_workers, self.collate_fn
        )
        self.dataloader: Any = ResumableLoader(loader)
        if not self.iterations_per_epoch:
            self.iterations_per_epoch = len(self.dataloader)
            if self.iterations_per_epoch == 0:
                raise ValueError(
                    f"there is no batch of batch_size={self.batch_size}: "
                    f"the data set, or what the sampler chooses of it, is smaller ({len(loader.sampler)} items)"  # type: ignore[arg-type]
                )
        self.dataloader_iter: Any = self._iterator(self.dataloader)
        c_f.LOGGER.info("Done creating dataloader iterator")

    def forward_and_backward(self) -> None:
        """One step: the losses of a batch, or of `accumulation_steps`, their gradients, the optimizers' step."""
        self.zero_losses()
        self.zero_grad()
        self.update_loss_weights()
        if self.accumulation_steps == 1:
            self._accumulate(exchange=True)
        else:
            means: dict[str, Any] = dict.fromkeys(self.losses, 0.0)
            for k in range(self.accumulation_steps):
                self.zero_losses()
                self._accumulate(exchange=k == self.accumulation_steps - 1)
                for name, value in self.losses.items():
                    value = value.detach() if isinstance(value, Tensor) else value
                    means[name] = means[name] + value / self.accumulation_steps
            self.losses.update(means)
        self.clip_gradients()
        self.step_optimizers()
        if self.grad_scaler is not None:
            self.grad_scaler.update()

    def _accumulate(self, exchange: bool) -> None:
        """The gradients of one batch, exchanged between processes if wanted."""
        with ExitStack() as stack:
            for model in self.models.values():
                if not exchange and hasattr(model, "no_sync"):
                    stack.enter_context(model.no_sync())
            cache = stack.enter_context(self._chunks())
            with self.autocast():
                self.calculate_loss(self.get_batch())
            if cache is not None and not cache.calls:
                raise ValueError(
                    f"encoder_chunk_size has no effect in {type(self).__name__}: its calculate_loss must embed by "
                    "self.embed(data)"
                )
            self.loss_tracker.update(self.loss_weights)
            self.backward()

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, if asked for."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(torch.device(self.data_device).type, dtype=self.autocast_dtype)

    def _chunks(self) -> AbstractContextManager[GradCache | None]:
        if self.encoder_chunk_size is None:
            self._cache = None
            return nullcontext()
        self._cache = GradCache(self.encode, self.encoder_chunk_size, self.encoders())
        return self._cache

    def encode(self, data: Any) -> Tensor:
        """What `embed` runs in chunks."""
        return self.compute_embeddings(data)

    def encoders(self) -> list[torch.nn.Module]:
        """The models that `encode` runs."""
        return [self.models["trunk"], self.models["embedder"]]

    def embed(self, data: Any) -> Tensor:
        """`encode(data)`, in chunks where `encoder_chunk_size` says so."""
        return self.encode(data) if self._cache is None else self._cache(data)

    def zero_losses(self) -> None:
        """Set every loss to 0."""
        for name in self.losses:
            self.losses[name] = 0

    def zero_grad(self) -> None:
        """Drop the gradients of the models and of what the optimizers hold."""
        for module_or_optimizer in (*self.models.values(), *self.optimizers.values()):
            module_or_optimizer.zero_grad()

    def get_batch(self) -> Any:
        """The next batch: data, and labels of the chosen level; mined where there is a subset_batch_miner."""
        self.dataloader_iter, curr_batch = c_f.try_next_on_generator(self.dataloader_iter, self.dataloader)
        data, labels = self.data_and_label_getter(curr_batch)
        labels = c_f.process_label(labels, self.label_hierarchy_level, self.label_mapper)
        return self.maybe_do_batch_mining(data, labels)

    def compute_embeddings(self, data: Any) -> Tensor:
        """Trunk and embedder, one after the other."""
        return self.get_final_embeddings(self.get_trunk_output(data))

    def get_final_embeddings(self, base_output: Any) -> Tensor:
        """What the embedder makes of the trunk's output."""
        embeddings: Tensor = self.models["embedder"](base_output)
        return embeddings

    def get_trunk_output(self, data: Any) -> Any:
        """What the trunk makes of data."""
        return self.models["trunk"](c_f.to_device(data, device=self.data_device, dtype=self.dtype))

    def maybe_mine_embeddings(self, embeddings: Any, labels: Any) -> Any:
        """What the tuple_miner finds, or None without one."""
        if "tuple_miner" in self.mining_funcs:
            return self.mining_funcs["tuple_miner"](embeddings, labels)
        return None

    def maybe_do_batch_mining(self, data: Any, labels: Any) -> Any:
        """The rows that the subset_batch_miner chooses by their embeddings, or all without one."""
        if "subset_batch_miner" in self.mining_funcs:
            with torch.no_grad():
                self.set_to_eval()
                embeddings = self.embed(data)
                idx = self.mining_funcs["subset_batch_miner"](embeddings, labels)
                self.set_to_train()
                data, labels = data[idx], labels[idx]
        return data, labels

    def backward(self) -> None:
        """The gradients of the total loss."""
        total = self.losses["total_loss"]
        if not isinstance(total, Tensor):
            raise ValueError(
                f"total_loss is {total} without a loss to train on: loss_weights must have a positive weight, got "
                f"{self.loss_weights}"
            )
        if self.accumulation_steps > 1:
            total = total / self.accumulation_steps
        (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()

    def get_global_iteration(self) -> int:
        """Iterations since the first of epoch 1."""
        count: int = self.iteration + self.iterations_per_epoch * (self.epoch - 1)
        return count


def _positive(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive int, got {value!r}")
    return value
