"""k-means by whichever library is there, and the two scores of a clustering."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

from . import common_functions as c_f
from .faiss_search import FaissKMeans, import_faiss


def _import_sklearn(part: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError as error:
        raise ImportError(
            f"scikit-learn is needed here, and its import failed ({error}); install it with: pip install scikit-learn, "
            'or leave the clustering metrics out: exclude=("AMI", "NMI")'
        ) from error


class SklearnKMeans:
    """k-means by scikit-learn: ``kmeans(x, nmb_clusters)`` returns the cluster of each row ``[N]``, int64.

    Keyword arguments are those of ``sklearn.cluster.KMeans``. Raises ``ImportError`` without scikit-learn.
    """

    def __init__(self, **kwargs: Any) -> None:
        self.kwargs = {"n_init": 1, "random_state": 0, **kwargs}

    def __call__(self, x: Tensor, nmb_clusters: int) -> Tensor:
        kmeans = _import_sklearn("cluster").KMeans(n_clusters=nmb_clusters, **self.kwargs)
        return torch.as_tensor(kmeans.fit_predict(c_f.to_numpy(x)), dtype=torch.int64, device=x.device)


class InstalledKMeans:
    """k-means by faiss with 20 iterations, as PML's AccuracyCalculator has it, or by scikit-learn where faiss is missing."""

    def __call__(self, x: Tensor, nmb_clusters: int) -> Tensor:
        if importlib.util.find_spec("faiss") is not None:
            on_gpu = x.is_cuda and import_faiss().get_num_gpus() > 0
            return FaissKMeans(niter=20, gpu=on_gpu)(x, nmb_clusters)
        c_f.LOGGER.info("k-means by scikit-learn: faiss is not installed")
        return SklearnKMeans()(x, nmb_clusters)


def mutual_information(kind: str, labels: Tensor, clusters: Tensor) -> float:
    """The ``adjusted`` or ``normalized`` mutual information of two labellings, by scikit-learn."""
    score = getattr(_import_sklearn("metrics"), f"{kind}_mutual_info_score")
    return float(score(c_f.to_numpy(labels), c_f.to_numpy(clusters)))
