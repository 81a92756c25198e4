"""What is timed: every operation, the whole model and its training step on clips of 3 s, by each implementation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

import fastenh_kernels
from benchmarks.textbook import TextbookDPT
from fastenh.models import checkpoint
from fastenh.models.frontend import SAMPLE_RATE, SpectralModel
from fastenh.train.losses import EnhancementLoss, LossConfig
from fastenh_kernels import backend
from fastenh_kernels.examples import DPT, Inputs
from fastenh_kernels.examples import leaves as leaves_of
from fastenh_kernels.operation import OPERATIONS, Operation

CLIP_SECONDS, FRAMES = 3, 188
TIMED = (
    "complex_mask", "encoder_front", "encoder_conv", "axis_attention_frequency", "axis_attention_time",
    "axis_layer_frequency", "axis_layer_time", "decoder_taps", "mask_head",
)  # fmt: skip
TIMED_IN_TRAINING = (*TIMED, "upsampled_moments", "spectral_loss")
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}
GPU_IMPLEMENTATIONS = ("triton_bf16", "triton_fp32", "eager_fp32", "eager_tf32", "eager_bf16_sdpa", "compile_bf16")
CPU_IMPLEMENTATIONS = ("eager_fp32", "eager_bf16_sdpa")
_BACKENDS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
_MOST_SEQUENCES = 65_535  # the fast SDPA backends fail beyond

Function = Callable[..., Tensor]


def implementations(device: torch.device) -> tuple[str, ...]:
    return GPU_IMPLEMENTATIONS if device.type == "cuda" else CPU_IMPLEMENTATIONS


def dtype_of(implementation: str) -> torch.dtype:
    return DTYPES[implementation.split("_")[1]]


def arguments(
    name: str, clips: int, dtype: torch.dtype, device: torch.device, frames: int = FRAMES, training: bool = False
) -> tuple[object, ...]:
    """Random inputs, and what else the operation takes; in training batch norms stand before the encoder's ReLU."""
    operation, axis = _split(name)
    label = {"axis_attention": axis, "axis_layer": f"dpt, {axis}", "complex_mask": "sigmoid"}.get(operation.name)
    uses = ("both", "training" if training or operation.name == "upsampled_moments" else "inference")
    for example in operation.examples(Inputs(device, dtype, clips, frames)):
        if label in (None, example.label) and example.use in uses:
            return tree_map(lambda x: x.to(dtype) if _is_real(x) else x, example.arguments)
    raise ValueError(f"{name}: no example of {operation.name} with the label {label}")


def operation(name: str, implementation: str) -> Function:
    """The operation as ``implementation`` does it; takes what ``arguments`` gives."""
    function = _forced(getattr(fastenh_kernels, _split(name)[0].name), implementation)
    if not implementation.startswith("triton") and name == "encoder_front":
        function = _features_rounded(function)
    return _autotuned(function) if implementation.startswith("compile") else function


def _split(name: str) -> tuple[Operation, str]:
    """An operation, and the axis that its name here ends with."""
    for axis in ("frequency", "time"):
        if name.endswith(f"_{axis}"):
            return OPERATIONS[name.removesuffix(f"_{axis}")], axis
    return OPERATIONS[name], ""


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _forced(function: Function, implementation: str) -> Function:
    """The public function on the backend of an implementation."""

    def forced(*given: object) -> Tensor:
        device = next(leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)).device
        with backend.use_backend(_backend_of(implementation, device)):
            return function(*given)

    return forced


def _autotuned(function: Function) -> Function:
    return torch.compile(function, mode="max-autotune", dynamic=False)


def _features_rounded(function: Function) -> Function:
    """The features are float32, whatever the weights are: autocast takes them to the dtype of the weights."""

    def front(spectrum: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=weight.dtype == torch.bfloat16):
            return function(spectrum, weight, bias, relu)

    return front


def forward_backward(name: str, implementation: str, given: tuple[object, ...]) -> Callable[[], tuple[Tensor, ...]]:
    """Both passes of an operation on ``given`` (of ``arguments``): the gradients of ``leaves``.

    The gradient of the result is the same for all implementations.
    """
    function = operation(name, implementation)
    plain = operation(name, implementation.replace("compile", "eager"))
    given = leaves_of(given)
    leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor) and leaf.requires_grad]
    with torch.no_grad():
        results = _several(plain(*given))
    generator = torch.Generator(device=leaves[0].device).manual_seed(1)
    upstream = [_gradient_like(result, generator) for result in results]

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(_several(function(*given)), leaves, upstream)

    return both


