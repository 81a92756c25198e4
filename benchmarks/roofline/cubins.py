"""What the compiler makes of a launch, without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from fastenh_kernels.shared.launch import SHARED_MEMORY, Launch

# Spill instructions that a kernel may have. Configurations are made for sm_80 and sm_90; the other chips take those of
# sm_80, and a few instructions more are no reason to take the reference.
ALLOWED_SPILLS = {80: 0, 86: 24, 89: 24, 90: 0, 100: 24, 120: 24}
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
_TYPES |= {torch.int32: "i32", torch.int64: "i64", torch.uint8: "u8"}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA)\b")
_SPILL = re.compile(r"\b(LDL|STL)\b")


@dataclass(frozen=True)
class Cubin:
    arch: int
    registers: int
    spills: int  # instructions that move registers to and from local memory
    shared: int  # bytes
    tensor_core: int  # instructions
    multiplies: bool  # the kernel multiplies matrices of a 16-bit type
    sass: str

    def faults(self) -> list[str]:
        found = []
        if self.spills > ALLOWED_SPILLS[self.arch]:
            found.append(f"{self.spills} spill instructions")
        if self.shared > SHARED_MEMORY[self.arch]:
            found.append(f"{self.shared} bytes of shared memory, the chip has {SHARED_MEMORY[self.arch]}")
        if self.multiplies and not self.tensor_core:
            found.append("no tensor-core instruction")
        return found


def compile_launch(launch: Launch, arch: int) -> Cubin:
    """Compile as the launcher would: the same types, constants and divisibility by 16."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], list[list[Any]]] = {}
    types = set()
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or (_specialised(parameter, value) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, TensorDescriptor):
            signature[parameter.name] = f"tensordesc<{_TYPES[value.base.dtype]}{list(value.block_shape)}>"
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + _TYPES[value.dtype]
            types.add(value.dtype)
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if abs(value) < 2**31 else "i64"
            if _specialised(parameter, value) and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, sass = _disassemble(compiled.asm["cubin"])
    return Cubin(
        arch=arch,
        registers=registers,
        spills=len(_SPILL.findall(sass)),
        shared=compiled.metadata.shared,
        tensor_core=len(_TENSOR_CORE.findall(sass)),
        multiplies=bool(types & {torch.float16, torch.bfloat16}) and "tt.dot" in compiled.asm["ttir"],
        sass=sass,
    )


def _specialised(parameter: Any, value: Any) -> bool:
    return isinstance(value, int) and not parameter.do_not_specialize


def _disassemble(cubin: bytes) -> tuple[int, str]:
    """(registers, SASS), by the tools that come with Triton."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        registers, sass = (
            subprocess.run([tools / tool, option, path], capture_output=True, text=True, check=True).stdout
            for tool, option in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    return int(re.search(r"REG:(\d+)", registers)[1]), sass


def code_of(launch: Launch) -> str:
    """Equal for launches that share their machine code: the layers of an axis, for one."""
    values = [_specialisation(parameter, launch.arguments[parameter.name]) for parameter in launch.kernel.params]
    return f"{launch.kernel.fn.__name__} {launch.num_warps} {launch.num_stages} {values}"


def _specialisation(parameter: Any, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    if isinstance(value, float) and not parameter.is_constexpr:
        return "float"
    if parameter.is_constexpr or not isinstance(value, int):
        return str(value)
    return f"{_specialised(parameter, value)} {value == 1} {value % 16 == 0} {abs(value) < 2**31}"
