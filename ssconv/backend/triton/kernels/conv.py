"""Forward and input gradient (fprop and dgrad) in one kernel, an implicit GEMM.

A tile of voxels (M) times a tile of a branch's output channels (N), summed over taps and input channels (K): each step
multiplies the voxels' inputs, displaced by one tap, with that tap's weights.

Every output gathers. In fprop the output at window centre q reads the inputs q*stride + shift(tap). In the adjoint
(transposed convolution, input gradient) an output reads the inputs p with p*stride + shift(tap) = output: fewer taps,
at smaller displacements, for each phase of the output modulo the stride. In both, the taps that count and their
displacements are arithmetic progressions: `taps_of`.
"""

import triton
import triton.language as tl

from ssconv.backend.triton.kernels.common import (
    apply_epilogue,
    box_of,
    inside,
    interleave,
    offsets_at,
    store_tile,
    wide,
)


@triton.jit
def taps_of(phase, EXTENT: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr, ADJOINT: tl.constexpr):
    """Along one dimension, for outputs of one phase modulo the stride: how many taps reach them, the first tap, and
    its displacement.

    From one tap to the next: in the adjoint the tap grows by STRIDE and its displacement falls by 1, else both grow
    by 1.
    """
    HALF: tl.constexpr = (EXTENT - 1) // 2
    if ADJOINT:
        reach = phase + HALF - FIRST + 64 * STRIDE  # positive; tap t fits where reach - t is a multiple of STRIDE
        tap = reach % STRIDE
        count = (EXTENT - tap + STRIDE - 1) // STRIDE
        shift = (reach - tap) // STRIDE - 64
    else:
        tap = 0 * phase
        count = EXTENT + 0 * phase
        shift = FIRST - HALF + 0 * phase
    return count, tap, shift


@triton.jit
def scaled(x, scale_rows, channel, mask):
    """A tile (M, channels) of x times in_scale, rounded to x's dtype: tensor cores take no wider operand."""
    if scale_rows is not None:
        scale = tl.load(scale_rows + channel[None, :], mask, 0)
        x = (x.to(tl.float32) * scale.to(tl.float32)).to(x.dtype)
    return x


