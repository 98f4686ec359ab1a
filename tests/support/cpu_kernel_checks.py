"""What the compiled CPU kernels must do, for one instruction set; run by test_cpu_kernels.py, in processes of its own.

    python tests/support/cpu_kernel_checks.py {generic,avx2,avx512} [CHECK ...]

Exit code 0: all hold; 3: one does not, and stderr says which. Such a process is started with SSCONV_POISON=1, so that
the kernels' scratch memory is NaN where nobody wrote it, and torch.empty gives NaN. Expected values come from
the float64 reference, PyTorch's own convolutions, which shares no code with the kernels; the other tests hold that
one against numpy.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import mmap
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor

import ssconv
from ssconv.backend import cpu
from tests.support.cpu_kernel_cases import FULL, filter_cases, small_cases, wide_cases
from tests.support.strategies import ROUNDINGS, ConvCase, Epilogue, UpfirdnCase, check_gradients, tensors_of

KERNELS = torch.ops.ssconv_kernels


def wide(case: ConvCase) -> ConvCase:
    """The same without kinks: with absolute values it bounds every sum of magnitudes."""
    bound = case.epilogue.bound()
    return dataclasses.replace(
        case, epilogue=dataclasses.replace(case.epilogue, activation="linear", clamp=None, **bound)
    )


def outputs(case: ConvCase, tensors: dict[str, Tensor], gy: Tensor | None, backend: str) -> dict[str, Tensor]:
    y = case.call(ssconv, tensors, backend)
    found = {"output": y.detach()}
    if gy is not None:
        gradients = torch.autograd.grad(y, list(tensors.values()), gy)
        found |= {f"gradient of {name}": g for name, g in zip(tensors, gradients, strict=True)}
    return found


def expected_of(case: ConvCase, tensors: dict[str, Tensor], gy: Tensor) -> tuple[dict, dict, Tensor]:
    """Values and bounds by the float64 reference, and the upstream gradient, zero where rounding decides at a kink."""
    exact = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
    magnitudes = {n: t.detach().abs().requires_grad_() for n, t in exact.items()}
    linear = dataclasses.replace(
        case, epilogue=dataclasses.replace(case.epilogue, activation="linear", clamp=None, gain=1.0)
    )
    e, dtype = case.epilogue, tensors["x"].dtype
    with torch.no_grad():
        t = linear.call(ssconv, exact, "reference")
        margin = 2 * ROUNDINGS[dtype] * torch.finfo(dtype).eps * wide(case).call(ssconv, magnitudes, "reference")
        near = t.abs() < margin
        if e.clamp is not None:
            u = torch.where(t > 0, t, t * e.negative_slope) if e.activation == "lrelu" else t
            near |= ((u * e.gain).abs() - e.clamp).abs() < margin
        gy = torch.where(near, 0, gy)
    values = outputs(case, exact, gy.double(), "reference")
    bounds = outputs(wide(case), magnitudes, gy.double().abs(), "reference")
    return values, bounds, gy


def assert_close(found: dict[str, Tensor], values: dict, bounds: dict, dtype: torch.dtype, case: ConvCase) -> None:
    assert found.keys() == values.keys()
    info = torch.finfo(dtype)
    for what, t in found.items():
        allowed = ROUNDINGS[dtype] * info.eps * bounds[what] + 4 * info.smallest_normal * info.eps
        wrong = ~((t.double() - values[what]).abs() <= allowed)
        assert not wrong.any(), (
            f"{what}: {int(wrong.sum())} of {wrong.numel()} wrong, first {wrong.nonzero()[0]}; {case}"
        )


def check_values(cases: Iterator[ConvCase], dtypes: tuple[torch.dtype, ...]) -> None:
    for case, dtype in itertools.product(cases, dtypes):
        tensors = tensors_of(case, dtype, requires_grad=True)
        gy = torch.tensor(np.random.default_rng(case.seed).normal(size=case.call(ssconv, tensors, "cpu").shape)).to(
            dtype
        )
        values, bounds, gy = expected_of(case, tensors, gy)
        assert_close(outputs(case, tensors, gy, "cpu"), values, bounds, dtype, case)


def small() -> None:
    """All outputs and gradients of a few calls."""
    check_values(small_cases(), (torch.float32,))


@functools.cache
def expected_filter(case: UpfirdnCase, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict, dict]:
    """Tensors of a case, its output in float64, and the sum of the magnitudes that the output adds up."""
    tensors = tensors_of(case, dtype)
    exact = {n: t.double() for n, t in tensors.items()}
    values = {"output": case.call(ssconv, exact, "reference")}
    return tensors, values, {"output": case.call(ssconv, {n: t.abs() for n, t in exact.items()}, "reference")}


def check_filters(dtype: torch.dtype, threads_used: int = 1) -> None:
    for case in filter_cases():
        tensors, values, bounds = expected_filter(case, dtype)
        with threads(threads_used):
            found = case.call(ssconv, tensors, "cpu")
        assert_close({"output": found}, values, bounds, dtype, case)
        with threads(1):
            assert torch.equal(found, case.call(ssconv, tensors, "cpu")), f"{threads_used} threads: other bits; {case}"
        if case.depth_border == "replicate":
            with threads(threads_used):
                check_gradients(ssconv, case, dtype, "cpu")


def filters() -> None:
    check_filters(torch.float32)


def filters_16_bit() -> None:
    check_filters(torch.bfloat16)
    check_filters(torch.float16)


def filter_workers() -> None:
    """Tiles depend on the number of threads, no bit of the result does."""
    for count in (2, 3, 7):
        check_filters(torch.float32, count)


def wide_float32() -> None:
    """All outputs and gradients, over shapes around every width that the kernels know."""
    check_values(wide_cases(), (torch.float32,))


def wide_16_bit() -> None:
    check_values(wide_cases(), (torch.bfloat16, torch.float16))


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def workers() -> None:
    """The same bits each time with the same number of threads, the same values with any number."""
    for case in (*small_cases(), ConvCase(cin=16, cout=24, size=(9, 10, 33), batch=1, epilogue=FULL, seed=60)):
        tensors = tensors_of(case, torch.float32, requires_grad=True)
        with threads(1):
            y = case.call(ssconv, tensors, "cpu")
            gy = torch.tensor(np.random.default_rng(case.seed).normal(size=y.shape), dtype=torch.float32)
            values, bounds, gy = expected_of(case, tensors, gy)
            single = outputs(case, tensors, gy, "cpu")
        for count in (1, 2, 3, 7):
            with threads(count):
                runs = [outputs(case, tensors, gy, "cpu") for _ in range(4)]
            assert_close(runs[0], values, bounds, torch.float32, case)
            for again, what in itertools.product(runs, runs[0]):
                assert torch.equal(again[what], runs[0][what]), f"{what}: other bits at the next call, {count} threads"
            # Sums over channels and taps do not depend on how positions are cut up.
            assert torch.equal(runs[0]["output"], single["output"]), f"output: other bits with {count} threads"


def copied(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The identity branch: x as it is read, as z stores it."""
    y, z = torch.empty_like(x), torch.empty_like(x, dtype=dtype)
    KERNELS.convolve(
        x, [], None, None, None, None, [0, 0, 0], [1, 1, 1], [0, 0, 0], False, False, 1, 1.0, 1.0, None, y, z
    )
    return z


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """NaN in the same places, and the same bits, signs of zeros included, in all others."""
    nan = expected.isnan()
    integer = torch.int32 if found.dtype == torch.float32 else torch.int16
    return torch.equal(found.isnan(), nan) and torch.equal(found.view(integer)[~nan], expected.view(integer)[~nan])


