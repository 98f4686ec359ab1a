"""What the Triton kernels must do, run in Triton's interpreter by test_triton.py, in processes of its own.

    TRITON_INTERPRET=1 python tests/triton_checks.py [CHECK ...]

Exit code 0: all hold; 3: one does not, and stderr says which. torch.empty gives NaN here, so an element that nobody
wrote shows. Expected values come from the oracle, or for second derivatives from the reference in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, settings

import ssconv
from gpu_checks import check_against_float64, check_compiled
from ssconv import triton_backend, triton_table
from ssconv.backends import resolve
from ssconv.triton_table import Config, Key
from strategies import (
    CONV_CASES,
    UPFIRDN_CASES,
    Case,
    ConvCase,
    Epilogue,
    check_forward,
    check_gradients,
    conv_cases,
    tensors_of,
    upfirdn_cases,
)

FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 2.5)
SHARED = Epilogue(True, False, "shared", "lrelu", 0.1, -0.7, None)
ACS4 = ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1))

# Larger than the small tiles below in every direction, several boxes, blocks of channels and steps; and few taps, since
# the interpreter takes milliseconds for each.
LINES = ((3, 1, 1), (1, 3, 1))
LARGE: dict[str, Case] = {
    "split-depth": ConvCase(((1, 3, 1), (1, 1, 3)), 18, 20, 1, (3, 3, 5), in_scale=True, epilogue=FULL, seed=1),
    "aligned": ConvCase(LINES, 24, 16, 1, (3, 4, 5), epilogue=FULL, layout="channels_last", seed=2),
    "four-branches": ConvCase((*LINES, (1, 1, 3), (1, 1, 1)), 3, 17, 1, (3, 3, 4), epilogue=FULL, seed=3),
    "three-branches": ConvCase((*LINES, (1, 1, 5)), 17, 18, 1, (2, 2, 4), epilogue=SHARED, seed=4),
    "grouped-no-shuffle": ConvCase(LINES, 17, 33, 1, (2, 3, 5), shuffle=False, in_scale=True, epilogue=FULL, seed=5),
    "stride-2": ConvCase(((3, 1, 1), (1, 3, 3)), 20, 17, 1, (3, 4, 5), (2, 1, 2), epilogue=FULL, seed=6),
    "transposed": ConvCase(
        ((1, 3, 3), (3, 1, 1)), 17, 9, 1, (2, 3, 4), (2, 2, 1), transposed=True, in_scale=True, seed=7
    ),
    "valid": ConvCase(((3, 1, 3), (1, 5, 1)), 16, 16, 1, (4, 6, 5), padding="valid", epilogue=SHARED, seed=8),
    "many-samples": ConvCase(LINES, 4, 3, 5, (1, 2, 2), in_scale=True, epilogue=FULL, seed=9),
    "many-samples-aligned": ConvCase(LINES, 16, 16, 5, (1, 3, 2), layout="channels_last", seed=10),
    "identity": ConvCase(((1, 3, 3), None), 18, 18, 1, (2, 4, 3), in_scale=True, epilogue=FULL, seed=11),
    "one-branch": ConvCase(((3, 1, 3),), 24, 17, 1, (3, 3, 5), epilogue=FULL, layout="channels_last", seed=12),
}


@contextmanager
def table(*tiles: tuple[int, int, int], descriptors: bool = False) -> Iterator[None]:
    """Everything with tiles of (voxels, columns, depth): the first for "product", the second for "weights"."""
    rows = {}
    for kernel, tile in zip(triton_table.KERNELS, tiles, strict=True):
        for arithmetic, branches, columns, describable in itertools.product(
            triton_table.ARITHMETIC, triton_table.BRANCHES, triton_table.COLUMNS, (False, True)
        ):
            key = Key(kernel, 80, arithmetic, branches, columns, describable)
            rows[key] = Config(*tile, 4, 2, descriptors and describable)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.json"
        triton_table.write(path, rows)
        os.environ["SSCONV_TRITON_TABLE"] = str(path)
        try:
            yield
        finally:
            del os.environ["SSCONV_TRITON_TABLE"]


def whole_volumes():
    """Tiles as large as the small cases: the interpreter takes as long for a large tile as for a small one."""
    return table((256, 16, 32), (128, 16, 16))


def check(case: Case, dtype: torch.dtype) -> None:
    try:
        check_forward(ssconv, case, dtype, "triton")
        check_gradients(ssconv, case, dtype, "triton")
    except AssertionError as error:
        raise AssertionError(f"{error}; {dtype}, {case}") from None


def named() -> None:
    """Every named case of both operators, all gradients."""
    with whole_volumes():
        for case in (*CONV_CASES.values(), *UPFIRDN_CASES.values()):
            check(case, torch.float32)


def named_16_bit() -> None:
    with whole_volumes():
        for case in (*CONV_CASES.values(), *UPFIRDN_CASES.values()):
            check(case, torch.float16)


def _drawn(strategy: Callable, count: int) -> None:
    @given(case=strategy())
    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    def draw(case: Case) -> None:
        check(case, torch.float32 if case.seed % 3 else torch.float16)

    with whole_volumes():
        draw()


def drawn_convolutions() -> None:
    """The whole option space."""
    _drawn(functools.partial(conv_cases, max_size=4), 40)


def drawn_filters() -> None:
    _drawn(upfirdn_cases, 60)


def tiles() -> None:
    """More boxes, blocks and steps than one, by pointers."""
    with table((16, 16, 16), (16, 16, 16)):
        for case in LARGE.values():
            check(case, torch.float32)
    with table((32, 32, 16), (32, 16, 32)):
        for name in ("split-depth", "four-branches", "stride-2", "one-branch"):
            check(LARGE[name], torch.float16)


def descriptors() -> None:
    """The same by tensor descriptors where they serve."""
    used = []
    real = triton_backend._descriptor
    triton_backend._descriptor = lambda *args: used.append(args[1:]) or real(*args)
    try:
        with table((16, 16, 16), (16, 16, 16), descriptors=True):
            for name in ("aligned", "valid", "one-branch", "many-samples-aligned", "stride-2", "split-depth"):
                before = len(used)
                check(dataclasses.replace(LARGE[name], layout="channels_last"), torch.float32)
                check(dataclasses.replace(LARGE[name], layout="channels_last"), torch.float16)
                aligned = name not in ("split-depth", "stride-2")
                assert (len(used) > before) or not aligned, f"{name}: no descriptor was used"
    finally:
        triton_backend._descriptor = real


def second_derivatives() -> None:
    """Of every option, against the reference in float64: gradgradcheck would drown in float32's rounding."""
    for name in ("tiny-full", "tiny-constant-scales", "transposed-valid-stride-212", "acs4-full-bf16-companions"):
        check_against_float64(CONV_CASES[name], torch.float32, "triton", "cpu")
    for name in ("smooth", "crop"):
        check_against_float64(UPFIRDN_CASES[name], torch.float32, "triton", "cpu")


