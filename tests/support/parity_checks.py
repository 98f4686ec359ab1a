"""Checks of conv_sm90 for the adjoint of a stride: the input gradient of strided, the forward of transposed layers.

Expected values are torch's own convolutions in float64; the numbers are such that bf16 holds every sum exactly. Run by
cuda_checks.py.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import ssconv
from benchmarks.gpu.cases import PLAIN_LAYERS
from benchmarks.operator.cases import KERNELS
from ssconv.backend.cuda import conv, runner, sm80, sm90
from ssconv.backend.cuda import launch as cuda_backend
from ssconv.backend.cuda.plan import Launch, Layout
from ssconv.spec import Geometry, window_of
from tests.support.gpu_checks import check_against_float64
from tests.support.kernel_checks import ACS4
from tests.support.sm90_checks import MODULES, on_sm90
from tests.support.strategies import ConvCase, Epilogue

SPLIT = ((3, 3, 3), (1, 3, 3))
FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 30.0)
NATIVE = {"epilogue": FULL, "layout": "channels_last"}
STRIDES = tuple(s for s in itertools.product((1, 2), repeat=3) if s != (1, 1, 1))


def integers(shape: Sequence[int], seed: int) -> Tensor:
    """-1, 0 and 1, in float64."""
    return torch.randint(-1, 2, shape, generator=torch.Generator().manual_seed(seed)).double()


def widened(weight: Tensor, window: Sequence[int]) -> Tensor:
    """A weight in the middle of a window of zeros."""
    margins = [(k - n) // 2 for k, n in zip(window, weight.shape[2:], strict=True)]
    return functional.pad(weight, [m for margin in margins[::-1] for m in (margin, margin)])


@dataclasses.dataclass(frozen=True)
class Adjoint:
    """Branches without shuffle or epilogue. cin, cout: a branch's channels of the convolution whose adjoint it is.
    size: the extents of the adjoint's result, which is the gradient of an input of that size."""

    kernels: tuple[tuple[int, int, int], ...]
    size: tuple[int, int, int]
    stride: tuple[int, int, int]
    padding: str = "same"
    cin: int = 8
    cout: int = 8
    batch: int = 2
    seed: int = 0

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.kernels, self.stride, self.padding)

    def tensors(self) -> tuple[Tensor, list[Tensor]]:
        """The gradient of the output, in branch order, and the weights."""
        small = self.geometry.output_size(self.size)
        g = integers((self.batch, self.cout * len(self.kernels), *small), self.seed)
        return g, [integers((self.cout, self.cin, *k), self.seed + 1 + n) for n, k in enumerate(self.kernels)]

    def expected(self, g: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """By torch's autograd through torch's convolution."""
        x = torch.zeros(self.batch, self.cin * len(weights), *self.size, dtype=torch.float64, requires_grad=True)
        window = window_of(self.geometry.branches)
        padding = [(k - 1) // 2 if self.padding == "same" else 0 for k in window]
        parts = [
            functional.conv3d(part, widened(w, window), stride=self.stride, padding=padding)
            for part, w in zip(x.chunk(len(weights), 1), weights, strict=True)
        ]
        return torch.autograd.grad(torch.cat(parts, 1), x, g)[0]


def native(t: Tensor) -> Tensor:
    return t.bfloat16().contiguous(memory_format=torch.channels_last_3d)


def _adjoints() -> dict[str, Adjoint]:
    """Every stride; extents odd and even, of which "valid" leaves a last row out; extents of one, whose second parity
    has no outputs; kernels that one parity's taps do not reach; one, two and four branches, few and many columns."""
    cases = {}
    for i, stride in enumerate(STRIDES):
        name = "".join(map(str, stride))
        cases[f"same-{name}"] = Adjoint(SPLIT, (5, 4, 7), stride, cin=16, cout=24, seed=i)
        cases[f"valid-{name}"] = Adjoint(((3, 1, 5), (1, 3, 3)), (6, 7, 8), stride, "valid", seed=i)
    return cases | {
        "dense": Adjoint(((3, 3, 3),), (5, 6, 9), (2, 2, 2), cin=72, cout=40, batch=1),
        "dense-valid": Adjoint(((3, 3, 3),), (9, 10, 7), (2, 2, 2), "valid", cin=136, cout=24, batch=1),
        "dense-1x1x1": Adjoint(((1, 1, 1),), (5, 6, 7), (2, 2, 2), cout=16),
        "acs4": Adjoint(ACS4, (5, 4, 6), (1, 2, 2), cin=16, cout=16),
        "wide-windows": Adjoint(((7, 5, 9),), (8, 9, 11), (2, 2, 2), batch=1),
        "extents-of-one": Adjoint(SPLIT, (1, 1, 3), (2, 2, 2), batch=9),
        "many-samples": Adjoint(((1, 3, 3),), (1, 3, 5), (1, 2, 2), batch=61, cin=16),
    }


ADJOINTS = _adjoints()
QUICK = (
    "same-212", "same-222", "valid-222", "valid-121", "dense-valid", "dense-1x1x1", "extents-of-one", "many-samples",
)  # fmt: skip
# Outputs and gradients to the second order, with epilogue, shuffle and scales.
LAYERS = {
    "transposed-2": ConvCase(SPLIT, 24, 40, 2, (3, 4, 5), (2, 2, 2), transposed=True, seed=1, **NATIVE),
    "transposed-valid": ConvCase(
        SPLIT, 33, 20, 1, (2, 3, 4), (1, 2, 2), "valid", True, in_scale=True, epilogue=FULL, seed=2
    ),
    "transposed-acs4": ConvCase(ACS4, 16, 11, 1, (2, 3, 4), (2, 1, 2), transposed=True, seed=3, **NATIVE),
    "transposed-dense": ConvCase(((3, 3, 3),), 40, 72, 1, (3, 4, 3), (2, 2, 2), transposed=True, seed=4, **NATIVE),
    "transposed-wide": ConvCase(((3, 3, 3),) * 2, 16, 72, 1, (3, 2, 5), (2, 2, 1), transposed=True, seed=5, **NATIVE),
    "strided-2": ConvCase(SPLIT, 24, 40, 2, (5, 6, 7), (2, 2, 2), padding="valid", seed=6, **NATIVE),
    "strided-dense": ConvCase(((3, 3, 3),), 40, 136, 1, (5, 6, 7), (2, 2, 2), seed=7, **NATIVE),
}


def check(case: Adjoint, name: str) -> None:
    """As input gradient, and with the same numbers as transposed forward where that has the result's size."""
    g, weights = case.tensors()
    expected = case.expected(g, weights)
    assert expected.abs().max() <= 256, f"{name}: bf16 does not hold these sums"
    small = [native(w) for w in weights]
    with on_sm90() as used:
        found = cuda_backend.input_grad(native(g), small, None, case.geometry, case.size)
    assert len(used) == 1, f"{name}: sm_80's kernel ran"
    assert torch.equal(found.double(), expected), f"{name}: the input gradient is wrong"
    transposed = case.geometry._replace(transposed=True)
    if transposed.output_size(g.shape[2:]) != case.size:
        return
    with on_sm90() as used:
        swapped = [w.transpose(0, 1) for w in small]
        found = ssconv.split_shuffle_conv3d(
            native(g), swapped, stride=case.stride, padding=case.padding, transposed=True, shuffle=False, backend="cuda"
        )
    assert len(used) == 1, f"{name}: sm_80's kernel ran"
    assert torch.equal(found.double(), expected), f"{name}: the transposed forward is wrong"


def adjoints() -> None:
    """All cases, in two orders of threads."""
    for name, case in ADJOINTS.items():
        for seed in (1, 2):
            MODULES[-1].set_seed(seed)
            check(case, name)


@contextmanager
def launched() -> Iterator[set[str]]:
    """The names of the kernels that run."""
    names: set[str] = set()
    run = runner.run

    def noted(launch: Launch, *rest: Any) -> None:
        names.add(launch.kernel)
        run(launch, *rest)

    runner.run = noted
    try:
        yield names
    finally:
        runner.run = run


def layers() -> None:
    """Outputs, gradients and second derivatives of whole layers, those of dense layers by sm_90a's kernels alone."""
    for name, case in LAYERS.items():
        for dtype in (torch.bfloat16, torch.float16):
            with on_sm90(), launched() as kernels:
                check_against_float64(case, dtype, "cuda", "cpu")
            assert {"conv_sm90", "wgrad_sm90"} <= kernels, f"{name}: {kernels}"
            if "dense" in name:  # elsewhere few channels may be read element by element
                assert not kernels & {"conv_sm80", "wgrad_sm80"}, f"{name}: {kernels}"


def epilogues() -> None:
    """Scale, noise, bias and activation of a voxel are its own, also where no tap reaches it."""
    for name in ("transposed-2", "transposed-acs4"):
        case = dataclasses.replace(LAYERS[name], kernels=((1, 1, 1),) * len(LAYERS[name].kernels), batch=2)
        check_against_float64(case, torch.bfloat16, "cuda", "cpu")
        with on_sm90() as used:
            check_against_float64(case, torch.bfloat16, "cuda", "cpu")
        assert used, f"sm_80's kernel ran for {name}"


def quick() -> None:
    """Checks enough to notice a planted fault."""
    for name in QUICK:
        check(ADJOINTS[name], name)
    epilogues()


def schedules() -> None:
    """Every tile is computed once, for any number of blocks: fewer tiles than blocks, whole waves and a remainder."""
    case = Adjoint(((1, 3, 3), (3, 1, 3)), (5, 11, 13), (2, 2, 2), cin=8, cout=8, batch=9)
    g, weights = case.tensors()
    expected, small = case.expected(g, weights), [native(w) for w in weights]
    for count in (1, 2, 3, 5, 7, 64):
        with on_sm90() as used:
            conv.multiprocessors = lambda device, count=count: count
            found = cuda_backend.input_grad(native(g), small, None, case.geometry, case.size)
        assert len(used) == 1
        assert torch.equal(found.double(), expected), f"{count} blocks"


def served() -> None:
    """The kernels of sm_90a compute every pass of every layer that a GPU run times and whose branches have channels
    enough."""
    for layer, (name, kernels) in itertools.product(PLAIN_LAYERS, KERNELS.items()):
        count = len(kernels)
        if min(layer.channels, layer.out) // count < sm90.MIN_CHANNELS:
            continue
        geometry = Geometry(kernels, (layer.stride,) * 3, transposed=layer.transposed)
        x, y = (Layout.native(torch.bfloat16, shape) for shape in (layer.shape, layer.out_shape))
        low, high = (x, y) if layer.transposed else (y, x)
        reasons = (
            sm90.conv_unsupported(x, geometry, layer.transposed, y.shape[2:], layer.out // count, count),
            sm90.conv_unsupported(y, geometry, not layer.transposed, x.shape[2:], layer.channels // count, 1),
            sm90.wgrad_unsupported(low, high, tuple(range(count)), geometry),
        )
        assert reasons == (None, None, None), f"{layer.name}, {name}: {reasons}"


def plans() -> None:
    """Every output has one parity; the taps of all parities are the kernel's; what they read is inside the map."""
    for case in ADJOINTS.values():
        every_parity = sm80.parities(case.geometry, True)
        assert len(every_parity) == case.stride[0] * case.stride[1] * case.stride[2]
        for kernel in case.kernels:
            count = sum(sm80.tap_count(kernel, parity, case.geometry, True) for parity in every_parity)
            assert count == kernel[0] * kernel[1] * kernel[2], case
        outputs = sm80.parity_size(case.geometry, True, case.size)
        assert all(w * s >= n > (w - 1) * s for w, s, n in zip(outputs, case.stride, case.size, strict=True))
