"""ReLU of what is rounded next."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def relu(b_x, dtype: tl.constexpr):
    """max(x, 0) of float32, rounded to ``dtype``. In 16 bit it takes no instruction of its own: what rounds a pair of
    values cuts them off at zero, too (PTX ISA, "cvt")."""
    if INTERPRETED or dtype == tl.float32:
        b_y = tl.maximum(b_x, 0.0).to(dtype)
    elif dtype == tl.bfloat16:
        b_y = tl.inline_asm_elementwise(
            "cvt.rn.relu.bf16x2.f32 $0, $2, $1;", "=r,r,r", [b_x], tl.bfloat16, is_pure=True, pack=2
        )
    else:
        b_y = tl.inline_asm_elementwise(
            "cvt.rn.relu.f16x2.f32 $0, $2, $1;", "=r,r,r", [b_x], tl.float16, is_pure=True, pack=2
        )
    return b_y
