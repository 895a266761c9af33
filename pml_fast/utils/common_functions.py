"""Small functions that losses, miners, samplers and users' own subclasses of them share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from .index_types import IndicesTuple, PairIndices, TripletIndices, named_indices
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


# Numbers


def pos_inf(dtype: torch.dtype) -> float:
    """The largest finite value of `dtype`."""
    return torch.finfo(dtype).max


def neg_inf(dtype: torch.dtype) -> float:
    """The lowest finite value of `dtype`."""
    return torch.finfo(dtype).min


def small_val(dtype: torch.dtype) -> float:
    """The smallest positive normal value of `dtype`."""
    return torch.finfo(dtype).tiny


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to sum `dtype` in: float32 for half precision, else `dtype` itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# Conversions


def is_list_or_tuple(x: object) -> bool:
    """Whether `x` is a list or a tuple."""
    return isinstance(x, (list, tuple))


def to_dtype(x: Tensor, tensor: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Cast `x` to `dtype`, or to the dtype of `tensor`; under autocast leave it as it is."""
    if torch.is_autocast_enabled():
        return x
    return x.to(_wanted(dtype, tensor, "dtype"))


def to_device(
    x: Tensor,
    tensor: Tensor | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Move `x` to `device`, or to that of `tensor`, and cast it as `to_dtype` does if `dtype` is given."""
    x = x.to(_wanted(device, tensor, "device"))
    return x if dtype is None else to_dtype(x, dtype=dtype)


def _wanted(value: Any, tensor: Tensor | None, name: str) -> Any:
    if value is not None:
        return value
    if tensor is None:
        raise TypeError(f"pass either `tensor` or `{name}`: there is nothing to take the {name} from")
    return getattr(tensor, name)


def numpy_to_torch(v: Any) -> Any:
    """The tensor that shares memory with array `v`; what cannot become a tensor is returned as it is."""
    try:
        return torch.from_numpy(v)
    except TypeError:
        return v


def to_numpy(v: Any) -> Any:
    """The array of tensor `v`; anything else is returned as it is."""
    return v.detach().cpu().numpy() if isinstance(v, Tensor) else v


def torch_arange_from_size(input: Tensor, size_dim: int = 0) -> Tensor:
    """0, 1, ... up to the size of `input` along `size_dim`, on its device."""
    return torch.arange(input.size(size_dim), device=input.device)


def torch_all_from_dim_to_end(x: Tensor, dim: int) -> Tensor:
    """Whether all of `x` is true over `dim` and every later dimension."""
    return x.flatten(start_dim=dim).all(dim=dim)


def torch_standard_scaler(x: Tensor) -> Tensor:
    """Columns of `x` (N, D) shifted to mean 0 and scaled to standard deviation 1."""
    std, mean = torch.std_mean(x, dim=0)
    return (x - mean) / std


def use_cuda_if_available() -> torch.device:
    """The CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    for name in getattr(input_obj, "_record_these_stats", []):
        setattr(input_obj, name, 0)


def list_of_recordable_attributes_list_names() -> list[str]:
    """The names of the two lists that hold the names of recordable attributes."""
    return ["_record_these", "_record_these_stats"]


# Labels and sampling


def get_labels_to_indices(labels: Any) -> dict[Any, np.ndarray]:
    """For each label, in order of first appearance, the ascending positions (int array) where it occurs."""
    array = np.asarray(to_numpy(labels))
    if array.ndim != 1:
        raise ValueError(f"labels must be 1D, got shape {array.shape}: pass one label for each sample")
    if not len(array):
        return {}
    order = np.argsort(array, kind="stable")
    by_label = array[order]
    starts = np.flatnonzero(np.concatenate(([True], by_label[1:] != by_label[:-1])))
    ends = np.append(starts[1:], len(array)).tolist()
    # A stable order begins each label's positions with its first one.
    appearance = np.argsort(order[starts])
    labels, firsts = by_label[starts], starts.tolist()
    return {labels[i]: order[firsts[i] : ends[i]] for i in appearance.tolist()}


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


def make_label_to_rank_dict(label_set: Sequence[Any]) -> dict[Any, int]:
    """Each label of a sequence without duplicates mapped to its rank, counted from 0."""
    unique = set(label_set)
    if len(unique) != len(label_set):
        raise ValueError(f"label_set must not have duplicates, got {len(label_set)} labels of which {len(unique)} differ")
    return {label: rank for rank, label in enumerate(sorted(unique))}


def get_label_map(labels: Any) -> dict[int, dict[Any, int]]:
    """For each level of the label hierarchy (a column of 2D labels; level 0 of 1D ones), label to rank."""
    array = np.asarray(labels)
    levels = array.T if array.ndim == 2 else array[None]
    return {i: make_label_to_rank_dict(list(np.unique(level))) for i, level in enumerate(levels)}


class LabelMapper:
    """Maps labels to 0, 1, ... within each level of the hierarchy if asked to, else leaves them alone."""

    def __init__(self, set_min_label_to_zero: bool = False, dataset_labels: Any = None) -> None:
        self.set_min_label_to_zero = set_min_label_to_zero
        if dataset_labels is not None:
            self.label_map: Mapping[int, Mapping[Any, int]] = get_label_map(dataset_labels)
        elif set_min_label_to_zero:
            raise ValueError("set_min_label_to_zero=True needs dataset_labels: pass all labels of the data set")

    def map(self, labels: Any, hierarchy_level: int) -> Any:
        """The mapped labels of one level, as an int array."""
        if not self.set_min_label_to_zero:
            return labels
        return np.array([self.label_map[hierarchy_level][x] for x in labels], dtype=int)


def map_labels(label_map: Callable[[Any, int], Any], labels: Any) -> Any:
    """`label_map(labels, level)` of 1D labels (level 0), or of each column of 2D ones or of a list."""
    if is_list_or_tuple(labels):
        array = np.stack([to_numpy(sub) for sub in labels], axis=1)
    else:
        array = to_numpy(labels)
    if array.ndim != 2:
        return label_map(array, 0)
    return np.stack([np.asarray(label_map(array[:, level], level)) for level in range(array.shape[1])], axis=1)


def get_hierarchy_label(batch_labels: Any, hierarchy_level: int | Sequence[int] | str) -> Any:
    """The columns of 2D labels that `hierarchy_level` names ("all" for every one); 1D labels are level 0."""
    if isinstance(hierarchy_level, str):
        if hierarchy_level == "all":
            return batch_labels
        raise ValueError(f'hierarchy_level must be an int, a list of ints or "all", got {hierarchy_level!r}')
    highest = hierarchy_level if isinstance(hierarchy_level, int) else max(hierarchy_level)
    levels = batch_labels.shape[1] if batch_labels.ndim == 2 else 1
    if highest >= levels:
        raise ValueError(
            f"hierarchy_level must be below {levels} for labels of shape {tuple(batch_labels.shape)}, got {highest}"
        )
    return batch_labels[:, hierarchy_level] if batch_labels.ndim == 2 else batch_labels


def process_label(labels: Any, hierarchy_level: int | Sequence[int] | str, label_map: Callable[[Any, int], Any]) -> Any:
    """Labels mapped by `label_map`, cut to `hierarchy_level`, as a tensor."""
    return numpy_to_torch(get_hierarchy_label(map_labels(label_map, labels), hierarchy_level))
