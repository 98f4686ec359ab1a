"""The checks that the other tests rely on notice faults: each is planted into a copy of ssconv that they then fail on.

A copy is the package's own source under another name (and so another op namespace) with one piece of text replaced.
Only a value that a check found wrong counts as noticed, not a crash.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError

import ssconv
from tests.csrc import test_cpu_kernels
from tests.support import cuda_faults, cute_faults
from tests.support.strategies import (
    CONV_CASES,
    UPFIRDN_CASES,
    Case,
    check_forward,
    check_gradcheck,
    check_gradgradcheck,
    check_gradients,
)

SOURCE = Path(ssconv.__file__).parent


def forward_bf16(lib: ModuleType, case: Case) -> None:
    check_forward(lib, case, torch.bfloat16)


def gradients_bf16(lib: ModuleType, case: Case) -> None:
    check_gradients(lib, case, torch.bfloat16)


@dataclass(frozen=True)
class Fault:
    """What is wrong, where (`old`, its `nth` occurrence in `file`, becomes `new`), and the check that must notice."""

    what: str
    file: str
    old: str
    new: str
    check: Callable[[ModuleType, Case], None]
    nth: int = 0


FAULTS = [
    Fault(
        "shuffle order transposed", "backend/reference.py",
        "return F.channel_shuffle(t, groups) if", "return F.channel_shuffle(t, t.shape[1] // groups) if", check_forward,
    ),
    Fault(
        "backward forgets that unshuffling is the inverse", "backend/reference.py",
        "F.channel_shuffle(t, t.shape[1] // groups)", "F.channel_shuffle(t, groups)", check_gradients,
    ),
    Fault(
        "strided window centres start at 1", "backend/reference.py",
        "return F.conv3d(central(x, geometry, kernel),",
        "x = F.pad(x, (1 - geometry.stride[2], geometry.stride[2] - 1))\n"
        "    return F.conv3d(central(x, geometry, kernel),",
        check_forward,
    ),
    Fault(
        "a smaller branch reads the window's first voxels, not its middle", "backend/reference.py",
        "x.narrow(dim, margin,", "x.narrow(dim, 0,", check_forward,
    ),
    Fault(
        "weight gradient pairs the wrong voxels in a valid window", "backend/reference.py",
        "    x = central(x, geometry, kernel)\n", "    x = central(x.roll(1, 4), geometry, kernel)\n", check_gradients,
    ),
    Fault(
        "adjoint of a smaller branch frames it on one side", "backend/reference.py",
        "for f in reversed(frame) for _ in range(2)]", "for f in reversed(frame) for f in (2 * f, 0)]", check_gradients,
    ),
    Fault(
        "taps flipped in the transposed convolution", "backend/reference.py",
        "conv_adjoint(part, next(remaining).transpose(0, 1), geometry, size)",
        "conv_adjoint(part, next(remaining).transpose(0, 1).flip(2, 3, 4), geometry, size)", check_forward,
    ),
    Fault(
        "weight gradient of the transposed convolution flipped", "backend/reference.py",
        "w.transpose(0, 1) if geometry.transposed", "w.transpose(0, 1).flip(3) if geometry.transposed", check_gradients,
    ),
    Fault("no noise", "backend/reference.py", "y + cast(noise)", "y + 0 * cast(noise)", check_forward),
    Fault("noise added twice", "backend/reference.py", "y + cast(noise)", "y + 2 * cast(noise)", check_forward),
    Fault(
        "clamp before gain", "backend/reference.py",
        "if gain != 1:\n        y = y * gain\n    return y if clamp is None else y.clamp(-clamp, clamp)",
        "if clamp is not None:\n        y = y.clamp(-clamp, clamp)\n    return y * gain", check_forward,
    ),
    Fault(
        "clamp on one side only", "backend/reference.py",
        "y.clamp(-clamp, clamp)", "y.clamp(max=clamp)", check_forward,
    ),
    Fault(
        "sign of the slope", "backend/reference.py",
        "F.leaky_relu(y, slope)", "F.leaky_relu(y, -slope)", check_forward,
    ),
    Fault(
        "in_scale on the neighbouring channel", "backend/reference.py",
        "cast(x) * per_channel(in_scale, cast)", "cast(x) * per_channel(in_scale.roll(1, 1), cast)", check_forward,
    ),
    Fault(
        "weight gradient without in_scale", "backend/reference.py",
        "cast(x) * per_channel(in_scale, cast)", "cast(x)", check_gradients, nth=1,
    ),
    Fault(
        "input gradient without in_scale", "backend/reference.py",
        "return y if in_scale is None else y * per_channel(in_scale, cast)", "return y", check_gradients,
    ),
    Fault("epilogue's backward without gain", "backend/reference.py", "cast(g) * gain", "cast(g)", check_gradients),
    Fault(
        "clamped voxels pass gradient", "backend/reference.py",
        "torch.where(y.abs() < ", "torch.where(y.abs() < 2 * ", check_gradients,
    ),
    Fault(
        "bound of the clamp not rounded as the output is", "backend/reference.py",
        "torch.where(y.abs() < y.new_full((), clamp)", "torch.where(wide(y).abs() < clamp", gradients_bf16,
    ),
    Fault(
        "slope in float32", "backend/reference.py",
        "pre * slope", "pre * float(torch.tensor(slope, dtype=torch.float32))", check_gradients,
    ),
    Fault(
        "activation's side ignores the sign of gain", "backend/reference.py",
        "y > 0 if gain > 0 else y < 0", "y > 0", check_gradients,
    ),
    Fault(
        "gradient of out_scale missing", "backend/reference.py",
        "(pre * shuffle(cast(z), groups)).sum", "(0 * pre * shuffle(cast(z), groups)).sum", check_gradients,
    ),
    Fault(
        "gradient of out_scale from z in branch order", "backend/reference.py",
        "(pre * shuffle(cast(z), groups)).sum", "(pre * cast(z)).sum", check_gradients,
    ),
    Fault(
        "gradient of the bias from one sample", "backend/reference.py",
        "pre.sum((0, *SPATIAL), dtype=kind)", "pre[:1].sum((0, *SPATIAL), dtype=kind)", check_gradients,
    ),
    Fault(
        "gradient of shared noise from one sample", "backend/reference.py",
        "gnoise.sum(0, keepdim=True)", "gnoise[:1]", check_gradients,
    ),
    Fault(
        "filter correlates", "backend/reference.py",
        "wide(t).to(y.dtype).flip(0)", "wide(t).to(y.dtype)", check_forward,
    ),
    Fault(
        "padding before and after swapped", "backend/reference.py",
        "(padding[2 * d], padding[2 * d + 1])", "(padding[2 * d + 1], padding[2 * d])", check_forward,
    ),
    Fault(
        "replicated border ends one sample early", "spec.py",
        "max(0, -(-padding[1] // up))", "max(0, padding[1] // up)", check_forward,
    ),
    Fault(
        "the far end repeats the first slice", "backend/reference.py",
        "x[:, :, -1:].expand", "x[:, :, :1].expand", check_forward,
    ),
    Fault(
        "what lies beyond the last slice is not folded", "backend/reference.py",
        "inner[:, :, -1] += y", "inner[:, :, -1] += 0 * y", check_gradients,
    ),
    Fault(
        "adjoint of the filter shifted by one", "ops/upfirdn.py",
        "length - p0 - 1, ctx.size[d]", "length - p0, -1 + ctx.size[d]", check_gradients,
    ),
    Fault(
        "adjoint of the filter not flipped", "ops/upfirdn.py",
        "t.flip(0) for key, t in distinct", "t for key, t in distinct", check_gradients,
    ),
    Fault(
        "second derivative in the weights without in_scale", "ops/conv.py",
        "weight_grad(g, c, in_scale,", "weight_grad(g, c, None,", check_gradgradcheck,
    ),
    Fault(
        "identity branch in the derivative of the weight gradient", "spec.py",
        "tuple(ABSENT if b == IDENTITY else b for b in self.branches)", "self.branches", check_gradgradcheck,
    ),
    Fault(
        "gradient of out_scale does not differentiate z", "ops/epilogue.py",
        "if need[2] and cscale is not None:", "if False:", check_gradgradcheck,
    ),
    Fault(
        "epilogue's backward does not differentiate out_scale", "ops/epilogue.py",
        "if need[3] and cz is not None:", "if False:", check_gradgradcheck,
    ),
    Fault(
        "gradient of in_scale forgets x", "ops/conv.py",
        "epilogue_backward(plain, plain, x, in_scale,", "epilogue_backward(plain, plain, x * 0 + 1, in_scale,",
        check_gradcheck,
    ),
    Fault(
        "output in the layout of plain tensors", "ops/registration.py",
        "t.to(dtype).contiguous(memory_format=torch.channels_last_3d)", "t.to(dtype).contiguous()", check_forward,
    ),
    Fault(
        "16-bit input scaled with three bits too few", "backend/reference.py",
        "cast(x) * per_channel(in_scale, cast)", "cast(x) * per_channel((in_scale * 16).round() / 16, cast)",
        forward_bf16,
    ),
]  # fmt: skip


def load_copy(folder: Path, name: str, fault: Fault | None = None) -> ModuleType:
    """ssconv's Python source under another name, with one fault or none."""
    for path in SOURCE.rglob("*.py"):
        file = path.relative_to(SOURCE).as_posix()
        text = path.read_text(encoding="utf-8")
        if fault is not None and file == fault.file:
            pieces = text.split(fault.old)
            assert len(pieces) > fault.nth + 1, f"{fault.file} no longer has {fault.old!r}: plant this fault elsewhere"
            head, rest = fault.old.join(pieces[: fault.nth + 1]), fault.old.join(pieces[fault.nth + 1 :])
            text = head + fault.new + rest
        target = folder / name / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(re.sub(r"\bssconv\b", name, text), encoding="utf-8")
    importlib.invalidate_caches()
    return importlib.import_module(name)


