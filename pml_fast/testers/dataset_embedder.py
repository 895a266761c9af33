"""Embeddings and labels of whole data sets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pml_fast.utils import common_functions as c_f
from pml_fast.utils.progress import Progress

Splits = dict[str, tuple[Tensor, Tensor]]


class DatasetEmbedder:
    """The part of a tester that runs the models over data sets."""

    normalize_embeddings: bool
    use_trunk_output: bool
    pca: int | None
    batch_size: int
    dataloader_num_workers: int
    data_device: Any
    dtype: torch.dtype | None
    data_and_label_getter: Any
    label_mapper: Callable[[Any, int], Any]

    def maybe_normalize(self, embeddings: Tensor) -> Tensor:
        """Reduced to principal components and normalised, where these are asked for."""
        if self.pca:
            embeddings = _principal_components(embeddings, self.pca)
        return torch.nn.functional.normalize(embeddings) if self.normalize_embeddings else embeddings

    def compute_all_embeddings(self, dataloader: Any, trunk_model: Any, embedder_model: Any) -> Any:
        """Embeddings `[N, D]` and labels `[N, levels]` of all batches."""
        embeddings, labels = [], []
        with torch.no_grad():
            for batch in Progress(dataloader, "embedding"):
                data, label = self.data_and_label_getter(batch)
                labels.append(self._label_columns(c_f.process_label(label, "all", self.label_mapper)))
                embeddings.append(self.get_embeddings_for_eval(trunk_model, embedder_model, data))
        return self._joined(embeddings), self._joined(labels)

    def _label_columns(self, labels: Tensor) -> Tensor:
        return labels.unsqueeze(1) if labels.dim() == 1 else labels

    def _joined(self, parts: list[Tensor]) -> Tensor:
        if not parts:
            raise ValueError("a data set to test on must not be empty")
        return torch.cat([part.to(self.data_device) for part in parts])

    def get_all_embeddings(
        self,
        dataset: Any,
        trunk_model: Any,
        embedder_model: Any = None,
        collate_fn: Any = None,
        eval: bool = True,
        return_as_numpy: bool = False,
    ) -> Any:
        """Embeddings and labels of a data set, in its order; with `eval` the models are put into evaluation mode."""
        if embedder_model is None:
            embedder_model = torch.nn.Identity()
        if eval:
            trunk_model.eval()
            embedder_model.eval()
        dataloader = c_f.get_eval_dataloader(dataset, self.batch_size, self.dataloader_num_workers, collate_fn)
        embeddings, labels = self.compute_all_embeddings(dataloader, trunk_model, embedder_model)
        embeddings = self.maybe_normalize(embeddings)
        return (embeddings.cpu().numpy(), labels.cpu().numpy()) if return_as_numpy else (embeddings, labels)

    def get_embeddings_for_eval(self, trunk_model: Any, embedder_model: Any, input_imgs: Any) -> Any:
        """The embeddings of one batch."""
        output = trunk_model(c_f.to_device(input_imgs, device=self.data_device, dtype=self.dtype))
        return output if self.use_trunk_output else embedder_model(output)

    def get_all_embeddings_for_all_splits(
        self,
        dataset_dict: Any,
        trunk_model: Any,
        embedder_model: Any,
        splits_to_compute_embeddings: Iterable[str],
        collate_fn: Any,
    ) -> Splits:
        """Embeddings and labels by name of the split."""
        found = {}
        for name in splits_to_compute_embeddings:
            c_f.LOGGER.info("Getting embeddings for the %s split", name)
            found[name] = self.get_all_embeddings(dataset_dict[name], trunk_model, embedder_model, collate_fn)
        return found


def _principal_components(embeddings: Tensor, components: int) -> Tensor:
    """The first principal components of standardised columns; a column that is constant counts as 0."""
    try:
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise ImportError("pca needs scikit-learn: pip install 'pml-fast[evaluation]'") from error
    if components > min(embeddings.shape):
        raise ValueError(
            f"pca must be at most {min(embeddings.shape)} for embeddings {tuple(embeddings.shape)}, got {components}"
        )
    scaled = torch.nan_to_num(c_f.torch_standard_scaler(embeddings))
    reduced = PCA(components, svd_solver="full").fit_transform(scaled.cpu().numpy())
    return torch.from_numpy(reduced).to(embeddings)
