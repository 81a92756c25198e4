"""How long each pipe of an SM is busy with a compiled kernel: counted from its machine code, estimated, never measured.

Every instruction counts as often as it runs (the loops' trip counts come with the launch) and for as long as it
occupies its pipe. Three figures, from the most hopeful to the least:

- ``bound``: the busiest pipe alone. No schedule is faster.
- ``estimate``: tensor cores, the busiest other arithmetic pipe and load/store, one after the other; L2 and DRAM hidden
  behind them unless they take longer.
- ``serial``: nothing overlaps. Every pipe, L2 and DRAM one after the other.

Waits are in none of them. Both branches of an ``if`` count. Programs are dealt out to the SMs in turn, and so are the
tiles that programs loop over. The figures are those of the SM that gets the most: a launch that does not fill all SMs takes
as long as one that does, and 141 tiles take as long as 264.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastenh_kernels.shared.launch import Launch

# An H100 or H200 SXM (sm_90). Rates an SM and cycle, from NVIDIA's tuning guide and published microbenchmarks
# (Luo et al. 2024, "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture").
SMS, HERTZ = 132, 1.755e9
_MMA_FLOP = 2560  # mma.sync, 16 bit, dense; TF32 takes twice as long
_WGMMA_FLOP = 790e12 / SMS / HERTZ  # as measured elsewhere; 4096 by the data sheet
_SHARED_BYTES, _ISSUE, _FP32, _INTEGER, _SPECIAL, _SHUFFLE = 128, 4, 128, 64, 16, 32  # bytes; warp instructions; lanes
_L2_BYTES_S = 5.5e12
DRAM_BYTES_S = {"H200": 4.3e12, "H100": 3.0e12}  # copies, as measured elsewhere

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)\s*(.*?);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_WAIT = 4  # instructions: a loop shorter than this around a barrier's test is a wait
_FP32_OPCODES = {"FFMA", "FADD", "FMUL", "HFMA2", "HADD2", "HMUL2"}
_SPECIAL_OPCODES = {"MUFU", "F2F", "I2F", "F2I"}
_INTEGER_OPCODES = {
    "BMSK", "F2FP", "FCHK", "FLO", "FMNMX", "FSEL", "FSETP", "HMNMX2", "HSETP2", "I2FP", "IABS", "IADD3", "IMNMX",
    "ISETP", "LEA", "LOP3", "MOV", "P2R", "PLOP3", "PRMT", "R2P", "SEL", "SGXT", "SHF", "VIADD", "VIMNMX",
}  # fmt: skip
_MEMORY_OPCODES = {
    "ATOMG", "ATOMS", "LD", "LDG", "LDGSTS", "LDL", "LDS", "LDSM", "RED", "ST", "STG", "STL", "STS", "STSM",
}  # fmt: skip
ARITHMETIC = ("fp32", "integer", "special", "issue")
Loop = tuple[int, int, int]  # as ``_parse`` gives it
PIPES = ("tensor", "operands", *ARITHMETIC, "shuffle", "load_store", "l2", "dram")


class LoopsDifferError(RuntimeError):
    """The machine code has loops that the launch does not know, or too few operations."""


@dataclass(frozen=True)
class Usage:
    """What a launch costs: microseconds of each pipe of ``PIPES``, with the DRAM of an H200; and its operations."""

    microseconds: dict[str, float]
    dram_h100: float  # microseconds
    tensor_flop: float
    dram_bytes: float

    @property
    def bound(self) -> float:
        return max(self.microseconds.values())

    @property
    def busiest(self) -> str:
        return max(self.microseconds, key=self.microseconds.get)

    @property
    def estimate(self) -> float:
        us = self.microseconds
        return max(self.bound, us["tensor"] + max(us[pipe] for pipe in ARITHMETIC) + us["load_store"])

    @property
    def serial(self) -> float:
        """An instruction is issued while its pipe takes it, and operands are read while they are multiplied: of each
        of these pairs the longer one counts."""
        us = self.microseconds
        arithmetic = max(us["issue"], us["fp32"] + us["integer"] + us["special"] + us["shuffle"])
        return max(us["tensor"], us["operands"]) + arithmetic + us["load_store"] + us["l2"] + us["dram"]


def usage(sass: str, launch: Launch, share: float) -> Usage:
    """Pipes of a launch, times ``share`` (a part of the batch). Raises ``LoopsDifferError``."""
    cycles, flop = _counted(sass, launch)
    most = math.ceil(launch.programs / SMS)  # programs of the busiest SM
    microseconds = {pipe: count * most * share / HERTZ * 1e6 for pipe, count in cycles.items()}
    dram = launch.cost.dram_bytes * share
    microseconds["l2"] = launch.cost.l2_bytes * share / _L2_BYTES_S * 1e6
    microseconds["dram"] = dram / DRAM_BYTES_S["H200"] * 1e6
    return Usage(microseconds, dram / DRAM_BYTES_S["H100"] * 1e6, flop * launch.programs * share, dram)


def _counted(sass: str, launch: Launch) -> tuple[dict[str, float], float]:
    """Cycles of each pipe of a program, the mean of those of the busiest SM; tensor operations, the mean of all.

    A loop of constant length may be gone, unrolled: of the ways to match the others, the one with the launch's
    operations is taken, that is the least that are not fewer.
    """
    instructions, loops = _parse(sass)

    def program(trips: Sequence[float]) -> tuple[dict[str, float], float]:
        cycles, flop = dict.fromkeys(PIPES, 0.0), 0.0
        for runs, opcode, operands in _weighted(instructions, loops, trips):
            warps = runs * launch.num_warps
            cycles["issue"] += warps / _ISSUE
            flop += _count(cycles, warps, opcode, operands)
        return cycles, flop

    matches = ((program(trips)[1], trips) for trips in itertools.combinations(launch.cost.loops, len(loops)))
    enough = [match for match in matches if match[0] * launch.programs >= 0.999 * launch.cost.flop]
    if not enough:
        sizes = [last - first + 1 for first, last, _ in loops]
        raise LoopsDifferError(f"loops of {sizes} instructions do not match trip counts {launch.cost.loops}")
    flop, trips = min(enough)
    return program(_of_busiest(trips, launch))[0], flop


def _of_busiest(trips: Sequence[float], launch: Launch) -> Sequence[float]:
    """``trips`` for the programs of the first SM: what the outermost loop runs over is dealt out whole, in turn."""
    if not trips or trips[0] != launch.cost.loops[0]:
        return trips
    dealt, programs = round(trips[0] * launch.programs), launch.programs
    own = range(0, programs, SMS)
    return sum(math.ceil((dealt - program) / programs) for program in own) / len(own), *trips[1:]


def _count(cycles: dict[str, float], warps: float, opcode: str, operands: str) -> float:
    """Add the pipe that an instruction of so many warps occupies; returns its tensor operations."""
    base = opcode.split(".")[0]
    if base == "HGMMA":
        return _count_wgmma(cycles, warps, opcode, operands)
    if base == "HMMA":
        inner = int(opcode.split(".")[1][3:])  # HMMA.16816: 16 x 8 x 16
        flop = warps * 2 * 16 * 8 * inner
        cycles["tensor"] += flop / _MMA_FLOP * _tf32(opcode)
        return flop
    if base in _SPECIAL_OPCODES:
        cycles["special"] += warps * 32 / _SPECIAL
    elif base == "SHFL":
        cycles["shuffle"] += warps * 32 / _SHUFFLE
    elif base in _MEMORY_OPCODES:
        cycles["load_store"] += warps * max(1.0, 32 * _lane_bytes(opcode) / _SHARED_BYTES)
    elif base in _FP32_OPCODES:
        cycles["fp32"] += warps * 32 / _FP32
    elif base.startswith("IMAD"):
        cycles["fp32"] += warps * 32 / (_FP32 / 2)  # half rate, on the pipe of FFMA
    elif base in _INTEGER_OPCODES:
        cycles["integer"] += warps * 32 / _INTEGER
    return 0.0


def _count_wgmma(cycles: dict[str, float], warps: float, opcode: str, operands: str) -> float:
    """A warp's quarter of a warpgroup's product m x n x k; operands in shared memory are read at its bandwidth."""
    m, n, k = map(int, re.search(r"(\d+)x(\d+)x(\d+)", opcode).groups())
    flop = warps * 2 * m * n * k / 4
    cycles["tensor"] += flop / _WGMMA_FLOP * _tf32(opcode)
    first_in_registers = re.match(r"R\d+, R\d+, gdesc", operands)
    values = n * k + (0 if first_in_registers else m * k)
    cycles["operands"] += warps / 4 * values * 2 * _tf32(opcode) / _SHARED_BYTES
    return flop


def _tf32(opcode: str) -> int:
    return 2 if "TF32" in opcode else 1


def _lane_bytes(opcode: str) -> int:
    parts = opcode.split(".")
    if parts[0] in ("LDSM", "STSM"):
        return 4 * int(parts[-1]) if parts[-1].isdigit() else 4
    widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
    return next((count for width, count in widths.items() if width in parts), 4)


def _parse(sass: str) -> tuple[list[tuple[str, str]], list[Loop]]:
    """Instructions (opcode, operands) and loops, outermost first in the order of the code: the first instruction, the
    last one, and the first behind the way out at the top, before which all run once more than the loop does."""
    instructions: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.match(line):
            instructions.append((found[1], found[2]))
    loops = sorted(_loops(instructions, labels), key=lambda loop: (loop[0], -loop[1]))
    return instructions, [(first, last, _tested(instructions, labels, first, last)) for first, last in loops]


def _tested(instructions: Sequence[tuple[str, str]], labels: dict[str, int], first: int, last: int) -> int:
    """Behind the branch that leaves a loop before its end; ``first`` where there is none, as in most."""
    for index in range(first, last):
        opcode, operands = instructions[index]
        target = _TARGET.search(operands)
        if opcode == "BRA" and target and labels.get(target[1]) == last + 1:  # further on are waits at barriers
            return index + 1
    return first


def _weighted(
    instructions: Sequence[tuple[str, str]], loops: Sequence[Loop], trips: Sequence[float]
) -> Iterator[tuple[float, str, str]]:
    """(how often it runs, opcode, operands) of every instruction."""
    runs = [1.0] * len(instructions)
    for (first, last, tested), trip in zip(loops, trips, strict=True):
        for index in range(first, last + 1):
            runs[index] *= trip + 1 if index < tested else trip
    return ((count, *instruction) for count, instruction in zip(runs, instructions, strict=True))


def _loops(instructions: Sequence[tuple[str, str]], labels: dict[str, int]) -> Iterator[tuple[int, int]]:
    """Backward branches, but for waits at a barrier: short loops around its test, and the way back from them."""
    wait = -1
    for last, (opcode, operands) in enumerate(instructions):
        target = _TARGET.search(operands)
        if opcode != "BRA" or not target:
            continue
        first = labels.get(target[1], last)
        if first >= last:
            continue
        body = [op for op, _ in instructions[first:last]]
        if len(body) < _WAIT and any(op.startswith("SYNCS") for op in body):
            wait = last
        elif last != wait + 1:
            yield first, last
