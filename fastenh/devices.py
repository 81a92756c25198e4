"""Devices, and the number formats that they compute in."""

from __future__ import annotations

import torch

from fastenh.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DeviceError(UsageError, ValueError):
    """A device or a number format that is not available here."""


def pick_device(device: str | torch.device) -> torch.device:
    """Pick a device: "auto" is CUDA, else MPS (an Apple GPU, on which nothing has been tried yet), else the CPU.

    Raises ``DeviceError`` for a device that is not here.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        picked = torch.device(device)
        torch.empty(0, device=picked)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    return picked


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Pick a dtype to compute in: "auto" is bfloat16 where the device has instructions for it, float32 elsewhere.

    Raises ``DeviceError`` for another name.
    """
    if dtype == "auto":
        return torch.bfloat16 if _has_bfloat16(device) else torch.float32
    if dtype not in DTYPES:
        raise DeviceError(f"dtype must be auto, {', '.join(DTYPES)}, not {dtype!r}")
    return DTYPES[dtype]


def _has_bfloat16(device: torch.device) -> bool:
    """Emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu" or torch.backends.cpu.get_cpu_capability() != "AVX512":  # ATEN_CPU_CAPABILITY may lower it
        return False
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
