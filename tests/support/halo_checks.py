"""Checks of conv_sm90_halo, which keeps the halo in shared memory, on the emulator. Run by cuda_checks.py."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

import ssconv
from ssconv.backend.cuda import conv, runner, sm90, sm90_halo
from ssconv.backend.cuda.plan import Launch, Layout
from ssconv.backend.cuda.sm80 import ConvCall
from ssconv.spec import IDENTITY, Geometry
from tests.support import serving
from tests.support.gpu_checks import check_against_float64, deviation
from tests.support.kernel_checks import ACS4
from tests.support.sm90_checks import FULL, SEEDS, SHARED, SPLIT, address, aligned, bits, output_and_gradient, swizzle
from tests.support.strategies import ConvCase, Epilogue, tensors_of

# -------------------------------------------------------------------------------------------------- shifted matrices


def shifted_matrices(module: ModuleType) -> None:
    """wgmma reads 8 x 8 pixels of a halo from any pixel on, plain and in every swizzle."""
    for span, (rows, pitch), (down, right) in itertools.product(
        (0, 32, 64, 128), ((10, 10), (12, 11), (9, 18)), ((0, 0), (0, 1), (1, 2), (1, 0))
    ):
        depth = 32 if span == 0 else span // 2
        rng = np.random.default_rng(pitch)
        halo = rng.integers(-8, 9, (rows * pitch, depth)).astype(np.float32)
        other = rng.integers(-8, 9, (64, depth)).astype(np.float32)
        start = down * pitch + right
        if span:
            image = swizzle(bits(halo, False)).ravel()
            side = [span, 0, pitch * span, 32, 0, start * span]
        else:  # pieces of 8 channels
            image = bits(halo, False).reshape(-1, depth // 8, 8).transpose(1, 0, 2).ravel()
            plane = rows * pitch * 16
            side = [0, plane, pitch * 16, 2 * plane, 0, start * 16]
        columns = bits(other, False).reshape(8, 8, depth // 8, 8).transpose(0, 2, 1, 3).ravel()
        kept = []
        for one in (image, columns):
            kept.append(aligned((-(-one.size // 512) * 512,), np.uint16))
            kept[-1][: one.size] = one
        out = np.zeros((4, 8, 4, 8, 2, 2), np.float32)
        module.set_ranges([*((address(k), k.nbytes, False) for k in kept), (address(out), out.nbytes, True)])
        for seed in range(SEEDS):
            module.set_seed(seed)
            module.multiply(
                False, 64, address(kept[0]), kept[0].nbytes, address(kept[1]), kept[1].nbytes, side,
                [0, 128, 16 * depth, 256, 0], depth // 16, address(out), "",
            )  # fmt: skip
            found = out.transpose(0, 4, 1, 3, 2, 5).reshape(64, 64)
            pixels = halo.reshape(rows, pitch, depth)[down : down + 8, right : right + 8].reshape(64, depth)
            assert np.array_equal(found, pixels @ other.T), f"span {span}, a pitch of {pitch}, from pixel {start} on"


# ---------------------------------------------------------------------------------------------- convolutions

LAYOUTS = tuple(sm90_halo.LAYOUTS)


@contextmanager
def on_halo(family: str = "sm90_halo", least: int = 8, fixed: bool = False) -> Iterator[list[tuple[Any, ...]]]:
    """Lets the emulator stand for a card of 9.0 that runs conv_sm90_halo wherever it can, also for few channels.

    The list fills with its launches: (arithmetic, branches and columns of a block, channels of a chunk, swizzled,
    tile). Blocks compute all tiles or a few; tiles and chunks are in turn all that fit; fixed: the default.
    """
    used: list[tuple[Any, ...]] = []
    run, before, smallest = runner.run, conv.architecture, (sm90_halo.MIN_CHANNELS, sm90.MIN_CHANNELS)
    multiprocessors, configs, turn = conv.multiprocessors, sm90_halo.configs, [0]

    def noted(launch: Launch, *rest: Any) -> None:
        if launch.kernel == "conv_sm90_halo":
            p: Any = launch.params
            used.append((p.arithmetic, p.fused, p.tile_n, p.chunk_channels, p.swizzled, tuple(p.tile)))
            turn[0] += 1
        run(launch, *rest)

    def chosen(call: ConvCall, name: str) -> Iterator[sm90_halo.Tiling]:
        if sm90_halo.unsupported(*call.question()) is None:
            fitting = sm90_halo.tilings_of(call, sm90_halo.LAYOUTS[name])
            if fitting:
                yield fitting[(turn[0] * 5 + 3) % len(fitting)]

    runner.run, conv.architecture = noted, lambda device: 90
    sm90_halo.MIN_CHANNELS = sm90.MIN_CHANNELS = least
    conv.multiprocessors = lambda device: (1, 3)[turn[0] % 2]
    if not fixed:
        sm90_halo.configs = chosen
    forget()
    try:
        with serving.only(family, "sm90_wgrad"):
            yield used
    finally:
        runner.run, conv.architecture = run, before
        sm90_halo.MIN_CHANNELS, sm90.MIN_CHANNELS = smallest
        conv.multiprocessors, sm90_halo.configs = multiprocessors, configs
        forget()


def forget() -> None:
    for cached in (sm90_halo.unsupported, sm90_halo.conv_sm90_halo, sm90.conv_unsupported, sm90.wgrad_unsupported):
        cached.cache_clear()


NATIVE = {"epilogue": FULL, "layout": "channels_last"}
# Channels are a branch's. Together every instantiation, and sizes that no tile, chunk or stage divides.
CONVOLUTIONS = {
    "split-depth": ConvCase(SPLIT, 40, 72, 2, (3, 7, 9), seed=1, **NATIVE),
    "split-depth-scaled": ConvCase(SPLIT, 72, 40, 1, (2, 9, 5), in_scale=True, seed=2, **NATIVE),
    "split-depth-narrow": ConvCase(SPLIT, 16, 20, 2, (5, 5, 7), seed=3, **NATIVE),
    "grouped-valid": ConvCase(
        ((3, 1, 3), (1, 3, 1)), 24, 16, 1, (6, 9, 5), padding="valid", epilogue=SHARED, layout="channels_last", seed=5
    ),
    "dense": ConvCase(((3, 3, 1),), 40, 136, 1, (5, 6, 17), seed=6, **NATIVE),
    "dense-few": ConvCase(((5, 1, 1),), 16, 48, 2, (4, 3, 10), seed=7, **NATIVE),
    "dense-wide": ConvCase(((1, 1, 7),), 136, 24, 1, (2, 3, 9), seed=13, **NATIVE),
    "acs4": ConvCase(ACS4, 24, 40, 1, (3, 5, 9), seed=8, **NATIVE),
    "acs4-narrow": ConvCase(ACS4, 16, 11, 1, (3, 5, 6), seed=9, **NATIVE),
    "unshuffled": ConvCase(((1, 3, 1), (3, 1, 1), (1, 1, 3)), 16, 136, 1, (3, 4, 9), shuffle=False, seed=10, **NATIVE),
    "transposed": ConvCase(((3, 1, 5), (1, 3, 3)), 24, 40, 1, (3, 4, 9), transposed=True, seed=11, **NATIVE),
    "many-samples": ConvCase(((1, 1, 3), (1, 3, 1)), 16, 16, 7, (1, 3, 5), seed=12, **NATIVE),
}


def convolutions() -> None:
    """Outputs, first and second derivatives, in both formats and layouts; every instantiation and every chunk runs."""
    every = set()
    for number, case in enumerate(CONVOLUTIONS.values()):
        for dtype, turned in ((torch.bfloat16, 0), (torch.float16, 1)):
            with on_halo(LAYOUTS[(number + turned) % 2]) as used:
                check_against_float64(case, dtype, "cuda", "cpu")
            assert used, f"another kernel ran {case}"
            every |= set(used)
    wanted = {(a, s, c) for a in (0, 1) for s, columns in sm90_halo.TILE_N.items() for c in columns}
    assert wanted == {row[:3] for row in every}, f"never ran: {wanted - {row[:3] for row in every}}"
    assert {row[3:5] for row in every} == set(itertools.product(sm90_halo.CHUNKS, (0, 1)))
    tiles = {row[5] for row in every}
    assert len(tiles) >= 8, f"few tiles: {tiles}"


def agreement() -> None:
    """The results of sm_80's kernel, but for the order of additions; the same bits in every order of threads and in
    both layouts, and nearly the same for a sample alone."""
    for name in ("split-depth", "acs4-narrow", "many-samples"):
        case = CONVOLUTIONS[name]
        tensors = tensors_of(case, torch.bfloat16)
        other = case.call(ssconv, tensors, "cuda")
        one = {n: t[1:2] if n in ("x", "noise") or n.endswith("scale") else t for n, t in tensors.items()}
        runs, alone = [], []
        for layout in LAYOUTS:
            with on_halo(layout, fixed=True) as used:
                for seed in (1, 2):
                    MODULES[-1].set_seed(seed)
                    runs.append(case.call(ssconv, tensors, "cuda"))
                if case.batch > 1:
                    alone.append(case.call(ssconv, one, "cuda"))
            assert len(used) == 2 + (case.batch > 1)
        assert all(torch.equal(runs[0], run) for run in runs[1:]), (
            f"{name}: the result depends on the order or the layout"
        )
        for two in alone:
            assert deviation(two, runs[0][1:2]) < 5e-3, f"{name}: a sample alone gives another result"
        assert deviation(runs[0], other) < 5e-3, name


QUICK = ("grouped-valid", "transposed", "many-samples", "acs4-narrow", "split-depth-scaled", "unshuffled")


def quick() -> None:
    """Checks enough to notice a planted fault: outputs and gradients of x, in bf16 and both layouts."""
    every: set[tuple[int, int]] = set()  # channels of a chunk, and whether swizzled
    for number, name in enumerate(QUICK):
        case = CONVOLUTIONS[name]
        tensors = tensors_of(case, torch.bfloat16, requires_grad=True)
        wide = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
        with on_halo(LAYOUTS[number % 2]) as used:
            found = output_and_gradient(case, tensors, "cuda")
        assert used, f"another kernel ran {name}"
        every |= {row[3:5] for row in used}
        for one, exact in zip(found, output_and_gradient(case, wide, "reference"), strict=True):
            off = deviation(one, exact)
            assert off < 1e-2, f"{name}: off by {off:.3g} of its norm"
    assert {(32, 0), (32, 1)} <= every, f"chunks and layouts are only {every}"
    for layout in LAYOUTS:
        with on_halo(layout):
            no_infinity_spreads()


def no_infinity_spreads() -> None:
    """An infinity shows where a weight carries it: not in another branch, though chunks end within one, and not in what
    a stage of fewer taps has no weights for."""
    case = dataclasses.replace(CONVOLUTIONS["split-depth-narrow"], cin=24, epilogue=Epilogue(), batch=1)
    for at in ((0, slice(24, None)), (0, 3, 2, 1, 1), (0, 40, 2, 1, 1)):
        tensors = tensors_of(case, torch.bfloat16)
        tensors["x"][at] = torch.inf
        ones = {n: torch.ones_like(t).double() for n, t in tensors.items()}
        ones["x"] = tensors["x"].isinf().double()
        reached = case.call(ssconv, ones, "reference") != 0
        assert torch.equal(~case.call(ssconv, tensors, "cuda").isfinite(), reached), f"an infinity at {at} spreads"


def unsupported_calls() -> None:
    """It says which calls it does not compute."""
    geometry = Geometry(SPLIT)
    x = Layout.native(torch.bfloat16, (2, 64, 16, 16, 16))

    def reason_for(**changes: Any) -> str | None:
        call: dict[str, Any] = {
            "x": x, "geometry": geometry, "adjoint": False, "size": (16, 16, 16), "out_channels": 32, "groups": 2,
        }  # fmt: skip
        return sm90_halo.unsupported(**(call | changes))

    assert reason_for() is None and reason_for(adjoint=True, groups=1) is None
    assert reason_for(x=Layout.native(torch.bfloat16, (2, 32, 16, 16, 16)), out_channels=16) is None
    few = Layout.native(torch.bfloat16, (2, 16, 16, 16, 16))
    for text, reason in {
        "float32, not of 16": reason_for(x=Layout.native(torch.float32, (2, 64, 16, 16, 16))),
        "a stride": reason_for(geometry=Geometry(SPLIT, stride=(1, 2, 1)), size=(16, 8, 16)),
        "without weights": reason_for(geometry=Geometry(((3, 3, 3), IDENTITY))),
        "8 branches": reason_for(
            geometry=Geometry(((1, 3, 3),) * 8), groups=8, x=Layout.native(torch.bfloat16, (1, 256, 8, 8, 8))
        ),
        "8 channels to 32": reason_for(x=few),
        "32 channels to 8": reason_for(out_channels=8),
        "strides that": reason_for(x=dataclasses.replace(x, stride=(2**18, 1, 0, 1024, 64))),
        "side by side": reason_for(x=dataclasses.replace(x, aligned=False)),
        "more than 27 taps": reason_for(geometry=Geometry(((3, 3, 5), (1, 1, 3)))),
    }.items():
        assert reason is not None and text in reason, f"{text}: {reason}"
    for own in (32, 64, 128):
        assert sm90_halo.shared_bytes(own) <= 227 * 1024
    assert sm90_halo.tilings(((27, 1, 1),), 64, 128, 1, 1, (64, 8, 8), False), "no tile for a long kernel"


MODULES: list[ModuleType] = []  # the emulator, where agreement finds it
