"""Weight gradient (wgrad): per tap a GEMM whose K runs over voxels."""

import triton
import triton.language as tl

from ssconv.backend.triton.kernels.common import box_of, inside, offsets_at, wide


@triton.jit
def tap_shift(tap, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr):
    """Whether a branch of these extents has the tap, and its displacement from the window's centre."""
    has = (tap >= 0) & (tap < KD * KH * KW)
    return has, tap // (KH * KW) - (KD - 1) // 2, tap // KW % KH - (KH - 1) // 2, tap % KW - (KW - 1) // 2


@triton.jit(
    do_not_specialize=["N", "LOW_D", "LOW_H", "LOW_W", "HIGH_D", "HIGH_H", "HIGH_W", "boxes", "boxes_per_split"]
)
def wgrad_kernel(
    low_ptr, low_desc, low_scale_ptr, high_ptr, high_desc, high_scale_ptr, out_ptr,
    N, LOW_D, LOW_H, LOW_W, low_stride, HIGH_D, HIGH_H, HIGH_W, high_stride, LOW_CHANNELS, HIGH_CHANNELS,
    boxes, boxes_per_split,
    EXTENTS: tl.constexpr, TAP_OFFSETS: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr,
    BOX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out[split, tap, i, j] = sum over voxels p of low[p, i] * high[p*stride + shift(tap), j], float32.

    low has one voxel per window (the output's gradient; in a transposed convolution the input), high is what the
    windows move over; LOW_CHANNELS and HIGH_CHANNELS are theirs per branch. low_scale, high_scale (N, channels) or
    None: in_scale of that of the two which is the convolution's input.
    out (splits, taps of all branches, LOW_CHANNELS, HIGH_CHANNELS). A split sums boxes_per_split boxes in order, and
    the splits are added in order afterwards: the same bits every time.
    EXTENTS, TAP_OFFSETS, FIRST as in `conv_kernel`.

    Grid: (blocks of BM * blocks of BN, taps of all branches, splits).
    """
    S: tl.constexpr = len(EXTENTS)
    low_size = (N, LOW_D, LOW_H, LOW_W)
    high_size = (N, HIGH_D, HIGH_H, HIGH_W)
    blocks = tl.cdiv(HIGH_CHANNELS, BN)
    first_low = tl.program_id(0) // blocks * BM
    first_high = tl.program_id(0) % blocks * BN
    low_channel = first_low + tl.arange(0, BM)
    high_channel = first_high + tl.arange(0, BN)
    tap = tl.program_id(1)
    branch, shift_d, shift_h, shift_w = 0 * tap, 0 * tap, 0 * tap, 0 * tap
    for s in tl.static_range(S):
        if EXTENTS[s][0] > 0:
            here, d, h, w = tap_shift(tap - TAP_OFFSETS[s], EXTENTS[s][0], EXTENTS[s][1], EXTENTS[s][2])
            branch = tl.where(here, s, branch)
            shift_d = tl.where(here, d, shift_d)
            shift_h = tl.where(here, h, shift_h)
            shift_w = tl.where(here, w, shift_w)
    shift_d += FIRST[0]
    shift_h += FIRST[1]
    shift_w += FIRST[2]
    begin = tl.program_id(2) * boxes_per_split
    acc = tl.zeros([BM, BN], tl.float32)
    for box in tl.range(begin, tl.minimum(begin + boxes_per_split, boxes), num_stages=STAGES):
        p, p0 = box_of(box, low_size, BOX)
        low = load_tile(
            low_ptr, low_desc, low_scale_ptr, p, p0, low_size, low_stride, branch * LOW_CHANNELS, first_low, BM,
            LOW_CHANNELS, S, BOX,
        )  # fmt: skip
        q = (p[0], p[1] * STRIDE[0] + shift_d, p[2] * STRIDE[1] + shift_h, p[3] * STRIDE[2] + shift_w)
        q0 = (p0[0], p0[1] + shift_d, p0[2] + shift_h, p0[3] + shift_w)  # descriptors serve stride 1 only
        high = load_tile(
            high_ptr, high_desc, high_scale_ptr, q, q0, high_size, high_stride, branch * HIGH_CHANNELS, first_high, BN,
            HIGH_CHANNELS, S, BOX,
        )  # fmt: skip
        acc = tl.dot(tl.trans(low), high, acc, input_precision=PRECISION)
    at = (wide(tl.program_id(2)) * tl.num_programs(1) + tap) * LOW_CHANNELS
    mask = (low_channel < LOW_CHANNELS)[:, None] & (high_channel < HIGH_CHANNELS)[None, :]
    tl.store(out_ptr + (at + low_channel)[:, None] * HIGH_CHANNELS + high_channel[None, :], acc, mask)


@triton.jit
def load_tile(
    ptr, desc, scale_ptr, at, first, size, stride, branch_channel, first_channel, BC: tl.constexpr, CHANNELS,
    S: tl.constexpr, BOX: tl.constexpr,
):  # fmt: skip
    """A tile (voxels, BC) of one branch's channels, zero outside the volume, times scale[n, channel] if there is one.

    What a descriptor reads beyond the branch's channels belongs to another branch, and its sums are not stored.
    """
    n, d, h, w = at
    channel = first_channel + tl.arange(0, BC)
    channel_mask = (channel < CHANNELS)[None, :]
    in_batch = n < size[0]
    if desc is not None:
        M: tl.constexpr = BOX[0] * BOX[1] * BOX[2] * BOX[3]
        tile = tl.reshape(desc.load([first[0], first[1], first[2], first[3], branch_channel + first_channel]), [M, BC])
    else:
        mask = in_batch & inside(d, size[1]) & inside(h, size[2]) & inside(w, size[3])
        channels = wide(branch_channel + channel) * stride[1]
        pointers = ptr + offsets_at(n, d, h, w, stride)[:, None] + channels[None, :]
        tile = tl.load(pointers, mask[:, None] & channel_mask, 0)
    if scale_ptr is not None:
        pointers = scale_ptr + (wide(n) * (S * CHANNELS) + branch_channel)[:, None] + channel[None, :]
        scale = tl.load(pointers, in_batch[:, None] & channel_mask, 0)
        tile = (tile.to(tl.float32) * scale.to(tl.float32)).to(tile.dtype)
    return tile
