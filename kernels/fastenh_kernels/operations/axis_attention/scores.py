"""What the two kernels of attention forward have in common."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastenh_kernels.shared.launch import Cost, size


@triton.jit
def scores(b_q, b_k, o_k, length, FULL: tl.constexpr, PRECISION: tl.constexpr):
    """[M, N] scores; keys behind the end count as minus infinity."""
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    if not FULL:
        b_s = tl.where(o_k[None, :] < length, b_s, float("-inf"))
    return b_s


def attention_cost(qkv: Tensor, out: Tensor, seen: float, loops: tuple[float, ...], times: float = 1) -> Cost:
    """``seen``: keys that a row sees. Queries and results go through the L2 once, keys and values so many times."""
    l2 = size(out) + size(qkv) / 3 * (1 + 2 * times)
    return Cost(loops, flop=4 * out.numel() * seen, l2_bytes=l2, dram_bytes=size(qkv, out))