def surroundings() -> None:
    """What lies beside a view in memory is NaN and does not show; nor does what an infinity cannot reach."""
    for case in (CONV_CASES["split-depth-full"], LARGE["many-samples-aligned"], CONV_CASES["acs4"]):
        tensors = tensors_of(case, torch.float32)
        x = tensors["x"]
        frame = torch.full([n + 3 for n in x.shape], torch.nan)
        frame = frame.contiguous(memory_format=torch.channels_last_3d)
        view = frame[tuple(slice(1, n + 1) for n in x.shape)]
        view.copy_(x)
        plain = dataclasses.replace(case, layout="contiguous")
        expected = plain.call(ssconv, tensors, "triton")
        with _unchanged(view):
            found = ssconv.split_shuffle_conv3d(
                view,
                [tensors.get(f"weights[{s}]") for s in range(len(case.kernels))],
                tensors.get("bias"),
                in_scale=tensors.get("in_scale"),
                out_scale=tensors.get("out_scale"),
                noise=tensors.get("noise"),
                backend="triton",
                **case.epilogue.options(),
            )
        assert torch.equal(found, expected), f"memory beside the view shows; {case}"
    with table((16, 16, 16), (16, 16, 16)):
        case = dataclasses.replace(LARGE["three-branches"], in_scale=False, epilogue=Epilogue())
        tensors = tensors_of(case, torch.float32)
        at = (0, 20, 1, 1, 2)
        tensors["x"][at] = torch.inf
        y = case.call(ssconv, tensors, "triton")
        ones = {n: torch.ones_like(t).double() for n, t in tensors.items()}
        ones["x"] = torch.zeros_like(ones["x"])
        ones["x"][at] = 1
        reached = case.call(ssconv, ones, "reference") != 0
        assert torch.equal(~y.isfinite(), reached), "an infinity shows in other outputs than it reaches"


@contextmanager
def _unchanged(t: torch.Tensor) -> Iterator[None]:
    before = t.clone()
    yield
    assert torch.equal(t, before), "an input changed"


