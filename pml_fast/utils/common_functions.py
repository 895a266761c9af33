"""Small functions that losses, miners, samplers and users' own subclasses of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import logger
from .checks import (
    assert_distance_type,
    check_shapes,
    indices_tuple_not_supported,
    labels_not_supported,
    labels_or_indices_tuple_required,
    labels_required,
    ref_not_supported,
)
from .conversions import (
    accumulation_dtype,
    is_list_or_tuple,
    neg_inf,
    numpy_to_torch,
    pos_inf,
    small_val,
    to_device,
    to_dtype,
    to_numpy,
    torch_all_from_dim_to_end,
    torch_arange_from_size,
    torch_standard_scaler,
    use_cuda_if_available,
)
from .index_types import IndicesTuple, PairIndices, TripletIndices, named_indices
from .labels import (
    LabelMapper,
    get_hierarchy_label,
    get_label_map,
    get_labels_to_indices,
    make_label_to_rank_dict,
    map_labels,
    process_label,
)
from .loaders import (
    EmbeddingDataset,
    get_eval_dataloader,
    get_train_dataloader,
    set_layers_to_eval,
    sqlite_obj_to_dict,
    try_next_on_generator,
    unslice_by_n,
)
from .model_files import (
    delete_dict_of_models,
    latest_version,
    load_dict_of_models,
    load_model,
    modelpath_creator,
    operate_on_dict_of_models,
    save_dict_of_models,
    save_model,
)

__all__ = [
    "accumulation_dtype",
    "add_to_recordable_attributes",
    "append_map",
    "assert_distance_type",
    "check_shapes",
    "COLLECT_STATS",
    "concatenate_indices_tuples",
    "delete_dict_of_models",
    "EmbeddingDataset",
    "exclude",
    "get_eval_dataloader",
    "get_hierarchy_label",
    "get_label_map",
    "get_labels_to_indices",
    "get_train_dataloader",
    "indices_tuple_not_supported",
    "is_list_or_tuple",
    "LabelMapper",
    "labels_not_supported",
    "labels_or_indices_tuple_required",
    "labels_required",
    "latest_version",
    "list_of_recordable_attributes_list_names",
    "load_dict_of_models",
    "load_model",
    "LOGGER",
    "LOGGER_NAME",
    "make_label_to_rank_dict",
    "map_labels",
    "modelpath_creator",
    "neg_inf",
    "NUMPY_RANDOM",
    "numpy_to_torch",
    "operate_on_dict_of_models",
    "pos_inf",
    "process_label",
    "ref_not_supported",
    "regex_replace",
    "regex_wrapper",
    "reset_stats",
    "return_input",
    "safe_random_choice",
    "save_dict_of_models",
    "save_model",
    "set_layers_to_eval",
    "set_logger_name",
    "set_ref_emb",
    "set_requires_grad",
    "shift_indices_tuple",
    "small_val",
    "sqlite_obj_to_dict",
    "to_device",
    "to_dtype",
    "to_numpy",
    "torch_all_from_dim_to_end",
    "torch_arange_from_size",
    "torch_standard_scaler",
    "TorchInitWrapper",
    "try_next_on_generator",
    "unslice_by_n",
    "use_cuda_if_available",
]

T = TypeVar("T")

LOGGER_NAME = logger.name
LOGGER = logger.current()
# What safe_random_choice draws from when it is given no generator; assign a numpy RandomState to seed it.
NUMPY_RANDOM: Any = np.random
COLLECT_STATS = False


def set_logger_name(name: str) -> None:
    """Log under `name` from now on."""
    global LOGGER_NAME, LOGGER
    logger.rename(name)
    LOGGER_NAME = name
    LOGGER = logger.current()


def return_input(x: T) -> T:
    """`x` itself: the collate or post-processing step that does nothing."""
    return x


def exclude(it: Iterable[T], targets: Iterable[T]) -> list[T]:
    """The members of `it` that are not among `targets`."""
    unwanted = list(targets)
    return [x for x in it if x not in unwanted]


def append_map(it: Iterable[str], suf: str) -> list[str]:
    """Each string of `it` with `suf` at its end."""
    return [x + suf for x in it]


def regex_wrapper(x: Any) -> Any:
    """The compiled expression, or the list of those of a list."""
    return [re.compile(z) for z in x] if isinstance(x, list) else re.compile(x)


def regex_replace(search: str, replace: str, contents: str) -> str:
    """`contents` with every match of `search` replaced."""
    return re.sub(search, replace, contents)


def set_requires_grad(model: torch.nn.Module, requires_grad: bool) -> None:
    """Freeze or unfreeze every parameter of `model`."""
    for param in model.parameters():
        param.requires_grad = requires_grad


class TorchInitWrapper:
    """An initialiser with its settings: `TorchInitWrapper(torch.nn.init.normal_, std=0.1)(weight)`."""

    def __init__(self, init_func: Callable[..., Any], **kwargs: Any) -> None:
        self.init_func = init_func
        self.kwargs = kwargs

    def __call__(self, tensor: Tensor) -> None:
        self.init_func(tensor, **self.kwargs)


def safe_random_choice(
    input_data: Any, size: int, generator: np.random.Generator | torch.Generator | None = None
) -> np.ndarray:
    """`size` members of the sequence `input_data`: without replacement if it is long enough, else with.

    `generator` may be NumPy's or a CPU torch.Generator; None draws from `NUMPY_RANDOM`.
    """
    data = np.asarray(to_numpy(input_data))
    length, replace = len(data), len(data) < size
    if not isinstance(generator, torch.Generator):
        source = NUMPY_RANDOM if generator is None else generator
        return data[source.choice(length, size=size, replace=replace)]
    if replace:
        return data[torch.randint(length, (size,), generator=generator).numpy()]
    return data[torch.randperm(length, generator=generator)[:size].numpy()]


# Index tuples and reference sets


def set_ref_emb(
    embeddings: Tensor, labels: Tensor | None, ref_emb: Tensor | None, ref_labels: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The reference set: what was given, or the batch itself where `ref_emb` is None."""
    if ref_emb is None:
        ref_emb, ref_labels = embeddings, labels
    elif ref_labels is not None:
        ref_labels = to_device(ref_labels, ref_emb)
    check_shapes(ref_emb, ref_labels)
    return ref_emb, ref_labels


