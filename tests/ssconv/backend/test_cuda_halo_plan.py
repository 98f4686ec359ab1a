"""The plan of sm_90a's convolution with the halo in shared memory; its kernels run in test_cuda_kernels.py."""

from __future__ import annotations

import pytest

from benchmarks.gpu.cases import PLAIN_LAYERS
from benchmarks.operator.cases import KERNELS
from ssconv.backend.cuda import sm90_halo

SPLIT = ((3, 3, 3), (1, 3, 3))


@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("swizzled", [False, True], ids=["plain", "swizzled"])
def test_every_layer_has_tiles_and_the_first_loads_least(kernels, swizzled):
    for layer in PLAIN_LAYERS:
        count, size = len(kernels), (layer.edge,) * 3
        channels, columns = layer.channels // count, layer.out // count
        found = sm90_halo.tilings(kernels, channels, columns, count, layer.batch, size, swizzled)
        loaded = [_loaded(kernels, channels, layer.batch, size, tiling) for tiling in found]
        assert len(found) >= 2 and loaded == sorted(loaded)


def _loaded(kernels, channels, batch, size, tiling) -> int:
    """Elements that all tiles load, counted tile by tile along each dimension."""
    total = 0
    for kernel in kernels:
        starts = [range(0, n, t) for n, t in zip(size, tiling.tile, strict=True)]
        pixels = 1
        for along, t, k in zip(starts, tiling.tile, kernel, strict=True):
            pixels *= sum(t + k - 1 for _ in along)
        total += pixels * sum(tiling.chunk for _ in range(0, channels, tiling.chunk))
    return batch * total


@pytest.mark.parametrize("size", [(1, 16, 16), (2, 9, 40), (5, 64, 8), (7, 8, 100)])
def test_tiles_cover_the_volume_and_fit(size):
    for found in sm90_halo.tilings(SPLIT, 40, 40, 2, 3, size, False):
        d, h, w = found.tile
        assert d * h * w == 512 and h % 8 == w % 8 == 0
        assert (d + 2) * (h + 2) * (w + 2) * found.chunk * 2 <= sm90_halo.buffer_bytes(64)
    flat = sm90_halo.tilings(((1, 3, 3),) * 2, 32, 32, 2, 64, (1, 32, 32), False)[0]
    assert flat.tile[0] == 1, "a volume of one slice wants tiles of one"


def test_no_tile_fits_a_window_that_is_too_large():
    assert sm90_halo.tilings(((3, 3, 3), (1, 1, 27)), 64, 64, 2, 1, (27, 27, 27), False)
    assert not sm90_halo.tilings(((9, 9, 9), (1, 1, 27)), 64, 64, 2, 1, (27, 27, 27), False)
