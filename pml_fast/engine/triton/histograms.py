"""Losses of soft histograms: a sweep leaves a table a row, which turns into the slopes that the gradient looks up."""

from __future__ import annotations

import torch
from torch import Tensor

import triton
from pml_fast.engine.problem import PairProblem
from pml_fast.engine.triton import layout
from pml_fast.engine.triton.epilogues import Epilogue
from pml_fast.engine.triton.launch import numbers_of, rule_of
from pml_fast.engine.triton.lookup import launch_config, on, tile_arguments
from pml_fast.engine.triton.pairwise_histogram import histogram_kernel, precision_kernel

# Nodes that a program keeps in registers: more of them take more sweeps.
CHUNK = 16
# Rows of a program that reads the tables.
BLOCK = 128


def state(problem: PairProblem, epilogue: Epilogue) -> tuple[Tensor, Tensor, Tensor]:
    """``rows [1, 2, N]``, the slopes ``[N, 2, nodes]`` and ``seen [2, N]``."""
    kind, nodes = layout.score_kind(problem.score), epilogue.nodes(problem.spec)
    x, y = layout.sides(problem, kind)
    (n, d), m = x.rows.shape, y.rows.shape[0]
    device = x.rows.device
    rows = layout.empty((1, 2, n), dtype=torch.float32, device=device)
    table = layout.empty((n, 2, nodes), dtype=torch.float32, device=device)
    count = layout.empty((n,), dtype=torch.int32, device=device)
    seen = layout.empty((2, n), dtype=torch.int8, device=device)
    if n == 0:
        return rows, table, seen
    cfg = launch_config("histogram", x.rows, kind, x.split)
    sign, _, _, _, _, *params = numbers_of(problem)
    with on(x.rows):
        histogram_kernel[(triton.cdiv(n, cfg.block_m),)](
            x.rows, y.rows, x.norms, y.norms, x.labels, y.labels, rule_of(problem.rule, x.rows), table, count, seen,
            x.rows.stride(0), y.rows.stride(0), n, m, d, sign, *params,
            LOGIT=epilogue.logit, TABLE=nodes, CHUNK=CHUNK, KIND=kind, ITSELF=problem.itself,
            HAS_RULE=problem.rule is not None, PRECISION=layout.dot_precision(x.rows.dtype), **tile_arguments(cfg),
        )  # fmt: skip
        precision_kernel[(triton.cdiv(n, BLOCK),)](table, count, rows, n, TABLE=nodes, BLOCK=BLOCK)
    return rows, table, seen
