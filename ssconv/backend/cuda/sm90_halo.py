"""The product of sm_90a that keeps a tile's input with its halo in shared memory: when it serves a call, and what it
launches (csrc/cuda/conv_sm90_halo.cuh). Pure functions of shapes, as `cuda_hopper`, whose product serves the rest.

SSCONV_HALO in the environment says how pixels lie in shared memory: "plain" (the default), or "swizzled", which is
expected to be quicker and relies on a reading of the PTX ISA that no GPU has confirmed yet; 0 turns the product off.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any, NamedTuple

from ssconv.backend.cuda import clocks as cuda_clocks
from ssconv.backend.cuda import sm90 as cuda_hopper
from ssconv.backend.cuda.plan import Call, Launch, Layout, Numbers, Product, epilogue_of, geometry_of, grid
from ssconv.backend.gpu import FUSED
from ssconv.spec import ABSENT, IDENTITY, ConvSpec, Triple

SWITCH = "SSCONV_HALO"
LAYOUTS = ("plain", "swizzled")
COLUMNS = {1: (32, 64, 128), 2: (32, 64, 128), 4: (32, 64)}  # of a block by the branches that it computes
LEAST = 16  # channels of a branch, in and out, below which most of a tile is padding [estimate]
CHUNKS = (64, 32, 16)  # channels that are in shared memory at a time
GROUP = 8  # outputs along W, and along H, of a matrix of wgmma
MOST_TAPS = 27
MOST_TILES = 2**31 - 1


class Tiling(NamedTuple):
    """Outputs of a tile (D, H, W), channels of a chunk, the clocks that the call is expected to take, and those of what
    it brings, which decide between equals."""

    tile: Triple
    chunk: int
    clocks: float
    bringing: float


def layout() -> str | None:
    """How pixels lie, None where the product is turned off.

    Raises:
        ValueError: SSCONV_HALO is none of its values.
    """
    asked = os.environ.get(SWITCH, LAYOUTS[0])
    if asked not in ("0", *LAYOUTS):
        raise ValueError(f"{SWITCH}: expected 0, plain or swizzled; got {asked!r}")
    return None if asked == "0" else asked


def matrices(together: int, own: int) -> int:
    """Of 64 outputs, of a tile: as many as two warpgroups have registers for."""
    return 4 if own == 128 or together * own > 128 else 8


def stages(own: int) -> int:
    """Of the ring of weights."""
    return {128: 4, 64: 12, 32: 16}[own]


def buffer_bytes(own: int) -> int:
    """Of one of the two buffers of inputs: what the weights leave."""
    return (225 * 1024 - stages(own) * own * 128) // 2 // 1024 * 1024


def shared_bytes(own: int) -> int:
    """Of a block, with its mbarriers."""
    return stages(own) * (own * 128 + 16) + 2 * (buffer_bytes(own) + 16) + 8


def _input_bytes(kernel: Triple, tile: Triple, chunk: int, swizzled: bool) -> int:
    """Of a chunk in its buffer."""
    pixels = 1
    for t, k in zip(tile, kernel, strict=True):
        pixels *= t + k - 1
    pieces, pixel = (1, chunk * 2) if swizzled else (chunk // 8, 16)
    return pieces * -(-pixels * pixel // 128) * 128


def _tiles(batch: int, size: tuple[int, ...], tile: Triple) -> list[int]:
    """Samples, and tiles along D, H and W."""
    return [batch, *(-(-n // t) for n, t in zip(size, tile, strict=True))]


def block_columns(columns: int, together: int) -> int:
    """Columns of a block that computes so many branches of so many columns."""
    return next((c for c in COLUMNS[together] if c >= columns), COLUMNS[together][-1])


def tilings(
    branches: tuple[Triple, ...], channels: int, columns: int, together: int, batch: int, size: tuple[int, ...],
    swizzled: bool, multiprocessors: int,
) -> list[Tiling]:  # fmt: skip
    """Every tile and chunk whose input fits. channels, columns: of a branch; size: of the output; together: branches of
    a block."""
    own = block_columns(columns, together)
    count = matrices(together, own)
    widest = next((c for c in reversed(CHUNKS) if c >= channels), CHUNKS[0])  # wider ones are padding
    found = []
    for d, down in itertools.product((1, 2, 4, 8), repeat=2):
        if count % (d * down):
            continue
        tile = (d, down * GROUP, count // d // down * GROUP)
        n, *along = _tiles(batch, size, tile)
        work = n * along[0] * along[1] * along[2] * -(-columns // own) * len(branches) // together
        for chunk in CHUNKS:
            fits = all(_input_bytes(kernel, tile, chunk, swizzled) <= buffer_bytes(own) for kernel in branches)
            if chunk <= widest and fits and work <= MOST_TILES:
                expected = cuda_clocks.halo(
                    branches, channels, chunk, tile, own, swizzled, work, together, multiprocessors
                )  # fmt: skip
                found.append(Tiling(tile, chunk, *expected))
    return found


@functools.lru_cache(4096)
def tiling(*call: Any) -> Tiling | None:
    """The one of `tilings` that is expected to be quickest, or None."""
    return min(tilings(*call), key=lambda t: (t.clocks, t.bringing), default=None)


def _tiling_of(
    x: Layout, spec: ConvSpec, size: tuple[int, ...], columns: int, groups: int, swizzled: bool, multiprocessors: int
) -> Tiling | None:
    count = len(spec.branches)
    together = count if groups > 1 else 1
    return tiling(spec.branches, x.shape[1] // count, columns, together, x.shape[0], size, swizzled, multiprocessors)


@functools.lru_cache(4096)
def refusal(
    x: Layout, spec: ConvSpec, adjoint: bool, size: tuple[int, ...], columns: int, groups: int, swizzled: bool,
    multiprocessors: int,
) -> str | None:  # fmt: skip
    """Why this product does not serve a call, or None where it does. x: as products read it."""
    count = len(spec.branches)
    channels = x.shape[1] // count
    if spec.stride != (1, 1, 1):
        return "a stride"
    if any(kernel in (IDENTITY, ABSENT) for kernel in spec.branches):
        return "a branch without weights"
    if count > cuda_hopper.BRANCHES or (groups > 1 and count not in FUSED):
        return f"{count} branches"
    if channels < LEAST or columns < LEAST:
        return f"{channels} channels to {columns} of a branch, fewer than {LEAST}"
    if any(d * h * w > MOST_TAPS for d, h, w in spec.branches):
        return f"a kernel of more than {MOST_TAPS} taps"
    if reason := cuda_hopper.unread(x, channels):
        return reason
    found = _tiling_of(x, spec, size, columns, groups, swizzled, multiprocessors)
    if found is None:
        return "no tile whose input fits into shared memory"
    if cuda_hopper.refusal(x, spec, adjoint, size, columns, groups) is not None:
        return None
    outputs = x.shape[0] * size[0] * size[1] * size[2]
    other = cuda_clocks.im2col(
        spec.branches, channels, columns, outputs, count if groups > 1 else 1, multiprocessors
    )  # fmt: skip
    if not quicker(found.clocks, other):
        return f"{found.clocks:.0f} clocks expected, and {other:.0f} by im2col copies"
    return None


def quicker(halo: float, im2col: float) -> bool:
    """Whether to take it, by the clocks expected of both."""
    return halo < im2col


@functools.lru_cache(4096)
def product(call: Call, swizzled: bool, multiprocessors: int) -> Product:
    """As `cuda_plans.product`, for a call that is not refused."""
    x, channels, weights, swap, noise, spec, adjoint, size, columns, groups, clamped, kind = call
    count = len(spec.branches)
    together = count if groups > 1 else 1
    own = block_columns(columns, together)
    there = x.shape[1] // count
    found = _tiling_of(x, spec, size, columns, groups, swizzled, multiprocessors)
    assert found is not None, "refused"
    tile, chunk = found.tile, found.chunk
    chunks, blocks = -(-there // chunk), -(-columns // own)
    n, *along = _tiles(x.shape[0], size, tile)
    tiles = n * along[0] * along[1] * along[2]
    work = blocks * tiles * count // together
    rows, packs, total = [], [], 0
    for number, (kernel, stride) in enumerate(zip(spec.branches, weights, strict=True)):
        row = [*kernel, number, total, *[0] * 7]
        rows.append(row)
        swapped = (stride[1], stride[0], *stride[2:]) if swap else stride
        packs.append([f"weight{number}", *swapped, *row])
        steps = -(-kernel[0] * kernel[1] * kernel[2] * chunk // cuda_hopper.STEP)
        total += blocks * chunks * steps * own * cuda_hopper.STEP // x.per_chunk
    pack_numbers: Numbers = [
        *grid(min(256, -(-total // 128)), count), "packed", channels, chunks * chunk, columns, own, 8 // together,
        chunk, *geometry_of(spec, adjoint), count, *itertools.chain.from_iterable(packs),
    ]  # fmt: skip
    numbers: Numbers = [
        *grid(min(work, multiprocessors)), together, own, *x.volume("x"), "packed", "y", "z", *size, there, chunk,
        int(swizzled), columns, count, *geometry_of(spec, adjoint), *epilogue_of(noise, clamped), *tile, work, blocks,
        tiles, *along, count, *itertools.chain.from_iterable(rows),
    ]  # fmt: skip
    launches = (
        Launch.make("pack_weights", kind, pack_numbers, ["packed"]),
        Launch.make("conv_sm90_halo", kind, numbers, ["y", "z"]),
    )
    return Product((launches,), (total * x.per_chunk,))
