"""The dropout of the kernels drawn again, by a kernel of the tests: what a reference with the same draws gives."""

# ruff: noqa: N803

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastenh_kernels import backend
from fastenh_kernels.shared.dropout import (
    FEED_FORWARD,
    HIDDEN_UNITS,
    PROJECTION,
    ROW,
    WEIGHTS,
    drop,
    key_of,
    row_draws,
)

HERE = "cpu" if backend.interprets() else "cuda"
DROPOUT, SEED = 0.3, 2**40 + 7
ROWS_AT_ONCE = 64
APART = {PROJECTION.value: 1, HIDDEN_UNITS.value: 8, FEED_FORWARD.value: 1}


@triton.jit
def rows_kernel(
    p_out,  # (rows, columns)
    p_seed,
    first,  # row
    columns: tl.constexpr,
    SITE: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,  # a power of 2, not less than columns
    APART: tl.constexpr,
    DROPOUT: tl.constexpr,
):
    """Writes 1 / (1 - DROPOUT) for the values of M rows from ``first`` on that are kept, else 0."""
    o_m, o_n = tl.arange(0, M), tl.arange(0, N)
    row = tl.program_id(0) * M
    key, o_row = row_draws(p_seed, SITE, tl.zeros([], tl.int64) + first + row, o_m, columns, DROPOUT)
    b = drop(tl.full([M, N], 1.0, tl.float32), key, o_row[:, None], o_n[None, :], APART, DROPOUT)
    tl.store(p_out + (row + o_m)[:, None] * columns + o_n[None, :], b, mask=o_n[None, :] < columns)


@triton.jit
def weights_kernel(p_out, p_seed, group, length, N: tl.constexpr, DROPOUT: tl.constexpr):
    """The same for the attention weights (length, length) of a sequence and head, a row a program."""
    i, o_n = tl.program_id(0), tl.arange(0, N)
    key = key_of(p_seed, WEIGHTS, group, DROPOUT)
    b = drop(tl.full([N], 1.0, tl.float32), key, i * ROW + tl.zeros([N], tl.int32), o_n, 8, DROPOUT)
    tl.store(p_out + i * length + o_n, b, mask=o_n < length)


def kept_rows(site, rows, columns, seed=SEED, first=0, dropout=DROPOUT):
    """(rows, columns) of an activation: what its values are multiplied by. ``first``: row, a multiple of 64."""
    blocks = triton.cdiv(rows, ROWS_AT_ONCE)
    mask = torch.zeros(blocks * ROWS_AT_ONCE, columns, device=HERE)
    seed = torch.tensor([seed], device=HERE)
    n = triton.next_power_of_2(columns)
    rows_kernel[(blocks,)](mask, seed, first, columns, site, ROWS_AT_ONCE, n, APART[site], dropout)
    return mask[:rows].cpu().double()


def kept_weights(group, length, seed=SEED, dropout=DROPOUT):
    """(length, length) of a sequence and head."""
    mask, seed = torch.zeros(length, length, device=HERE), torch.tensor([seed], device=HERE)
    weights_kernel[(length,)](mask, seed, group, length, triton.next_power_of_2(length), dropout)
    return mask.cpu().double()


def attention_with_masks(qkv, heads, axis, history=0):
    """The reference's attention, its weights multiplied by the draws."""
    b, t, f, packed = qkv.shape
    split = qkv.view(b, t, f, 3, heads, -1).permute((3, 0, 1, 4, 2, 5) if axis == "frequency" else (3, 0, 2, 4, 1, 5))
    q, k, v = split.flatten(1, 3)  # (sequences * heads, length, width)
    scores = q @ k.transpose(1, 2) * q.shape[2] ** -0.5
    if history:
        back = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
        scores = scores.masked_fill((back < 0) | (back >= history), -torch.inf)
    weights = scores.softmax(-1)
    masks = torch.stack([kept_weights(row, q.shape[1]) for row in range(len(weights))])
    out = (weights * masks.to(weights.dtype)) @ v
    out = out.unflatten(0, (b, t if axis == "frequency" else f, heads))  # (b, inner, heads, length, width)
    return out.permute((0, 1, 3, 2, 4) if axis == "frequency" else (0, 3, 1, 2, 4)).reshape(b, t, f, packed // 3)


def layer_with_masks(x, w, heads, axis):
    c, rows = x.shape[-1:], x.shape
    widths = {PROJECTION.value: c[0], HIDDEN_UNITS.value: len(w.up_weight), FEED_FORWARD.value: c[0]}
    masks = [kept_rows(site, rows[:3].numel(), n).view(*rows[:3], n).to(x.dtype) for site, n in widths.items()]
    qkv = F.linear(F.layer_norm(x, c, w.norm1_weight, w.norm1_bias), w.qkv_weight, w.qkv_bias)
    x = x + masks[0] * F.linear(attention_with_masks(qkv, heads, axis), w.out_weight, w.out_bias)
    hidden = F.linear(F.layer_norm(x, c, w.norm2_weight, w.norm2_bias), w.up_weight, w.up_bias).relu()
    return x + masks[2] * F.linear(masks[1] * hidden, w.down_weight, w.down_bias)
