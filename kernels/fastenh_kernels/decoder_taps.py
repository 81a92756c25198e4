"""The decoder's convolution before upsampling: three time taps summed, three frequency taps apart.

One matrix product over the rows (b, t, f): a time tap is a shift by F rows, so its operand is read where it lies, and
nothing is unfolded. A program takes a tile of rows and columns and walks over the taps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.launch import dot_precision, launch

# bytes of a value: (rows, columns, inner dimension at a time, warps, stages)
_TILES = {2: (128, 64, 128, 8, 2), 4: (64, 64, 32, 4, 1)}


@triton.jit(do_not_specialize=["rows", "frames", "column_blocks"])
def decoder_taps_kernel(
    p_x,  # (B, T, F, C), contiguous
    p_weight,  # (3 time taps, C, OUT)
    p_z,  # (B, T, F, OUT)
    rows,  # B * T * F
    frames,
    column_blocks,
    BANDS: tl.constexpr,
    C: tl.constexpr,
    OUT: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # the column blocks of a row tile lie side by side: they share its rows in the L2
    o_m = (tl.program_id(0) // column_blocks).to(tl.int64) * M + tl.arange(0, M)
    o_n = tl.program_id(0) % column_blocks * N + tl.arange(0, N)
    o_t = o_m // BANDS % frames
    b_z = tl.zeros([M, N], tl.float32)
    for step in tl.range(0, 3 * C // K):
        tap = step // (C // K)
        o_k = step % (C // K) * K + tl.arange(0, K)
        m_m = (o_m < rows) & (o_t + tap >= 1) & (o_t + tap <= frames)
        p_rows = p_x + (o_m[:, None] + (tap - 1) * BANDS) * C + o_k[None, :]
        b_x = tl.load(p_rows, mask=m_m[:, None], other=0.0)  # [M, K]
        p_columns = p_weight + (tap * C + o_k[:, None]) * OUT + o_n[None, :]
        b_w = tl.load(p_columns, mask=o_n[None, :] < OUT, other=0.0)  # [K, N]
        b_z = tl.dot(b_x, b_w, b_z, input_precision=PRECISION)
    m_z = (o_m[:, None] < rows) & (o_n[None, :] < OUT)
    tl.store(p_z + o_m[:, None] * OUT + o_n[None, :], b_z.to(p_z.dtype.element_ty), mask=m_z)


def decoder_taps(x: Tensor, weight: Tensor) -> Tensor:
    """See ``fastenh.ops.decoder_taps``. (B, T, F, C), (C', C, 3, 3) -> (B, T, F, 3, C').

    Raises ``ValueError`` unless C is a power of two from 16 to 128.
    """
    batch, frames, bands, channels = x.shape
    if channels not in (16, 32, 64, 128):
        raise ValueError(f"{channels} channels: the kernel takes 16, 32, 64 or 128")
    x = x.contiguous()
    outputs = weight.shape[0]
    matrix = weight.permute(3, 1, 2, 0).contiguous().to(x.dtype)  # (time tap, C, frequency tap, C')
    z = torch.empty(batch, frames, bands, 3, outputs, dtype=x.dtype, device=x.device)
    m, n, k, warps, stages = _TILES[x.element_size()]
    rows, column_blocks = batch * frames * bands, triton.cdiv(3 * outputs, n)
    arguments = {
        "p_x": x,
        "p_weight": matrix,
        "p_z": z,
        "rows": rows,
        "frames": frames,
        "column_blocks": column_blocks,
        "BANDS": bands,
        "C": channels,
        "OUT": 3 * outputs,
        "M": m,
        "N": n,
        "K": min(k, channels),
        "PRECISION": dot_precision(x),
    }
    launch(decoder_taps_kernel, triton.cdiv(rows, m) * column_blocks, arguments, num_warps=warps, num_stages=stages)
    return z
