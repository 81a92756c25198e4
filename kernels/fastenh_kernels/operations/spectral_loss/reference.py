"""``spectral_loss`` in PyTorch."""

from __future__ import annotations

from torch import Tensor

from fastenh_kernels.shared.compression import compress

EPS = 1e-8  # of the power: finite gradients at 0, at the level of the loss


def spectral_loss(
    estimate: Tensor, clean: Tensor, magnitude_weight: float, complex_weight: float, power: float
) -> Tensor:
    pairs, magnitude = compress(estimate, power, EPS)
    clean_pairs, clean_magnitude = compress(clean, power, EPS)
    loss = magnitude_weight * (magnitude - clean_magnitude).square().mean()
    # mean over bins of the squared complex distance: the sum of those of the real and the imaginary part
    return loss + complex_weight * 2 * (pairs - clean_pairs).square().mean()
