"""The sweeps over strips of scores: compiled and in torch they find the same, on ties, NaN, empty sides and odd shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, miners, use
from pml_fast.engine import even_bins, grad_sum, hardest
from pml_fast.engine.cpu.score_strips import CompiledFolds
from pml_fast.engine.even_bins import draw_evenly
from pml_fast.engine.pair_set import PairSet
from pml_fast.engine.score import NAMED_SCORES, Score

pytestmark = pytest.mark.skipif(_extension.load() is None, reason="no compiled extension")

# Of few different values, so that scores tie; large enough for more than one thread, or too small for a pair.
SIZES = [(300, None), (40, 170), (1, None), (0, None), (0, 5), (5, 0)]
SCORES = {**NAMED_SCORES, "asymmetric": Score("dot", symmetric=False), "l1": Score("lp", p=1, inverted=False)}
LABELS = {"several": 7, "one": 1, "none": 1 << 40}


def pair_set(score: str, n: int, m: int | None, labels: str, dtype: torch.dtype) -> PairSet:
    gen = torch.Generator().manual_seed(n + (m or 0))

    def rows(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randint(-2, 3, (count, 3), generator=gen).to(dtype)
        x[count // 2 : count // 2 + 1] = torch.nan
        return x, torch.randint(LABELS[labels], (count,), generator=gen)

    x, own = rows(n)
    y, others = (x, own) if m is None else rows(m)
    return PairSet(x, y, own, others, SCORES[score], m is None)


@pytest.fixture(params=[1 << 20, 12_000])
def strips(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grad_sum, "STRIP_ELEMENTS", request.param)


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("score", SCORES)
def test_the_hardest_share_is_the_same(score: str, labels: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pml_fast.engine.cpu.small.LARGEST", 0)
    for (n, m), share in ((size, share) for size in SIZES for share in (0.02, 0.5)):
        pairs = pair_set(score, n, m, labels, dtype)
        given = pairs.x, pairs.y, pairs.labels, pairs.ref_labels, pairs.score.encode(), pairs.itself, share
        got = torch.ops.pml_fast.hardest_rule(*given)
        with use(backend="chunked"):
            want = torch.ops.pml_fast.hardest_rule(*given)
        assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.usefixtures("strips")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("score", SCORES)
def test_draws_are_the_same(score: str, labels: str, dtype: torch.dtype) -> None:
    for (n, m), bins in ((size, bins) for size in SIZES for bins in (1, 10, 300)):
        pairs = pair_set(score, n, m, labels, dtype)
        got, want = [], []
        for backend, out in (("auto", got), ("chunked", want)):
            with use(backend=backend):
                out += draw_evenly(pairs, bins, (3, 5), torch.Generator().manual_seed(2))
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        if n == 300 and labels == "several":
            assert len(got[0]) >= 3 and len(got[2]) >= 5


@pytest.mark.parametrize("kind", [even_bins, hardest])
def test_each_fold_counts_all_pairs(kind: object) -> None:
    """Rows and columns of any values, against counts made at once."""
    gen = torch.Generator().manual_seed(0)
    x, y = torch.randn(260, 5, generator=gen), torch.randn(301, 5, generator=gen)
    own, others = torch.randint(4, (260,), generator=gen), torch.randint(4, (301,), generator=gen)
    pairs = PairSet(x, y, own, others, NAMED_SCORES["dot"], False)
    positives = own.unsqueeze(1) == others
    (strip,) = pairs.strips()
    folds = CompiledFolds(pairs), kind.TorchFolds(pairs)  # type: ignore[attr-defined]
    for fold in folds:
        counts, total = torch.zeros(2, hardest.DIGITS, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        edges = torch.stack([torch.linspace(-2, 3, 12), torch.linspace(-1, 1, 12)])
        if kind is hardest:
            fold.count_digits(strip, 16, None, counts, total)
            assert total.tolist() == [int(positives.sum()), int((~positives).sum())] == counts.sum(dim=1).tolist()
        else:
            bins = torch.zeros(2, 11, dtype=torch.int64)
            fold.count_bins(strip, edges, bins)
            for side, mask in enumerate((positives, ~positives)):
                place = (torch.bucketize(strip.scores[mask], edges[side], right=True) - 1).clamp(0, 10)
                assert torch.equal(bins[side], torch.bincount(place, minlength=11))


def test_seeded_draws_hold_either_order_of_a_pair() -> None:
    """Of a pair in a bin of its own both anchors are drawn, about as often."""
    x, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, dtype=torch.int64)
    a1, p, a2, _ = miners.UniformHistogramMiner(1, 1000, 1, seed=0)(x, labels)
    assert len(a1) == 1000 and len(a2) == 0 and torch.equal(a1, 1 - p)
    assert 400 < int(a1.sum()) < 600
