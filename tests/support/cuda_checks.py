"""Checks of the CUDA kernels on the emulator, which test_cuda_kernels.py runs in processes of their own.

    python tests/support/cuda_checks.py EMULATOR.so [CHECK ...]

Exit code 0: all hold; 3: one fails, and stderr says which. Memory of torch.empty and shared memory begin as NaN.
Expected values come from the oracle, or for sizes that it is too slow for and for second derivatives from the reference
in float64.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, settings

import ssconv
from ssconv.backend import choice, reference, trust
from ssconv.backend.cuda import conv, plan, runner, structs, table
from ssconv.backend.cuda import launch as cuda_backend
from ssconv.backend.cuda.plan import Launch
from ssconv.backend.cuda.table import Config, Key
from ssconv.backend.tuning import Table
from ssconv.spec import Geometry
from tests.support import (
    cluster_checks,
    emulated,
    gpu_checks,
    halo_checks,
    kernel_checks,
    parity_checks,
    serving,
    sm90_checks,
)
from tests.support.gpu_checks import check_against_float64, check_compiled, deviation
from tests.support.kernel_checks import ACS4, LARGE, SHARED
from tests.support.strategies import (
    CONV_CASES,
    UPFIRDN_CASES,
    Case,
    ConvCase,
    Epilogue,
    conv_cases,
    tensors_of,
    upfirdn_cases,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
check = functools.partial(kernel_checks.check, backend="cuda")
EMULATOR: ModuleType

# The clamp is as high as the sums: rounding must not decide for many voxels on which side of it they lie.
HIGH = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 30.0)
SPLIT = ((3, 3, 3), (1, 3, 3))
NATIVE = {"epilogue": HIGH, "layout": "channels_last"}
# Several blocks of voxels, of columns and steps, of each instantiation; too large for the oracle.
# Channels are a branch's.
WIDE = {
    "split-depth": ConvCase(SPLIT, 24, 72, 2, (3, 7, 9), seed=1, **NATIVE),
    "dense": ConvCase(((3, 1, 3),), 72, 136, 1, (5, 6, 7), seed=2, **NATIVE),
    "dense-half": ConvCase(((3, 3, 1),), 40, 40, 1, (5, 6, 7), epilogue=SHARED, layout="channels_last", seed=3),
    "dense-few": ConvCase(((1, 3, 3),), 24, 20, 1, (5, 6, 7), seed=4, **NATIVE),
    "acs4": ConvCase(ACS4, 24, 40, 1, (4, 5, 9), seed=5, **NATIVE),
    "acs4-half": ConvCase(ACS4, 16, 10, 1, (4, 5, 9), seed=6, **NATIVE),
    "grouped-half": ConvCase(((1, 3, 3),) * 2, 17, 24, 1, (4, 5, 9), in_scale=True, epilogue=HIGH, seed=7),
    "grouped-few": ConvCase(((3, 3, 1),) * 2, 32, 12, 1, (4, 5, 9), seed=8, **NATIVE),
    "one-channel": ConvCase(((3, 3, 3),), 1, 40, 1, (5, 6, 7), epilogue=HIGH, seed=9),
    "three-channels": ConvCase(((3, 3, 3),), 3, 19, 2, (5, 6, 7), (2, 1, 2), in_scale=True, epilogue=HIGH, seed=10),
    "two-branches-of-five": ConvCase(SPLIT, 5, 25, 1, (5, 6, 7), in_scale=True, epilogue=HIGH, seed=11),
    "two-branches-few": ConvCase(((3, 3, 3), (3, 1, 3)), 3, 11, 1, (5, 6, 7), epilogue=SHARED, seed=12),
    "four-branches-of-three": ConvCase(ACS4, 3, 11, 1, (5, 6, 7), in_scale=True, epilogue=HIGH, seed=13),
    "stride-2": ConvCase(SPLIT, 16, 40, 2, (5, 7, 9), (2, 2, 2), seed=14, **NATIVE),
    "transposed": ConvCase(SPLIT, 16, 40, 2, (3, 3, 5), (2, 2, 2), transposed=True, seed=15, **NATIVE),
    "eighteen-branches": ConvCase(((1, 1, 3), (1, 3, 1)) * 9, 2, 3, 2, (3, 4, 5), epilogue=HIGH, seed=16),
    "many-rows": ConvCase(((1, 1, 3),), 16, 200, 3, (3, 9, 11), layout="channels_last", seed=17),
}


@contextmanager
def precision(name: str) -> Iterator[None]:
    """How float32 is multiplied: "ieee" or "tf32"."""
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = name
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def configure(change: Callable[[Key, Config], Config]) -> None:
    """Makes the committed table of 8.0, with a change, that of the kernels from now on."""
    rows = table.TABLE.read(table.TABLE.committed).items()
    serving.configure({key: change(key, config) for key, config in rows if key.architecture == 80})


def few_splits(key: Key, config: Config) -> Config:
    """Fewer splits, so that a block has more than a step."""
    return dataclasses.replace(config, programs=16) if key.kernel == "weights" else config


def named() -> None:
    """Every named case of both operators, all gradients, in every dtype."""
    for case in (*CONV_CASES.values(), *UPFIRDN_CASES.values()):
        for dtype in DTYPES:
            check(case, dtype)


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
        check(case, DTYPES[case.seed % 3])

    draw()


def drawn_convolutions() -> None:
    """The whole option space."""
    _drawn(functools.partial(conv_cases, max_size=4), 150)


def drawn_filters() -> None:
    _drawn(upfirdn_cases, 100)


def tiles() -> None:
    """Sizes that no tile divides."""
    for case in LARGE.values():
        for dtype in DTYPES:
            check(case, dtype)


def every_kernel() -> None:
    """Every instantiation runs, in every arithmetic, on sizes that no tile divides: first and second derivatives."""
    used = set()
    real = runner.run
    configure(lambda key, config: dataclasses.replace(few_splits(key, config), stages=2 + key.columns // 16 % 3 % 2))

    def run(launch: Launch, *rest: object) -> None:
        p: Any = launch.params
        if launch.kernel == "conv_sm80":
            used.add((launch.kernel, p.arithmetic, (p.fused, p.block_n, p.elementwise)))
        if launch.kernel == "wgrad_sm80":
            used.add((launch.kernel, p.arithmetic, p.tile_m))
        real(launch, *rest)

    runner.run = run
    allowed = dict(gpu_checks.NORMS)
    try:
        for case in WIDE.values():
            for dtype in DTYPES:
                check_against_float64(case, dtype, "cuda", "cpu")
            with precision("tf32"):
                gpu_checks.NORMS[torch.float32] = 2e-3
                gpu_checks.KINK[torch.float32] = 1e-2
                check_against_float64(case, torch.float32, "cuda", "cpu")
                gpu_checks.NORMS[torch.float32] = allowed[torch.float32]
                gpu_checks.KINK[torch.float32] = 1e-5
    finally:
        runner.run = real
        configure(few_splits)
    products = {
        *((s, w, 0) for s, w in itertools.product((1, 2, 4), (32, 64, 128)) if w >= 16 * s),
        *((s, w, 1) for s, w in itertools.product((1, 2, 4), (32, 64)) if w >= 16 * s),
    }
    wanted = {("conv_sm80", a, p) for a in range(4) for p in products}
    wanted |= {("wgrad_sm80", a, r) for a in range(4) for r in (32, 64, 128)}
    assert wanted <= used, f"never ran: {sorted(wanted - used)}"


def configurations() -> None:
    """Every configuration that a search may choose computes the same: outputs and gradients of x bit for bit, gradients
    of weights but for the order in which splits are added."""
    for name in ("split-depth", "dense", "acs4-half", "two-branches-of-five"):
        case = dataclasses.replace(WIDE[name], size=(2, 3, 5))
        used: list[Key] = []
        keys, conv.TABLE = conv.TABLE, Noted(conv.TABLE, used)
        expected = _outputs(case)
        conv.TABLE = keys
        for key in dict.fromkeys(used):
            for config in table.candidates(key):
                if config.programs not in (0, 128):
                    continue
                configure(functools.partial(_one_differs, key, config))
                found = _outputs(case)
                assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1]), f"{key}: {config}"
                for one, other in zip(found[2:], expected[2:], strict=True):
                    assert deviation(one, other) < 1e-2, f"{key}: {config}"
        configure(few_splits)


class Noted:
    """A table that notes the keys that it is asked for."""

    def __init__(self, real: Table, used: list[Key]) -> None:
        self.real, self.used = real, used

    def configs(self, key: Key) -> Iterator[Config]:
        self.used.append(key)
        return self.real.configs(key)


def _one_differs(chosen: Key, config: Config, key: Key, before: Config) -> Config:
    return config if key == chosen else few_splits(key, before)


def _outputs(case: ConvCase) -> list[torch.Tensor]:
    """Output and gradients of x and the weights, in bf16."""
    tensors = tensors_of(case, torch.bfloat16, requires_grad=True)
    leaves = [t for n, t in tensors.items() if n == "x" or n.startswith("weights")]
    y = case.call(ssconv, tensors, "cuda")
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


def tf32() -> None:
    """Operands of ten bits are multiplied exactly; wider ones are rounded to ten bits, not cut off."""
    case = dataclasses.replace(WIDE["dense"], epilogue=Epilogue())
    tensors = {n: t.bfloat16().float() for n, t in tensors_of(case, torch.float32).items()}
    wide = {n: t.double() for n, t in tensors.items()}
    with precision("tf32"):
        y = case.call(ssconv, tensors, "cuda")
        assert deviation(y, case.call(ssconv, wide, "reference")) < 1e-6, "products of ten-bit operands are not exact"
        x = torch.full((1, 1, 1, 1, 4), 1 + 2**-11 + 2**-13)  # rounds up, to 1 + 2^-10
        y = ssconv.split_shuffle_conv3d(x, [torch.ones(1, 1, 1, 1, 1)], backend="cuda")
        assert (y == 1 + 2**-10).all(), f"not rounded to TF32: {y.flatten()[0]:.9f}"
    with precision("ieee"):
        y = ssconv.split_shuffle_conv3d(x, [torch.ones(1, 1, 1, 1, 1)], backend="cuda")
        assert (y == x).all(), "float32 is rounded though TF32 is off"


def second_derivatives() -> None:
    """Second derivatives of every option, against the reference in float64: gradgradcheck's differences would be lost
    in float32's rounding."""
    for case in (*CONV_CASES.values(), *UPFIRDN_CASES.values()):
        check_against_float64(case, torch.float32, "cuda", "cpu")


