"""The gradients of convolutions of three time taps (``time_taps.py``), for ``encoder_conv`` and ``decoder_taps``.

That of the input is a walk along time as the forward pass is, taps reversed and matrices transposed.
That of the matrices is a product over all frames and bands: a program walks along time with a tile of (clip, band)
rows, holds the input of three frames, reads each frame of the result's gradient once, and keeps its part of the three
matrices in registers. Parts are summed afterwards, in one order: two identical steps give equal bits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import Cost, chunk_of, dot_precision, launch, processors, size, warpgroups
from fastenh_kernels.shared.operators import like
from fastenh_kernels.shared.time_taps import walk


@triton.jit
def _load_rows(p_x, p_skip, o_x, m_x, o_k, USED: tl.constexpr, SKIP: tl.constexpr, ONES: tl.constexpr):
    """[M, K], input of a frame; a column of ones behind it, whose product is the gradient of the bias."""
    b_x = tl.load(p_x + o_x, mask=m_x, other=0.0)
    if SKIP:
        b_x += tl.load(p_skip + o_x, mask=m_x, other=0.0)
    if ONES:
        b_x = tl.where((o_k == USED)[None, :], 1.0, b_x).to(p_x.dtype.element_ty)
    return b_x


@triton.jit
def _store_taps(p_part, b_before, b_own, b_behind, o_k, o_n, KEPT: tl.constexpr, OUT: tl.constexpr):
    p_tap = p_part + o_k[:, None] * OUT + o_n[None, :]
    m = (o_k < KEPT)[:, None] & (o_n < OUT)[None, :]
    tl.store(p_tap, b_before, mask=m)
    tl.store(p_tap + KEPT * OUT, b_own, mask=m)
    tl.store(p_tap + 2 * KEPT * OUT, b_behind, mask=m)


@triton.jit(do_not_specialize=["rows", "frames", "chunk", "tiles", "units", "share"])
def tap_gradient_kernel(
    p_x,  # (B, T, LIMIT), contiguous
    p_skip,  # the same, added to x
    p_grad,  # (B, T, BANDS, OUT), contiguous
    p_parts,  # (parts, 3 time taps, KEPT, OUT)
    rows,  # B * BANDS
    frames,
    chunk,  # frames of a unit
    tiles,
    units,  # tiles * chunks
    share,  # units of a program
    BANDS: tl.constexpr,
    STEP: tl.constexpr,  # from a band's values to the next one's
    START: tl.constexpr,  # of the first band's
    LIMIT: tl.constexpr,  # values of a frame
    USED: tl.constexpr,  # values of a row
    KEPT: tl.constexpr,  # USED, and one more for the bias
    OUT: tl.constexpr,
    VALUES: tl.constexpr,  # programs that share a row's values
    COLUMNS: tl.constexpr,  # programs that share the columns
    M: tl.constexpr,
    K: tl.constexpr,
    N0: tl.constexpr,
    N1: tl.constexpr,
    SKIP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    i_column = tl.program_id(0) % COLUMNS
    o_k = tl.program_id(0) // COLUMNS % VALUES * K + tl.arange(0, K)
    i_part = (tl.program_id(0) // COLUMNS // VALUES).to(tl.int64)
    o_0 = i_column * (N0 + N1) + tl.arange(0, N0)
    b_sum0 = tl.zeros([K, N0], tl.float32)  # of the tap before
    b_own0 = tl.zeros([K, N0], tl.float32)
    b_behind0 = tl.zeros([K, N0], tl.float32)
    if N1 > 0:
        o_1 = i_column * (N0 + N1) + N0 + tl.arange(0, N1)
        b_sum1 = tl.zeros([K, N1], tl.float32)
        b_own1 = tl.zeros([K, N1], tl.float32)
        b_behind1 = tl.zeros([K, N1], tl.float32)
    for unit in tl.range(i_part * share, tl.minimum(i_part * share + share, units)):
        first = unit // tiles * chunk
        o_row = unit % tiles * M + tl.arange(0, M)
        o_b, o_f = (o_row // BANDS).to(tl.int64) * frames, (o_row % BANDS).to(tl.int32)
        m_rows = o_row < rows
        o_x = (o_f * STEP + START)[:, None] + o_k[None, :]
        m_x = m_rows[:, None] & (o_x >= 0) & (o_x < LIMIT) & (o_k < USED)[None, :]
        o_x = (o_b * LIMIT)[:, None] + o_x
        o_g = (o_b * BANDS + o_f) * OUT
        o_t = first * LIMIT
        b_before = _load_rows(p_x, p_skip, o_t - LIMIT + o_x, m_x & (first > 0), o_k, USED, SKIP, KEPT > USED)
        b_now = _load_rows(p_x, p_skip, o_t + o_x, m_x, o_k, USED, SKIP, KEPT > USED)
        for t in tl.range(first, tl.minimum(first + chunk, frames)):
            m_t = m_x & (t + 1 < frames)
            b_after = _load_rows(p_x, p_skip, (t + 1) * LIMIT + o_x, m_t, o_k, USED, SKIP, KEPT > USED)
            p_g = p_grad + (t * (BANDS * OUT) + o_g)[:, None]
            b_g = tl.load(p_g + o_0[None, :], mask=m_rows[:, None] & (o_0 < OUT)[None, :], other=0.0)  # [M, N0]
            b_sum0 = tl.dot(tl.trans(b_before), b_g, b_sum0, input_precision=PRECISION)
            b_own0 = tl.dot(tl.trans(b_now), b_g, b_own0, input_precision=PRECISION)
            b_behind0 = tl.dot(tl.trans(b_after), b_g, b_behind0, input_precision=PRECISION)
            if N1 > 0:
                b_g = tl.load(p_g + o_1[None, :], mask=m_rows[:, None] & (o_1 < OUT)[None, :], other=0.0)
                b_sum1 = tl.dot(tl.trans(b_before), b_g, b_sum1, input_precision=PRECISION)
                b_own1 = tl.dot(tl.trans(b_now), b_g, b_own1, input_precision=PRECISION)
                b_behind1 = tl.dot(tl.trans(b_after), b_g, b_behind1, input_precision=PRECISION)
            b_before = b_now
            b_now = b_after
    p_part = p_parts + i_part * (3 * KEPT * OUT)
    _store_taps(p_part, b_sum0, b_own0, b_behind0, o_k, o_0, KEPT, OUT)
    if N1 > 0:
        _store_taps(p_part, b_sum1, b_own1, b_behind1, o_k, o_1, KEPT, OUT)


def input_gradient(grad: Tensor, matrix: Tensor, x: Tensor) -> Tensor:
    """Gradient of x from rows of ``grad``; in float32, whose long rows spill, from 128 values of a row at a time.

    grad: (B, T, rows, values of a row), contiguous; matrix: (3 time taps, values of a row, columns), taps reversed.
    What the columns of a row give lies behind that of the row before in the frame of x; the last row's may end beyond.
    """
    parts = []
    for number, piece in enumerate(matrix.split(128 if x.element_size() == 4 else 256, 1)):
        parts.append(like(x))
        walk(grad, None, piece, None, parts[-1], bands=grad.shape[2], step=grad.shape[3], start=128 * number)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def matrix_gradient(
    grad: Tensor, x: Tensor, skip: Tensor | None, *, step: int, used: int, start: int, bias: bool = False
) -> Tensor:
    """(3, used, columns), with ``bias`` (3, used + 1, columns): the own tap's last row is the gradient of the bias.

    grad: (B, T, bands, columns), contiguous; x, skip, step, start: as in ``walk``; used: values of a row.
    """
    batch, frames, bands, columns = grad.shape
    kept = used + bias
    m, k, n0, n1, warps = _blocks(columns, x)
    values, parted = triton.cdiv(kept, k), triton.cdiv(columns, n0 + n1)
    tiles = triton.cdiv(batch * bands, m)
    chunk = chunk_of(frames, tiles * values * parted, x.device)
    units = tiles * triton.cdiv(frames, chunk)
    share = max(1, triton.cdiv(units * values * parted, processors(x.device)))
    parts = triton.cdiv(units, share)
    sums = torch.empty(parts, 3, kept, columns, dtype=torch.float32, device=x.device)

    def cost() -> Cost:
        # of the input a frame more at both ends of a chunk; what is shared is read by each that shares it
        sources = (1 if skip is None else 2) * batch * bands * used * x.element_size()
        read = sources * parted * (frames + 2 * (units // max(tiles, 1))) + size(grad) * values
        flop = 2 * 3 * used * columns * batch * frames * bands
        loops = (units / max(parts, 1), frames * tiles / max(units, 1))
        dram = size(x, grad, sums) + (0 if skip is None else size(skip))
        return Cost(loops, flop, l2_bytes=read + size(sums), dram_bytes=dram)

    launch(
        tap_gradient_kernel,
        parts * values * parted,
        cost,
        num_warps=warps,
        num_stages=2,
        p_x=x,
        p_skip=x if skip is None else skip,
        p_grad=grad,
        p_parts=sums,
        rows=batch * bands,
        frames=frames,
        chunk=chunk,
        tiles=tiles,
        units=units,
        share=share,
        BANDS=bands,
        STEP=step,
        START=start,
        LIMIT=x.shape[2] * x.shape[3],
        USED=used,
        KEPT=kept,
        OUT=columns,
        VALUES=values,
        COLUMNS=parted,
        M=m,
        K=k,
        N0=n0,
        N1=n1,
        SKIP=skip is not None,
        PRECISION=dot_precision(x),
    )
    return sums.sum(0)


def _blocks(columns: int, x: Tensor) -> tuple[int, int, int, int, int]:
    """(rows, values, columns, further columns, warps) of a program."""
    if x.element_size() == 4:
        return 16, 32, 32, 0, 8
    if not warpgroups(x.device):
        return 32, 64, min(128, max(16, triton.next_power_of_2(columns))), 0, 8
    if columns == 192:
        return 32, 64, 128, 64, 8
    return 64, 64, min(128, max(16, triton.next_power_of_2(columns))), 0, 8
