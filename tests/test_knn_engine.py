"""The nearest-neighbour engine: every backend orders columns by score, then by index, as plain sorting does in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pml_fast import _extension, distances, functional, use
from pml_fast.engine.cpu import knn as cpu_knn
from pml_fast.engine.score import Score

COSINE = Score("dot")
SQUARED = Score("l2", power=2.0, normalize=False, inverted=False)
SCORES = {
    "cosine": COSINE,
    "dot": Score("dot", normalize=False),
    "squared_l2": SQUARED,
    "l2": Score("l2", normalize=False, inverted=False),
    "l2_cubed": Score("l2", power=3.0, normalize=False, inverted=False),
    "l1": Score("lp", p=1.0, normalize=False, inverted=False),
}
BACKENDS = ["reference", "chunked", "cpu"]


def values(score: Score, x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    if score.normalize:
        x, y = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, y))
    base = x @ y.T if score.kind == "dot" else torch.cdist(x, y, p=score.p)
    return base**score.power


def sorted_columns(order: Tensor, itself: bool) -> list[list[int]]:
    """The columns of each row by (order, index), its own sample left out; not a number is last."""
    n, m = order.shape
    cost = order.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf")).tolist()
    return [sorted((j for j in range(m) if not (itself and i == j)), key=lambda j: (cost[i][j], j)) for i in range(n)]


def expected_ranks(columns: list[list[int]], labels: Tensor, ref_labels: Tensor) -> list[list[int]]:
    return [[r for r, j in enumerate(row) if ref_labels[j] == labels[i]] for i, row in enumerate(columns)]


def grid(n: int, d: int, high: int = 3) -> Tensor:
    """Whole numbers: every product is exact, and many tie."""
    return torch.randint(-high, high + 1, (n, d)).float()


def can_run(backend: str, score: Score) -> bool:
    return not (backend == "cpu" and score.kind == "lp")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and _extension.load() is None:
        pytest.skip("the compiled extension is not built")
    return str(request.param)


@pytest.mark.parametrize("itself", [True, False, None], ids=["itself", "separate", "begins with it"])
@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbors_come_in_order(backend: str, name: str, itself: bool | None, dtype: torch.dtype) -> None:
    score = SCORES[name]
    if not can_run(backend, score):
        pytest.skip("no compiled kernel")
    x = torch.randn(37, 5, dtype=dtype)
    y = x if itself else torch.cat([x, torch.randn(29, 5, dtype=dtype)]) if itself is None else torch.randn(51, 5, dtype=dtype)
    with use(backend=backend):
        found = functional.nearest_neighbors(
            x, 7, ref_embeddings=None if itself else y, distance=score, ref_includes_query=itself is None
        )
    want = values(score, x, y)
    columns = sorted_columns(-want if score.inverted else want, itself is not False)
    assert found.indices.tolist() == [row[:7] for row in columns]
    torch.testing.assert_close(found.scores.double(), want.gather(1, found.indices), rtol=1e-5, atol=1e-5)
    assert found.scores.dtype == dtype


@pytest.mark.parametrize("k", [1, 5, 40, 63])
@pytest.mark.parametrize("score", [SCORES["dot"], SQUARED], ids=["dot", "l2"])
def test_equal_neighbors_come_by_their_index(backend: str, k: int, score: Score) -> None:
    x = grid(64, 2, 1)
    with use(backend=backend):
        found = functional.nearest_neighbors(x, k, distance=score)
    want = values(score, x, x)
    assert found.indices.tolist() == [row[:k] for row in sorted_columns(-want if score.inverted else want, True)]


@pytest.mark.parametrize("k", [1, 3, 200, 5000])
def test_many_columns(backend: str, k: int) -> None:
    x, y = torch.randn(3, 4), torch.randn(5000, 4)
    with use(backend=backend):
        found = functional.nearest_neighbors(x, k, ref_embeddings=y, distance="dot")
    best = torch.sort(x @ y.T, dim=1, descending=True, stable=True)
    torch.testing.assert_close(found.scores, best.values[:, :k])
    assert (found.indices != best.indices[:, :k]).float().mean() < 2e-3  # products here may differ in the last bit


LABELS: dict[str, Callable[[], Tensor]] = {
    "few": lambda: torch.randint(0, 12, (60,)),
    "two": lambda: torch.randint(0, 2, (60,)),
    "one": lambda: torch.zeros(60, dtype=torch.int64),
    "alone": lambda: torch.arange(60) // 2 * (torch.arange(60) % 3 > 0),
    "none": lambda: torch.arange(60),
    "far apart": lambda: torch.randint(0, 4, (60,)) * 2**40 - 2**41,
}


@pytest.mark.parametrize("itself", [True, False, None], ids=["itself", "separate", "begins with it"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("spread", [1, 3], ids=["most tie", "few tie"])
@pytest.mark.parametrize("name", ["dot", "squared_l2"])
def test_ranks_are_those_of_sorting(backend: str, labels: str, itself: bool | None, spread: int, name: str) -> None:
    score, x, x_labels = SCORES[name], grid(60, 3, spread), LABELS[labels]()
    y, y_labels = x, x_labels
    if itself is None:
        y, y_labels = torch.cat([x, grid(45, 3, spread)]), torch.cat([x_labels, x_labels[:45]])
    elif not itself:
        y, y_labels = grid(80, 3, spread), torch.cat([x_labels[20:], x_labels[:40]])
    with use(backend=backend):
        found = functional.positive_ranks(
            x, x_labels, ref_embeddings=None if itself else y, ref_labels=None if itself else y_labels, distance=score,
            ref_includes_query=itself is None,
        )  # fmt: skip
    want = values(score, x, y)
    ranks = expected_ranks(sorted_columns(-want if score.inverted else want, itself is not False), x_labels, y_labels)
    assert [part.tolist() for part in found.ranks.split(found.counts.tolist())] == ranks


def test_large_classes(backend: str) -> None:
    """Hundreds of positives a row: found by a search, not by comparing with each."""
    x, labels = torch.randn(700, 3), torch.randint(0, 2, (700,))
    x[300:320] = x[0]
    x[5, 0] = float("inf")
    with use(backend=backend):
        found = functional.positive_ranks(x, labels, distance="dot")
    want = x @ x.T
    ranks = expected_ranks(sorted_columns(-want, True), labels, labels)
    mine = [part.tolist() for part in found.ranks.split(found.counts.tolist())]
    off = [abs(a - b) for row, other in zip(mine, ranks) for a, b in zip(row, other)]
    # Products of equal rows may differ in the last bit between here and there.
    assert sum(off) <= 1e-3 * len(off)


def test_all_columns_tie(backend: str) -> None:
    labels = torch.arange(90) % 3
    with use(backend=backend):
        found = functional.positive_ranks(torch.ones(90, 4), labels, distance="squared_l2")
    columns = [[j for j in range(90) if j != i] for i in range(90)]
    assert found.ranks.view(90, 29).tolist() == expected_ranks(columns, labels, labels)


def test_what_is_not_a_number_is_last(backend: str) -> None:
    x = torch.tensor([[1.0], [float("nan")], [2.0], [3.0], [float("nan")]])
    labels = torch.tensor([0, 0, 1, 0, 1])
    with use(backend=backend):
        near = functional.nearest_neighbors(x, 4, distance="squared_l2")
        ranks = functional.positive_ranks(x, labels, distance="squared_l2")
    assert near.indices[0].tolist() == [2, 3, 1, 4]
    assert near.indices[2].tolist() == [0, 3, 1, 4]
    assert ranks.ranks[:2].tolist() == [1, 2]


def test_near_duplicates_keep_their_order(backend: str) -> None:
    """|x|^2 + |y|^2 - 2xy has no digit left here: the distances come from differences."""
    steps = torch.randperm(40).float()
    x = torch.full((1, 8), 100.0)
    y = x + steps.unsqueeze(1) * 2**-12
    with use(backend=backend):
        found = functional.nearest_neighbors(x, 40, ref_embeddings=y, distance="l2")
    assert found.indices[0].tolist() == steps.argsort().tolist()


@pytest.mark.parametrize("limit", [None, 1, 4, 30])
def test_sums_over_ranks(backend: str, limit: int | None) -> None:
    x, labels = torch.randn(50, 4), torch.randint(0, 9, (50,))
    labels[7] = 100
    with use(backend=backend):
        got = functional.retrieval(x, labels, distance="dot", limit=limit, cutoffs=(1, 5))
        listed = functional.positive_ranks(x, labels, distance="dot")
    for i, ranks in enumerate(part.tolist() for part in listed.ranks.split(listed.counts.tolist())):
        r = len(ranks)
        seen = [rank for rank in ranks if limit is None or rank < limit]
        precision = [(place + 1) / (rank + 1) for place, rank in enumerate(seen)]
        assert int(got.count[i]) == r
        assert int(got.first[i]) == (seen[0] if seen else -1)
        assert int(got.hits_within_r[i]) == sum(rank < r for rank in seen)
        assert float(got.precisions[i]) == pytest.approx(sum(precision), abs=1e-12)
        within = sum(p for p, rank in zip(precision, seen) if rank < r)
        assert float(got.precisions_within_r[i]) == pytest.approx(within, abs=1e-12)
        assert got.hits[:, i].tolist() == [sum(rank < c for rank in seen) for c in (1, 5)]


def test_strips_do_not_show(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = grid(70, 3), torch.randint(0, 20, (70,))

    def results() -> list[Tensor]:
        with use(backend=backend):
            return [*functional.nearest_neighbors(x, 9, distance="dot"), *functional.positive_ranks(x, labels, distance="dot")]

    whole = results()
    monkeypatch.setattr(cpu_knn, "STRIP_BYTES", 1)
    monkeypatch.setattr("pml_fast.engine.grad_sum.STRIP_ELEMENTS", 200)
    for part, other in zip(whole, results(), strict=True):
        assert torch.equal(part, other)


def test_empty_sets(backend: str) -> None:
    none, some = torch.empty(0, 3), torch.randn(4, 3)
    no_labels, labels = torch.empty(0, dtype=torch.int64), torch.arange(4)
    with use(backend=backend):
        assert functional.nearest_neighbors(none, 2, ref_embeddings=some).indices.shape == (0, 2)
        assert functional.nearest_neighbors(some, 0, ref_embeddings=none).indices.shape == (4, 0)
        ranks = functional.positive_ranks(some, labels, ref_embeddings=none, ref_labels=no_labels)
        assert ranks.counts.tolist() == [0, 0, 0, 0] and len(ranks.ranks) == 0
        assert functional.retrieval(none, no_labels, ref_embeddings=some, ref_labels=labels).first.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(30, 6).to(dtype)
    with use(backend=backend):
        found = functional.nearest_neighbors(x, 3, distance="dot")
        wide = functional.nearest_neighbors(x.float(), 3, distance="dot")
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.indices, wide.indices)


def test_rows_of_any_layout(backend: str) -> None:
    x = torch.randn(6, 40).T[::2]
    with use(backend=backend):
        found = functional.nearest_neighbors(x, 4)
        assert torch.equal(found.indices, functional.nearest_neighbors(x.contiguous(), 4).indices)


def test_a_distance_that_sees_rows_and_columns_differently(backend: str) -> None:
    distance = distances.SNRDistance(normalize_embeddings=False)
    x = torch.randn(20, 6, dtype=torch.float64)
    score = distance.engine_score()
    assert score is not None
    rows, cols = distance.engine_rows(x, x)
    with use(backend=backend):
        index = torch.ops.pml_fast.nearest(rows, cols, 5, score.encode(), True)[1]
    want = distance(x).fill_diagonal_(float("inf")).topk(5, dim=1, largest=False).indices
    assert torch.equal(index, want)


def test_an_unusable_backend_says_why() -> None:
    x = torch.randn(4, 3)
    if _extension.load() is not None:
        with use(backend="cpu"), pytest.raises(ValueError, match="L1 distance"):
            functional.nearest_neighbors(x, 1, distance=SCORES["l1"])
        with use(backend="cpu"), pytest.raises(ValueError, match="no compiled order"):
            functional.nearest_neighbors(x, 1, distance=replace(COSINE, power=3.0))


@pytest.mark.parametrize("k", [-1, 4, 2.5, True, None])
def test_k_must_be_a_number_of_candidates(k: object) -> None:
    with pytest.raises((ValueError, TypeError), match="k must be"):
        functional.nearest_neighbors(torch.randn(4, 3), k)  # type: ignore[arg-type]


def test_a_set_that_does_not_begin_with_the_queries_is_refused() -> None:
    x, labels = torch.randn(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match="begin with the queries"):
        functional.nearest_neighbors(x, 1, ref_embeddings=torch.randn(9, 3), ref_includes_query=True)
    with pytest.raises(ValueError, match="begin with those of the queries"):
        functional.positive_ranks(x, labels, ref_embeddings=x.clone(), ref_labels=labels + 1, ref_includes_query=True)


def test_neighbors_under_autocast() -> None:
    x = torch.randn(40, 8)
    plain = functional.nearest_neighbors(x, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(functional.nearest_neighbors(x, 3).indices, plain.indices)


def test_neighbors_compile_into_one_graph() -> None:
    x = torch.randn(40, 8)

    @torch.compile(backend="eager", fullgraph=True)
    def search(rows: Tensor) -> Tensor:
        return torch.ops.pml_fast.nearest(rows, rows, 3, SQUARED.encode(), True)[1]

    assert torch.equal(search(x), functional.nearest_neighbors(x, 3, distance=SQUARED).indices)


def test_operators_keep_their_contract() -> None:
    x, labels = torch.randn(12, 4), torch.arange(12) // 3
    torch.library.opcheck(torch.ops.pml_fast.nearest, (x, x, 3, COSINE.encode(), True))
    torch.library.opcheck(torch.ops.pml_fast.retrieval, (x, x, labels, labels, COSINE.encode(), True, None, [1, 2]))
