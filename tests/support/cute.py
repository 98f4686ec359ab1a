"""Builds the programs of tests/csrc/cute, which print CuTe's numbers, and reads what they print."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import emulated

PROGRAMS = emulated.ROOT / "tests" / "csrc" / "cute"
NAMES = ("layouts", "im2col", "maps")
VARIABLE = "SSCONV_CUTLASS"


def cute_headers() -> Path:
    """The folder that has cute/tensor.hpp: what SSCONV_CUTLASS names, else that of the package nvidia-cutlass.

    Raises:
        FileNotFoundError: there is none.
    """
    spec = importlib.util.find_spec("cutlass_library")
    packaged = Path(spec.origin).parent / "source" / "include" if spec is not None and spec.origin else None
    asked = os.environ.get(VARIABLE)
    folder = Path(asked) if asked else packaged
    if folder is None:
        raise FileNotFoundError(
            f"CuTe's headers: pip install --no-deps nvidia-cutlass, or set {VARIABLE} to CUTLASS' include folder"
        )
    if not (folder / "cute" / "tensor.hpp").exists():
        raise FileNotFoundError(f"{VARIABLE if asked else 'nvidia-cutlass'}: {folder} has no cute/tensor.hpp")
    return folder


def cuda_headers() -> list[str]:
    """Options that make a C++ compiler find CUDA's headers, as nvcc passes them on.

    Raises:
        FileNotFoundError: there is no nvcc.
    """
    home = os.environ.get("CUDA_HOME")
    candidates = os.environ.get("CUDACXX"), home and os.path.join(home, "bin", "nvcc"), "nvcc"
    nvcc = next((found for c in candidates if c and (found := shutil.which(c))), None)
    if nvcc is None:
        raise FileNotFoundError("nvcc, for CUDA's headers: install the CUDA toolkit, or set CUDA_HOME")
    said = subprocess.run([nvcc, "--dryrun", "-c", "nothing.cu"], capture_output=True, text=True).stderr
    lines = "\n".join(re.findall(r"^#\$ (?:SYSTEM_)?INCLUDES=.*$", said, re.MULTILINE))
    return [f"-I{folder}" for folder in re.findall(r'"(?:-I)?(/[^"]+)"', lines)]


def compile_programs(names: Sequence[str], folder: Path, root: Path = emulated.ROOT) -> None:
    """Compiles some of the programs into `folder`; csrc is that of `root`.

    Raises:
        FileNotFoundError: a compiler or headers are missing.
        RuntimeError: a program does not compile; the compiler's output.
    """
    # CuTe encodes tensor maps only where it knows nvcc's version, and calls the driver's functions by their names.
    macros = ["-D__CUDACC_VER_MAJOR__=12", "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL"]
    includes = [f"-I{cute_headers()}", *cuda_headers(), f"-I{root / 'csrc'}"]
    command = [*emulated.compiler(), "-std=c++17", "-O0", "-w", *macros, *includes]

    def compile_one(name: str) -> None:
        source, program = PROGRAMS / f"{name}.cpp", folder / name
        done = subprocess.run([*command, str(source), "-o", str(program)], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{name} does not compile: {done.stderr[-3000:]}")

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, names))


def _run(program: Path, *arguments: Path, text: str = "") -> str:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def layouts(folder: Path) -> dict[str, Any]:
    """What layouts.cpp prints, by name: arrays, and of operands a dict of two."""
    with tempfile.TemporaryDirectory() as temporary:
        found = Path(temporary, "layouts.json")
        _run(folder / "layouts", found)
        return json.loads(found.read_text())


ARGUMENTS = ("size", "stride", "lower", "upper", "step", "box", "swizzle")
LENGTHS = (5, 4, 3, 3, 5, 2, 1)


def by_name(numbers: Sequence[int]) -> dict[str, list[int]]:
    """The arguments of cuTensorMapEncodeIm2col, innermost first."""
    rest = list(map(int, numbers))
    return {name: [rest.pop(0) for _ in range(count)] for name, count in zip(ARGUMENTS, LENGTHS, strict=True)}


def im2col(folder: Path, problems: Sequence[Sequence[int]]) -> list[tuple[dict[str, list[int]], np.ndarray]]:
    """CuTe's arguments of each problem's tensor map, and the voxels (tap d, tap h, tap w, output) that it reads."""
    with tempfile.TemporaryDirectory() as temporary:
        lines, found = Path(temporary, "problems"), Path(temporary, "positions")
        lines.write_text("".join(" ".join(map(str, p)) + "\n" for p in problems))
        _run(folder / "im2col", lines, found)
        numbers, records = np.fromfile(found, np.int32), []
    while numbers.size:
        arguments, shape = by_name(numbers[: sum(LENGTHS)]), numbers[sum(LENGTHS) :][:4]
        numbers = numbers[sum(LENGTHS) + 4 :]
        records.append((arguments, numbers[: shape.prod()].reshape(shape)))
        numbers = numbers[shape.prod() :]
    return records


def driver_arguments(folder: Path, boxes: Sequence[Sequence[int | str]]) -> list[list[int]]:
    """What the CUDA build passes to the driver for boxes, each described as maps.cpp says."""
    said = _run(folder / "maps", text="".join(" ".join(map(str, b)) + "\n" for b in boxes))
    return [list(map(int, line.split())) for line in said.splitlines()]
