"""Neighbours in any number: products of a strip, a selection by a block for each row, and torch's sort of what is kept.

A Triton program keeps its rows' neighbours in registers, which hold few. Here a row's scores are read where the product left
them, in the second-level cache: three times for the digits of the furthest that is kept, and once to take what is no further.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.cuda.strips import Side, Tiles, extension, stream, strips
from pml_fast.engine.knn.problem import NearestProblem, from_order


def nearest(problem: NearestProblem) -> tuple[Tensor, Tensor]:
    """Scores (float32) and columns ``[N, k]``."""
    score = problem.score
    x = Side.of(problem.x, score)
    y = x if problem.y is problem.x else Side.of(problem.y, score)
    keys = torch.empty(len(x.rows), problem.k, dtype=torch.int64, device=x.rows.device)
    tiles = Tiles(x, y)
    for first, last in strips(len(x.rows), len(y.rows)):
        _strip(problem, tiles.products(first, last), x, y, first, keys[first:last])
    keys = torch.sort(keys, dim=1).values
    bits = (keys >> 32).to(torch.int32)
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)
    return from_order(score, order), keys & 0xFFFFFFFF


def _strip(problem: NearestProblem, tile: Tensor, x: Side, y: Side, first: int, keys: Tensor) -> None:
    tensors = (tile, x.rows, y.rows, x.norms, y.norms)
    # Squares order as distances do, and have fewer ties.
    name = "dot" if problem.score.kind == "dot" else "l2_squared"
    strip = extension().NearestStrip(
        *(tensor.data_ptr() for tensor in tensors), first, len(tile), len(y.rows), x.rows.shape[1], problem.k, name,
        -1.0 if problem.score.inverted else 1.0, problem.itself,
    )  # fmt: skip
    if tile.is_cuda:
        extension().cuda_nearest(strip, keys.data_ptr(), stream(tile.device))
    else:
        extension().host_nearest(strip, keys.data_ptr())
