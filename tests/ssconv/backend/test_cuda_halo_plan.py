"""The plan of sm_90a's convolution with the halo in shared memory; its kernels run in test_cuda_kernels.py."""

from __future__ import annotations

import pytest

from benchmarks.gpu.cases import PLAIN_LAYERS
from benchmarks.operator.cases import KERNELS
from ssconv.backend.cuda import clocks, sm90_halo

SPLIT = ((3, 3, 3), (1, 3, 3))


@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("swizzled", [False, True], ids=["plain", "swizzled"])
def test_every_layer_is_expected_to_be_quicker_than_by_im2col_copies(kernels, swizzled):
    for layer in PLAIN_LAYERS:
        count = len(kernels)
        channels, columns = layer.channels // count, layer.out // count
        if layer.stride != 1:
            continue
        size = (layer.edge,) * 3
        found = sm90_halo.tiling(kernels, channels, columns, count, layer.batch, size, swizzled, 132)
        other = clocks.im2col(kernels, channels, columns, layer.batch * layer.edge**3, count, 132)
        assert found.clocks < other and min(found.tile[1:]) >= sm90_halo.GROUP


@pytest.mark.parametrize("size", [(1, 16, 16), (2, 9, 40), (5, 64, 8), (7, 8, 100)])
def test_tiles_cover_the_volume_and_fit(size):
    for found in sm90_halo.tilings(SPLIT, 40, 40, 2, 3, size, False, 132):
        d, h, w = found.tile
        assert d * h * w == 512 and h % 8 == w % 8 == 0
        assert (d + 2) * (h + 2) * (w + 2) * found.chunk * 2 <= sm90_halo.buffer_bytes(64)
    flat = sm90_halo.tiling(((1, 3, 3),) * 2, 32, 32, 2, 64, (1, 32, 32), False, 132)
    assert flat.tile[0] == 1, "a volume of one slice wants tiles of one"


def test_no_tile_fits_a_window_that_is_too_large():
    assert sm90_halo.tiling(((3, 3, 3), (1, 1, 27)), 64, 64, 2, 1, (27, 27, 27), False, 132) is not None
    assert sm90_halo.tiling(((9, 9, 9), (1, 1, 27)), 64, 64, 2, 1, (27, 27, 27), False, 132) is None