@triton.jit
def branch_gemm(
    x_ptr, x_descs, w_ptr, scale_ptr, q, q0, phase, x_size, x_stride, CIN, COUT, out_channels,
    BRANCH: tl.constexpr, EXTENTS: tl.constexpr, TAP_OFFSETS: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr,
    ADJOINT: tl.constexpr, BOX: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """z (M, N), float32, of one branch before the epilogue, for the voxels q and the branch's `out_channels`.

    q, q0: from `box_of`. TAP_OFFSETS: per branch, how many taps the packed weights (tap, CIN, COUT) have before its
    own. FLAT: a step takes BK pairs (tap, input channel), for branches of few channels; else BK channels of one tap.
    """
    M: tl.constexpr = BOX[0] * BOX[1] * BOX[2] * BOX[3]
    S: tl.constexpr = len(EXTENTS)
    BASE: tl.constexpr = TAP_OFFSETS[BRANCH]
    KD: tl.constexpr = max(EXTENTS[BRANCH][0], 1)
    KH: tl.constexpr = max(EXTENTS[BRANCH][1], 1)
    KW: tl.constexpr = max(EXTENTS[BRANCH][2], 1)
    count_d, tap_d, shift_d = taps_of(phase[0], KD, FIRST[0], STRIDE[0], ADJOINT)
    count_h, tap_h, shift_h = taps_of(phase[1], KH, FIRST[1], STRIDE[1], ADJOINT)
    count_w, tap_w, shift_w = taps_of(phase[2], KW, FIRST[2], STRIDE[2], ADJOINT)
    SIGN: tl.constexpr = -1 if ADJOINT else 1  # of the displacement from one tap to the next
    STEP_D: tl.constexpr = STRIDE[0] if ADJOINT else 1  # of the tap
    STEP_H: tl.constexpr = STRIDE[1] if ADJOINT else 1
    STEP_W: tl.constexpr = STRIDE[2] if ADJOINT else 1
    n = q[0]
    d = q[1] * (1 if ADJOINT else STRIDE[0]) + shift_d
    h = q[2] * (1 if ADJOINT else STRIDE[1]) + shift_h
    w = q[3] * (1 if ADJOINT else STRIDE[2]) + shift_w
    in_batch = n < x_size[0]
    out_mask = (out_channels < COUT)[None, :]
    x_rows = x_ptr + (offsets_at(n, d, h, w, x_stride) + wide(BRANCH * CIN) * x_stride[1])[:, None]
    scale_rows = scale_ptr
    if scale_ptr is not None:
        scale_rows = scale_ptr + (wide(n) * (S * CIN) + BRANCH * CIN)[:, None]
    acc = tl.zeros([M, out_channels.shape[0]], tl.float32)

    if EXTENTS[BRANCH][0] == 0:  # identity: as if one tap of weight 1
        mask = in_batch & inside(d, x_size[1]) & inside(h, x_size[2]) & inside(w, x_size[3])
        mask = mask[:, None] & out_mask
        acc = tl.load(x_rows + (wide(out_channels) * x_stride[1])[None, :], mask, 0).to(tl.float32)
        acc = scaled(acc, scale_rows, out_channels, mask)

    elif EXTENTS[BRANCH][0] > 0 and FLAT:
        lanes = tl.arange(0, BK)
        total = count_d * count_h * count_w * CIN
        for k in tl.range(0, total, BK, num_stages=STAGES):
            pair = k + lanes
            i, channel = pair // CIN, pair % CIN
            i_w, i_h, i_d = i % count_w, i // count_w % count_h, i // count_w // count_h
            in_mask = pair < total
            at_d = d[:, None] + SIGN * i_d[None, :]
            at_h = h[:, None] + SIGN * i_h[None, :]
            at_w = w[:, None] + SIGN * i_w[None, :]
            mask = inside(at_d, x_size[1]) & inside(at_h, x_size[2]) & inside(at_w, x_size[3])
            mask = mask & in_batch[:, None] & in_mask[None, :]
            displacement = wide(i_d) * x_stride[2] + wide(i_h) * x_stride[3] + wide(i_w) * x_stride[4]
            x = tl.load(x_rows + (SIGN * displacement + wide(channel) * x_stride[1])[None, :], mask, 0)
            x = scaled(x, scale_rows, channel, in_batch[:, None] & in_mask[None, :])
            tap = ((tap_d + i_d * STEP_D) * KH + tap_h + i_h * STEP_H) * KW + tap_w + i_w * STEP_W
            w_rows = wide((BASE + tap) * CIN + channel) * COUT
            weight = tl.load(w_ptr + w_rows[:, None] + out_channels[None, :], in_mask[:, None] & out_mask, 0)
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)

    elif EXTENTS[BRANCH][0] > 0:
        lanes = tl.arange(0, BK)
        i_d, i_h, i_w, k = 0 * count_d, 0 * count_d, 0 * count_d, 0 * count_d
        for _ in tl.range(0, count_d * count_h * count_w * tl.cdiv(CIN, BK), num_stages=STAGES):
            channel = k + lanes
            in_mask = channel < CIN
            if x_descs is not None:
                at_d = q0[1] + shift_d + SIGN * i_d
                at_h = q0[2] + shift_h + SIGN * i_h
                at_w = q0[3] + shift_w + SIGN * i_w
                x = tl.reshape(x_descs[BRANCH].load([q0[0], at_d, at_h, at_w, k]), [M, BK])
            else:
                mask = inside(d + SIGN * i_d, x_size[1]) & inside(h + SIGN * i_h, x_size[2])
                mask = mask & inside(w + SIGN * i_w, x_size[3]) & in_batch
                displacement = wide(i_d) * x_stride[2] + wide(i_h) * x_stride[3] + wide(i_w) * x_stride[4]
                pointers = x_rows + SIGN * displacement + (wide(channel) * x_stride[1])[None, :]
                x = tl.load(pointers, mask[:, None] & in_mask[None, :], 0)
            x = scaled(x, scale_rows, channel, in_batch[:, None] & in_mask[None, :])
            tap = ((tap_d + i_d * STEP_D) * KH + tap_h + i_h * STEP_H) * KW + tap_w + i_w * STEP_W
            w_rows = wide((BASE + tap) * CIN + channel) * COUT
            weight = tl.load(w_ptr + w_rows[:, None] + out_channels[None, :], in_mask[:, None] & out_mask, 0)
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)
            # The next block of channels, then the next tap: one loop, so that loads run ahead across taps.
            k += BK
            carry = (k >= CIN).to(tl.int32)
            k *= 1 - carry
            i_w += carry
            carry = (i_w == count_w).to(tl.int32)
            i_w *= 1 - carry
            i_h += carry
            carry = (i_h == count_h).to(tl.int32)
            i_h *= 1 - carry
            i_d += carry
    return acc