def filters() -> None:
    """Filters whose tiles have to shrink, that are too long for one pass, and too long for shared memory at all."""
    for case in gpu_checks.LARGE.values():
        if not isinstance(case, ConvCase):
            small = dataclasses.replace(case, size=tuple(n // 2 + 1 for n in case.size), channels=11)
            for dtype in DTYPES:
                check_against_float64(small, dtype, "cuda", "cpu")
    x = torch.randn(1, 3, 5, 6, 7, generator=torch.Generator().manual_seed(1))
    for length in (13, 40):
        taps = torch.randn(length, generator=torch.Generator().manual_seed(2))
        y = ssconv.upfirdn3d(x, taps, padding=length // 2, up=2, down=(1, 2, 3), backend="cuda")
        exact = ssconv.upfirdn3d(x.double(), taps.double(), padding=length // 2, up=2, down=(1, 2, 3))
        assert deviation(y, exact) < 1e-6, f"{length} taps: off by {deviation(y, exact)}"
    try:
        cuda_backend.upfirdn(x, (None, None, torch.ones(4000)), (1, 1, 1), (1, 1, 1), (0, 0, 0, 0, 2000, 2000))
    except ValueError as error:
        assert "4000 taps" in str(error), error
    else:
        raise AssertionError("a filter that does not fit was not refused")


def surroundings() -> None:
    kernel_checks.surroundings("cuda")
    kernel_checks.infinities("cuda")


def kinks() -> None:
    kernel_checks.kinks("cuda")


def batches() -> None:
    kernel_checks.batches("cuda")


def orders() -> None:
    """The same bits in every order of threads, warps and blocks."""
    for name, dtype in (("split-depth", torch.bfloat16), ("acs4-half", torch.float32), ("transposed", torch.float16)):
        case = WIDE[name]
        tensors = tensors_of(case, dtype, requires_grad=True)
        leaves = list(tensors.values())
        runs = []
        for seed in (1, 2, 3):
            EMULATOR.set_seed(seed)
            y = case.call(ssconv, tensors, "cuda")
            gy = torch.ones_like(y) / 3
            runs.append([y, *torch.autograd.grad(y, leaves, gy)])
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True)), (
                f"{name}: the result depends on the order"
            )


def halves() -> None:
    """A batch of more voxels than 32 bits number has its weight gradient computed in two halves."""
    native = {"memory_format": torch.channels_last_3d}
    x, g = torch.randn(3, 48, 3, 7, 9).contiguous(**native), torch.randn(3, 144, 3, 7, 9).contiguous(**native)
    geometry = Geometry(WIDE["split-depth"].kernels)
    whole = cuda_backend.weight_grad(g, x, None, geometry)
    limit, plan.MAX_BATCH_VOXELS = plan.MAX_BATCH_VOXELS, 400
    try:
        halves = cuda_backend.weight_grad(g, x, None, geometry)
    finally:
        plan.MAX_BATCH_VOXELS = limit
    for one, other in zip(whole, halves, strict=True):
        assert deviation(other, one) < 1e-6


def accepted() -> None:
    """Which calls the backend accepts and refuses; torch.compile sees one graph."""
    assert ssconv.backends()["cuda"] == "available"
    x, weights = torch.zeros(1, 2, 2, 2, 2), [torch.zeros(1, 1, 1, 1, 1)] * 2
    expect = functools.partial(_refused, text="serves float32, bfloat16, float16 on cpu; got torch.float64")
    expect(lambda: ssconv.split_shuffle_conv3d(x.double(), [w.double() for w in weights], backend="cuda"))
    many = torch.zeros(1).expand(1, 2, 2**11, 2**10, 2**10)
    _refused(
        lambda: cuda_backend.epilogue(many, None, None, None, ssconv.spec.Epilogue()), "2048, 1024, 1024", ValueError
    )
    _refused(lambda: plan.grid(2**31), "2147483647 blocks", ValueError)
    size = ctypes.sizeof(structs.EpilogueParams)
    for bytes_given in (0, size - 8, size + 8):
        message = f"expected a struct of {size} bytes; got {bytes_given}"
        _refused(lambda n=bytes_given: EMULATOR.call("epilogue", bytes(n), 0), message)
    _refused(lambda: EMULATOR.call("produce", b"", 0), "there is no such kernel")
    _refused(lambda: EMULATOR.call("conv_sm80", bytes(structs.ConvSm80Params()), 0), "stages: expected 2, 3 or 4")
    _refused(
        lambda: EMULATOR.call("conv_sm90", bytes(structs.ConvSm90Call(branches=5)), 0), "branches: expected 1 to 4"
    )
    check_compiled("cuda", "cpu", "aot_eager")


def _refused(call: Callable[[], object], text: str, kind: type[Exception] = RuntimeError) -> None:
    try:
        call()
    except kind as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"not refused: {text}")


def quick() -> None:
    """Checks enough to notice a planted fault in the kernels for bf16."""
    names = "acs4-half", "grouped-half", "two-branches-few", "transposed", "stride-2", "eighteen-branches", "many-rows"
    for name in names:
        check_against_float64(WIDE[name], torch.bfloat16, "cuda", "cpu")
    for name in ("many-samples", "many-samples-aligned", "three-branches", "identity"):
        check(LARGE[name], torch.bfloat16)
    for name in ("split-depth-valid-stride-2", "shared-noise-negative-gain", "transposed-valid-stride-212"):
        check(CONV_CASES[name], torch.bfloat16)


def quick_filters() -> None:
    for case in UPFIRDN_CASES.values():
        check(case, torch.bfloat16)
    check(dataclasses.replace(UPFIRDN_CASES["up-2"], size=(9, 8, 17), channels=9), torch.bfloat16)


def halo_convolutions() -> None:
    halo_checks.MODULES.append(EMULATOR)
    halo_checks.unsupported_calls()
    halo_checks.convolutions()
    halo_checks.agreement()


def halo_quick() -> None:
    halo_checks.quick()


def sm90_primitives() -> None:
    sm90_checks.bulk_copies(EMULATOR)
    sm90_checks.bulk_faults(EMULATOR)
    sm90_checks.matrices(EMULATOR)
    sm90_checks.matrix_faults(EMULATOR)
    halo_checks.shifted_matrices(EMULATOR)


def sm90_convolutions() -> None:
    sm90_checks.MODULES.append(EMULATOR)
    sm90_checks.unsupported_calls()
    sm90_checks.convolutions()
    sm90_checks.agreement()


def sm90_quick() -> None:
    sm90_checks.quick()


def parities() -> None:
    sm90_checks.MODULES.append(EMULATOR)
    parity_checks.plans()
    parity_checks.served()
    parity_checks.adjoints()
    parity_checks.epilogues()
    parity_checks.schedules()


def parity_layers() -> None:
    parity_checks.layers()


def parity_quick() -> None:
    parity_checks.quick()


def clusters() -> None:
    sm90_checks.MODULES.append(EMULATOR)
    cluster_checks.primitives(EMULATOR)
    cluster_checks.agree()
    cluster_checks.adjoints()


def cluster_convolutions() -> None:
    cluster_checks.convolutions()


def cluster_quick() -> None:
    cluster_checks.quick()


def proving() -> None:
    """Every family proves itself by the user's own checks, in processes; then all are candidates for a call, and what
    serves gives the reference's result."""
    os.environ["SSCONV_EMULATOR"] = str(EMULATOR.__file__)
    trust.PROVIDER = "tests.support.emulated_families"
    choice.SECONDS, choice.REPEATS, choice.BEHIND = math.inf, 1, math.inf
    conv.TABLE = dataclasses.replace(table.TABLE, candidates=lambda key: itertools.islice(table.candidates(key), 2))
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        report = trust.verify(cpu)
        assert all(v.verdict == trust.TRUSTED and v.checks for v in report.verdicts.values()), str(report)
        x = torch.randn(1, 64, 2, 3, 5).bfloat16().contiguous(memory_format=torch.channels_last_3d)
        weights = [torch.randn(32, 32, *k).bfloat16() for k in SPLIT]
        args = x, weights, None, None, None, None, Geometry(SPLIT), ssconv.spec.Epilogue(2), False
        torch.use_deterministic_algorithms(False)
        y, _ = choice.convolve(*args)
        torch.use_deterministic_algorithms(True, warn_only=True)
        expected, _ = reference.convolve(*args)
        assert deviation(y, expected.double()) < 1e-2
        times = next(times for kind, _, times in ssconv.choices() if kind.startswith("convolve"))
        found = {label.partition("[")[0] for label in times}
        wanted = {*conv.CONV_FAMILIES, "pytorch"}
        assert found == wanted, f"candidates: {sorted(found)}, not {sorted(wanted)}"
        assert sum(label.startswith("sm90_halo[") for label in times) > 1, "one tiling only"
        assert sum(label.startswith("sm80_conv[") for label in times) > 1, "one configuration only"


CHECKS: dict[str, Callable[[], None]] = {
    c.__name__: c
    for c in (
        accepted, named, tiles, every_kernel, configurations, tf32, drawn_convolutions, drawn_filters,
        halo_convolutions, halo_quick,
        second_derivatives, filters, surroundings, kinks, batches, orders, halves, quick, quick_filters,
        sm90_primitives, sm90_convolutions, sm90_quick, parities, parity_layers, parity_quick,
        clusters, cluster_convolutions, cluster_quick, proving,
    )
}  # fmt: skip


def main(emulator: str, *names: str) -> int:
    global EMULATOR
    EMULATOR = emulated.load(Path(emulator))
    emulated.use(EMULATOR)
    torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty gives NaN
    torch.set_num_threads(1)
    with precision("ieee"):
        configure(few_splits)
        for name in names or CHECKS:
            try:
                CHECKS[name]()
            except (AssertionError, RuntimeError):
                traceback.print_exc()
                print(f"check failed: {name}", file=sys.stderr)
                return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
