"""Checks of the emulator's primitives of sm_90a against NumPy, of the faults that it must notice, and of conv_sm90 and
wgrad_sm90, which are made of them. Run by cuda_checks.py."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

import ssconv
from ssconv.backend import reference
from ssconv.backend.cuda import conv, runner, sm90
from ssconv.backend.cuda import launch as cuda_backend
from ssconv.backend.cuda.plan import Launch, Layout
from ssconv.spec import IDENTITY, Geometry
from tests.support import serving
from tests.support.gpu_checks import check_against_float64, deviation
from tests.support.kernel_checks import ACS4
from tests.support.strategies import ConvCase, Epilogue, tensors_of

SEEDS = 4  # orders of everything, for what must be noticed in each


def address(a: np.ndarray) -> int:
    return a.__array_interface__["data"][0]


def aligned(shape: Sequence[int], dtype: type) -> np.ndarray:
    """Zeros at a multiple of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 64, np.uint8)
    start = -address(raw) % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def swizzle(rows: np.ndarray) -> np.ndarray:
    """Rows of 128, 64 or 32 bytes of 16-bit elements with their 16-byte chunks moved: in groups of 8 rows of 128 bytes,
    chunk c of the 128-byte line l goes to c ^ l; narrower rows share a line, and move within themselves."""
    count, width = rows.shape
    chunks = width // 8
    lines = np.arange(count) * chunks // 8
    moved = np.empty_like(rows).reshape(count, chunks, 8)
    for c in range(chunks):
        moved[np.arange(count), c ^ (lines % chunks)] = rows.reshape(count, chunks, 8)[:, c]
    return moved.reshape(count, width)


def must_fail(call: Callable[..., Any], *texts: str, **options: Any) -> None:
    try:
        call(**options)
    except RuntimeError as error:
        assert any(text in str(error) for text in texts), f"expected one of {texts}; got: {error}"
    else:
        raise AssertionError(f"not noticed: {texts}")


# ------------------------------------------------------------------------------------------------------ bulk copies


@dataclasses.dataclass(frozen=True)
class Box:
    """An im2col copy of x (N, D, H, W, C); triples are D, H, W."""

    size: tuple[int, int, int, int] = (2, 3, 4, 5)
    there: int = 24  # channels of the map; x has 32
    channels: int = 16
    pixels: int = 40
    lower: tuple[int, int, int] = (-1, -1, -1)
    upper: tuple[int, int, int] = (-1, -1, -1)
    step: tuple[int, int, int] = (1, 1, 1)
    first: int = 0  # number of the first output
    c: int = 0
    tap: tuple[int, int, int] = (0, 0, 0)


BOXES = {
    "3x3x3": Box(tap=(2, 0, 1)),
    "channels beyond the map": Box(c=16, tap=(1, 1, 1)),
    "past the last sample": Box(first=100, tap=(1, 2, 0)),
    "from the middle": Box(first=37, pixels=64, channels=32, tap=(0, 2, 2)),
    "3x1x1": Box(lower=(-1, 0, 0), upper=(-1, 0, 0), tap=(2, 0, 0)),
    "1x3x5": Box(lower=(0, -1, -2), upper=(0, -1, -2), tap=(0, 1, 4), first=13),
    "valid": Box(lower=(0, 0, 0), upper=(-2, -2, -2), tap=(1, 2, 2), first=3, pixels=24),
    "stride 2 along two": Box(size=(2, 5, 4, 7), lower=(-1, -1, -1), upper=(-1, -1, -2), step=(2, 1, 2), tap=(2, 1, 1)),
    "64 channels": Box(there=64, channels=64, size=(1, 2, 3, 4), pixels=24, tap=(1, 1, 1)),
}


def expected_box(x: np.ndarray, box: Box) -> np.ndarray:
    """(pixels, channels), by listing the base positions of the whole tensor."""
    spaces = [
        range(low, n + high, step)
        for n, low, high, step in zip(box.size[1:], box.lower, box.upper, box.step, strict=True)
    ]
    bases = list(itertools.product(range(box.size[0] + 3), *spaces))[box.first : box.first + box.pixels]
    out = np.zeros((box.pixels, box.channels), np.uint16)
    for row, (n, *base) in zip(out, bases, strict=True):
        at = [b + t for b, t in zip(base, box.tap, strict=True)]
        if n < box.size[0] and all(0 <= a < m for a, m in zip(at, box.size[1:], strict=True)):
            real = min(box.channels, box.there - box.c)
            if real > 0:
                row[:real] = x[(n, *at)][box.c : box.c + real]
    return out