def _several(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _gradient_like(result: Tensor, generator: torch.Generator) -> Tensor:
    """Laid out as in training: a spectrum's as ``torch.stft`` lays it, others contiguous; no rounding in any dtype."""
    options = {"device": result.device, "generator": generator}
    if result.is_complex():
        clips, bins, frames = result.shape
        return torch.randn(clips, frames, bins, dtype=result.dtype, **options).transpose(1, 2)
    return torch.randn(result.shape, **options).bfloat16().to(result.dtype)


def _backend_of(implementation: str, device: torch.device) -> str:
    if not implementation.startswith("triton"):
        return "reference"
    return "triton" if device.type == "cuda" else "interpret"


def model(implementation: str, device: torch.device) -> Function:
    """The core of the shipped ``dpt``: spectrum -> spectrum, ours on the kernels, the rivals' the textbook's."""
    core = checkpoint.load("dpt")[0].core.to(device).eval()
    dtype = dtype_of(implementation)
    if implementation.startswith(("triton", "ours")):
        folded = core.folded(dtype)
        forced = _backend_of(implementation, device)

        def ours(spectrum: Tensor) -> Tensor:
            with backend.use_backend(forced), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return folded(spectrum)

        return ours
    rival = TextbookDPT(copy.deepcopy(core)).to(device, dtype)
    return _autotuned(rival) if implementation.startswith("compile") else rival


def spectrum(clips: int, device: torch.device) -> Tensor:
    return arguments("complex_mask", clips, torch.float32, device)[1]


class TrainingStep:
    """Forward pass, loss, backward pass and fused AdamW on clips of 3 s; called, it takes the step, returns the loss.

    By name: "train_step" is ours for Triton implementations and the textbook module's for the others,
    "train_step_reference" ours on the reference path; "compile" in the name of ours means that forward pass and loss
    are compiled. In bfloat16 it is autocast, the weights stay in float32. No dropout, as in the recipe of ``dpt-mix``.
    """

    def __init__(
        self,
        name: str,
        implementation: str,
        clips: int,
        device: torch.device,
        samples: int = CLIP_SECONDS * SAMPLE_RATE,
    ) -> None:
        ours = implementation.startswith("triton") or "reference" in name
        self.model = _in_training(ours).to(device)
        self.dtype, self.backend = dtype_of(implementation), _backend_of(implementation, device)
        self.criterion = EnhancementLoss(LossConfig()).to(device)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), 1e-4, fused=True, capturable=device.type == "cuda"
        )  # capturable: so that it goes into a CUDA graph
        generator = torch.Generator(device=device).manual_seed(0)
        self.clean, noise = 0.1 * torch.randn(2, clips, samples, device=device, generator=generator)
        self.noisy = self.clean + noise
        self._objective = self.objective
        if implementation.startswith("compile"):
            self._objective = _autotuned(self.objective)
        elif "compile" in name:  # nothing to tune: the products are in our kernels
            self._objective = torch.compile(self.objective, fullgraph=True, dynamic=False)

    def enhance(self) -> Tensor:
        device = self.noisy.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(self.noisy).float()

    def objective(self) -> Tensor:
        return self.criterion(self.enhance(), self.clean, self.noisy)

    def differentiate(self) -> Tensor:
        """The loss; gradients are left with the parameters."""
        self.optimiser.zero_grad()
        with backend.use_backend(self.backend):
            loss = self._objective()
        loss.backward()
        return loss.detach()

    def __call__(self) -> Tensor:
        loss = self.differentiate()
        self.optimiser.step()
        return loss

    def parts(self) -> Iterator[tuple[str, Callable[[], object]]]:
        """The parts of an eager step, each to be called before the next is asked for."""
        kept: dict[str, Tensor] = {}

        def forward() -> None:
            with backend.use_backend(self.backend):
                kept["enhanced"] = self.enhance()

        def loss() -> None:
            leaf = kept["enhanced"].detach().requires_grad_()
            kept["grad"] = torch.autograd.grad(self.criterion(leaf, self.clean, self.noisy), leaf)[0]

        self.optimiser.zero_grad()
        yield "forward", forward
        yield "loss", loss
        yield "backward", lambda: kept["enhanced"].backward(kept["grad"])
        yield "optimiser", self.optimiser.step


def _in_training(ours: bool) -> SpectralModel:
    """The shipped ``dpt``, or the textbook module with its weights."""
    model = checkpoint.load("dpt")[0]
    for layer in model.core.layers:
        layer.dropout = 0.0
    return (model if ours else SpectralModel(TextbookDPT(model.core), model.frontend.hop)).train()


@contextmanager
def conditions(implementation: str, device: torch.device, gradients: bool = False) -> Iterator[None]:
    """Gradients and TF32 where they are asked for; SDPA by the fastest of its backends; no fast path of ``nn``."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in implementation
    torch.backends.mha.set_fastpath_enabled(False)  # it crashes under torch.compile, and pads
    try:
        with torch.enable_grad() if gradients else torch.inference_mode():
            if device.type == "cuda" and implementation == "eager_bf16_sdpa":
                with sdpa_kernel(fastest_sdpa(device, gradients)):
                    yield
            else:
                yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        torch.backends.mha.set_fastpath_enabled(fast_path)


@cache
def fastest_sdpa(device: torch.device, gradients: bool = False) -> SDPBackend:
    """The SDPA backend that is fastest on 188 frames of 65 bands of 64 clips in bfloat16; with its backward pass?"""
    from triton.testing import do_bench

    q = torch.randn(64 * DPT.bands, DPT.heads, FRAMES, DPT.channels // DPT.heads, device=device, dtype=torch.bfloat16)
    q.requires_grad_(gradients)

    def attend() -> None:
        out = F.scaled_dot_product_attention(q, q, q)
        if gradients:
            torch.autograd.grad(out, q, torch.ones_like(out))

    times = {}
    for candidate in _BACKENDS:
        try:
            with sdpa_kernel(candidate):
                times[candidate] = do_bench(attend)
        except RuntimeError:  # not to be had on this GPU
            continue
    return min(times, key=times.get)


def fits(name: str, implementation: str, clips: int) -> bool:
    """Whether the rival can run so many clips: SDPA ends at 65,535 sequences of all heads."""
    if implementation.startswith("triton") or not name.startswith(("axis", "model_forward", "train_step")):
        return True
    return clips * FRAMES <= _MOST_SEQUENCES
