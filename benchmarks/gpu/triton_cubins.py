"""Compiles every configuration of the Triton table to a cubin, without a GPU, and reads what the cubin needs.

    python -m benchmarks.gpu.triton_cubins [--architecture 80 90 100] [--out FILE.md]

Triton is given a driver that names an architecture and launches nothing; the kernels are then compiled exactly as a
call would. Per configuration: registers, stack, shared memory, and the tensor-core and asynchronous-copy instructions
in the machine code (by the cuobjdump and nvdisasm of Triton's own wheel). Exit code 1: one is not as it should be.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget

from benchmarks.gpu.cubins import count_instructions, tool
from ssconv.backend.triton import launch as triton_backend
from ssconv.backend.triton import table as triton_table
from ssconv.backend.triton.table import Config, Key
from ssconv.parser import Parser
from ssconv.spec import KERNEL_SETS, Epilogue, Geometry

# Bytes a program may have. sm_80's table also serves 8.6, 8.9 and 12.0, which have 99 KiB.
SHARED = {80: 101376, 90: 232448, 100: 232448}
# One of these must be there. Exact float32 has no tensor cores.
TENSOR_CORES = {80: ("HMMA",), 90: ("HGMMA",), 100: ("UTCHMMA", "UTCQMMA", "UTCMMA")}
COPIES = ("LDGSTS", "UTMALDG")
SETS = {1: "dense", 2: "split_depth", 4: "acs4"}
DTYPES = {"16bit": torch.bfloat16, "tf32": torch.float32, "ieee": torch.float32}


class Driver:
    """Answers what Triton asks of a driver before it compiles."""

    def __init__(self, architecture: int) -> None:
        self.target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(architecture: int, precision: str = "tf32") -> Iterator[list[Any]]:
    """Makes calls of the backend with CPU tensors compile for that architecture and launch nothing; gives a list of the
    compiled kernels."""
    compiled: list[Any] = []

    def run(kernel: Any, grid: Any, arguments: Any, **options: Any) -> None:
        compiled.append(kernel.warmup(**arguments, grid=grid, **options))

    before = triton_backend._run, triton_backend.architecture, torch.backends.cudnn.allow_tf32
    triton_backend._run, triton_backend.architecture = run, lambda device: architecture
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    triton.runtime.driver.set_active(Driver(architecture))
    try:
        yield compiled
    finally:
        triton_backend._run, triton_backend.architecture, torch.backends.cudnn.allow_tf32 = before


def call(key: Key, full: bool = False) -> None:
    """Makes a call of that class. full: with every part of the epilogue, and scales of the input."""
    dtype, branches, c = DTYPES[key.arithmetic], KERNEL_SETS[SETS[key.branches]], key.channels
    # Descriptors read stride 1 only; where the table has others beside them, those are for the rest.
    apart = key.architecture >= 90 and not key.describable and key.arithmetic != "ieee"
    geometry = Geometry(branches, stride=(2, 2, 2) if apart else (1, 1, 1))
    channels = c * len(branches)
    x = torch.zeros(2, channels, 16, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    size = geometry.output_size(x.shape[2:])
    y = torch.zeros(2, channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
    weights = [torch.zeros(c, c, *k, dtype=dtype) for k in branches]
    bias = torch.zeros(channels, dtype=dtype)
    scale, noise = torch.zeros(2, channels, dtype=dtype), torch.zeros(2, 1, *size, dtype=dtype)
    if key.kernel == "wgrad":
        triton_backend.weight_grad(y, x, scale if full else None, geometry)
    elif full:
        settings = Epilogue(len(branches), 0.2, 1.4, 256.0)
        triton_backend.convolve(x, weights, bias, scale, scale, noise, geometry, settings, True)
    else:
        triton_backend.convolve(x, weights, bias, None, None, None, geometry, Epilogue(len(branches), 0.2), False)


@dataclass(frozen=True)
class Cubin:
    """The needs of a compiled kernel. stack: bytes of local memory per thread. instructions: how often by name."""

    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]

    @property
    def tensor_cores(self) -> str:
        return ", ".join(sorted(n for n in self.instructions if "MMA" in n)) or "none"

    @property
    def copies(self) -> str:
        return ", ".join(n for n in COPIES if n in self.instructions) or "none"


def inspect(kernel: Any) -> Cubin:
    """Reads the cubin of a compiled kernel."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run(
            [tool("cuobjdump"), "--dump-resource-usage", path], capture_output=True, text=True, check=True
        ).stdout
        code = subprocess.run([tool("nvdisasm"), "-c", path], capture_output=True, text=True, check=True).stdout
    numbers = {n: int(v) for n, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    counts: dict[str, int] = {}
    for whole, count in count_instructions(code.splitlines()).items():
        name = whole.split(".")[0]
        if "MMA" in name or name in COPIES:
            counts[name] = counts.get(name, 0) + count
    return Cubin(numbers["REG"], max(numbers["STACK"], numbers["LOCAL"]), kernel.metadata.shared, counts)


def faults(key: Key, config: Config, cubin: Cubin) -> list[str]:
    """Lists a kernel's faults: spills, too much memory, missing instructions."""
    found = []
    if cubin.stack:
        found.append(f"spills: {cubin.stack} bytes of stack")
    if cubin.shared > SHARED[key.architecture]:
        found.append(f"{cubin.shared} bytes of shared memory; the card has {SHARED[key.architecture]}")
    if key.arithmetic != "ieee" and not set(TENSOR_CORES[key.architecture]) & set(cubin.instructions):
        found.append(f"none of {', '.join(TENSOR_CORES[key.architecture])}: {cubin.tensor_cores}")
    if config.descriptors and "UTMALDG" not in cubin.instructions:
        found.append("descriptors, but no UTMALDG")
    return found


def row(key: Key, config: Config, cubin: Cubin) -> str:
    loads = "descriptors" if config.descriptors else "pointers"
    shape = f"{config.block_m} x {config.block_n} x {config.block_k}"
    return (
        f"| sm_{key.architecture} | {key.kernel} | {key.arithmetic} | {key.branches} | {key.channels} | {loads} "
        f"| {shape} | {config.warps} | {config.stages} | {cubin.registers} | {cubin.stack} | {cubin.shared / 1024:.1f} "
        f"| {cubin.tensor_cores} | {cubin.copies} |"
    )


HEAD = (
    "| architecture | kernel | arithmetic | branches | channels | loads | tile M x N x K | warps "
    "| stages | registers | stack, B | shared, KiB | tensor cores | copies |\n" + "|---" * 14 + "|"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.gpu.triton_cubins", description=__doc__)
    parser.add_argument("--architecture", type=int, nargs="+", choices=sorted(SHARED), default=sorted(SHARED))
    parser.add_argument("--full", action="store_true", help="with every part of the epilogue")
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    os.environ.pop("TRITON_INTERPRET", None)
    if triton_backend.INTERPRETED:
        parser.error("TRITON_INTERPRET is set: the interpreter compiles nothing")
    table = triton_table.TABLE.read(triton_table.COMMITTED)
    chosen = {k: c for k, c in table.items() if k.architecture in args.architecture}
    lines, wrong = [HEAD], 0
    for key, config in tqdm(chosen.items(), unit="kernel", disable=None):
        with compiling(key.architecture, key.arithmetic) as compiled:
            call(key, args.full)
        cubin = inspect(compiled[-1])
        lines.append(row(key, config, cubin))
        for fault in faults(key, config, cubin):
            wrong += 1
            print(f"{key}, {config}: {fault}", file=sys.stderr)
    text = "\n".join(lines) + "\n"
    if args.out:
        args.out.write_text(f"Triton {triton.__version__}, compiled without a GPU. Tiles are of one branch.\n\n{text}")
    else:
        print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
