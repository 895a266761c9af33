"""The maths of the losses that keep a table for each row; :mod:`epilogues` says what the functions are given."""

from __future__ import annotations

import triton
import triton.language as tl
from pml_fast.engine.triton.epilogue_maths import log1p

# ---- FastAP: p0 = nodes in a unit of the score, p1 = number of nodes; level = the address of the row's slopes


@triton.jit
def fast_ap_logit(s, same, sign, p0, p1, p2, p3, p4):
    return tl.where(sign > 0, 1 - s, s) * p0


@triton.jit
def fast_ap_derivative(s, z, same, level, other, extra, low_pos, high_pos, low_neg, high_neg, sign, p0, p1, p2, p3, p4):
    # Only the node at or below a pair moves with it; on a node itself the slope is 0.
    node = tl.floor(z)
    node = tl.where(node >= 0, node, 0.0)
    moves = (z > node) & (node < p1)
    place = tl.where(moves, node + tl.where(same, 0.0, p1), 0.0).to(tl.int32)
    return tl.where(moves, tl.load(level + place), 0.0) * tl.where(sign > 0, p0, -p0)


# ---- Smooth-AP: p0 = temperature; a positive adds the share of its rank that negatives have, and ranks itself as 1/2 more


@triton.jit
def smooth_ap_finish(among, before, p0, p1, p2, p3, p4):
    all_of_them = 0.5 + among + before
    part = 1.0 / all_of_them
    return before * part, -before * part * part, (0.5 + among) * part * part


# ---- PNP: p0 = b, p1 = alpha, p2 = anneal, p3 = the number of the variant (specs/pnp.py)


@triton.jit
def pnp_logit(s, same, sign, p0, p1, p2, p3, p4):
    return s * (sign / p2)


@triton.jit
def pnp_finish(among, before, p0, p1, p2, p3, p4):
    log_rank = log1p(before)
    power = tl.exp(-p1 * log_rank)
    scaled = p0 * before
    value = tl.where(p3 == 0, log_rank, before)
    slope = tl.where(p3 == 0, 1.0 / (1.0 + before), 1.0)
    value = tl.where(p3 == 1, 1.0 - power, value)
    slope = tl.where(p3 == 1, p1 * power / (1.0 + before), slope)
    value = tl.where(p3 == 2, (1.0 + before) * log_rank, value)
    slope = tl.where(p3 == 2, log_rank + 1.0, slope)
    value = tl.where(p3 == 3, (scaled - log1p(scaled)) / (p0 * p0), value)
    slope = tl.where(p3 == 3, before / (1.0 + scaled), slope)
    return value, 0.0 * before, slope
