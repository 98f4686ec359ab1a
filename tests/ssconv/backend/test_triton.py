"""The Triton backend without a GPU: values in Triton's interpreter, planted faults, and machine code for every card.

Each check of triton_checks.py runs in a process of its own, since TRITON_INTERPRET counts when triton is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import forked
from tests.support.forked import Server

pytest.importorskip("triton", reason="triton is not installed: pip install triton")

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs scripts with Triton's interpreter."""
    with forked.server(tmp_path_factory.mktemp("interpreter") / "log", TRITON_INTERPRET="1") as server:
        yield server


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Runs scripts with Triton's compiler."""
    with forked.server(tmp_path_factory.mktemp("compiler") / "log", TRITON_INTERPRET="") as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        "named", "named_16_bit", "tiles", "descriptors", "drawn_convolutions", "drawn_filters", "second_derivatives",
        "surroundings", "kinks", "batches", "serving",
    ],
)  # fmt: skip
def test_in_the_interpreter(check, interpreter):
    done = interpreter.run("triton_checks.py", check)
    assert done.returncode == 0, done.stderr[-3000:]


def test_without_triton_the_reason_is_given(monkeypatch):
    backends = importlib.import_module("ssconv.backend.dispatch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module, state = backends._triton()
    assert module is None and state == "not available: triton is not installed (pip install triton)"


# ------------------------------------------------------------------------------------------------ planted faults


@dataclass(frozen=True)
class Fault:
    """A fault: in `file` of backend/triton, `old`, found there once, becomes `new`. `check` must notice it."""

    what: str
    old: str
    new: str
    check: str = "quick"
    file: str = "kernels/conv.py"


FAULTS = [
    Fault("no mask along D", "mask = inside(d + SIGN * i_d, x_size[1]) & inside(", "mask = inside("),
    Fault("a tap too far along W", "FIRST - HALF + 0 * phase", "FIRST - HALF + 1 + 0 * phase"),
    Fault("phases of the adjoint swapped", "tap = reach % STRIDE", "tap = (reach + 1) % STRIDE"),
    Fault("branches two and three interleaved the other way", "tl.join(tl.join(a, c), tl.join(b, d))",
          "tl.join(tl.join(a, b), tl.join(c, d))", file="kernels/common.py"),
    Fault("shuffle of three branches forgotten", "out_channels * S + s if SHUFFLE else", ""),
    Fault("weights of the first branch for all", "tl.constexpr = TAP_OFFSETS[BRANCH]",
          "tl.constexpr = TAP_OFFSETS[0]"),
    Fault("channels of the first branch for all", "wide(BRANCH * CIN) * x_stride[1]", "wide(0 * CIN) * x_stride[1]"),
    Fault("outputs of one phase side by side", "w = q[3] * PHASES_W + phase[2]", "w = q[3] + phase[2]"),
    Fault("a block of channels left out", "k += BK\n", "k += 2 * BK\n"),
    Fault("heights not carried into depths", "i_d += carry\n    return acc",
          "i_d += 0 * carry\n    return acc"),
    Fault("noise of the first sample for all", "noise_ptr + wide(n) * noise_stride + voxel, rows",
          "noise_ptr + voxel, rows", file="kernels/common.py"),
    Fault("scales of the first sample for all", "(wide(n) * (S * CIN) + BRANCH * CIN)[:, None]",
          "(wide(0 * n) * (S * CIN) + BRANCH * CIN)[:, None]"),
    Fault("clamp on one side", "        y = tl.where(y < -clamp, -clamp, y)\n", "", file="kernels/common.py"),
    Fault("slope before the gain's sign", "tl.where(gain > 0, y, -y) > 0", "y > 0", file="kernels/epilogue.py"),
    Fault("un-shuffle the wrong way round", "a, b = tl.split(tl.reshape(pre", "b, a = tl.split(tl.reshape(pre",
          file="kernels/epilogue.py"),
    Fault("a split reads a box twice", "tl.minimum(begin + boxes_per_split, boxes)",
          "tl.minimum(begin + boxes_per_split + 1, boxes)", file="kernels/wgrad.py"),
    Fault("weight gradient without stride", "p[2] * STRIDE[1] + shift_h", "p[2] + shift_h", file="kernels/wgrad.py"),
    Fault("last row of a weight gradient not stored", "(low_channel < LOW_CHANNELS)[:, None] &",
          "(low_channel < LOW_CHANNELS - 1)[:, None] &", file="kernels/wgrad.py"),
    Fault("a channel of the next branch read", "in_mask = channel < CIN\n            if",
          "in_mask = channel <= CIN\n            if"),
    Fault("last voxel of a row not stored", "& (w < YW)\n", "& (w < YW - 1)\n"),
    Fault("half of the weights packed", "packed[start : start + w.numel()]", "packed[: w.numel()]", file="launch.py"),
    Fault("the adjoint's weights not swapped", "order = (2, 3, 4, 0, 1) if swap else (2, 3, 4, 1, 0)",
          "order = (2, 3, 4, 1, 0)", file="launch.py"),
    Fault("splits added only in part", "sums.sum(0)", "sums[:-1].sum(0)", file="launch.py"),
    Fault("taps of a filter not flipped", "taps_ptr + length - 1 - tap", "taps_ptr + tap", "filters",
          "kernels/upfirdn.py"),
    Fault("zeros between samples forgotten", "tap = skipped + i * up", "tap = skipped + i", "filters",
          "kernels/upfirdn.py"),
    Fault("border samples read twice", "(at >= 0) & (at < size * up)", "(at < size * up)", "filters",
          "kernels/upfirdn.py"),
    Fault("a descriptor of the whole tensor", "_descriptor(x, s * cin, cin,", "_descriptor(x, 0, cin,", "descriptors",
          "launch.py"),
    Fault("a descriptor's box one tap off", "at_h = q0[2] + shift_h + SIGN * i_h", "at_h = q0[2] + shift_h",
          "descriptors"),
]  # fmt: skip


def planted(folder: Path, fault: Fault | None) -> Path:
    """The package's Python source in a folder, with one fault or none."""
    shutil.copytree(ROOT / "ssconv", folder / "ssconv", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    if fault is not None:
        path = folder / "ssconv" / "backend" / "triton" / fault.file
        text = path.read_text()
        assert text.count(fault.old) == 1, (
            f"{fault.file} has {text.count(fault.old)} of {fault.old!r}: plant it elsewhere"
        )
        path.write_text(text.replace(fault.old, fault.new))
    return folder


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("check", ["quick", "filters"])
def test_an_unchanged_copy_passes(check, tmp_path, interpreter):
    done = interpreter.run("triton_checks.py", check, package=planted(tmp_path, None))
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[f.what.replace(" ", "-") for f in FAULTS])
def test_a_planted_fault_is_noticed(number, tmp_path, interpreter):
    fault = FAULTS[number]
    done = interpreter.run("triton_checks.py", fault.check, package=planted(tmp_path, fault))
    assert done.returncode == 3, f"{fault.what}: exit code {done.returncode}; {done.stderr[-1500:]}"


# -------------------------------------------------------------------------------------------------- machine code


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90", "100"])
@pytest.mark.parametrize("check", ["configurations", "whole", "few_channels"])
def test_machine_code(check, architecture, compiler):
    if check == "few_channels" and architecture != "90":
        pytest.skip("the same front end for every architecture: one will do")
    done = compiler.run("triton_compile_checks.py", check, architecture)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("check", ["batches", "without_a_gpu"])
def test_compiled(check, compiler):
    done = compiler.run("triton_compile_checks.py", check)
    assert done.returncode == 0, done.stderr[-3000:]
