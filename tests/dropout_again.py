"""The dropout of the kernels drawn again, by a kernel of the tests: what a reference with the same draws gives."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
import triton
import triton.language as tl

from fastenh_kernels import backend
from fastenh_kernels.shared.dropout import drop, seed_of

HERE = "cpu" if backend.interprets() else "cuda"
DROPOUT, SEED = 0.3, 2**40 + 7


@triton.jit
def kept_kernel(p_out, p_seed, offset, count, N: tl.constexpr):  # noqa: N803
    """Writes 1 / (1 - DROPOUT) for values that are kept, else 0."""
    o = tl.program_id(0) * N + tl.arange(0, N)
    b = tl.full([N], 1.0, tl.float32)
    b = drop(b, seed_of(p_seed, offset, 0.3), o.to(tl.int64), 0.3)
    tl.store(p_out + o, b, mask=o < count)


def kept(offset, *shape):
    mask, seed = torch.zeros(shape, device=HERE), torch.tensor([SEED], device=HERE)
    kept_kernel[(triton.cdiv(mask.numel(), 256),)](mask, seed, offset, mask.numel(), 256)
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
    masks = torch.stack([kept(3 + row, *weights.shape[1:]) for row in range(len(weights))])
    out = (weights * masks.to(weights.dtype)) @ v
    out = out.unflatten(0, (b, t if axis == "frequency" else f, heads))  # (b, inner, heads, length, width)
    return out.permute((0, 1, 3, 2, 4) if axis == "frequency" else (0, 3, 1, 2, 4)).reshape(b, t, f, packed // 3)


def layer_with_masks(x, w, heads, axis):
    c, rows = x.shape[-1:], x.shape
    masks = [kept(offset, *rows[:3], n).to(x.dtype) for offset, n in enumerate((c[0], len(w.up_weight), c[0]))]
    qkv = F.linear(F.layer_norm(x, c, w.norm1_weight, w.norm1_bias), w.qkv_weight, w.qkv_bias)
    x = x + masks[0] * F.linear(attention_with_masks(qkv, heads, axis), w.out_weight, w.out_bias)
    hidden = F.linear(F.layer_norm(x, c, w.norm2_weight, w.norm2_bias), w.up_weight, w.up_bias).relu()
    return x + masks[2] * F.linear(masks[1] * hidden, w.down_weight, w.down_bias)
