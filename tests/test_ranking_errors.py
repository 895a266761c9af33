"""Ranking, histogram and other losses refuse what does not fit, and name the argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pml_fast import distances, losses

# Any two rows of X are more than 1 apart.
X, Y = torch.cat([torch.eye(3, 4), -torch.eye(3, 4)]), torch.eye(4).repeat(2, 1)[:6]
LABELS = torch.arange(6) // 2


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: losses.FastAPLoss(distance=distances.CosineSimilarity()), TypeError, "LpDistance"),
        (lambda: losses.FastAPLoss(distance=distances.LpDistance(p=1)), ValueError, "distance.p"),
        (
            lambda: losses.FastAPLoss(distance=distances.LpDistance(normalize_embeddings=False)),
            ValueError,
            "normalize_embeddings",
        ),
        (lambda: losses.FastAPLoss(num_bins=0), ValueError, "num_bins"),
        (lambda: losses.SmoothAPLoss(distance=distances.LpDistance()), TypeError, "CosineSimilarity"),
        (lambda: losses.PNPLoss(distance=distances.LpDistance()), TypeError, "CosineSimilarity"),
        (lambda: losses.PNPLoss(variant="X"), ValueError, "variant must be one of"),
        (lambda: losses.PNPLoss(variant="Ib", b=0), ValueError, "b must be"),
        (lambda: losses.HistogramLoss(n_bins=10, delta=0.1), ValueError, "2 / n_bins"),
        (lambda: losses.HistogramLoss(n_bins=0), ValueError, "n_bins"),
        (lambda: losses.HistogramLoss(delta=3), ValueError, "delta"),
        (lambda: losses.DynamicSoftMarginLoss(distance=distances.LpDistance(p=1)), ValueError, "distance.p"),
        (lambda: losses.DynamicSoftMarginLoss(min_val=0), ValueError, "min_val"),
        (lambda: losses.DynamicSoftMarginLoss(num_bins=0), ValueError, "num_bins"),
        (lambda: losses.ManifoldLoss(4, lambdaC=-1), ValueError, "lambdaC"),
        (lambda: losses.ManifoldLoss(0), ValueError, "l and K"),
        (lambda: losses.VICRegLoss(distance=distances.LpDistance()), ValueError, "distance"),
        (lambda: losses.VICRegLoss(embedding_regularizer=None), ValueError, "embedding_regularizer"),
        (lambda: losses.FastAPLoss()(X), ValueError, "labels are required"),
        (lambda: losses.SmoothAPLoss()(X), ValueError, "labels are required"),
        (lambda: losses.PNPLoss()(X), ValueError, "labels are required"),
        (lambda: losses.PNPLoss()(X, LABELS, (LABELS, LABELS, LABELS)), ValueError, "indices_tuple is not supported"),
        (lambda: losses.FastAPLoss()(X, LABELS, (LABELS, LABELS, LABELS), Y), ValueError, "ref_labels must be given"),
        (lambda: losses.HistogramLoss()(X), ValueError, "cannot both be None"),
        (lambda: losses.HistogramLoss(distance=distances.LpDistance())(X, LABELS), ValueError, "from -1 to 1"),
        (
            lambda: losses.HistogramLoss(distance=distances.LpDistance())(
                X, LABELS, (LABELS[:1], LABELS[1:2], LABELS[2:3] + 2)
            ),
            ValueError,
            "from -1 to 1",
        ),
        (lambda: losses.ManifoldLoss(4, K=3)(X, LABELS), ValueError, "labels"),
        (lambda: losses.ManifoldLoss(4, K=3)(X, ref_emb=Y), ValueError, "ref_emb"),
        (lambda: losses.ManifoldLoss(5, K=3)(X), ValueError, "l=5"),
        (lambda: losses.ManifoldLoss(4, K=7)(X), ValueError, "at least K=7"),
        (lambda: losses.ManifoldLoss(4, K=3)(X, indices_tuple=(LABELS, LABELS, LABELS)), TypeError, "indices_tuple"),
        (lambda: losses.ManifoldLoss(4, K=3)(X, indices_tuple=LABELS[:5]), ValueError, "one proxy for each"),
        (lambda: losses.ManifoldLoss(4, K=2)(X, indices_tuple=LABELS), ValueError, "from 0 to 1"),
        (lambda: losses.VICRegLoss()(X, LABELS), ValueError, "labels"),
        (lambda: losses.VICRegLoss()(X, ref_emb=Y[:3]), ValueError, "shape of the embeddings"),
        (lambda: losses.VICRegLoss()(X, indices_tuple=(LABELS, LABELS, LABELS), ref_emb=Y), ValueError, "indices_tuple"),
    ],
)
def test_errors_name_the_argument(make: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()
