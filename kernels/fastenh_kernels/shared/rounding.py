"""Results rounded to 16 bit in pairs, and ReLU by the instruction that rounds."""

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


@triton.jit
def where_positive(b, b_x):
    """float32 values where those of ``b_x``, of 16 bit, are positive, else 0; rounded to the dtype of b_x. Both values
    of a register are compared and cut off at once."""
    if INTERPRETED:
        b_y = tl.where(b_x > 0.0, b, 0.0).to(b_x.dtype)
    elif b_x.dtype == tl.bfloat16:
        b_y = tl.inline_asm_elementwise(
            "{.reg .b32 d, m, z; mov.b32 z, 0; cvt.rn.bf16x2.f32 d, $2, $1; set.gt.u32.bf16x2 m, $3, z;"
            " and.b32 $0, d, m;}",
            "=r,r,r,r", [b, b_x], tl.bfloat16, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        b_y = tl.inline_asm_elementwise(
            "{.reg .b32 d, m, z; mov.b32 z, 0; cvt.rn.f16x2.f32 d, $2, $1; set.gt.u32.f16x2 m, $3, z;"
            " and.b32 $0, d, m;}",
            "=r,r,r,r", [b, b_x], tl.float16, is_pure=True, pack=2,
        )  # fmt: skip
    return b_y


@triton.jit
def rounded(b_x, dtype: tl.constexpr):
    """float32 in ``dtype``. The compiler rounds values one by one where they are also wanted one by one afterwards."""
    if INTERPRETED or dtype == tl.float32:
        b_y = b_x.to(dtype)
    elif dtype == tl.bfloat16:
        b_y = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [b_x], tl.bfloat16, is_pure=True, pack=2
        )
    else:
        b_y = tl.inline_asm_elementwise(
            "cvt.rn.f16x2.f32 $0, $2, $1;", "=r,r,r", [b_x], tl.float16, is_pure=True, pack=2
        )
    return b_y
