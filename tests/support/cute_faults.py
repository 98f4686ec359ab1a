"""Faults that CuTe's numbers must show (tests/csrc/test_cute_oracle.py). Some are in the kernels and in the emulator
alike, or in what the CUDA build alone runs: the checks on the emulator do not notice those."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support import cute, emulated
from tests.support.cuda_faults import objects


@dataclass(frozen=True)
class Fault:
    """Replaces texts, which stand once in their files: (file, old, new) each. `units` of the emulator's module and
    `programs` of tests/csrc/cute are compiled anew; `check` of cute_checks.py must notice; `unnoticed`, one of
    cuda_checks.py, does not."""

    what: str
    edits: tuple[tuple[str, str, str], ...]
    check: str
    units: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    unnoticed: str = ""


SM90 = ("async", "fragments", "conv_sm90", "wgrad_sm90")
FAULTS = [
    Fault(
        "accumulators of neighbouring rows in one thread",
        (
            ("tests/emulator/async.cpp", "t % WARP / 4 + i / 2 % 2 * 8)", "t % WARP / 4 * 2 + i / 2 % 2)"),
            ("csrc/cuda/conv_sm90.cuh", "warp % 4 * 16 + lane / 4;", "warp % 4 * 16 + lane / 4 * 2;"),
            ("csrc/cuda/conv_sm90.cuh", "64 * (row / 2) + 8 * (row % 2)", "64 * (row / 2) + row % 2"),
            ("csrc/cuda/wgrad_sm90.cuh", "16 * warp + lane / 4) * BN", "16 * warp + lane / 4 * 2) * BN"),
            ("csrc/cuda/wgrad_sm90.cuh", "to + half * 8 * BN", "to + half * BN"),
        ),
        "products", SM90, unnoticed="sm90_quick",
    ),
    Fault(
        "leading and stride offsets of a descriptor exchanged",
        (
            ("csrc/cuda/ptx/wgmma.cuh", "uint64_t(leading >> 4 & 0x3fff) << 16 | uint64_t(stride >> 4 & 0x3fff) << 32",
             "uint64_t(stride >> 4 & 0x3fff) << 16 | uint64_t(leading >> 4 & 0x3fff) << 32"),
            ("tests/emulator/async.cpp",
             "leading(static_cast<uint32_t>(d >> 16", "leading(static_cast<uint32_t>(d >> 32"),
            ("tests/emulator/async.cpp",
             "stride(static_cast<uint32_t>(d >> 32", "stride(static_cast<uint32_t>(d >> 16"),
        ),
        "launched_descriptors", SM90, unnoticed="sm90_quick",
    ),
    Fault(
        "groups of 8 rows of a descriptor too near",
        (("csrc/cuda/conv_sm90.cuh", "* span), span, 0, 8 * span)", "* span), span, 0, 4 * span)"),),
        "launched_descriptors", ("conv_sm90",),
    ),
    Fault(
        "corners of an im2col map in the order D, H, W for the driver",
        (("csrc/cuda/ptx/tensor_map.cuh", "lower[3] = {box.lower[2], box.lower[1], box.lower[0]}",
          "lower[3] = {box.lower[0], box.lower[1], box.lower[2]}"),),
        "positions", programs=("maps",),
    ),
    Fault(
        "extents of a tiled box in the order D, H, W for the driver",
        (("csrc/cuda/ptx/tensor_map.cuh", "cuuint32_t(box[2]), cuuint32_t(box[1]), cuuint32_t(box[0]), 1}",
          "cuuint32_t(box[0]), cuuint32_t(box[1]), cuuint32_t(box[2]), 1}"),),
        "driver_maps", programs=("maps",),
    ),
    Fault(
        "the upper corner of an im2col map one position too far",
        (("csrc/cuda/ptx/tensor_map.cuh", "lower + (count - 1) * step -", "lower + count * step -"),),
        "positions", ("conv_sm90", "wgrad_sm90"),
    ),
]  # fmt: skip


def planted(fault: Fault, folder: Path, emulator: Path, programs: Path) -> tuple[Path, Path]:
    """Builds what the fault changes; the emulator's module and the folder of the programs with it."""
    root = folder / "source"
    shutil.copytree(emulated.ROOT / "csrc", root / "csrc", ignore=shutil.ignore_patterns("cpu", "*.o"))
    shutil.copytree(emulated.ROOT / "tests" / "emulator", root / "tests" / "emulator")
    for file, old, new in fault.edits:
        text = (root / file).read_text()
        assert text.count(old) == 1, f"{file} has {text.count(old)} of {old!r}: plant it elsewhere"
        (root / file).write_text(text.replace(old, new))
    if fault.programs:
        programs = Path(shutil.copytree(programs, folder / "programs"))
        cute.compile_programs(fault.programs, programs, root)
    if fault.units:
        emulated.compile_objects(fault.units, folder, root)
        others = [name for name in emulated.sources() if name not in fault.units]
        every = [*objects(folder, list(fault.units)), *objects(emulator.parent, others)]
        emulator = emulated.link(every, folder / "emulated.so")
    return emulator, programs