def cases() -> list[Case]:
    """The named cases, small ones first: a failing gradgradcheck goes through whole Jacobians to say where."""
    every = [*CONV_CASES.values(), *UPFIRDN_CASES.values()]
    return sorted(every, key=lambda case: sum(a.size for a in case.arrays().values()))


def test_every_fault_of_every_list_can_be_planted():
    """In the default run, since `make faults`, which plants them, is not part of it."""
    root = SOURCE.parent
    places = [(SOURCE / f.file, f.old, f.nth) for f in FAULTS]
    places += [(root / "csrc" / "cpu" / f.file, f.old, 0) for f in test_cpu_kernels.FAULTS]
    places += [(root / ("csrc/cuda" if f.units else "ssconv") / f.file, f.old, 0) for f in cuda_faults.FAULTS]
    places += [(root / file, old, 0) for f in cute_faults.FAULTS for file, old, _ in f.edits]
    texts = {path: path.read_text(encoding="utf-8") for path, _, _ in places}
    lost = [f"{path.relative_to(root)}: {old!r}" for path, old, nth in places if texts[path].count(old) <= nth]
    assert len(places) > 100 and not lost, lost


@pytest.mark.faults
@pytest.mark.parametrize(
    "check", [check_forward, forward_bf16, check_gradients, gradients_bf16, check_gradcheck, check_gradgradcheck]
)
def test_an_unchanged_copy_passes(check, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    copy = load_copy(tmp_path, f"ssconv_copy_{check.__name__}")
    assert copy.split_shuffle_conv3d.__module__.startswith("ssconv_copy_")
    for case in cases():
        check(copy, case)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[f.what.replace(" ", "-") for f in FAULTS])
def test_a_planted_fault_is_noticed(number, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    fault = FAULTS[number]
    faulty = load_copy(tmp_path, f"ssconv_fault_{number}", fault)
    for case in cases():
        try:
            fault.check(faulty, case)
        except (AssertionError, GradcheckError):
            return
    pytest.fail(f"{fault.check.__name__} passes every case although: {fault.what}")
