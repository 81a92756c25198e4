"""The distance of two spectra behind a compression of their magnitudes: a term of the training loss."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.operation import Example, Operation
from fastenh_kernels.operations.spectral_loss import reference


def spectral_loss(
    estimate: Tensor, clean: Tensor, magnitude_weight: float, complex_weight: float, power: float
) -> Tensor:
    """Weighted mean over all bins of the squared distances of |S|^power and of S |S|^(power - 1).

    estimate, clean: complex (B, F, T). Returns a scalar (Braun and Tashev 2021, "A consolidated view of loss functions
    for supervised deep learning-based speech enhancement"). Kernels give the gradient of the estimate alone.
    """
    return OPERATION(estimate, clean, magnitude_weight, complex_weight, power)


def _serves(estimate: Tensor, clean: Tensor, magnitude_weight: float, complex_weight: float, power: float) -> str:
    return "a gradient of the clean side: the kernel takes a constant" if clean.requires_grad else ""


def _examples(inputs: Inputs) -> Iterator[Example]:
    estimate, clean = inputs.spectrum(DPT.bins).requires_grad_(), inputs.spectrum(DPT.bins)
    yield Example("", (estimate, clean, 70.0, 30.0, 0.3), "training")


OPERATION = Operation("spectral_loss", reference.spectral_loss, serves=_serves, examples=_examples)
