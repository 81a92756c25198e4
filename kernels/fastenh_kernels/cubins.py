"""What the compiler makes of every kernel, without a GPU: python -m fastenh_kernels.cubins [--arch sm_90 ...]

Each operation runs on meta tensors with its launches written down instead of done; every distinct launch is compiled
for the asked architectures. The gate: no spilled registers, shared memory within the chip's limit, and a tensor-core
instruction in every 16-bit kernel that multiplies matrices. Exit code 1 where it is not met.
"""

from __future__ import annotations

import argparse
import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import fastenh_kernels
from fastenh_kernels.launch import Launch, recording

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
_TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
_TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA)\b")
_SPILL = re.compile(r"\b(LDL|STL)\b")


@dataclass(frozen=True)
class Cubin:
    name: str
    arch: int
    registers: int
    spills: int  # instructions that move registers to and from local memory
    shared: int  # bytes
    tensor_core: int  # instructions
    multiplies: bool  # the kernel multiplies matrices of a 16-bit type

    def faults(self) -> list[str]:
        found = []
        if self.spills:
            found.append(f"{self.spills} spill instructions")
        if self.shared > SHARED_MEMORY[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, the chip has {SHARED_MEMORY[self.arch]}")
        if self.multiplies and not self.tensor_core:
            found.append("no tensor-core instruction")
        return found


def shipped_launches(dtype: torch.dtype) -> Iterator[tuple[str, Launch]]:
    """A name and a launch for every kernel and configuration that the operations choose, on meta tensors."""
    empty = functools.partial(torch.empty, device="meta")
    spectrum = empty(4, 257, 188, dtype=torch.complex64)
    cases = {f"complex_mask {a}": (fastenh_kernels.complex_mask, empty(4, 257, 188, dtype=dtype), spectrum, a)
             for a in ("none", "sigmoid", "tanh")}  # fmt: skip
    if dtype == torch.float32:
        cases |= {f"complex_mask {a}, complex mask": (fastenh_kernels.complex_mask, spectrum, spectrum, a)
                  for a in ("none", "tanh")}  # fmt: skip
    for frames, bands in ((188, 65), (12, 33), (60, 129), (100, 257)):
        qkv = empty(4, frames, bands, 384, dtype=dtype)
        for axis in ("frequency", "time"):
            length = bands if axis == "frequency" else frames
            cases[f"axis_attention {length} of {axis}"] = (fastenh_kernels.axis_attention, qkv, 4, axis)
    vector = empty(64)
    z = empty(4, 188, 65, 3, 64, dtype=dtype)
    cases["mask_head"] = (fastenh_kernels.mask_head, z, vector, vector, vector, empty(1), spectrum)
    shapes = [(128,), (128,), (384, 128), (384,), (128, 128), (128,)]
    shapes += [(128,), (128,), (512, 128), (512,), (128, 512), (128,)]
    layer = [empty(shape, dtype=dtype if len(shape) == 2 else torch.float32) for shape in shapes]
    x = empty(4, 188, 65, 128, dtype=dtype)
    cases["axis_layer"] = (fastenh_kernels.axis_layer, x, layer, 4, "frequency")
    cases["decoder_taps"] = (fastenh_kernels.decoder_taps, x, empty(64, 128, 3, 3))
    cases["encoder_front"] = (fastenh_kernels.encoder_front, spectrum, empty(32, 1, 3, 3, dtype=dtype), empty(32))
    for name, (function, *arguments) in cases.items():
        with recording() as launches:
            function(*arguments)
        for launch in launches:
            yield f"{name}: {launch.kernel.fn.__name__.removesuffix('_kernel')}" if len(launches) > 1 else name, launch


def compile_launch(name: str, launch: Launch, arch: int, dtype: torch.dtype) -> Cubin:
    """Compile as the launcher would: the same types, constants and divisibility by 16."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (_specialised(parameter, value) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if _specialised(parameter, value) and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, sass = _disassemble(compiled.asm["cubin"])
    return Cubin(
        name=f"{name}, {str(dtype).removeprefix('torch.')}",
        arch=arch,
        registers=registers,
        spills=len(_SPILL.findall(sass)),
        shared=compiled.metadata.shared,
        tensor_core=len(_TENSOR_CORE.findall(sass)),
        multiplies=dtype != torch.float32 and "tt.dot" in compiled.asm["ttir"],
    )


def _specialised(parameter: Any, value: Any) -> bool:
    return isinstance(value, int) and not parameter.do_not_specialize


def _disassemble(cubin: bytes) -> tuple[int, str]:
    """(registers, SASS), by the tools that come with Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        usage, sass = (
            subprocess.run([tools / tool, option, path], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    return int(re.search(r"REG:(\d+)", usage)[1]), sass


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastenh_kernels.cubins", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", choices=[f"sm_{arch}" for arch in SHARED_MEMORY])
    chosen = parser.parse_args().arch or [f"sm_{arch}" for arch in SHARED_MEMORY]
    faulty = 0
    print(f"triton {triton.__version__}\n{'kernel':52} {'arch':6} {'reg':>4} {'spills':>6} {'shared':>7} {'mma':>4}")
    for arch in (int(name.removeprefix("sm_")) for name in chosen):
        for dtype in _TYPES:
            for name, launch in shipped_launches(dtype):
                cubin = compile_launch(name, launch, arch, dtype)
                figures = f"{cubin.registers:4} {cubin.spills:6} {cubin.shared:7} {cubin.tensor_core:4}"
                print(f"{cubin.name:52} sm_{arch:<3} {figures} {'; '.join(cubin.faults())}", flush=True)
                faulty += bool(cubin.faults())
    print(f"{faulty} kernels fail the gate" if faulty else "every kernel passes the gate")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
