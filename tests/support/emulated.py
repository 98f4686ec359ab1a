"""Runs the CUDA backend on the emulator: compiles the kernels' own sources for this CPU and loads them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import torch
from torch import Tensor

from ssconv.backend.cuda import launch, runner
from ssconv.backend.cuda.plan import Launch

backends = importlib.import_module("ssconv.backend.dispatch")  # the package's name is the function


ROOT = Path(__file__).parents[2]
MODULE = "ssconv_emulated"


def sources(root: Path = ROOT) -> dict[str, Path]:
    """The sources of the emulator's module in `root` by name: the kernels, the calls, the emulator."""
    files = [*(root / "csrc" / "cuda").glob("*.cu"), root / "csrc" / "cuda" / "calls.cpp"]
    return {f.stem: f for f in (*files, *(root / "tests" / "emulator").glob("*.cpp"))}


def compile_objects(names: Iterable[str], folder: Path, root: Path = ROOT) -> None:
    """Compiles some of the `sources` in `root` for this CPU.

    Raises:
        RuntimeError: a source does not compile, or one of this repository gives a warning; the compiler's output.
    """
    python = sysconfig.get_paths()["include"]
    includes = [root / "csrc", root / "csrc" / "cuda", root / "tests", python, pybind11.get_include()]
    options = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]
    command = [*compiler(), *options, f"-DSSCONV_MODULE={MODULE}", *(f"-I{i}" for i in includes), "-x", "c++", "-c"]

    def compile_one(name: str) -> None:
        done = subprocess.run(
            [*command, str(sources(root)[name]), "-o", str(folder / f"{name}.o")], capture_output=True, text=True
        )
        if done.returncode != 0 or (done.stderr and root == ROOT):
            raise RuntimeError(f"{name} does not compile: {done.stderr}")

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, names))


def link(objects: Iterable[Path], path: Path) -> Path:
    """Links the module from its objects."""
    subprocess.run([*compiler(), "-shared", *map(str, objects), "-o", str(path)], check=True, capture_output=True)
    return path


def compiler() -> list[str]:
    """The command of the C++ compiler; the emulator is written for GCC and Clang."""
    found = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not found:
        raise FileNotFoundError("no C++ compiler")
    return found.split()


def load(path: Path) -> ModuleType:
    """Loads the emulator's module from a shared object."""
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _range(t: Tensor, writable: bool) -> tuple[int, int, bool]:
    """The bytes from a tensor's first element to its last."""
    last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), (last + 1) * t.element_size() if t.numel() else 0, writable


def use(module: ModuleType) -> None:
    """Makes backend="cuda" serve CPU tensors, by the emulator, from now on. Kernels may touch only the tensors of their
    call, and write only its results."""
    run = runner.run

    def checked(call: Launch, tensors: dict[str, Tensor | None], *floats: Mapping[str, float]) -> None:
        named = [(t, name in call.writes) for name in (*call.writes, *call.reads) if (t := tensors[name]) is not None]
        module.set_ranges([_range(t, writable) for t, writable in named])
        run(call, tensors, *floats)

    runner.run = checked
    runner.call = module.call
    launch.DEVICES = ("cpu",)
    backends._CUDA = launch
    backends._STATES["cuda"] = "available"
    torch.utils.deterministic.fill_uninitialized_memory = True
