"""Every backend that runs on a CPU gives the oracle's numbers, whatever the shape, the instruction set and the threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from backend_cases import (
    BACKENDS,
    BELOW_ZERO,
    FOLD,
    HISTOGRAMS,
    ONLY_COSINE,
    SCORES,
    TRIPLETS,
    WITH_KERNEL,
    assert_within_budget,
    cases,
    draw,
    has_kernel,
    on,
    settled,
    skip_unless,
)
from torch import Tensor

from pml_fast import _extension, use
from pml_fast.engine import ops
from pml_fast.engine.cpu import small
from pml_fast.engine.cpu.levels import COMPILED
from pml_fast.engine.spec import PAIR_SPECS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize(("backend", "name", "score"), list(cases()))
def test_value_and_gradients_are_within_the_error_budget(backend: str, name: str, score: str, dtype: torch.dtype) -> None:
    """A batch against itself and against a second set, ragged, with a fold that counts and one that does not."""
    skip_unless(backend)
    for m in (None, 45):
        of_all = dtype is torch.bfloat16 or "smooth" in name or name in BELOW_ZERO
        fold = FOLD["mean"] if of_all else FOLD["threshold"]
        batch, exact = settled(name, lambda m=m: draw(61, m).to(dtype), SCORES[score], fold)
        plain = on("reference", name, batch, SCORES[score], fold)
        assert exact.value.isfinite() and exact.dx.norm() > 0
        assert_within_budget(on(backend, name, batch, SCORES[score], fold), plain, exact, name)


@pytest.mark.parametrize(
    ("backend", "name", "score"),
    [case for case in cases() if case[1] in PAIR_SPECS and case[2] in ("cosine", "l2")],
)
def test_shapes_beyond_one_tile(backend: str, name: str, score: str) -> None:
    """Several strips of rows, and columns that fill no whole vector."""
    skip_unless(backend)
    if not has_kernel(backend, name):
        pytest.skip("no compiled kernel")
    # The compiled backend cuts batches of more than 2048 rows otherwise.
    beyond = [(2100, None)] if (backend, score) == ("cpu", "cosine") else []
    for n, m in ((1203, None), (611, 907), *beyond):
        batch, exact = settled(name, lambda n=n, m=m: draw(n, m, d=7, classes=90).to(torch.float32), SCORES[score])
        plain = on("reference", name, batch, SCORES[score])
        assert_within_budget(on(backend, name, batch, SCORES[score]), plain, exact, name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in TRIPLETS if "swap" not in name])
def test_triplets_of_large_classes(backend: str, name: str) -> None:
    """More positives than any small-class path holds: 40 rows a class, over several strips."""
    skip_unless(backend)
    fold = FOLD["threshold"]
    batch, exact = settled(name, lambda: draw(50, 230, d=7, classes=3).to(torch.float32), SCORES["l2"], fold)
    plain = on("reference", name, batch, SCORES["l2"], fold)
    assert_within_budget(on(backend, name, batch, SCORES["l2"], fold), plain, exact, name)


@pytest.mark.parametrize("name", HISTOGRAMS)
@pytest.mark.parametrize(("n", "m", "classes"), [(60, None, 2), (50, 1300, 3), (530, None, 4), (1100, None, 300)])
def test_histograms_of_small_and_of_large_classes(name: str, n: int, m: int | None, classes: int) -> None:
    """Few positives compare, many search among sorted negatives; one call, one strip and several give the same."""
    skip_unless("cpu")
    batch = draw(n, m, d=7, classes=classes, seed=n)
    got, want = (on(backend, name, batch, SCORES["l2"]) for backend in ("cpu", "chunked"))
    torch.testing.assert_close(got.value, want.value, rtol=1e-11, atol=0)
    torch.testing.assert_close(got.dx, want.dx, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got.dy, want.dy, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_running_histogram_takes_a_batch_in(backend: str) -> None:
    """In one call and in strips; a batch that is not finite, or has no triplet, leaves it."""
    skip_unless(backend)
    x, labels = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(20) % 5
    before, score = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), SCORES["l2"]

    def step(x: Tensor, labels: Tensor, itself: bool) -> Tensor:
        after: Tensor = torch.ops.pml_fast.histogram_loss(
            x, x, labels, labels, before, -2.0, 4 / 3, 3, score.encode(), itself, 0.25, False, False
        )[1]
        return after

    for itself in (True, False):
        s = torch.cdist(x / x.norm(dim=1, keepdim=True), x / x.norm(dim=1, keepdim=True))
        same = labels[:, None] == labels
        pos = same & ~torch.eye(20, dtype=torch.bool) if itself else same
        differences = (s[:, :, None] - s[:, None, :])[pos[:, :, None] & ~same[:, None, :]]
        # Each difference is shared by the nodes below and above it; the last node takes what lies beyond.
        place = (differences + 2) / (4 / 3)
        shares = torch.relu(1 - (place[:, None] - torch.arange(3)).abs()).sum(dim=0)
        shares[2] += torch.relu(place - 2).clamp(max=1).sum()
        mixed = 0.75 * before + 0.25 * shares
        with use(backend=backend):
            torch.testing.assert_close(step(x, labels, itself), mixed / mixed.sum(), rtol=1e-6, atol=1e-9)
            assert torch.equal(step(x, torch.zeros_like(labels), itself), before)
            spoilt = x.clone()
            spoilt[3, 1] = float("nan")
            assert torch.equal(step(spoilt, labels, itself), before)


def isas() -> list[str]:
    extension = _extension.load()
    return [] if extension is None else list(extension.build_info()["isas"])


@pytest.fixture
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    extension = _extension.load()
    assert extension is not None
    before = extension.isa()
    try:
        extension.set_isa(request.param)
    except ValueError as error:
        pytest.skip(f"this processor cannot run it: {error}")
    yield request.param
    extension.set_isa(before)


@pytest.mark.skipif(not isas(), reason="the compiled extension is not built")
@pytest.mark.parametrize("instruction_set", isas(), indirect=True)
@pytest.mark.parametrize("name", [name for backend, name in WITH_KERNEL if backend == "cpu"])
def test_every_instruction_set_computes_the_same(name: str, instruction_set: str) -> None:
    """Baseline, AVX2 and AVX-512 are compiled from one source; each is held to the oracle."""
    for score in ("cosine", "dot", "l2", "l2_squared") if name != "circle" else ("cosine",):
        for dtype in (torch.float32, torch.float64):
            m = None if score != "dot" else 53
            batch, exact = settled(name, lambda m=m, dtype=dtype: draw(77, m).to(dtype), SCORES[score])
            plain = on("reference", name, batch, SCORES[score])
            assert_within_budget(on("cpu", name, batch, SCORES[score]), plain, exact, f"{name} {score}")


@pytest.mark.parametrize(("backend", "name"), WITH_KERNEL)
def test_bits_repeat_whatever_the_number_of_threads(backend: str, name: str) -> None:
    """The same call twice gives the same bits; on the compiled backend 1, 2 and 4 threads do, too.

    The chunked backend is torch's own products, which may split their sums by threads.
    """
    skip_unless(backend)
    before = torch.get_num_threads()
    try:
        for n, m in ((300, None), (130, 210)):
            batch = draw(n, m, d=12, classes=30).to(torch.float32)
            answers = []
            for threads in (1, 1, 2, 4) if backend == "cpu" else (2, 2):
                torch.set_num_threads(threads)
                answers.append(on(backend, name, batch, SCORES["cosine"], FOLD["threshold"]))
            for answer in answers[1:]:
                assert torch.equal(answer.value, answers[0].value)
                assert torch.equal(answer.dx, answers[0].dx)
                assert answer.dy is None or torch.equal(answer.dy, answers[0].dy)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("score", ["cosine", "dot", "l2", "asymmetric"])
@pytest.mark.parametrize("name", COMPILED)
def test_two_small_sets_take_one_call(name: str, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a small batch against other columns, which the tiles of the general way must agree with."""
    skip_unless("cpu")
    if name in ONLY_COSINE and score != "cosine":
        pytest.skip("scores must be cosines")
    batch = draw(61, 45).to(torch.float64)
    with monkeypatch.context() as patch:
        patch.setattr(small, "LARGEST", 0)
        want = on("cpu", name, batch, SCORES[score])
    # Circle's logits are not affine, and squares of raw rows leave its range.
    if name != "circle" or score == "cosine":
        monkeypatch.setattr(ops, "both", None)
    got = on("cpu", name, batch, SCORES[score])
    torch.testing.assert_close(got.value, want.value)
    torch.testing.assert_close(got.dx, want.dx)
    torch.testing.assert_close(got.dy, want.dy)
