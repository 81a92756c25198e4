"""Layer norm and depthwise taps as a walk along time: a frame is read and normalised once, and stays in registers while
its neighbours need it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.context import autocast_dtype
from fastenh_kernels.shared.launch import Cost, launch, processors, size
from fastenh_kernels.shared.norm import EPS, normalise, row_of
from fastenh_kernels.shared.operators import like, operator

_ROWS = 4  # of a program, clips and bands
_TURN = 8  # frames
_ASKED_FOR = 3  # frames that are on their way while one is worked on
_RESIDENT = 8  # programs that the registers of an SM hold


@triton.jit
def frame_of(p_x, t, m_rows, first, last, FRAME: tl.constexpr):
    """[M, C] of frame t, zeros unless first <= t < last."""
    return tl.load(p_x + t * FRAME, mask=m_rows & (t >= first) & (t < last), other=0.0)


@triton.jit
def normed_or_zero(b_x, t, frames, b_norm_weight, b_norm_bias, C: tl.constexpr, EPS: tl.constexpr):
    """Layer norm of frame t, and what the convolution is padded with outside of the clip."""
    b_n = normalise(b_x.to(tl.float32), b_norm_weight, b_norm_bias, C, EPS)
    return tl.where((t >= 0) & (t < frames), b_n, 0.0)


@triton.jit
def tap_rows(p_weight, o_c, C: tl.constexpr, TAPS: tl.constexpr):
    """TAPS rows [1, C] of the (C, TAPS) weights."""
    rows = ()
    for k in tl.static_range(TAPS):
        rows += (row_of(p_weight, o_c * TAPS + k),)
    return rows


@triton.jit(do_not_specialize=["rows", "frames", "chunk", "tiles"])
def norm_taps_kernel(
    p_x,  # (B, T, BANDS, C), contiguous
    p_norm_weight,  # (C,)
    p_norm_bias,  # (C,)
    p_weight,  # (C, TAPS)
    p_bias,  # (C,)
    p_y,  # as x
    rows,  # B * BANDS
    frames,
    chunk,
    tiles,
    BANDS: tl.constexpr,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    AHEAD: tl.constexpr,
    EPS: tl.constexpr,
    M: tl.constexpr,
    ASKED: tl.constexpr,
    TURN: tl.constexpr,
):
    FRAME: tl.constexpr = BANDS * C
    i_tile = tl.program_id(0) % tiles
    first = (tl.program_id(0) // tiles).to(tl.int64) * chunk
    last = tl.minimum(first + chunk, frames)
    o_row, o_c = i_tile * M + tl.arange(0, M), tl.arange(0, C)
    m_rows = (o_row < rows)[:, None]
    o_x = (o_row // BANDS).to(tl.int64) * frames * FRAME + o_row % BANDS * C
    p_rows, p_out = p_x + o_x[:, None] + o_c[None, :], p_y + o_x[:, None] + o_c[None, :]
    b_norm_weight, b_norm_bias = row_of(p_norm_weight, o_c), row_of(p_norm_bias, o_c)
    taps, b_bias = tap_rows(p_weight, o_c, C, TAPS), row_of(p_bias, o_c)
    seen = ()  # the normalised frames from t - (TAPS - 1 - AHEAD) to t + AHEAD - 1
    for k in tl.static_range(TAPS - 1):
        t = first + AHEAD - (TAPS - 1) + k
        b_x = frame_of(p_rows, t, m_rows, 0, frames, FRAME)
        seen += (normed_or_zero(b_x, t, frames, b_norm_weight, b_norm_bias, C, EPS),)
    asked = ()  # the frames from t on, as they are
    end = tl.minimum(last + AHEAD, frames)
    for k in tl.static_range(AHEAD + ASKED):
        asked += (frame_of(p_rows, first + k, m_rows, 0, end, FRAME),)
    # frames by frame, several of them a turn: what moves on from one to the next then does so by its name alone
    for begin in tl.range(first, last, TURN):
        for k in tl.static_range(TURN):
            t = begin + k
            b_n = normed_or_zero(asked[AHEAD], t + AHEAD, frames, b_norm_weight, b_norm_bias, C, EPS)
            b_y = asked[0].to(tl.float32) + b_bias + b_n * taps[TAPS - 1]
            for i in tl.static_range(TAPS - 1):
                b_y += seen[i] * taps[i]
            tl.store(p_out + t * FRAME, b_y.to(p_y.dtype.element_ty), mask=m_rows & (t < last))
            seen = seen[1:] + (b_n,)
            asked = asked[1:] + (frame_of(p_rows, t + AHEAD + ASKED, m_rows, 0, end, FRAME),)


def frames_of_program(frames: int, tiles: int, resident: int, device: torch.device, halo: int, turn: int = 1) -> int:
    """How far a program walks, in whole turns, so that all of them are on the device at once, where they fill it: of
    such walks, the one with which the processors are through first. Every program reads ``halo`` frames more."""
    count = processors(device)
    fewest = triton.cdiv(max(8, frames * tiles // (resident * count)), turn)

    def steps(turns: int) -> int:
        return triton.cdiv(tiles * triton.cdiv(frames, turns * turn), count) * (turns * turn + halo)

    return turn * min(range(fewest, max(triton.cdiv(16, turn), fewest + fewest // 2) + 1), key=steps)


def launch_norm_taps(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, ahead: int
) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    batch, frames, bands, channels = x.shape
    taps = weight.shape[1]
    rows = batch * bands
    tiles = triton.cdiv(rows, _ROWS)
    chunk = frames_of_program(frames, tiles, _RESIDENT, x.device, taps - 1, _TURN)
    chunks = triton.cdiv(frames, chunk)

    def cost() -> Cost:
        l2 = size(x) * (1 + chunks * (taps - 1) / max(frames, 1)) + size(y)
        return Cost((triton.cdiv(frames, _TURN) / max(chunks, 1),), flop=0.0, l2_bytes=l2, dram_bytes=size(x, y))

    launch(
        norm_taps_kernel,
        tiles * chunks,
        cost,
        num_warps=1,
        num_stages=1,
        p_x=x,
        p_norm_weight=norm_weight.contiguous(),
        p_norm_bias=norm_bias.contiguous(),
        p_weight=weight.contiguous(),
        p_bias=bias.contiguous(),
        p_y=y,
        rows=rows,
        frames=frames,
        chunk=chunk,
        tiles=tiles,
        BANDS=bands,
        C=channels,
        TAPS=taps,
        AHEAD=ahead,
        EPS=EPS,
        M=_ROWS,
        ASKED=_ASKED_FOR,
        TURN=_TURN,
    )
    return y


def _shape(x: Tensor, *_: object) -> Tensor:
    return like(x)


norm_taps_operator = operator("norm_taps", launch_norm_taps, _shape)


def norm_taps(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, bias: Tensor, ahead: int) -> Tensor:
    """The weights of the convolution are taken as they are: they are few, and summed in float32."""
    return norm_taps_operator(x.to(autocast_dtype(x)), norm_weight, norm_bias, weight, bias, ahead)
