"""Moments of a batch norm in training: the parts that programs leave, their sum, and its gradient."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def store_moments(p_part, b_first, b_sum, b_square, count, M: tl.constexpr, C: tl.constexpr):
    """Mean and sum of squared deviations of each of C channels, and the number of values, at p_part (2 C + 1).

    Of ``count`` values at each of M places: b_first, the first of them; b_sum and b_square, the sums of what lies above
    it and of the squares of that, [M, C]. So no digits are lost where the mean is far from zero.
    """
    o_c = tl.arange(0, C)
    b_square -= b_sum * b_sum / count
    b_mean = b_first + b_sum / count
    b_all = tl.sum(b_mean, 0) / M  # [C]
    b_mean -= b_all[None, :]
    tl.store(p_part + o_c, b_all)
    tl.store(p_part + C + o_c, tl.sum(b_square + count * b_mean * b_mean, 0))
    tl.store(p_part + 2 * C, count * M)


def combined_moments(counts: Tensor, means: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance, each (C,), of parts (Chan et al. 1979, "Updating formulae").

    counts: (parts, 1); means, squares: (parts, C), squares the sums of squared deviations from a part's own mean.
    """
    total = counts.sum()
    mean = (means * (counts / total)).sum(0)
    return mean, (squares + counts * (means - mean).square()).sum(0) / total


def gradient_of_moments(count: int, mean: Tensor, grad_mean: Tensor, grad_var: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset, each (C,): the moments of ``count`` values y add slope * y + offset to their gradient."""
    slope = 2 / max(1, count) * grad_var
    return slope, grad_mean / max(1, count) - slope * mean