def copy(module: ModuleType, box: Box, expected: int | None = None, faults: str = "", **other: Any) -> np.ndarray:
    """The box as it lies in shared memory; `other`: fields that the map has instead of the box's."""
    x = source(box)
    out = np.zeros((box.pixels, box.channels), np.uint16)
    module.set_ranges([(address(x), x.nbytes, False), (address(out), out.nbytes, True)])
    spaces = [
        range(low, n + high, step)
        for n, low, high, step in zip(box.size[1:], box.lower, box.upper, box.step, strict=True)
    ]
    base = list(itertools.product(range(box.size[0] + 3), *spaces))[box.first]
    made = dataclasses.replace(box, **other)
    strides = [s for s in x.strides[:4]]
    module.copy_im2col(
        address(x), list(box.size), strides, list(made.lower), list(made.upper), list(made.step), box.there,
        box.channels, box.pixels, box.c, list(base), list(box.tap), out.nbytes if expected is None else expected,
        address(out), faults,
    )  # fmt: skip
    return out


@functools.cache
def source(box: Box) -> np.ndarray:
    x = aligned((*box.size, max(32, box.there)), np.uint16)
    x[...] = np.random.default_rng(1).integers(1, 2**16, x.shape)
    return x


def bulk_copies(module: ModuleType) -> None:
    """Im2col boxes, tiles and plain bytes are where they should be, swizzled."""
    for name, box in BOXES.items():
        for seed in range(SEEDS):
            module.set_seed(seed)
            assert np.array_equal(copy(module, box), swizzle(expected_box(source(box), box))), name
    x = source(Box())
    for channels, swizzled in ((8, 0), (16, 32), (32, 64), (24, 0)):
        out = np.zeros((2, 2, 2, 3, channels), np.uint16)
        module.set_ranges([(address(x), x.nbytes, False), (address(out), out.nbytes, True)])
        strides = [x.strides[i] for i in (3, 2, 1, 0)]
        size, box = [32, 5, 4, 3, 2], [channels, 3, 2, 2, 2]
        module.copy_tile(address(x), size, strides, box, swizzled, 4, [1, -1, 2, 3], address(out))
        wanted = np.zeros_like(out)  # (n, d, h, w, c) from (1, -1, 2, 3, 4) on
        wanted[0, 1, :, :2, : 28 if channels > 28 else channels] = x[1, 0, 2:4, 3:5, 4 : 4 + channels]
        if swizzled:
            wanted = swizzle(wanted.reshape(-1, channels)).reshape(wanted.shape)
        assert np.array_equal(out, wanted), f"a tile of {channels} channels"
    out = np.zeros(512, np.uint16)
    module.set_ranges([(address(x), x.nbytes, False), (address(out), out.nbytes, True)])
    module.copy_bulk(address(x), 1024, address(out))
    assert np.array_equal(out, x.reshape(-1)[:512])


def bulk_faults(module: ModuleType) -> None:
    """Every mistake around a bulk copy is noticed, in every order of threads."""
    box = BOXES["3x1x1"]
    whole = box.pixels * box.channels * 2
    for seed in range(SEEDS):
        module.set_seed(seed)
        faulty = functools.partial(copy, module, box)
        must_fail(faulty, "more bytes arrive", expected=whole - 16)
        must_fail(faulty, "deadlock", expected=whole + 16)
        waited = "has not waited for that phase", "while an asynchronous copy to it is under way"
        must_fail(faulty, *waited, faults="no wait")
        must_fail(faulty, *waited, faults="the other parity")
        must_fail(faulty, "never initialised", faults="no initialisation")
        must_fail(faulty, "no fence made known", faults="no mbarrier fence")
        must_fail(faulty, "no barrier since its initialisation", "never initialised", faults="no barrier")
        must_fail(faulty, "no proxy fence", faults="stored before")
        must_fail(faulty, "asynchronous copy to it is under way", "not waited", faults="stored while")
        must_fail(faulty, "more arrivals", faults="arrives twice")
    expected = swizzle(expected_box(source(box), box))
    swapped = copy(module, box, lower=(0, 0, -1), upper=(0, 0, -1))
    assert not np.array_equal(swapped, expected), "corners in the wrong order do not show"
    must_fail(functools.partial(copy, module, box), "refuses the tensor", lower=(-17, 0, 0))


