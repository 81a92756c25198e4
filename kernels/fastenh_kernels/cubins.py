"""What the compiler makes of every kernel, without a GPU.

usage: python -m fastenh_kernels.cubins [--arch sm_90] [--dtype bfloat16]
       python -m fastenh_kernels.cubins --pipes [--json FILE]

Each operation runs on meta tensors with its launches written down instead of done; every distinct launch is compiled
for the asked architectures. The gate: no spilled registers, shared memory within the chip's limit, and a tensor-core
instruction in every 16-bit kernel that multiplies matrices. Exit code 1 where it is not met.

With --pipes: how busy the forward pass and a training step of dpt keep each pipe of an SM, see ``pipes.py``.
Estimated, not measured.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from fastenh_kernels.launch import Launch
from fastenh_kernels.pipes import DRAM_BYTES_S, PIPES, Usage, usage
from fastenh_kernels.shipped import STEP_MEGABYTES, forward_launches, shipped_launches, training_launches

SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes a block may have
_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TENSOR_CORE = re.compile(r"\b(HGMMA|HMMA)\b")
_SPILL = re.compile(r"\b(LDL|STL)\b")
CLIPS = 64  # of the batch that the pipes are counted for
_CLIP_SECONDS = 3


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
        if self.spills:
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


def gate(arches: Sequence[int], dtypes: Sequence[str]) -> int:
    """Print a line for every kernel; returns how many fail."""
    faulty = 0
    print(f"triton {triton.__version__}\n{'kernel':52} {'arch':6} {'reg':>4} {'spills':>6} {'shared':>7} {'mma':>4}")
    for arch in arches:
        for dtype in dtypes:
            done = set()
            for name, launch in shipped_launches(_DTYPES[dtype], arch):
                if _code(launch) in done:
                    continue
                done.add(_code(launch))
                cubin = compile_launch(launch, arch)
                figures = f"{cubin.registers:4} {cubin.spills:6} {cubin.shared:7} {cubin.tensor_core:4}"
                label = f"{name}, {dtype}"
                print(f"{label:52} sm_{arch:<3} {figures} {'; '.join(cubin.faults())}", flush=True)
                faulty += bool(cubin.faults())
    print(f"{faulty} kernels fail the gate" if faulty else "every kernel passes the gate")
    return faulty


def pipe_usage(launches: Iterable[tuple[str, Launch]]) -> list[tuple[str, Launch, Usage]]:
    """Name, launch and pipes of every launch, for one of ``CLIPS`` clips of 3 s, on sm_90."""
    cubins: dict[str, Cubin] = {}
    steps = []
    for name, launch in launches:
        key = _code(launch)
        if key not in cubins:
            cubins[key] = compile_launch(launch, 90)
        steps.append((name, launch, usage(cubins[key].sass, launch, 1 / CLIPS)))
    return steps


def _code(launch: Launch) -> str:
    """Equal for launches that share their machine code: the layers of an axis, for one."""
    values = [_specialisation(parameter, launch.arguments[parameter.name]) for parameter in launch.kernel.params]
    return f"{launch.kernel.fn.__name__} {launch.num_warps} {launch.num_stages} {values}"


def _specialisation(parameter: Any, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return str(value.dtype)
    if parameter.is_constexpr or not isinstance(value, int):
        return str(value)
    return f"{_specialised(parameter, value)} {value == 1} {value % 16 == 0} {abs(value) < 2**31}"


def pipes(path: str | None) -> None:
    """Print the tables of the forward pass and of the training step; write them to ``path``, too."""
    print(f"triton {triton.__version__}; microseconds for a 3 s clip in a large batch, bfloat16, sm_90, estimated")
    forward = _table(pipe_usage(forward_launches(torch.bfloat16, CLIPS)))
    training = _table(pipe_usage(training_launches(torch.bfloat16, CLIPS)))
    training += [_of_pytorch(part, megabytes) for part, megabytes in STEP_MEGABYTES.items()]
    if path:
        summary = {"arch": "sm_90", "triton": triton.__version__, "measured": False, "clip_seconds": _CLIP_SECONDS}
        summary |= {"forward": _sum(forward), "training_step": _sum(training)}
        Path(path).write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for name, rows in (("forward", forward), ("training step", training)):
        total = _sum(rows)
        print(
            f"{name}: bound {total['bound_us']:.1f} us, estimate {total['estimated_us']:.1f} us, "
            f"{total['x_realtime']:,.0f} x real time (sm_90, estimated)"
        )


def _table(steps: Sequence[tuple[str, Launch, Usage]]) -> list[dict[str, Any]]:
    """Print a line for each launch; returns the same."""
    columns = "".join(f" {pipe[:8]:>8}" for pipe in PIPES)
    print(f"{'launch':52} {'GFLOP':>6} {'padded':>6}{columns} {'H100dram':>8} {'bound':>8} {'estimate':>8}")
    rows = []
    for name, launch, use in steps:
        asked = launch.cost.flop / CLIPS
        times = (*(use.microseconds[pipe] for pipe in PIPES), use.dram_h100, use.bound, use.estimate)
        figures = f"{asked / 1e9:6.2f} {use.tensor_flop / asked if asked else 1:6.2f}"
        print(f"{name:52} {figures}{''.join(f' {us:8.2f}' for us in times)}", flush=True)
        row = {"name": name, "kernel": launch.kernel.fn.__name__, "flop": asked, "tensor_flop": use.tensor_flop}
        row |= {"dram_bytes": use.dram_bytes, "pipes_us": use.microseconds, "bound_us": use.bound}
        rows.append(row | {"busiest": use.busiest, "estimated_us": use.estimate})
    return rows


def _of_pytorch(part: str, megabytes: float) -> dict[str, Any]:
    """A line for PyTorch's own operations in a part of the step: what they move, at the rate of DRAM."""
    us = 1e12 * megabytes / DRAM_BYTES_S["H200"]
    print(f"{'PyTorch, ' + part:52} {megabytes:6.2f} MB{us:97.2f}{us:18.2f}{us:9.2f}")
    row = {"name": f"PyTorch, {part}", "kernel": "", "flop": 0.0, "tensor_flop": 0.0, "dram_bytes": 1e6 * megabytes}
    return row | {"pipes_us": {"dram": us}, "bound_us": us, "busiest": "dram", "estimated_us": us}


def _sum(rows: list[dict[str, Any]]) -> dict[str, Any]:
    bound, estimate = (sum(row[key] for row in rows) for key in ("bound_us", "estimated_us"))
    realtime = _CLIP_SECONDS * 1e6 / estimate
    return {"bound_us": bound, "estimated_us": estimate, "x_realtime": realtime, "launches": rows}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastenh_kernels.cubins", description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", action="append", choices=list(_DTYPES))
    parser.add_argument("--arch", action="append", choices=[f"sm_{arch}" for arch in SHARED_MEMORY])
    parser.add_argument(
        "--pipes", action="store_true", help="count the pipes of the forward pass and of a training step (sm_90)"
    )
    parser.add_argument("--json", metavar="FILE", help="with --pipes: write the figures to FILE, too")
    options = parser.parse_args()
    if options.pipes:
        if options.arch and options.arch != ["sm_90"]:
            parser.error("--pipes: the rates of the pipes are known for sm_90 alone")
        pipes(options.json)
        return 0
    if options.json:
        parser.error("--json: goes with --pipes")
    arches = [int(name.removeprefix("sm_")) for name in options.arch or [f"sm_{arch}" for arch in SHARED_MEMORY]]
    return 1 if gate(arches, options.dtype or list(_DTYPES)) else 0


if __name__ == "__main__":
    sys.exit(main())
