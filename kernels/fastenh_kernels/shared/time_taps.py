"""Convolutions of three time taps as matrix products that walk along time.

A program holds the three matrices on chip and a tile of (clip, band) rows. It reads a frame of them once, adds it to
the sums of three output frames (the one behind it, its own, the one before it), and writes the sum that is complete:
no row is read three times, and the matrices are read once a program instead of once a tile. ``encoder_conv`` and
``decoder_taps`` are such walks, and the gradients of their inputs are, too.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import LARGE, Cost, chunk_of, dot_precision, launch, shared_memory, size, warpgroups
from fastenh_kernels.shared.rounding import relu


@triton.jit
def _load_matrices(p_matrix, o_k, o_n, USED: tl.constexpr, OUT: tl.constexpr):
    """Three [K, N]."""
    p_tap = p_matrix + o_k[:, None] * OUT + o_n[None, :]
    m = (o_k < USED)[:, None] & (o_n < OUT)[None, :]
    b_before = tl.load(p_tap, mask=m, other=0.0)
    b_own = tl.load(p_tap + USED * OUT, mask=m, other=0.0)
    b_behind = tl.load(p_tap + 2 * USED * OUT, mask=m, other=0.0)
    return b_before, b_own, b_behind


@triton.jit
def _times(b_x0, b_x1, b_matrix0, b_matrix1, b_sum, K1: tl.constexpr, PRECISION: tl.constexpr):
    """b_sum + [M, K0 + K1] times [K0 + K1, N]."""
    b_sum = tl.dot(b_x0, b_matrix0, b_sum, input_precision=PRECISION)
    if K1 > 0:
        b_sum = tl.dot(b_x1, b_matrix1, b_sum, input_precision=PRECISION)
    return b_sum


@triton.jit
def _finish(p_out, b_out, p_bias, o_n, m_out, OUT: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr):
    if BIAS:
        b_out += tl.load(p_bias + o_n, mask=o_n < OUT, other=0.0).to(tl.float32)[None, :]
    dtype: tl.constexpr = p_out.dtype.element_ty
    tl.store(p_out + o_n[None, :], relu(b_out, dtype) if RELU else b_out.to(dtype), mask=m_out)


@triton.jit
def _within(m_rows, o_f, o_n, OUT: tl.constexpr, OUT_LIMIT: tl.constexpr, CUT: tl.constexpr):
    """[M, N]: which results there are. CUT: the last band's end behind the frame's."""
    m = m_rows[:, None] & (o_n < OUT)[None, :]
    if CUT:
        m &= (o_f * OUT)[:, None] + o_n[None, :] < OUT_LIMIT
    return m


@triton.jit(do_not_specialize=["rows", "frames", "chunk", "tiles"])
def time_taps_kernel(
    p_x,  # (B, T, LIMIT), contiguous
    p_skip,  # the same, added to x
    p_matrix,  # (3 time taps, USED, OUT)
    p_bias,  # (OUT,)
    p_out,  # (B, T, OUT_LIMIT), contiguous
    rows,  # B * BANDS
    frames,
    chunk,
    tiles,
    BANDS: tl.constexpr,
    STEP: tl.constexpr,  # from a band's values to the next one's
    START: tl.constexpr,  # of the first band's
    LIMIT: tl.constexpr,  # values of a frame
    USED: tl.constexpr,  # values of a row
    OUT: tl.constexpr,
    OUT_LIMIT: tl.constexpr,  # values of a frame of the result
    COLUMNS: tl.constexpr,  # programs that share the columns
    M: tl.constexpr,
    K0: tl.constexpr,  # a row's values in two blocks; the second has none where there are two of columns
    K1: tl.constexpr,
    N0: tl.constexpr,
    N1: tl.constexpr,
    SKIP: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tl.static_assert(K1 == 0 or (N1 == 0 and not SKIP))
    i_column = tl.program_id(0) % COLUMNS
    i_tile = tl.program_id(0) // COLUMNS % tiles
    first = (tl.program_id(0) // COLUMNS // tiles).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, frames)
    o_row = i_tile * M + tl.arange(0, M)
    o_b, o_f = (o_row // BANDS).to(tl.int64) * frames, o_row % BANDS
    m_rows = o_row < rows
    o_k = tl.arange(0, K0)
    o_x = (o_f * STEP + START)[:, None] + o_k[None, :]
    m_x = m_rows[:, None] & (o_x >= 0) & (o_x < LIMIT) & (o_k < USED)[None, :]
    o_x = (o_b * LIMIT)[:, None] + o_x
    p_y = p_out + (o_b * OUT_LIMIT + o_f * OUT)[:, None]
    o_0 = i_column * (N0 + N1) + tl.arange(0, N0)
    b_before0, b_own0, b_behind0 = _load_matrices(p_matrix, o_k, o_0, USED, OUT)
    b_out0 = tl.zeros([M, N0], tl.float32)  # of the frame before t
    b_next0 = tl.zeros([M, N0], tl.float32)  # of frame t
    m_0 = _within(m_rows, o_f, o_0, OUT, OUT_LIMIT, OUT_LIMIT < BANDS * OUT)
    if K1 > 0:
        o_far = K0 + tl.arange(0, K1)
        o_x_far = (o_f * STEP + START)[:, None] + o_far[None, :]
        m_x_far = m_rows[:, None] & (o_x_far >= 0) & (o_x_far < LIMIT) & (o_far < USED)[None, :]
        o_x_far = (o_b * LIMIT)[:, None] + o_x_far
        b_before_far, b_own_far, b_behind_far = _load_matrices(p_matrix, o_far, o_0, USED, OUT)
    else:
        b_before_far, b_own_far, b_behind_far = b_before0, b_own0, b_behind0
    if N1 > 0:
        o_1 = i_column * (N0 + N1) + N0 + tl.arange(0, N1)
        b_before1, b_own1, b_behind1 = _load_matrices(p_matrix, o_k, o_1, USED, OUT)
        b_out1 = tl.zeros([M, N1], tl.float32)
        b_next1 = tl.zeros([M, N1], tl.float32)
        m_1 = _within(m_rows, o_f, o_1, OUT, OUT_LIMIT, OUT_LIMIT < BANDS * OUT)
    for t in tl.range(first - 1, last + 1):
        m_t = (t >= 0) & (t < frames)
        b_x = tl.load(p_x + t * LIMIT + o_x, mask=m_x & m_t, other=0.0)  # [M, K0]
        if SKIP:
            b_x += tl.load(p_skip + t * LIMIT + o_x, mask=m_x & m_t, other=0.0)
        if K1 > 0:
            p_far = p_x + t * LIMIT + (o_x + K0 if K1 == K0 else o_x_far)  # one set of addresses where it can
            b_far = tl.load(p_far, mask=m_x_far & m_t, other=0.0)  # [M, K1]
        else:
            b_far = b_x
        p_t = p_y + (t - 1) * OUT_LIMIT
        b_out0 = _times(b_x, b_far, b_behind0, b_behind_far, b_out0, K1, PRECISION)
        _finish(p_t, b_out0, p_bias, o_0, m_0 & (t > first), OUT, BIAS, RELU)
        b_out0 = _times(b_x, b_far, b_own0, b_own_far, b_next0, K1, PRECISION)
        b_next0 = _times(b_x, b_far, b_before0, b_before_far, tl.zeros([M, N0], tl.float32), K1, PRECISION)
        if N1 > 0:
            b_out1 = tl.dot(b_x, b_behind1, b_out1, input_precision=PRECISION)
            _finish(p_t, b_out1, p_bias, o_1, m_1 & (t > first), OUT, BIAS, RELU)
            b_out1 = tl.dot(b_x, b_own1, b_next1, input_precision=PRECISION)
            b_next1 = tl.dot(b_x, b_before1, input_precision=PRECISION)


def walk(
    x: Tensor,
    skip: Tensor | None,
    matrix: Tensor,
    bias: Tensor | None,
    out: Tensor,
    *,
    bands: int,
    step: int,
    start: int,
    relu: bool = False,
) -> None:
    """Fill ``out`` with the products of rows of x (+ skip) and the matrix, over three frames, (+ bias).

    x, skip: (B, T, F, C), contiguous; matrix: (3 time taps, values of a row, columns); out: (B, T, ...), contiguous.
    A frame has ``bands`` rows. The first one's values begin at ``start`` within the frame's F x C, each further one's
    ``step`` behind the one before; what lies outside the frame counts as zero.
    A row holds at most 256 values, with a bias or a second summand at most 128.
    """
    batch, frames = out.shape[:2]
    _, used, columns = matrix.shape
    m, k0, k1, n0, n1, warps, stages = _tiles(used, columns, x)
    rows = batch * bands
    tiles, parts = triton.cdiv(rows, m), triton.cdiv(columns, n0 + n1)
    chunk = chunk_of(frames, tiles, x.device)
    chunks = triton.cdiv(frames, chunk)
    sources = (x,) if skip is None else (x, skip)

    def cost() -> Cost:
        # of the input every row, and a frame more at both ends of a chunk; the matrix once a program
        rows_read = rows * used * x.element_size() * len(sources) * parts * (frames + 2 * chunks)
        l2 = rows_read + tiles * chunks * size(matrix) + size(out)
        flop = 2 * frames * rows * matrix.numel()
        trips = (frames + 2 * chunks) / max(chunks, 1)
        return Cost((trips,), flop, l2_bytes=l2, dram_bytes=size(*sources, matrix, out))

    launch(
        time_taps_kernel,
        parts * tiles * chunks,
        cost,
        num_warps=warps,
        num_stages=stages,
        p_x=x,
        p_skip=x if skip is None else skip,
        p_matrix=matrix.contiguous(),
        p_bias=matrix if bias is None else bias,
        p_out=out,
        rows=rows,
        frames=frames,
        chunk=chunk,
        tiles=tiles,
        BANDS=bands,
        STEP=step,
        START=start,
        LIMIT=x.shape[2] * x.shape[3],
        USED=used,
        OUT=columns,
        OUT_LIMIT=math.prod(out.shape[2:]),
        COLUMNS=parts,
        M=m,
        K0=k0,
        K1=k1,
        N0=n0,
        N1=n1,
        SKIP=skip is not None,
        BIAS=bias is not None,
        RELU=relu,
        PRECISION=dot_precision(x),
    )


def _tiles(used: int, columns: int, x: Tensor) -> tuple[int, int, int, int, int, int, int]:
    """(rows, values, further values, columns, further columns, warps, stages) of a program."""
    k0, k1 = (128, max(16, triton.next_power_of_2(used - 128))) if used > 128 else (_power(used), 0)
    large = shared_memory(x.device) > LARGE
    if x.element_size() == 4:
        return 16, k0, k1, 32 if large else 16, 0, 4, 1
    if not warpgroups(x.device):
        return 64, k0, k1, 64 if large else 32, 0, 8, 1
    if k1:  # eight warps would share out the two products of a sum in two ways
        return 64, k0, k1, min(64, _power(columns)), 0, 4, 2
    if columns == 192:
        return 64, k0, 0, 128, 64, 8, 2
    return 64, k0, 0, min(128, _power(columns)), 0, 8, 2


def _power(values: int) -> int:
    return max(16, triton.next_power_of_2(values))
