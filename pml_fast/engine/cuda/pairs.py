"""Index tensors of the pairs that a miner's intervals leave: counted row by row, then written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from pml_fast.engine.cuda.strips import Side, Tiles, distance_name, extension, stream, strips
from pml_fast.engine.score import Score
from pml_fast.utils.index_types import PairIndices


def rule_pairs(
    labels: Tensor, ref_labels: Tensor, rows: tuple[Tensor, Tensor], score: Score, rule: Tensor, itself: bool
) -> PairIndices:
    """Pairs of prepared rows whose score lies in the closed intervals ``rule [4, N]`` of their anchor, row by row.

    Waits for the device once a strip, for the number of pairs.
    """
    x = Side.of(rows[0], score)
    y = x if rows[1] is rows[0] else Side.of(rows[1], score)
    labels, ref_labels = labels.to(torch.int64).contiguous(), ref_labels.to(torch.int64).contiguous()
    intervals = rule.to(torch.float32).contiguous()
    tiles = Tiles(x, y)
    parts: list[list[Tensor]] = [[labels.new_empty(0)] for _ in range(4)]
    for first, last in strips(len(x.rows), len(y.rows)):
        tile = tiles.products(first, last)
        tensors = (tile, x.rows, y.rows, x.norms, y.norms, labels, ref_labels, intervals)
        strip = extension().PairStrip(
            *(tensor.data_ptr() for tensor in tensors), first, last - first, len(x.rows), len(y.rows), x.rows.shape[1],
            distance_name(score), itself,
        )  # fmt: skip
        for part, found in zip(parts, _kept(strip, tile), strict=True):
            part.append(found)
    negative, positive = (tuple(torch.cat(part) for part in parts[k : k + 2]) for k in (0, 2))
    return PairIndices(*positive, *negative)


def _kept(strip: object, tile: Tensor) -> list[Tensor]:
    """Anchors and columns of the strip's negatives, then of its positives."""
    counts = torch.empty(len(tile), 2, dtype=torch.int64, device=tile.device)
    if tile.is_cuda:
        extension().cuda_count_pairs(strip, counts.data_ptr(), stream(tile.device))
    else:
        extension().host_count_pairs(strip, counts.data_ptr())
    places = counts.cumsum(dim=0) - counts
    sizes = counts.sum(dim=0).tolist()
    lists = [counts.new_empty(size) for size in sizes for _ in range(2)]
    addresses = [part.data_ptr() for part in lists]
    if tile.is_cuda:
        extension().cuda_write_pairs(strip, places.data_ptr(), addresses, stream(tile.device))
    else:
        extension().host_write_pairs(strip, places.data_ptr(), addresses)
    return lists