def concatenate_indices_tuples(it1: IndicesTuple, it2: IndicesTuple) -> PairIndices | TripletIndices:
    """Both tuples' pairs, or triplets, in one; ValueError if one holds pairs, the other triplets."""
    if len(it1) != len(it2):
        raise ValueError(
            f"both index tuples must hold pairs (4 tensors) or both triplets (3), got {len(it1)} and "
            f"{len(it2)}: convert one with loss_and_miner_utils.convert_to_pairs or convert_to_triplets first"
        )
    return named_indices([torch.cat([x, to_device(y, x)], dim=0) for x, y in zip(it1, it2)])


def shift_indices_tuple(indices_tuple: IndicesTuple, batch_size: int) -> IndicesTuple:
    """Add `batch_size` to positives and negatives, not to anchors; other lengths are returned as they are."""
    if len(indices_tuple) == 3:
        anchor, pos, neg = indices_tuple
        return TripletIndices(anchor, pos + batch_size, neg + batch_size)
    if len(indices_tuple) == 4:
        anchor_pos, pos, anchor_neg, neg = indices_tuple
        return PairIndices(anchor_pos, pos + batch_size, anchor_neg, neg + batch_size)
    return indices_tuple


# Records


def add_to_recordable_attributes(
    input_obj: Any,
    name: str | None = None,
    list_of_names: Sequence[str] | None = None,
    is_stat: bool = False,
) -> None:
    """List attributes of `input_obj` for recording, as settings or as statistics; missing ones start at 0."""
    list_name = "_record_these_stats" if is_stat else "_record_these"
    if not hasattr(input_obj, list_name):
        setattr(input_obj, list_name, [])
    recorded = getattr(input_obj, list_name)
    for new in ([] if name is None else [name]) + list(list_of_names or []):
        if new not in recorded:
            recorded.append(new)
        if not hasattr(input_obj, new):
            setattr(input_obj, new, 0)


def reset_stats(input_obj: Any) -> None:
    """Set every listed statistic of `input_obj` back to 0."""
    # A module's own lookup of what it lacks takes as long as a small operator: this is asked at each call.
    own = getattr(input_obj, "__dict__", {}).get("_record_these_stats")
    for name in getattr(type(input_obj), "_record_these_stats", ()) if own is None else own:
        setattr(input_obj, name, 0)


def list_of_recordable_attributes_list_names() -> list[str]:
    """The names of the two lists that hold the names of recordable attributes."""
    return ["_record_these", "_record_these_stats"]
