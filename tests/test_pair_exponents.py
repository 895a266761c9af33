"""Rows of pairs for the angular loss: the compiled kernels and torch, to a formula that autograd differentiates."""

import pytest
import torch

import pml_fast
from pml_fast import _extension
from pml_fast.engine.cpu import indexed
from pml_fast.engine.pair_exponents import pair_exponents

N, M, D, PAIRS = 40, 30, 17, 150


def by_formula(x, y, negatives, slope, i, j, normalize):
    a, p = (torch.nn.functional.normalize(rows) if normalize else rows for rows in (x, y))
    a, p = a[i], p[j]
    rows = torch.cat([4 * slope * (a + p), 2 * (1 + slope) * (a * p).sum(dim=1, keepdim=True)], dim=1)
    return rows, torch.cat([negatives, -torch.ones_like(negatives[:, :1])], dim=1)


def inputs(itself, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=generator, dtype=dtype)
    x[5] = 0.0  # no direction: the norm that it is divided by is a constant
    y = x if itself else torch.randn(M, D, generator=generator, dtype=dtype)
    i, j = (torch.randint(0, count, (PAIRS,), generator=generator) for count in (N, len(y)))
    i[:3] = 5
    slope = torch.tensor(0.7, dtype=dtype)
    weights = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((PAIRS, D + 1), (len(y), D + 1))]
    return x, y, slope, i, j, weights


def gradients(function, leaves, weights):
    rows, columns = function()
    total = (rows * weights[0]).sum() + (columns * weights[1]).sum()
    return rows, columns, torch.autograd.grad(total, leaves)


COMPILED = pytest.param("cpu", marks=pytest.mark.skipif(_extension.load() is None, reason="the extension is not built"))


@pytest.mark.parametrize("backend", [COMPILED, "chunked"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("itself", [True, False])
def test_values_and_gradients(backend, normalize, itself):
    x, y, slope, i, j, weights = inputs(itself)
    leaves = [x.requires_grad_(), slope.requires_grad_()] + ([] if itself else [y.requires_grad_()])
    with pml_fast.use(backend=backend):
        assert indexed.takes(x) == (backend == "cpu")
        mine = gradients(lambda: pair_exponents(x, y, y, slope, i, j, normalize, itself), leaves, weights)
    theirs = gradients(lambda: by_formula(x, y, y, slope, i, j, normalize), leaves, weights)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_number_of_threads_changes_a_bit(threads):
    x, y, slope, i, j, weights = inputs(False, torch.float32)
    x, y = x.repeat(1, 40).requires_grad_(), y.repeat(1, 40).requires_grad_()
    weights = [torch.ones(PAIRS, 40 * D + 1), torch.ones(M, 40 * D + 1)]
    before = torch.get_num_threads()
    try:
        found = []
        for count in (2, threads):
            torch.set_num_threads(count)
            found.append(gradients(lambda: pair_exponents(x, y, y, slope, i, j, True, False), [x, y], weights))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_what_is_not_wanted_is_not_computed():
    x, y, slope, i, j, weights = inputs(False)
    y.requires_grad_()
    rows, _ = pair_exponents(x, y, y.detach(), slope, i, j, True, False)
    (grad,) = torch.autograd.grad((rows * weights[0]).sum(), [y])
    other = by_formula(x, y, y.detach(), slope, i, j, True)[0]
    torch.testing.assert_close(grad, torch.autograd.grad((other * weights[0]).sum(), [y])[0], rtol=1e-12, atol=1e-12)
