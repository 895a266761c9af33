"""The Triton nearest-neighbour kernels (interpreted where there is no GPU) order columns as the reference does in float64."""

from __future__ import annotations

import pytest
import torch
from interpreted import DEVICE, interpreter, interpreting, poisoned  # noqa: F401  (two are fixtures)
from torch import Tensor

from pml_fast.engine.knn import reference
from pml_fast.engine.knn.problem import NearestProblem, RankProblem, RankStrip
from pml_fast.engine.score import Score

with interpreting():
    from pml_fast.engine.triton import configs, knn
    from pml_fast.engine.triton.backend import TritonBackend

pytestmark = [pytest.mark.kernels, pytest.mark.usefixtures("interpreter", "poisoned")]

SCORES = {
    "dot": Score("dot", normalize=False),
    "l2": Score("l2", normalize=False, inverted=False),
    "squared_l2": Score("l2", power=2.0, normalize=False, inverted=False),
}


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several ragged tiles and strips even for small problems."""
    monkeypatch.setitem(configs.TILES, "ranks", {"": configs.Config(16, 16, 16, 4, 2)})
    monkeypatch.setitem(configs.TILES, "nearest", {"": configs.Config(16, 0, 16, 4, 2)})
    monkeypatch.setattr(knn, "TABLE_KEYS", 256)
    monkeypatch.setattr(knn, "ENOUGH_PROGRAMS", 4)


def grid(n: int, d: int = 3, high: int = 2) -> Tensor:
    """Whole numbers: every product is exact, and many tie."""
    return torch.randint(-high, high + 1, (n, d)).float().to(DEVICE)


def sets(itself: bool | None) -> tuple[Tensor, Tensor]:
    x = grid(37)
    return (x, x) if itself else (x, torch.cat([x, grid(20)])) if itself is None else (x, grid(50))


@pytest.mark.parametrize("itself", [True, False, None], ids=["itself", "separate", "begins with it"])
@pytest.mark.parametrize(("name", "k"), [("dot", 1), ("dot", 30), ("l2", 7), ("squared_l2", 16)])
def test_neighbors(name: str, k: int, itself: bool | None) -> None:
    x, y = sets(itself)
    scores, columns = knn.nearest(NearestProblem(SCORES[name], x, y, k, itself is not False))
    want, where = reference.nearest(NearestProblem(SCORES[name], x.double(), y.double(), k, itself is not False))
    assert torch.equal(columns, where)
    torch.testing.assert_close(scores.double(), want, rtol=1e-6, atol=0)


def in_order(strips: list[RankStrip], n: int) -> list[list[int]]:
    rows: dict[int, list[int]] = {}
    for strip in strips:
        parts = strip.ranks.split(strip.counts.tolist())
        rows |= {row: part.tolist() for row, part in zip(strip.rows.tolist(), parts, strict=True)}
    return [rows[row] for row in range(n)]


@pytest.mark.parametrize("itself", [True, False, None], ids=["itself", "separate", "begins with it"])
@pytest.mark.parametrize(("name", "classes"), [("dot", 1), ("dot", 4), ("squared_l2", 4), ("squared_l2", 30)])
def test_ranks(name: str, classes: int, itself: bool | None) -> None:
    x, y = sets(itself)
    labels = torch.randint(0, classes, (len(y),), device=DEVICE) * 2**40
    own = labels[: len(x)]
    problem = RankProblem(SCORES[name], x, y, own, labels, itself is not False)
    wide = RankProblem(SCORES[name], x.double(), y.double(), own, labels, itself is not False)
    got, want = (in_order(list(strips), len(x)) for strips in (knn.rank_strips(problem), reference.rank_strips(wide)))
    assert got == want


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = grid(30).to(dtype)
    _, columns = knn.nearest(NearestProblem(SCORES["dot"], x, x, 5, True))
    _, where = reference.nearest(NearestProblem(SCORES["dot"], x.double(), x.double(), 5, True))
    assert torch.equal(columns, where)


def test_what_is_not_a_number_is_last_and_empty_sets() -> None:
    x = torch.tensor([[1.0], [float("nan")], [2.0], [3.0]], device=DEVICE)
    _, columns = knn.nearest(NearestProblem(SCORES["l2"], x, x, 3, True))
    assert columns[0].tolist() == [2, 3, 1]
    none, labels = x[:0], torch.arange(4, device=DEVICE)
    assert knn.nearest(NearestProblem(SCORES["l2"], none, x, 3, False))[1].shape == (0, 3)
    strips = list(knn.rank_strips(RankProblem(SCORES["l2"], x, none, labels, labels[:0], False)))
    assert in_order(strips, 4) == [[], [], [], []]
    assert list(knn.rank_strips(RankProblem(SCORES["l2"], none, x, labels[:0], labels, False))) == []


def test_refuses_with_a_reason() -> None:
    x = grid(70)
    backend = TritonBackend()
    assert backend.refuse(NearestProblem(SCORES["dot"], x, x, 64, True)) is None
    assert "at most 64" in (backend.refuse(NearestProblem(SCORES["dot"], x, x, 65, True)) or "")
    labels = torch.arange(70, device=DEVICE)
    related = RankProblem(SCORES["dot"], x, x, labels, labels, True, relation=lambda first, last: labels[first:last] > 0)
    assert "label comparison" in (backend.refuse(related) or "")
    assert "float64" in (backend.refuse(NearestProblem(SCORES["dot"], x.double(), x.double(), 3, True)) or "")
