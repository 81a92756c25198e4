"""What is timed: every operation and the whole model at the shapes of 3 s clips, by each implementation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from textbook import TextbookDPT
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastenh.models import checkpoint
from fastenh.models.frontend import BINS
from fastenh.ops import AxisLayerWeights, backend, reference

CLIP_SECONDS, FRAMES, BANDS, CHANNELS, HEADS, HIDDEN, FRONT, HEAD = 3, 188, 65, 128, 4, 512, 32, 64
OPERATIONS = (
    "complex_mask", "encoder_front", "encoder_conv", "axis_attention_frequency", "axis_attention_time",
    "axis_layer_frequency", "axis_layer_time", "decoder_taps", "mask_head",
)  # fmt: skip
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


def arguments(operation: str, clips: int, dtype: torch.dtype, device: torch.device) -> tuple[object, ...]:
    """Random inputs, and what else the operation takes."""
    generator = torch.Generator(device=device).manual_seed(0)

    def rand(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.float32, generator=generator).to(dtype)

    spectrum = torch.view_as_complex(rand(clips, FRAMES, BINS, 2, dtype=torch.float32)).transpose(1, 2)
    name, _, axis = operation.rpartition("_")
    if operation == "complex_mask":
        return rand(clips, FRAMES, BINS).transpose(1, 2), spectrum, "sigmoid"
    if operation == "encoder_front":
        return spectrum, 0.3 * rand(FRONT, 1, 3, 3), rand(FRONT), True
    if operation == "encoder_conv":
        return rand(clips, FRAMES, 129, FRONT), 0.1 * rand(3, 3 * FRONT, CHANNELS), rand(CHANNELS), True
    if name == "axis_attention":
        return rand(clips, FRAMES, BANDS, 3 * CHANNELS), HEADS, axis
    if name == "axis_layer":
        shapes = [
            (CHANNELS,),
            (CHANNELS,),
            (3 * CHANNELS, CHANNELS),
            (3 * CHANNELS,),
            (CHANNELS, CHANNELS),
            (CHANNELS,),
        ]
        shapes += [(CHANNELS,), (CHANNELS,), (HIDDEN, CHANNELS), (HIDDEN,), (CHANNELS, HIDDEN), (CHANNELS,)]
        weights = AxisLayerWeights(*(0.1 * rand(*shape) for shape in shapes))
        return rand(clips, FRAMES, BANDS, CHANNELS), weights, HEADS, axis
    if operation == "decoder_taps":
        x = rand(clips, FRAMES, BANDS, CHANNELS)
        return x, rand(*x.shape), 0.05 * rand(3, CHANNELS, 3 * HEAD)
    z = rand(clips, FRAMES, BANDS, 3, HEAD)
    return z, rand(HEAD), rand(HEAD), 0.2 * rand(HEAD), rand(1), spectrum


def operation(name: str, implementation: str) -> Function:
    """The operation as ``implementation`` does it; takes what ``arguments`` gives."""
    stem = name.removesuffix("_frequency").removesuffix("_time")
    if implementation.startswith("triton"):
        import fastenh_kernels

        return getattr(fastenh_kernels, stem)
    function = getattr(reference, stem)
    if stem in ("axis_attention", "axis_layer"):
        function = _without_dropout(function)
    if implementation.startswith("compile"):
        return torch.compile(function, mode="max-autotune")
    return function


def _without_dropout(function: Function) -> Function:
    return lambda *arguments: function(*arguments, 0.0)


def model(implementation: str, device: torch.device) -> Function:
    """The core of the shipped ``dpt``: spectrum -> spectrum, ours on the kernels, the rivals' the textbook's."""
    core = checkpoint.load("dpt")[0].core.to(device).eval()
    dtype = dtype_of(implementation)
    if implementation.startswith(("triton", "ours")):
        folded = core.folded(dtype)
        forced = "triton" if implementation.startswith("triton") else "reference"

        def ours(spectrum: Tensor) -> Tensor:
            with backend.use_backend(forced), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return folded(spectrum)

        return ours
    rival = TextbookDPT(copy.deepcopy(core)).to(dtype)
    return torch.compile(rival, mode="max-autotune") if implementation.startswith("compile") else rival


def spectrum(clips: int, device: torch.device) -> Tensor:
    return arguments("complex_mask", clips, torch.float32, device)[1]


@contextmanager
def conditions(implementation: str, device: torch.device) -> Iterator[None]:
    """No gradients; TF32 where it is asked for; SDPA by the fastest of its backends; no fast path of ``nn``."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "tf32" in implementation
    torch.backends.mha.set_fastpath_enabled(False)  # it crashes under torch.compile, and pads
    try:
        with torch.inference_mode():
            if device.type == "cuda" and implementation == "eager_bf16_sdpa":
                with sdpa_kernel(fastest_sdpa(device)):
                    yield
            else:
                yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        torch.backends.mha.set_fastpath_enabled(fast_path)


_fastest: dict[torch.device, SDPBackend] = {}


def fastest_sdpa(device: torch.device) -> SDPBackend:
    """The SDPA backend that is fastest on 188 frames of 65 bands of 64 clips in bfloat16."""
    if device not in _fastest:
        from triton.testing import do_bench

        q = torch.randn(64 * BANDS, HEADS, FRAMES, CHANNELS // HEADS, device=device, dtype=torch.bfloat16)
        times = {}
        for candidate in _BACKENDS:
            try:
                with sdpa_kernel(candidate):
                    times[candidate] = do_bench(lambda: F.scaled_dot_product_attention(q, q, q))
            except RuntimeError:  # not to be had on this GPU
                continue
        _fastest[device] = min(times, key=times.get)
    return _fastest[device]


def fits(name: str, implementation: str, clips: int) -> bool:
    """Whether the rival can run so many clips: SDPA ends at 65,535 sequences of all heads."""
    if implementation.startswith("triton") or ("axis" not in name and name != "model_forward"):
        return True
    return clips * FRAMES <= _MOST_SEQUENCES
