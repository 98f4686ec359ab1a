"""upfirdn: zero-insert, filter with a separable FIR, decimate (Karras et al. 2020) in three dimensions."""

import triton
import triton.language as tl

from ssconv.backend.triton.kernels.common import store_tile, wide


@triton.jit(do_not_specialize=["D", "H", "W", "YD", "YH", "YW", "PD", "PH", "PW"])
def upfirdn_kernel(
    x_ptr, taps_d_ptr, taps_h_ptr, taps_w_ptr, y_ptr, D, H, W, x_stride, YD, YH, YW, PD, PH, PW, C,
    UP: tl.constexpr, DOWN: tl.constexpr, LENGTHS: tl.constexpr, REPLICATE: tl.constexpr,
    FOLDED: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y[o] = sum over taps t of f[length - 1 - t] * x'[o*down + t - padding], along D, H and W one after the other.

    x' is x with up - 1 zeros after every sample and zeros outside. x (N, C, D, H, W), y (N, C, YD, YH, YW); PD, PH, PW:
    the padding before, negative to crop. taps: a filter per dimension, or None. LENGTHS: theirs, 1 for None.
    REPLICATE: along D x' repeats the outer slices. FOLDED: how many outputs beyond the first along D, and beyond the
    last, are added to those.

    Grid: (N * blocks of BV voxels of a sample, blocks of BC channels).
    """
    count = YD * YH * YW
    blocks = tl.cdiv(count, BV)
    n = tl.program_id(0) // blocks
    voxel = tl.program_id(0) % blocks * BV + tl.arange(0, BV)
    rows = voxel < count
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    channel_mask = (channels < C)[None, :]
    slices = voxel // YW // YH
    h = voxel // YW % YH * DOWN[1] - PH
    w = voxel % YW * DOWN[2] - PW
    base = x_ptr + wide(n) * x_stride[0] + (wide(channels) * x_stride[1])[None, :]
    acc = tl.zeros([BV, BC], tl.float32)
    for beyond in range(-FOLDED[0], FOLDED[1] + 1):
        border = (beyond == 0) | ((beyond < 0) & (slices == 0)) | ((beyond > 0) & (slices == YD - 1))
        d = (slices + beyond) * DOWN[0] - PD
        for i in range(0, (LENGTHS[0] + UP[0] - 1) // UP[0]):  # the taps that can meet a sample of x
            at_d, f_d, in_d = tap_at(d, i, taps_d_ptr, LENGTHS[0], UP[0], D, REPLICATE)
            for j in range(0, (LENGTHS[1] + UP[1] - 1) // UP[1]):
                at_h, f_h, in_h = tap_at(h, j, taps_h_ptr, LENGTHS[1], UP[1], H, False)
                for k in range(0, (LENGTHS[2] + UP[2] - 1) // UP[2]):
                    at_w, f_w, in_w = tap_at(w, k, taps_w_ptr, LENGTHS[2], UP[2], W, False)
                    mask = rows & border & in_d & in_h & in_w
                    offset = wide(at_d) * x_stride[2] + wide(at_h) * x_stride[3] + wide(at_w) * x_stride[4]
                    x = tl.load(base + offset[:, None], mask[:, None] & channel_mask, 0).to(tl.float32)
                    acc += x * (f_d * f_h * f_w)[:, None]
    store_tile(y_ptr, acc, (wide(n) * count + voxel) * C, channels, rows[:, None] & channel_mask)


@triton.jit
def tap_at(position, i, taps_ptr, length: tl.constexpr, up: tl.constexpr, size, replicate: tl.constexpr):
    """The i-th tap that meets a sample of x, for a filter that begins at `position` of the zero-inserted x'.

    replicate: the samples beyond both ends of x are its outer ones.

    Returns the sample's position in x, the tap's value, and whether there is such a tap (its value is 0 if not).
    """
    skipped = tl.where(position < 0, (-position) % up, (up - position % up) % up)  # taps on inserted zeros come first
    tap = skipped + i * up
    at = position + tap  # a multiple of up, possibly negative
    meets = tap < length
    if replicate:
        at = tl.minimum(tl.maximum(at, 0), (size - 1) * up)
    else:
        meets = meets & (at >= 0) & (at < size * up)
    value = meets.to(tl.float32)
    if taps_ptr is not None:
        value = tl.load(taps_ptr + length - 1 - tap, meets, 0).to(tl.float32)
    return at // up, value, meets