def kinks() -> None:
    """At 0 the slope is the negative side's, as in PyTorch, whatever the gain's sign; beyond the clamp it is 0."""
    z = torch.tensor([0.0, -0.0, 1.0, -1.0, 5.0, -5.0, torch.nan, torch.inf]).repeat(3).reshape(1, 12, 1, 1, 2)
    for gain, slope, groups, clamp in itertools.product((1.5, -1.5), (0.2, 0.0), (1, 2, 3, 4), (None, 2.0)):
        leaf = z.clone().requires_grad_()
        t = torch.nn.functional.leaky_relu(torch.nn.functional.channel_shuffle(leaf, groups), slope) * gain
        expected = t if clamp is None else t.clamp(-clamp, clamp)
        y = triton_backend.epilogue(z, None, None, None, groups, slope, gain, clamp)
        assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7)), f"epilogue: {gain}, {slope}, {groups}, {clamp}"
        finite = expected.isfinite()
        gy = torch.rand(y.shape) + 0.5
        gz, *_ = triton_backend.epilogue_backward(gy, y, None, None, groups, slope, gain, clamp, False, -1)
        (exact,) = torch.autograd.grad(expected, leaf, gy)
        finite = torch.nn.functional.channel_shuffle(finite.float(), 12 // groups) > 0
        assert torch.allclose(gz[finite], exact[finite], rtol=1e-6, atol=0), f"gradient at a kink: {gain}, {slope}"


def batches() -> None:
    """No samples; the same bits twice; each sample alone as in the batch."""
    for case in (CONV_CASES["split-depth-full"], CONV_CASES["transposed-stride-2"], UPFIRDN_CASES["up-2"]):
        tensors = tensors_of(dataclasses.replace(case, batch=0), torch.float32, requires_grad=True)
        y = case.call(ssconv, tensors, "triton")
        assert y.shape[0] == 0
        for name, t in tensors.items():
            (gradient,) = torch.autograd.grad(y, t, torch.zeros_like(y), retain_graph=True)
            assert gradient.shape == t.shape and (gradient == 0).all(), f"gradient of {name} without samples"
    case = LARGE["many-samples"]
    tensors = tensors_of(case, torch.float32, requires_grad=True)
    leaves = list(tensors.values())
    runs = []
    for _ in range(2):
        y = case.call(ssconv, tensors, "triton")
        gy = torch.tensor(np.random.default_rng(0).normal(size=y.shape), dtype=torch.float32)
        runs.append([y, *torch.autograd.grad(y, leaves, gy)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), "other bits at the second call"
    for i in range(case.batch):
        alone = {
            n: t[i : i + 1].detach() if n in ("x", "in_scale", "out_scale", "noise") else t.detach()
            for n, t in tensors.items()
        }
        torch.testing.assert_close(case.call(ssconv, alone, "triton"), runs[0][0][i : i + 1], rtol=1e-5, atol=1e-5)


def serving() -> None:
    """What the backend takes and what it refuses; it is chosen by name only on a CPU; torch.compile sees one graph."""
    assert ssconv.backends()["triton"] == "available"
    x, weights = torch.zeros(1, 2, 2, 2, 2), [torch.zeros(1, 1, 1, 1, 1)] * 2
    for dtype in (torch.float32, torch.float16):
        assert resolve("auto", x.to(dtype)) in ("cpu", "reference")
        assert resolve("triton", x.to(dtype)) == "triton"
    for dtype in (torch.float64, torch.bfloat16):
        try:
            ssconv.split_shuffle_conv3d(x.to(dtype), [w.to(dtype) for w in weights], backend="triton")
        except RuntimeError as error:
            assert "serves float32, float16 on cpu" in str(error) and str(dtype) in str(error), error
        else:
            raise AssertionError(f"{dtype} was not refused")
    many = torch.zeros(1).expand(1, 2, 2**11, 2**10, 2**10)
    try:
        triton_backend.epilogue(many.to("meta"), None, None, None, 1, 1.0, 1.0, None)
    except ValueError as error:
        assert "2048, 1024, 1024" in str(error), error
    else:
        raise AssertionError("a sample of 2^31 voxels was not refused")
    check_compiled("triton", "cpu", "aot_eager")


def quick() -> None:
    """Enough to notice a planted fault."""
    names = "many-samples", "four-branches", "three-branches", "transposed", "stride-2", "split-depth", "identity"
    with table((16, 16, 16), (16, 16, 16)):
        for name in names:
            check(LARGE[name], torch.float32)
    with whole_volumes():
        check(CONV_CASES["shared-noise-negative-gain"], torch.float32)
        check(CONV_CASES["split-depth-valid-stride-2"], torch.float32)


def filters() -> None:
    for case in UPFIRDN_CASES.values():
        check(case, torch.float32)


CHECKS: dict[str, Callable[[], None]] = {
    c.__name__: c
    for c in (
        serving, named, named_16_bit, drawn_convolutions, drawn_filters, tiles, descriptors, second_derivatives,
        surroundings, kinks, batches, quick, filters,
    )
}  # fmt: skip


def main(*names: str) -> int:
    if not triton_backend.INTERPRETED:
        print("triton_checks: set TRITON_INTERPRET=1", file=sys.stderr)
        return 2
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    torch.set_num_threads(1)
    triton_backend.PROGRAMS = 16  # splits enough, and not a program per box
    np.seterr(all="ignore")  # the interpreter computes masked lanes too
    for name in names or CHECKS:
        try:
            CHECKS[name]()
        except AssertionError:
            traceback.print_exc()
            print(f"check failed: {name}", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