def conversions() -> None:
    """Every 16-bit pattern to float32; and back from each, from halfway to the next and beside that."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = patterns.view(dtype).reshape(1, 64, 64, 16, 1).permute(0, 4, 1, 2, 3).reshape(1, 1, 64, 64, 16)
        wide = x.float()
        assert same_bits(copied(x, torch.float32), wide), f"{dtype} to float32"
        following = (patterns + 1).view(dtype).reshape(x.shape).float()
        halfway = wide + (following - wide) / 2
        up, down = (torch.nextafter(halfway, torch.tensor(side)) for side in (torch.inf, -torch.inf))
        beyond = torch.tensor([65519.9, 65520.0, 65536.0, -70000.0, 131071.0, 3.4e38, 2.9e-8, 3e-8, -1e-40, -0.0] * 8)
        payloads = torch.tensor([0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF] * 20, dtype=torch.int32).view(torch.float32)
        assert payloads.isnan().all()
        for values in (wide, halfway, up, down, *(t.reshape(1, 1, 1, 8, 10) for t in (beyond, payloads))):
            assert same_bits(copied(values, dtype), values.to(dtype)), f"float32 to {dtype}"


def nan_and_infinity() -> None:
    """Reach the outputs and gradients whose sums they are in, and change no bit of any other."""
    for case in small_cases():
        case = dataclasses.replace(case, in_scale=False, epilogue=Epilogue(bias=True))
        tensors = tensors_of(case, torch.float32)
        shape = tensors["x"].shape
        at = (shape[0] - 1, 1, shape[2] // 2, shape[3] - 1, shape[4] // 3)
        for value in (torch.nan, torch.inf):
            x = tensors["x"].clone()
            x[at] = 0
            before = case.call(ssconv, {**tensors, "x": x}, "cpu")
            x[at] = value
            after = case.call(ssconv, {**tensors, "x": x}, "cpu")
            ones = {
                n: torch.ones_like(t) if n.startswith("weights") else torch.zeros_like(t) for n, t in tensors.items()
            }
            ones["x"][at] = 1
            reached = case.call(ssconv, {n: t.double() for n, t in ones.items()}, "reference") != 0
            assert reached.any() and not reached.all()
            assert torch.equal(~after.isfinite(), reached), f"{value} in x: other outputs than it reaches; {case}"
            assert torch.equal(after[~reached], before[~reached]), (
                f"{value} in x changes outputs that do not see it; {case}"
            )
        leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
        y = case.call(ssconv, leaves, "cpu")
        gy = torch.zeros_like(y)
        middle = (0, y.shape[1] - 1, *(n // 2 for n in y.shape[2:]))
        gy[middle] = torch.nan
        gx = torch.autograd.grad(y, leaves["x"], gy)[0]
        gy[middle] = 1
        magnitudes = {n: t.detach().double().abs().requires_grad_() for n, t in leaves.items()}
        exact = case.call(ssconv, magnitudes, "reference")
        seen = torch.autograd.grad(exact, magnitudes["x"], gy.double())[0] != 0
        assert seen.any() and torch.equal(gx.isnan(), seen), f"NaN upstream: other inputs than its output saw; {case}"


def kinks() -> None:
    """At 0 the slope is the negative side's, as in PyTorch, whatever the gain's sign; beyond the clamp it is 0."""
    z = torch.tensor([0.0, -0.0, 1.0, -1.0, 5.0, -5.0]).repeat(3).reshape(1, 6, 1, 1, 3).contiguous()
    for gain, slope, groups, clamp in itertools.product((1.5, -1.5), (0.2, 0.0), (1, 2, 3), (None, 2.0)):
        leaf = z.clone().requires_grad_()
        shuffled = torch.nn.functional.channel_shuffle(leaf, groups)
        t = torch.nn.functional.leaky_relu(shuffled, slope) * gain
        expected = t if clamp is None else t.clamp(-clamp, clamp)
        settings = ssconv.spec.Epilogue(groups, slope, gain, clamp)
        y = cpu.epilogue(z, None, None, None, settings)
        assert torch.equal(y, expected), f"epilogue at a kink: gain {gain}, slope {slope}, clamp {clamp}"
        gy = torch.rand(y.shape) + 0.5
        gz, *_ = cpu.epilogue_backward(gy, y, None, None, settings, False, -1)
        (exact,) = torch.autograd.grad(expected, leaf, gy)
        assert torch.allclose(gz, exact, rtol=1e-6, atol=0), f"gradient at a kink: {gain}, {slope}, {clamp}"


def no_samples() -> None:
    """A batch of none: empty results, gradients of the parameters 0."""
    for case in small_cases():
        tensors = tensors_of(dataclasses.replace(case, batch=0), torch.float32, requires_grad=True)
        y = case.call(ssconv, tensors, "cpu")
        assert y.shape[0] == 0
        for name, t in tensors.items():
            (gradient,) = torch.autograd.grad(y, t, torch.zeros_like(y), retain_graph=True)
            assert gradient.shape == t.shape and (gradient == 0).all(), f"gradient of {name} without samples; {case}"


# --------------------------------------------------------------------------------------------- memory of its own


class Guarded:
    """Tensors that end, or begin, at a page which may not be touched: one element too far kills the process."""

    def __init__(self, at_end: bool) -> None:
        self.at_end = at_end
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.mmap.restype = ctypes.c_void_p
        self.libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        self.libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def empty(self, shape, dtype: torch.dtype = torch.float32, memory_format=torch.contiguous_format) -> Tensor:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        count = int(np.prod(shape))
        size, page = max(count, 1) * dtype.itemsize, mmap.PAGESIZE
        room = -(-size // page) * page
        start = self.libc.mmap(None, room + 2 * page, 3, 0x22, -1, 0)  # read and write; private, anonymous
        assert start not in (None, 2**64 - 1)
        for guard in (start, start + page + room):
            assert self.libc.mprotect(guard, page, 0) == 0
        at = start + page + (room - size if self.at_end else 0)
        flat = torch.frombuffer((ctypes.c_char * size).from_address(at), dtype=dtype)[:count].fill_(torch.nan)
        if memory_format == torch.channels_last_3d:
            n, c, *rest = shape
            return flat.view(n, *rest, c).permute(0, 4, 1, 2, 3)
        return flat.view(shape)

    def copy(self, t: Tensor | None, memory_format=torch.contiguous_format) -> Tensor | None:
        return None if t is None else self.empty(t.shape, t.dtype, memory_format).copy_(t)


def guard_pages() -> None:
    """No kernel reads or writes beside its tensors, and every element of every result is written."""
    real = cpu.torch
    for at_end, dtype, memory in itertools.product(
        (True, False), (torch.float32, torch.bfloat16), (torch.channels_last_3d, torch.contiguous_format)
    ):
        guarded = Guarded(at_end)
        patched = {n: getattr(real, n) for n in dir(real) if not n.startswith("__")} | {"empty": guarded.empty}
        patched["empty_like"] = lambda t: guarded.empty(t.shape, t.dtype, real.channels_last_3d)  # noqa: B023
        cpu.torch = SimpleNamespace(**patched)
        try:
            for case in small_cases():
                run_guarded(case, guarded, dtype, memory)
            for case in filter_cases():
                x = guarded.copy(tensors_of(case, dtype)["x"], memory)
                taps = [None if f is None else guarded.copy(torch.tensor(f).float()) for f in case.filters()]
                for border in ssconv.spec.BORDERS:
                    y = cpu.upfirdn(x, taps, case.up, case.down, case.six, border)
                    assert y.isfinite().all(), "upfirdn leaves outputs unwritten"
        finally:
            cpu.torch = real


def run_guarded(case: ConvCase, guarded: Guarded, dtype: torch.dtype, memory: torch.memory_format) -> None:
    tensors = tensors_of(case, dtype)
    spec = ssconv.spec.Geometry(tuple(k or (0, 0, 0) for k in case.kernels), case.stride, case.padding, case.transposed)
    x = guarded.copy(tensors["x"], memory)
    weights = [guarded.copy(tensors[n]) for n in tensors if n.startswith("weights")]
    bias, scale, in_scale, noise = (
        guarded.copy(None if n not in tensors else tensors[n].float())
        for n in ("bias", "out_scale", "in_scale", "noise")
    )
    e, groups = case.epilogue, len(case.kernels) if case.shuffle else 1
    slope = e.negative_slope if e.activation == "lrelu" else 1.0
    settings = ssconv.spec.Epilogue(groups, slope, e.gain, e.clamp)
    y, z = cpu.convolve(x, weights, bias, in_scale, scale, noise, spec, settings, True)
    assert y.isfinite().all() and z.isfinite().all(), "convolve leaves outputs unwritten"
    again = cpu.epilogue(z, bias, scale, noise, settings)
    assert again.isfinite().all(), "epilogue leaves outputs unwritten"
    gy = guarded.copy(torch.randn(y.shape).to(dtype), memory)
    parts = cpu.epilogue_backward(gy, y, z, scale, settings, True, -1 if noise is None else noise.shape[0])
    assert all(p is None or p.isfinite().all() for p in parts), "epilogue_backward leaves results unwritten"
    gx = cpu.input_grad(parts[0], weights, in_scale, spec, x.shape[2:])
    assert gx.isfinite().all(), "input_grad leaves results unwritten"
    assert all(g.isfinite().all() for g in cpu.weight_grad(parts[0], x, in_scale, spec)), (
        "weight_grad leaves some unwritten"
    )


CHECKS: dict[str, Callable[[], None]] = {
    c.__name__: c
    for c in (
        small, filters, filters_16_bit, filter_workers, conversions, kinks, workers, nan_and_infinity, no_samples,
        guard_pages, wide_float32, wide_16_bit,
    )
}  # fmt: skip


def main(instruction_set: str, *names: str) -> int:
    if not KERNELS.set_cpu_instruction_set(instruction_set):
        print(f"this processor does not run {instruction_set}", file=sys.stderr)
        return 2
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    torch.set_num_threads(1)
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