@triton.jit(do_not_specialize=["N", "D", "H", "W", "YD", "YH", "YW", "noise_stride", "slope", "gain"])
def conv_kernel(
    x_ptr, x_descs, w_ptr, in_scale_ptr, bias_ptr, out_scale_ptr, noise_ptr, y_ptr, z_ptr,
    N, D, H, W, x_stride, YD, YH, YW, noise_stride, slope, gain, clamp, CIN, COUT,
    EXTENTS: tl.constexpr, TAP_OFFSETS: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr, ADJOINT: tl.constexpr,
    SHUFFLE: tl.constexpr, FUSED: tl.constexpr, BOX: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    FLAT: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (N, S*COUT, D', H', W') = epilogue of the branches' convolutions of x (N, S*CIN, D, H, W), or of the adjoints.

    N, D, H, W of x; YD, YH, YW of y; x_stride (n, c, d, h, w).
    x_descs: a tensor descriptor (N, D, H, W, CIN) per branch, or None.
    w_ptr: the weights packed (tap, CIN, COUT), branch after branch; branch s begins at tap TAP_OFFSETS[s].
    z_ptr: where z goes, in branch order, or None.
    EXTENTS: extents per branch; (0, 0, 0) is the identity, (-1, -1, -1) contributes nothing.
    FIRST: input position of the first window's centre.
    FUSED: a program computes all branches (S = 1, 2, 4); else one.

    Grid: (boxes * blocks of BN output channels, phases of the output, 1 if FUSED else S).
    """
    S: tl.constexpr = len(EXTENTS)
    x_size = (N, D, H, W)
    PHASES_D: tl.constexpr = STRIDE[0] if ADJOINT else 1  # outputs of one phase are this far apart
    PHASES_H: tl.constexpr = STRIDE[1] if ADJOINT else 1
    PHASES_W: tl.constexpr = STRIDE[2] if ADJOINT else 1
    blocks = tl.cdiv(COUT, BN)
    first_channel = tl.program_id(0) % blocks * BN
    phase = (
        tl.program_id(1) // (PHASES_H * PHASES_W),
        tl.program_id(1) // PHASES_W % PHASES_H,
        tl.program_id(1) % PHASES_W,
    )
    counts = (N, tl.cdiv(YD, PHASES_D), tl.cdiv(YH, PHASES_H), tl.cdiv(YW, PHASES_W))
    q, q0 = box_of(tl.program_id(0) // blocks, counts, BOX)
    n = q[0]
    d = q[1] * PHASES_D + phase[0]
    h = q[2] * PHASES_H + phase[1]
    w = q[3] * PHASES_W + phase[2]
    rows = (n < N) & (d < YD) & (h < YH) & (w < YW)
    voxel = (wide(d) * YH + h) * YW + w
    at = (wide(n) * YD * YH * YW + voxel) * (S * COUT)
    out_channels = first_channel + tl.arange(0, BN)

    if FUSED:
        a = branch_gemm(
            x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, phase, x_size, x_stride, CIN, COUT, out_channels,
            0, EXTENTS, TAP_OFFSETS, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
        )  # fmt: skip
        b = a
        c = a
        e = a
        if S >= 2:
            b = branch_gemm(
                x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, phase, x_size, x_stride, CIN, COUT, out_channels,
                1, EXTENTS, TAP_OFFSETS, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
            )  # fmt: skip
        if S == 4:
            c = branch_gemm(
                x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, phase, x_size, x_stride, CIN, COUT, out_channels,
                2, EXTENTS, TAP_OFFSETS, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
            )  # fmt: skip
            e = branch_gemm(
                x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, phase, x_size, x_stride, CIN, COUT, out_channels,
                3, EXTENTS, TAP_OFFSETS, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
            )  # fmt: skip
        mask = rows[:, None] & (out_channels < COUT)[None, :]
        if z_ptr is not None:
            store_tile(z_ptr, a, at, out_channels, mask)
            if S >= 2:
                store_tile(z_ptr, b, at, COUT + out_channels, mask)
            if S == 4:
                store_tile(z_ptr, c, at, 2 * COUT + out_channels, mask)
                store_tile(z_ptr, e, at, 3 * COUT + out_channels, mask)
        channels = first_channel * S + tl.arange(0, BN * S)
        mask = rows[:, None] & (channels < S * COUT)[None, :]
        z = interleave(a, b, c, e, S)
        y = apply_epilogue(
            z, n, voxel, channels, mask, S * COUT, bias_ptr, out_scale_ptr, noise_ptr, noise_stride, slope, gain, clamp
        )
        store_tile(y_ptr, y, at, channels, mask)
    else:
        mask = rows[:, None] & (out_channels < COUT)[None, :]
        for s in tl.static_range(S):
            if tl.program_id(2) == s:
                z = branch_gemm(
                    x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, phase, x_size, x_stride, CIN, COUT, out_channels,
                    s, EXTENTS, TAP_OFFSETS, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
                )  # fmt: skip
                if z_ptr is not None:
                    store_tile(z_ptr, z, at, s * COUT + out_channels, mask)
                channels = out_channels * S + s if SHUFFLE else s * COUT + out_channels
                y = apply_epilogue(
                    z, n, voxel, channels, mask, S * COUT, bias_ptr, out_scale_ptr, noise_ptr, noise_stride, slope,
                    gain, clamp,
                )  # fmt: skip
                store_tile(y_ptr, y, at, channels, mask)
