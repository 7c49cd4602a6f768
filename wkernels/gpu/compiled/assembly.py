"""What a compiled kernel says about itself: widths of its loads and stores, registers, spills."""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton

from wkernels.gpu.configs.families import FAMILIES, family_of, resident_threads

TYPE_BYTES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "f16": 2, "bf16": 2, "i16": 2, "i8": 1}

# loads and stores without a mask: the pointers (on AMD their base and offsets), then the type;
# masks are further operands
_SHAPE = r"(?P<shape>[\dx]+)x"
# Triton 3.6 does not print the pointer's type
_BUFFER = (
    r"(?:\{[^}]*\} )?: (?:!tt\.ptr<\w+> -> )?tensor<(?P<buffer_shape>[\dx]+)x(?P<buffer_type>\w+)"
)
_LOADED = re.compile(
    rf"= tt\.load %\w+ (?:\{{[^}}]*\}} )?: tensor<{_SHAPE}!tt\.ptr<(?P<type>\w+)>"
    rf"|= amdg\w*\.buffer_load %\w+\[%\w+\] {_BUFFER}"
)
_STORED = re.compile(
    rf"tt\.store %\w+, %\w+ (?:\{{[^}}]*\}} )?: tensor<{_SHAPE}!tt\.ptr<(?P<type>\w+)>"
    rf"|amdg\w*\.buffer_store %\w+, %\w+\[%\w+\] {_BUFFER}"
)
_CUDA_LOAD = re.compile(
    r"ld\.global\S*\.(?:v4\.b32|v2\.b64)|cp\.async\.cg\.\S+ \[[^,]+, \[[^,]+, 0x10"
)
# certainly a row's elements: scalars of the tables and weights are 4 or 8 bytes
_CUDA_NARROW = re.compile(
    r"^\s*ld\.global\S*\.(?:(?:v\d\.)?b(?:8|16)|v2\.b32)\s|cp\.async\.ca", re.MULTILINE
)
_CUDA_STORE = re.compile(r"st\.global\S*\.(?:v4\.b32|v2\.b64)")
_CUDA_FMA = re.compile(r"fma\.rn\.f(?:32|64)")
_HIP_LOAD = re.compile(r"(?:global|buffer)_load_dwordx4")
_HIP_STORE = re.compile(r"(?:global|buffer)_store_dwordx4")
_HIP_FMA = re.compile(r"v_(?:pk_)?fma(?:c)?_f(?:32|64)")
_MATRIX = re.compile(r"mma(?:_async)?\.sync\.aligned\.(m\w+)|(tcgen05\.mma)|v_(mfma_\w+)")


@dataclass(frozen=True)
class Assembly:
    """One compiled kernel; counts are of instructions in its text, not of executions."""

    kernel: str
    wide_loads: int  # 16 bytes
    expected_loads: int  # 16-byte loads that its unmasked tensor loads need
    narrow_loads: int  # unmasked loads of elements by less than 16 bytes (NVIDIA)
    wide_stores: int
    expected_stores: int
    registers: int
    spilled: int  # registers spilled: instructions on local memory (NVIDIA), vector registers (AMD)
    shared: int  # bytes of a program
    occupancy: float  # of a multiprocessor's places for threads, what these two leave
    fma: int
    matrix: str  # the matrix instructions it uses


def read(compiled) -> Assembly:
    """The facts of a kernel that Triton has compiled."""
    cuda = compiled.metadata.target.backend == "cuda"
    text = compiled.asm["ptx" if cuda else "amdgcn"]
    target, num_warps = compiled.metadata.target, compiled.metadata.num_warps
    threads = num_warps * target.warp_size
    family = FAMILIES[family_of(target.backend, target.arch)]
    registers, spilled = _cuda_usage(compiled) if cuda else _hip_usage(text)
    matrix = re.findall(
        r"mma(?:\.sync|_async\.sync)\.aligned\.(m\w+)|(tcgen05\.mma)|v_(mfma_\w+)", text
    )
    return Assembly(
        kernel=compiled.metadata.name,
        wide_loads=len((_CUDA_LOAD if cuda else _HIP_LOAD).findall(text)),
        expected_loads=_vectors(_LOADED, compiled.asm["ttgir"], threads),
        narrow_loads=len(_CUDA_NARROW.findall(text)) if cuda else 0,
        wide_stores=len((_CUDA_STORE if cuda else _HIP_STORE).findall(text)),
        expected_stores=_vectors(_STORED, compiled.asm["ttgir"], threads),
        registers=registers,
        spilled=spilled,
        shared=compiled.metadata.shared,
        occupancy=round(
            resident_threads(
                family, registers=registers, num_warps=num_warps, shared=compiled.metadata.shared
            )
            / family.threads,
            2,
        ),
        fma=len((_CUDA_FMA if cuda else _HIP_FMA).findall(text)),
        matrix=" ".join(sorted({"".join(found) for found in matrix})),
    )


def _vectors(pattern: re.Pattern, ttgir: str, threads: int) -> int:
    """16-byte accesses a thread needs for the tensors that match."""
    total = 0
    for found in pattern.finditer(ttgir):
        elements = math.prod(map(int, (found["shape"] or found["buffer_shape"]).split("x")))
        width = TYPE_BYTES[found["type"] or found["buffer_type"]]
        total += elements * width // (16 * threads)
    return total


def _cuda_usage(compiled) -> tuple[int, int]:
    """Registers of a thread, and how many instructions touch its local memory."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
        if stack == local == "0":
            return int(registers), 0
        # a stack frame may also be reserved for calls, so look whether it is used
        return int(registers), len(re.findall(r"\b(?:STL|LDL)\b", _tool("nvdisasm", file.name)))


def _tool(name: str, *arguments: str) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([path, *arguments], check=True, capture_output=True, text=True).stdout


def _hip_usage(text: str) -> tuple[int, int]:
    def value(name: str) -> int:
        return int(re.search(rf"\.{name}:\s*(\d+)", text)[1])

    # spilled scalar registers go to lanes of vector registers, not to memory
    return value("vgpr_count"), value("vgpr_spill_count")
