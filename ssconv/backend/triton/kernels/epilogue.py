"""The epilogue by itself, and its backward. Both are bound by memory."""

import triton
import triton.language as tl

from ssconv.backend.triton.kernels.common import apply_epilogue, interleave, offsets_at, store_tile, wide


@triton.jit
def offsets_of(n, voxel, size, stride, DENSE: tl.constexpr):
    """Offsets of voxels given by their number within a sample. DENSE: neighbours have one distance throughout."""
    if DENSE:
        offsets = wide(n) * stride[0] + wide(voxel) * stride[4]
    else:
        w = voxel % size[2]
        h = voxel // size[2] % size[1]
        d = voxel // size[2] // size[1]
        offsets = offsets_at(n, d, h, w, stride)
    return offsets


@triton.jit
def branch_order(channel, C, S: tl.constexpr):
    """Position in branch order of a channel of the shuffled order."""
    return channel % S * (C // S) + channel // S


@triton.jit
def load_shuffled(ptr, offsets, first, rows, stride_c, C, S: tl.constexpr, BC: tl.constexpr):
    """A tile (M, BC), float32: the channels first .. first + BC of shuffle(t), for a tensor t in branch order."""
    if S == 1 or S == 2 or S == 4:  # load each branch's channels side by side, interleave them in registers
        lanes = first // S + tl.arange(0, BC // S)
        mask = rows[:, None] & (lanes < C // S)[None, :]
        pointers = ptr + offsets[:, None] + (wide(lanes) * stride_c)[None, :]
        part = wide(C // S) * stride_c
        a = tl.load(pointers, mask, 0).to(tl.float32)
        b = a
        c = a
        d = a
        if S >= 2:
            b = tl.load(pointers + part, mask, 0).to(tl.float32)
        if S == 4:
            c = tl.load(pointers + 2 * part, mask, 0).to(tl.float32)
            d = tl.load(pointers + 3 * part, mask, 0).to(tl.float32)
        tile = interleave(a, b, c, d, S)
    else:
        channels = first + tl.arange(0, BC)
        mask = rows[:, None] & (channels < C)[None, :]
        order = wide(branch_order(channels, C, S)) * stride_c
        tile = tl.load(ptr + offsets[:, None] + order[None, :], mask, 0).to(tl.float32)
    return tile


@triton.jit(do_not_specialize=["D", "H", "W", "noise_stride", "slope", "gain"])
def epilogue_kernel(
    z_ptr, bias_ptr, scale_ptr, noise_ptr, y_ptr, D, H, W, z_stride, noise_stride, slope, gain, clamp, C,
    S: tl.constexpr, DENSE: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = clamp(gain * lrelu(scale * shuffle(z) + noise + bias)) for z (N, C, D, H, W) in branch order.

    Grid: (N * blocks of BV voxels of a sample, blocks of BC channels).
    """
    count = D * H * W
    blocks = tl.cdiv(count, BV)
    n = tl.program_id(0) // blocks
    voxel = tl.program_id(0) % blocks * BV + tl.arange(0, BV)
    rows = voxel < count
    first = tl.program_id(1) * BC
    channels = first + tl.arange(0, BC)
    mask = rows[:, None] & (channels < C)[None, :]
    offsets = offsets_of(n, voxel, (D, H, W), z_stride, DENSE)
    z = load_shuffled(z_ptr, offsets, first, rows, z_stride[1], C, S, BC)
    samples = n + 0 * voxel
    y = apply_epilogue(
        z, samples, voxel, channels, mask, C, bias_ptr, scale_ptr, noise_ptr, noise_stride, slope, gain, clamp
    )
    store_tile(y_ptr, y, (wide(n) * count + voxel) * C, channels, mask)


@triton.jit(do_not_specialize=["D", "H", "W", "slope", "gain", "clamp"])
def epilogue_backward_kernel(
    gy_ptr, y_ptr, z_ptr, scale_ptr, gz_ptr, bias_sums_ptr, noise_sums_ptr, scale_sums_ptr,
    D, H, W, gy_stride, y_stride, z_stride, slope, gain, clamp, C,
    S: tl.constexpr, GY_DENSE: tl.constexpr, Y_DENSE: tl.constexpr, Z_DENSE: tl.constexpr, CLAMPED: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Gradients of the epilogue's inputs, with pre = gy * dy / d(scale * shuffle(z) + noise + bias):

    gz (N, C, D, H, W), in branch order: unshuffle(scale * pre).
    bias_sums, scale_sums (N, blocks, C), float32: sums over a block's voxels of pre, and of pre * shuffle(z).
    noise_sums (N, D*H*W), float32: sums over the channels of pre.
    The sums may be None.

    Grid: (N * blocks of BV voxels of a sample,).
    """
    size = (D, H, W)
    count = D * H * W
    blocks = tl.cdiv(count, BV)
    n = tl.program_id(0) // blocks
    voxel = tl.program_id(0) % blocks * BV + tl.arange(0, BV)
    rows = voxel < count
    gy_at = offsets_of(n, voxel, size, gy_stride, GY_DENSE)
    y_at = offsets_of(n, voxel, size, y_stride, Y_DENSE)
    gz_at = (wide(n) * count + voxel) * C
    sums_at = wide(tl.program_id(0)) * C
    noise = tl.zeros([BV], tl.float32)
    for first in range(0, C, BC):
        channels = first + tl.arange(0, BC)
        channel_mask = channels < C
        mask = rows[:, None] & channel_mask[None, :]
        pointers = gy_ptr + gy_at[:, None] + (wide(channels) * gy_stride[1])[None, :]
        pre = tl.load(pointers, mask, 0).to(tl.float32) * gain
        y = tl.load(y_ptr + y_at[:, None] + (wide(channels) * y_stride[1])[None, :], mask, 0).to(tl.float32)
        pre = tl.where(tl.where(gain > 0, y, -y) > 0, pre, pre * slope)
        if CLAMPED:
            pre = tl.where(tl.abs(y) < clamp, pre, 0.0)
        if bias_sums_ptr is not None:
            tl.store(bias_sums_ptr + sums_at + channels, tl.sum(pre, 0), channel_mask)
        if noise_sums_ptr is not None:
            noise += tl.sum(pre, 1)
        if z_ptr is not None:
            z_at = offsets_of(n, voxel, size, z_stride, Z_DENSE)
            z = load_shuffled(z_ptr, z_at, first, rows, z_stride[1], C, S, BC)
            tl.store(scale_sums_ptr + sums_at + channels, tl.sum(pre * z, 0), channel_mask)
        if scale_ptr is not None:
            pre *= tl.load(scale_ptr + wide(n) * C + channels, channel_mask, 0).to(tl.float32)[None, :]
        if S == 2 or S == 4:  # un-shuffle in registers, store each branch's channels side by side
            BRANCH: tl.constexpr = BC // S
            lanes = first // S + tl.arange(0, BRANCH)
            mask = rows[:, None] & (lanes < C // S)[None, :]
            if S == 2:
                a, b = tl.split(tl.reshape(pre, [BV, BRANCH, 2]))
                store_tile(gz_ptr, a, gz_at, lanes, mask)
                store_tile(gz_ptr, b, gz_at, C // 2 + lanes, mask)
            else:
                even, odd = tl.split(tl.reshape(pre, [BV, BRANCH, 2, 2]))
                a, c = tl.split(even)
                b, d = tl.split(odd)
                store_tile(gz_ptr, a, gz_at, lanes, mask)
                store_tile(gz_ptr, b, gz_at, C // 4 + lanes, mask)
                store_tile(gz_ptr, c, gz_at, C // 4 * 2 + lanes, mask)
                store_tile(gz_ptr, d, gz_at, C // 4 * 3 + lanes, mask)
        else:
            store_tile(gz_ptr, pre, gz_at, branch_order(channels, C, S), mask)
    if noise_sums_ptr is not None:
        tl.store(noise_sums_ptr + wide(n) * count + voxel, noise, rows)