# ------------------------------------------------------------------------------------------------------------- wgmma


@dataclasses.dataclass(frozen=True)
class Operand:
    """How a matrix (rows, k) lies in shared memory. span: bytes of the swizzle, 0 for none. transposed: rows of the
    matrix, not k, run along the lines."""

    span: int
    transposed: bool = False

    def image(self, m: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Its bytes as uint16, and what its descriptor says: span, leading, stride, advance per 16 of K, transposed."""
        rows, depth = m.shape
        if self.span == 0:  # core matrices of 8 lines of 16 bytes, first along K, then along the rows
            lines = m.T if self.transposed else m
            tiles = lines.reshape(lines.shape[0] // 8, 8, lines.shape[1] // 8, 8).transpose(0, 2, 1, 3)
            across, along = 128, 128 * tiles.shape[1]  # bytes to the next core along the lines, and to the next 8 lines
            if self.transposed:  # stride is along M or N, leading along K
                return tiles.ravel(), [0, along, across, 2 * along, 1]
            return tiles.ravel(), [0, across, along, 2 * across, 0]
        width = self.span // 2
        if not self.transposed:
            assert depth == width
            return swizzle(m).ravel(), [self.span, 0, 8 * self.span, 32, 0]
        atoms = m.T.reshape(depth, rows // width, width).transpose(1, 0, 2)  # of `width` rows, lines along K
        image = np.concatenate([swizzle(atom) for atom in atoms])
        return image.ravel(), [self.span, depth * self.span, 8 * self.span, 2 * 8 * self.span, 1]


def bits(values: np.ndarray, half: bool) -> np.ndarray:
    t = torch.from_numpy(values).to(torch.float16 if half else torch.bfloat16)
    return t.view(torch.int16).numpy().view(np.uint16)


def multiply(
    module: ModuleType, a: Operand, b: Operand, n: int, half: bool = False, faults: str = "", change: int = -1
) -> tuple[np.ndarray, np.ndarray]:
    """What a wgmma gives, (64, n), and what it should. change: this number of b's descriptor is another."""
    depth = max([o.span // 2 for o in (a, b) if not o.transposed] + [32])
    if any(o.span == 32 and not o.transposed for o in (a, b)):
        depth = 16
    rng = np.random.default_rng(n)
    left, right = (rng.integers(-8, 9, (r, depth)).astype(np.float32) for r in (64, n))
    images, sides = zip(*(o.image(bits(m, half)) for o, m in ((a, left), (b, right))), strict=True)
    kept = []
    for image in images:
        kept.append(aligned((-(-image.size // 512) * 512,), np.uint16))  # whole KiB: the second begins at one
        kept[-1][: image.size] = image
    out = np.zeros((4, 8, 4, n // 8, 2, 2), np.float32)  # warp, lane / 4, lane % 4, i, half, e
    module.set_ranges([*((address(k), k.nbytes, False) for k in kept), (address(out), out.nbytes, True)])
    if change >= 0:
        sides[1][change] = {0: 192 - sides[1][0], 2: sides[1][2] * 2, 3: sides[1][3] * 2}[change]
    module.multiply(
        half, n, address(kept[0]), kept[0].nbytes, address(kept[1]), kept[1].nbytes, *map(list, sides), depth // 16,
        address(out), faults,
    )  # fmt: skip
    return out.transpose(0, 4, 1, 3, 2, 5).reshape(64, n), left @ right.T


def matrices(module: ModuleType) -> None:
    """Every swizzle of either side, along K and across it."""
    for span_a, span_b, across_a, across_b in itertools.product(
        (0, 32, 64, 128), (0, 32, 64, 128), *[(False, True)] * 2
    ):
        lines = {span for span, across in ((span_a, across_a), (span_b, across_b)) if span and not across}
        if len(lines) > 1:  # two lengths of K
            continue
        for n, half in ((64, False), (128, True)) if span_a == span_b else ((64, span_a == 0),):
            found, wanted = multiply(module, Operand(span_a, across_a), Operand(span_b, across_b), n, half)
            assert np.array_equal(found, wanted), f"{span_a} {across_a} by {span_b} {across_b}, {n} columns"
    found, wanted = multiply(module, Operand(128), Operand(0), 32)
    assert np.array_equal(found, wanted), "32 columns"


def matrix_faults(module: ModuleType) -> None:
    for seed in range(SEEDS):
        module.set_seed(seed)
        faulty = functools.partial(multiply, module, Operand(128), Operand(128), 64)
        must_fail(faulty, "no proxy fence since", faults="no proxy fence")
        must_fail(faulty, "since the last barrier", "no proxy fence since", faults="no barrier")
        must_fail(faulty, "no wgmma.fence", faults="no wgmma fence")
        must_fail(faulty, "no wgmma.fence", faults="no second fence")
        must_fail(faulty, "never committed", "never waited", faults="no commit")
        must_fail(faulty, "never waited for", faults="no wait")
        must_fail(faulty, "touched while a wgmma was under way", faults="accumulators touched")
        must_fail(faulty, "written while a wgmma reads it", faults="stored while")
    for span, change in ((64, 0), (128, 0), (128, 2), (128, 3)):
        found, wanted = multiply(module, Operand(span), Operand(span), 64, change=change)
        assert not np.array_equal(found, wanted), f"number {change} of a descriptor does not show"


# ---------------------------------------------------------------------------------------------- convolutions


# Those that `on_sm90` lets serve; clusters add others.
FAMILIES: list[tuple[str, ...]] = [("sm90_im2col", "sm90_wgrad")]


@contextmanager
def on_sm90(least: int = 8, architecture: int = 90) -> Iterator[list[tuple[Any, ...]]]:
    """Lets the emulator stand for a card of 9.0 without conv_sm90_halo, also for few channels. The list fills with the
    launches of conv_sm90 (arithmetic, branches and columns of a block, channels of a copy) and of wgrad_sm90."""
    used: list[tuple[Any, ...]] = []
    run, before, smallest = runner.run, conv.architecture, sm90.MIN_CHANNELS
    multiprocessors, counts = conv.multiprocessors, random.Random(1)

    def noted(launch: Launch, *rest: Any) -> None:
        p: Any = launch.params
        if launch.kernel == "conv_sm90":
            used.append((p.arithmetic, p.fused, p.tile_n, p.box_channels))
        if launch.kernel == "wgrad_sm90":
            used.append((p.arithmetic, "rows", p.tile_m, "split" if p.grid.y > 1 else "whole"))
        run(launch, *rest)

    runner.run, conv.architecture, sm90.MIN_CHANNELS = noted, lambda device: architecture, least
    conv.multiprocessors = lambda device: counts.choice((1, 9))  # all tiles by one block, and splits
    _forget()
    try:
        with serving.only(*FAMILIES[-1]):
            yield used
    finally:
        runner.run, conv.architecture, sm90.MIN_CHANNELS = run, before, smallest
        conv.multiprocessors = multiprocessors
        _forget()


def _forget() -> None:
    sm90.conv_unsupported.cache_clear()
    sm90.wgrad_unsupported.cache_clear()


SPLIT = ((3, 3, 3), (1, 3, 3))
FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 30.0)
SHARED = Epilogue(True, False, "shared", "lrelu", 0.1, -0.7, None)
NATIVE = {"epilogue": FULL, "layout": "channels_last"}
# Channels are a branch's. Together every instantiation, and sizes that no tile, box or step divides.
CONVOLUTIONS = {
    "split-depth": ConvCase(SPLIT, 40, 72, 2, (3, 7, 9), seed=1, **NATIVE),
    "split-depth-scaled": ConvCase(SPLIT, 33, 40, 1, (3, 5, 6), in_scale=True, seed=2, **NATIVE),
    "split-depth-narrow": ConvCase(SPLIT, 24, 20, 3, (3, 5, 7), seed=3, **NATIVE),
    "grouped-stride": ConvCase(((3, 3, 3), (3, 1, 3)), 16, 40, 2, (5, 6, 7), (2, 1, 2), seed=4, **NATIVE),
    "grouped-valid": ConvCase(
        ((5, 1, 3), (1, 3, 1)), 72, 12, 1, (6, 4, 5), padding="valid", epilogue=SHARED, layout="channels_last", seed=5
    ),
    "dense": ConvCase(((3, 1, 3),), 72, 136, 1, (5, 6, 7), seed=6, **NATIVE),
    "dense-few": ConvCase(((3, 1, 1),), 16, 48, 2, (4, 3, 5), seed=7, **NATIVE),
    "acs4": ConvCase(ACS4, 24, 40, 1, (4, 5, 9), seed=8, **NATIVE),
    "acs4-narrow": ConvCase(ACS4, 16, 11, 1, (3, 5, 6), seed=9, **NATIVE),
    "unshuffled": ConvCase(((1, 3, 1), (3, 1, 1), (1, 1, 3)), 16, 33, 1, (3, 4, 5), shuffle=False, seed=10, **NATIVE),
    "transposed": ConvCase(((3, 1, 5), (1, 3, 3)), 24, 40, 1, (3, 4, 5), transposed=True, seed=11, **NATIVE),
    "many-samples": ConvCase(((1, 1, 3), (1, 3, 1)), 16, 16, 19, (1, 3, 5), seed=12, **NATIVE),
}


def convolutions() -> None:
    """Outputs, first and second derivatives, in both formats; every instantiation and every box runs."""
    every = set()
    for case in CONVOLUTIONS.values():
        for dtype in (torch.bfloat16, torch.float16):
            with on_sm90() as used:
                check_against_float64(case, dtype, "cuda", "cpu")
            assert used, f"sm_80's kernel ran {case}"
            every |= set(used)
    wanted = {(a, s, c) for a in (0, 1) for s, columns in sm90.TILE_N.items() for c in columns}
    wanted |= {(a, "rows", rows) for a in (0, 1) for rows in (64, 128)}
    assert wanted == {row[:3] for row in every}, f"never ran: {wanted - {row[:3] for row in every}}"
    assert {row[3] for row in every} >= {*sm90.BOXES, "split", "whole"}


def agreement() -> None:
    """The results of sm_80's kernel, but for the order of additions; the same bits in every order of threads, and for a
    sample alone."""
    for name in ("split-depth", "acs4-narrow", "many-samples"):
        tensors = tensors_of(CONVOLUTIONS[name], torch.bfloat16)
        other = CONVOLUTIONS[name].call(ssconv, tensors, "cuda")
        with on_sm90():
            runs = []
            for seed in (1, 2, 3):
                MODULES[-1].set_seed(seed)
                runs.append(CONVOLUTIONS[name].call(ssconv, tensors, "cuda"))
            one = {n: t[1:2] if n in ("x", "noise") or n.endswith("scale") else t for n, t in tensors.items()}
            alone = CONVOLUTIONS[name].call(ssconv, one, "cuda") if CONVOLUTIONS[name].batch > 1 else runs[0][1:2]
        assert all(torch.equal(runs[0], run) for run in runs[1:]), f"{name}: the result depends on the order"
        assert torch.equal(alone, runs[0][1:2]), f"{name}: a sample alone gives another result"
        assert deviation(runs[0], other) < 5e-3, name


def quick() -> None:
    """Checks enough to notice a planted fault: outputs, gradients of x and the weights, in bf16."""
    for name in QUICK:
        case = dataclasses.replace(CONVOLUTIONS[name], batch=min(CONVOLUTIONS[name].batch, 9))
        tensors = tensors_of(case, torch.bfloat16, requires_grad=True)
        wide = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
        with on_sm90() as used:
            found = output_and_gradient(case, tensors, "cuda")
        assert used, f"sm_80's kernel ran {name}"
        for one, exact in zip(found, output_and_gradient(case, wide, "reference"), strict=True):
            off = deviation(one, exact)
            assert off < 1e-2, f"{name}: off by {off:.3g} of its norm"
    with on_sm90():
        no_infinity_spreads()
    split_sums()


def split_sums() -> None:
    """Gradients of weights over more voxels than the stages hold: without splits, and in splits."""
    case = dataclasses.replace(CONVOLUTIONS["dense-few"], epilogue=Epilogue(), size=(4, 9, 10), batch=3)
    tensors = tensors_of(case, torch.bfloat16)
    g = torch.randn(3, 48, 4, 9, 10).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    geometry = Geometry(case.kernels)
    (exact,) = reference.weight_grad(g.double(), tensors["x"].double(), None, geometry)
    with on_sm90() as used:
        for count in (1, 9):
            conv.multiprocessors = lambda device, count=count: count
            (found,) = cuda_backend.weight_grad(g, tensors["x"], None, geometry)
            off = deviation(found, exact)
            assert off < 1e-5, f"off by {off:.3g} of its norm"
    assert {row[3] for row in used} == {"split", "whole"}


QUICK = ("grouped-valid", "transposed", "many-samples", "acs4-narrow", "grouped-stride", "split-depth-scaled")


def output_and_gradient(case: ConvCase, tensors: dict[str, torch.Tensor], backend: str) -> list[torch.Tensor]:
    y = dataclasses.replace(case, epilogue=dataclasses.replace(case.epilogue, activation="linear", clamp=None)).call(
        ssconv, tensors, backend
    )
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(y.dtype)
    leaves = [t for n, t in tensors.items() if n == "x" or n.startswith("weights")]
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def no_infinity_spreads() -> None:
    """An infinity shows where a weight carries it: not in another branch, though steps of K end within one, and not
    beyond the taps, though there are steps with fewer of them."""
    case = dataclasses.replace(CONVOLUTIONS["split-depth-narrow"], epilogue=Epilogue(), batch=1)
    for at in ((0, slice(24, None)), (0, 3, 2, 1, 1), (0, 40, 2, 1, 1)):
        tensors = tensors_of(case, torch.bfloat16)
        tensors["x"][at] = torch.inf
        ones = {n: torch.ones_like(t).double() for n, t in tensors.items()}
        ones["x"] = tensors["x"].isinf().double()
        reached = case.call(ssconv, ones, "reference") != 0
        assert torch.equal(~case.call(ssconv, tensors, "cuda").isfinite(), reached), f"an infinity at {at} spreads"


def unsupported_calls() -> None:
    """The kernels of sm_90a say which calls they do not compute."""
    geometry = Geometry(SPLIT)
    x = Layout.native(torch.bfloat16, (2, 64, 8, 8, 8))

    def reason_for(**changes: Any) -> str | None:
        call: dict[str, Any] = {
            "x": x, "geometry": geometry, "adjoint": False, "size": (8, 8, 8), "out_channels": 32, "groups": 2,
        }  # fmt: skip
        return sm90.conv_unsupported(**(call | changes))

    assert reason_for() is None
    views = dataclasses.replace(x, stride=(2**18, 1, 0, 512, 64)), dataclasses.replace(x, aligned=False)
    for text, reason in {
        "float32, not of 16": reason_for(x=Layout.native(torch.float32, (2, 64, 8, 8, 8))),
        "without weights": reason_for(geometry=Geometry(((3, 3, 3), IDENTITY))),
        "8 branches": reason_for(
            geometry=Geometry(((1, 3, 3),) * 8), groups=8, x=Layout.native(torch.bfloat16, (1, 256, 8, 8, 8))
        ),
        "8 channels to 32": reason_for(x=Layout.native(torch.bfloat16, (2, 16, 8, 8, 8))),
        "32 channels to 16": reason_for(out_channels=16),
        "strides that": reason_for(x=views[0]),
        "side by side": reason_for(x=views[1]),
        "a kernel that reaches": reason_for(geometry=Geometry(((1, 1, 33), (1, 1, 3)))),
        "too far outside": reason_for(
            geometry=Geometry(((1, 1, 3), (1, 1, 31)), padding="valid"), adjoint=True, size=(8, 8, 38)
        ),
        "more outputs": reason_for(x=Layout.native(torch.bfloat16, (8, 64, 1024, 512, 512)), size=(1024, 512, 512)),
    }.items():
        assert reason is not None and text in reason, f"{text}: {reason}"
    with on_sm90():
        cpu = torch.device("cpu")
        assert conv.sm90_unavailable(cpu) is None
        runner.has_sm90a = False
        assert "no code for sm_90a" in str(conv.sm90_unavailable(cpu))
        runner.has_sm90a = True
    for architecture in (80, 100, 120):
        with on_sm90(architecture=architecture):
            assert "not 9.0" in str(conv.sm90_unavailable(cpu))


MODULES: list[ModuleType] = []  # the emulator, where agreement finds it
