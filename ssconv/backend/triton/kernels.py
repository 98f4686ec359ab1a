"""The operator in Triton, device code only: one can read here how it works. Launches are in `triton_backend`.

Tensors are read through their strides, so any layout will do; results are channels_last_3d. A branch s owns the
channels s*C/S .. (s+1)*C/S ("branch order"); shuffled, its channel j is j*S + s. Sums are taken in float32.

Three facts carry everything:

1. A convolution is a matrix product per tap (implicit GEMM): a tile of voxels (M) times a tile of the branch's output
   channels (N), summed over taps and input channels (K). A step multiplies the voxels' inputs, displaced by one tap,
   with that tap's weights.
2. Gather form serves all directions. An output at centre(q) reads the inputs at q*stride + shift(tap); in the adjoint
   (transposed convolution, input gradient) an output reads the inputs p with p*stride + shift(tap) = output, which are
   fewer taps at smaller displacements for each parity of the output. Either way the taps that count and the
   displacements are arithmetic progressions: `taps_of`.
3. All branches of a tile are computed in one program, so that the shuffle is an interleaving in registers and a
   contiguous store: `interleaved`.

Voxels of a tile form a box (samples, D, H, W) of powers of two: neighbouring taps find each other's inputs in the
cache, and a tensor descriptor (TMA) can fetch the box whole, zeros outside included.
"""

import triton
import triton.language as tl

# ------------------------------------------------------------------------------------------------ geometry


@triton.jit
def taps_of(offset, EXTENT: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr, ADJOINT: tl.constexpr):
    """Along one dimension, for outputs of parity `offset`: how many taps reach them, the first, its displacement.

    The next taps are STRIDE further in the adjoint (their displacement one less), else 1 (one more).
    """
    HALF: tl.constexpr = (EXTENT - 1) // 2
    if ADJOINT:
        reach = offset + HALF - FIRST + 64 * STRIDE  # positive; tap t fits where reach - t is a multiple of STRIDE
        tap = reach % STRIDE
        count = (EXTENT - tap + STRIDE - 1) // STRIDE
        shift = (reach - tap) // STRIDE - 64
    else:
        tap = 0 * offset
        count = EXTENT + 0 * offset
        shift = FIRST - HALF + 0 * offset
    return count, tap, shift


@triton.jit
def box_of(index, counts, BOX: tl.constexpr):
    """The voxels of box number `index` among boxes that cover `counts` = (samples, D, H, W): four vectors of their
    coordinates, which may lie outside, and the coordinates of the first."""
    boxes_w = tl.cdiv(counts[3], BOX[3])
    boxes_h = tl.cdiv(counts[2], BOX[2])
    boxes_d = tl.cdiv(counts[1], BOX[1])
    w0 = index % boxes_w * BOX[3]
    h0 = index // boxes_w % boxes_h * BOX[2]
    d0 = index // boxes_w // boxes_h % boxes_d * BOX[1]
    n0 = index // boxes_w // boxes_h // boxes_d * BOX[0]
    row = tl.arange(0, BOX[0] * BOX[1] * BOX[2] * BOX[3])
    w = w0 + row % BOX[3]
    h = h0 + row // BOX[3] % BOX[2]
    d = d0 + row // (BOX[3] * BOX[2]) % BOX[1]
    n = n0 + row // (BOX[3] * BOX[2] * BOX[1])
    return (n, d, h, w), (n0, d0, h0, w0)


@triton.jit
def wide(i):
    """Offsets are 64 bit: a tensor may have more than 2^31 elements. (An argument of 1 comes as a constant.)"""
    return tl.cast(i, tl.int64)


@triton.jit
def inside(at, size):
    return (at >= 0) & (at < size)


# ------------------------------------------------------------------------------- shuffle and epilogue, in registers


@triton.jit
def interleaved(a, b, c, d, S: tl.constexpr):
    """Tiles (M, N) of S = 1, 2 or 4 branches as one (M, N*S) whose column n*S + s is branch s's n."""
    if S == 1:
        tile = a
    elif S == 2:
        tile = tl.reshape(tl.join(a, b), [a.shape[0], a.shape[1] * 2])
    else:
        tile = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], a.shape[1] * 4])
    return tile


@triton.jit
def finished(z, n, voxel, channels, mask, C, bias_ptr, scale_ptr, noise_ptr, noise_stride, slope, gain, clamp):
    """clamp(gain * lrelu(scale[n, c] * z + noise[n, voxel] + bias[c])) of a tile (M, channels); NaN stays NaN."""
    if scale_ptr is not None:
        z *= tl.load(scale_ptr + wide(n)[:, None] * C + channels[None, :], mask, 0).to(tl.float32)
    if noise_ptr is not None:
        rows = tl.max(mask.to(tl.int32), 1) > 0
        z += tl.load(noise_ptr + wide(n) * noise_stride + voxel, rows, 0).to(tl.float32)[:, None]
    if bias_ptr is not None:
        z += tl.load(bias_ptr + channels, channels < C, 0).to(tl.float32)[None, :]
    y = tl.where(z > 0, z, z * slope) * gain
    if clamp is not None:
        y = tl.where(y > clamp, clamp, y)
        y = tl.where(y < -clamp, -clamp, y)
    return y


# --------------------------------------------------------------------------- forward and input gradient: one kernel


@triton.jit
def rows_at(n, d, h, w, stride):
    """Offsets of voxels, without their channels."""
    return wide(n) * stride[0] + wide(d) * stride[2] + wide(h) * stride[3] + wide(w) * stride[4]


@triton.jit
def scaled(x, scale_rows, channel, mask):
    """A tile (M, channels) of x times its samples' scales, rounded as x is: tensor cores take no wider operand."""
    if scale_rows is not None:
        scale = tl.load(scale_rows + channel[None, :], mask, 0)
        x = (x.to(tl.float32) * scale.to(tl.float32)).to(x.dtype)
    return x


@triton.jit
def branch_sum(
    x_ptr, x_descs, w_ptr, scale_ptr, q, q0, parity, x_size, x_stride, CIN, COUT, columns,
    BRANCH: tl.constexpr, KERNELS: tl.constexpr, BEFORE: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr,
    ADJOINT: tl.constexpr, BOX: tl.constexpr, BK: tl.constexpr, FLAT: tl.constexpr, STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A branch's sums (M, N), float32, before the epilogue, for the box q and the output channels `columns`.

    BEFORE: per branch the taps of those before it, whose packed weights (tap, CIN, COUT) come first. FLAT: a step takes
    BK (tap, input channel) pairs, for branches of few channels; else BK channels of one tap.
    """
    M: tl.constexpr = BOX[0] * BOX[1] * BOX[2] * BOX[3]
    S: tl.constexpr = len(KERNELS)
    BASE: tl.constexpr = BEFORE[BRANCH]
    KD: tl.constexpr = max(KERNELS[BRANCH][0], 1)
    KH: tl.constexpr = max(KERNELS[BRANCH][1], 1)
    KW: tl.constexpr = max(KERNELS[BRANCH][2], 1)
    count_d, tap_d, shift_d = taps_of(parity[0], KD, FIRST[0], STRIDE[0], ADJOINT)
    count_h, tap_h, shift_h = taps_of(parity[1], KH, FIRST[1], STRIDE[1], ADJOINT)
    count_w, tap_w, shift_w = taps_of(parity[2], KW, FIRST[2], STRIDE[2], ADJOINT)
    SIGN: tl.constexpr = -1 if ADJOINT else 1  # of the displacement from one tap to the next
    STEP_D: tl.constexpr = STRIDE[0] if ADJOINT else 1  # of the tap
    STEP_H: tl.constexpr = STRIDE[1] if ADJOINT else 1
    STEP_W: tl.constexpr = STRIDE[2] if ADJOINT else 1
    n = q[0]
    d = q[1] * (1 if ADJOINT else STRIDE[0]) + shift_d
    h = q[2] * (1 if ADJOINT else STRIDE[1]) + shift_h
    w = q[3] * (1 if ADJOINT else STRIDE[2]) + shift_w
    there = n < x_size[0]
    wanted = (columns < COUT)[None, :]
    x_rows = x_ptr + (rows_at(n, d, h, w, x_stride) + wide(BRANCH * CIN) * x_stride[1])[:, None]
    scale_rows = scale_ptr
    if scale_ptr is not None:
        scale_rows = scale_ptr + (wide(n) * (S * CIN) + BRANCH * CIN)[:, None]
    acc = tl.zeros([M, columns.shape[0]], tl.float32)

    if KERNELS[BRANCH][0] == 0:  # identity: as if one tap of weight 1
        mask = there & inside(d, x_size[1]) & inside(h, x_size[2]) & inside(w, x_size[3])
        mask = mask[:, None] & wanted
        acc = tl.load(x_rows + (wide(columns) * x_stride[1])[None, :], mask, 0).to(tl.float32)
        acc = scaled(acc, scale_rows, columns, mask)

    elif KERNELS[BRANCH][0] > 0 and FLAT:
        lanes = tl.arange(0, BK)
        total = count_d * count_h * count_w * CIN
        for k in tl.range(0, total, BK, num_stages=STAGES):
            pair = k + lanes
            i, channel = pair // CIN, pair % CIN
            i_w, i_h, i_d = i % count_w, i // count_w % count_h, i // count_w // count_h
            real = pair < total
            at_d = d[:, None] + SIGN * i_d[None, :]
            at_h = h[:, None] + SIGN * i_h[None, :]
            at_w = w[:, None] + SIGN * i_w[None, :]
            mask = inside(at_d, x_size[1]) & inside(at_h, x_size[2]) & inside(at_w, x_size[3])
            mask = mask & there[:, None] & real[None, :]
            displacement = wide(i_d) * x_stride[2] + wide(i_h) * x_stride[3] + wide(i_w) * x_stride[4]
            x = tl.load(x_rows + (SIGN * displacement + wide(channel) * x_stride[1])[None, :], mask, 0)
            x = scaled(x, scale_rows, channel, there[:, None] & real[None, :])
            tap = ((tap_d + i_d * STEP_D) * KH + tap_h + i_h * STEP_H) * KW + tap_w + i_w * STEP_W
            w_rows = wide((BASE + tap) * CIN + channel) * COUT
            weight = tl.load(w_ptr + w_rows[:, None] + columns[None, :], real[:, None] & wanted, 0)
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)

    elif KERNELS[BRANCH][0] > 0:
        lanes = tl.arange(0, BK)
        i_d, i_h, i_w, k = 0 * count_d, 0 * count_d, 0 * count_d, 0 * count_d
        for _ in tl.range(0, count_d * count_h * count_w * tl.cdiv(CIN, BK), num_stages=STAGES):
            channel = k + lanes
            real = channel < CIN
            if x_descs is not None:
                at_d = q0[1] + shift_d + SIGN * i_d
                at_h = q0[2] + shift_h + SIGN * i_h
                at_w = q0[3] + shift_w + SIGN * i_w
                x = tl.reshape(x_descs[BRANCH].load([q0[0], at_d, at_h, at_w, k]), [M, BK])
            else:
                mask = inside(d + SIGN * i_d, x_size[1]) & inside(h + SIGN * i_h, x_size[2])
                mask = mask & inside(w + SIGN * i_w, x_size[3]) & there
                displacement = wide(i_d) * x_stride[2] + wide(i_h) * x_stride[3] + wide(i_w) * x_stride[4]
                pointers = x_rows + SIGN * displacement + (wide(channel) * x_stride[1])[None, :]
                x = tl.load(pointers, mask[:, None] & real[None, :], 0)
            x = scaled(x, scale_rows, channel, there[:, None] & real[None, :])
            tap = ((tap_d + i_d * STEP_D) * KH + tap_h + i_h * STEP_H) * KW + tap_w + i_w * STEP_W
            w_rows = wide((BASE + tap) * CIN + channel) * COUT
            weight = tl.load(w_ptr + w_rows[:, None] + columns[None, :], real[:, None] & wanted, 0)
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
def product_kernel(
    x_ptr, x_descs, w_ptr, in_scale_ptr, bias_ptr, out_scale_ptr, noise_ptr, y_ptr, z_ptr,
    N, D, H, W, x_stride, YD, YH, YW, noise_stride, slope, gain, clamp, CIN, COUT,
    KERNELS: tl.constexpr, BEFORE: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr, ADJOINT: tl.constexpr,
    SHUFFLE: tl.constexpr, FUSED: tl.constexpr, BOX: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    FLAT: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y (N, S*COUT, D', H', W') = epilogue of the branches' convolutions of x (N, S*CIN, D, H, W), or of the adjoints.

    N, D, H, W of x, YD, YH, YW of y; x_stride (n, c, d, h, w). KERNELS: extents per branch; (0, 0, 0) is the
    identity, (-1, -1, -1) nothing. w_ptr: the weights packed (tap, CIN, COUT), branch after branch, the branch with
    BEFORE[s] taps before it. x_descs: a descriptor per branch, or None. z_ptr: where the sums before the epilogue go,
    in branch order, or None. FUSED: all branches in a program (S = 1, 2, 4), else one.

    Grid: (boxes * blocks of BN output channels, parities of the output, 1 if FUSED else S).
    """
    S: tl.constexpr = len(KERNELS)
    x_size = (N, D, H, W)
    PACE_D: tl.constexpr = STRIDE[0] if ADJOINT else 1  # outputs of one parity are so far apart
    PACE_H: tl.constexpr = STRIDE[1] if ADJOINT else 1
    PACE_W: tl.constexpr = STRIDE[2] if ADJOINT else 1
    blocks = tl.cdiv(COUT, BN)
    first_column = tl.program_id(0) % blocks * BN
    parity = (
        tl.program_id(1) // (PACE_H * PACE_W),
        tl.program_id(1) // PACE_W % PACE_H,
        tl.program_id(1) % PACE_W,
    )
    counts = (N, tl.cdiv(YD, PACE_D), tl.cdiv(YH, PACE_H), tl.cdiv(YW, PACE_W))
    q, q0 = box_of(tl.program_id(0) // blocks, counts, BOX)
    n = q[0]
    d = q[1] * PACE_D + parity[0]
    h = q[2] * PACE_H + parity[1]
    w = q[3] * PACE_W + parity[2]
    rows = (n < N) & (d < YD) & (h < YH) & (w < YW)
    voxel = (wide(d) * YH + h) * YW + w
    at = (wide(n) * YD * YH * YW + voxel) * (S * COUT)
    columns = first_column + tl.arange(0, BN)

    if FUSED:
        a = branch_sum(
            x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, parity, x_size, x_stride, CIN, COUT, columns,
            0, KERNELS, BEFORE, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
        )  # fmt: skip
        b = a
        c = a
        e = a
        if S >= 2:
            b = branch_sum(
                x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, parity, x_size, x_stride, CIN, COUT, columns,
                1, KERNELS, BEFORE, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
            )  # fmt: skip
        if S == 4:
            c = branch_sum(
                x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, parity, x_size, x_stride, CIN, COUT, columns,
                2, KERNELS, BEFORE, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
            )  # fmt: skip
            e = branch_sum(
                x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, parity, x_size, x_stride, CIN, COUT, columns,
                3, KERNELS, BEFORE, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
            )  # fmt: skip
        mask = rows[:, None] & (columns < COUT)[None, :]
        if z_ptr is not None:
            store(z_ptr, a, at, columns, mask)
            if S >= 2:
                store(z_ptr, b, at, COUT + columns, mask)
            if S == 4:
                store(z_ptr, c, at, 2 * COUT + columns, mask)
                store(z_ptr, e, at, 3 * COUT + columns, mask)
        channels = first_column * S + tl.arange(0, BN * S)
        mask = rows[:, None] & (channels < S * COUT)[None, :]
        z = interleaved(a, b, c, e, S)
        y = finished(
            z, n, voxel, channels, mask, S * COUT, bias_ptr, out_scale_ptr, noise_ptr, noise_stride, slope, gain, clamp
        )
        store(y_ptr, y, at, channels, mask)
    else:
        mask = rows[:, None] & (columns < COUT)[None, :]
        for s in tl.static_range(S):
            if tl.program_id(2) == s:
                z = branch_sum(
                    x_ptr, x_descs, w_ptr, in_scale_ptr, q, q0, parity, x_size, x_stride, CIN, COUT, columns,
                    s, KERNELS, BEFORE, FIRST, STRIDE, ADJOINT, BOX, BK, FLAT, STAGES, PRECISION,
                )  # fmt: skip
                if z_ptr is not None:
                    store(z_ptr, z, at, s * COUT + columns, mask)
                channels = columns * S + s if SHUFFLE else s * COUT + columns
                y = finished(
                    z, n, voxel, channels, mask, S * COUT, bias_ptr, out_scale_ptr, noise_ptr, noise_stride, slope,
                    gain, clamp,
                )  # fmt: skip
                store(y_ptr, y, at, channels, mask)


@triton.jit
def store(ptr, tile, at, channels, mask):
    """A tile (M, channels) to voxels that begin at `at`, channels side by side."""
    tl.store(ptr + at[:, None] + channels[None, :], tile.to(ptr.dtype.element_ty), mask)


# ------------------------------------------------------------------------------------------------ weight gradient


@triton.jit(
    do_not_specialize=["N", "LOW_D", "LOW_H", "LOW_W", "HIGH_D", "HIGH_H", "HIGH_W", "boxes", "boxes_per_split"]
)
def weight_kernel(
    low_ptr, low_desc, low_scale_ptr, high_ptr, high_desc, high_scale_ptr, out_ptr,
    N, LOW_D, LOW_H, LOW_W, low_stride, HIGH_D, HIGH_H, HIGH_W, high_stride, ROWS, COLUMNS, boxes, boxes_per_split,
    KERNELS: tl.constexpr, BEFORE: tl.constexpr, FIRST: tl.constexpr, STRIDE: tl.constexpr,
    BOX: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (splits, taps, ROWS, COLUMNS), float32: sums over voxels p of low[p, row] * high[p*stride + shift, column].

    low is what has a voxel per window (the output's gradient; the input of a transposed convolution), high what the
    windows move over; ROWS and COLUMNS are their channels per branch. Each split takes its share of the boxes in
    order, and the splits are added in order afterwards: the same bits every time.

    Grid: (blocks of BM * blocks of BN, taps of all branches, splits).
    """
    S: tl.constexpr = len(KERNELS)
    low_size = (N, LOW_D, LOW_H, LOW_W)
    high_size = (N, HIGH_D, HIGH_H, HIGH_W)
    blocks = tl.cdiv(COLUMNS, BN)
    first_row = tl.program_id(0) // blocks * BM
    first_column = tl.program_id(0) % blocks * BN
    row = first_row + tl.arange(0, BM)
    column = first_column + tl.arange(0, BN)
    tap = tl.program_id(1)
    branch, shift_d, shift_h, shift_w = 0 * tap, 0 * tap, 0 * tap, 0 * tap
    for s in tl.static_range(S):
        if KERNELS[s][0] > 0:
            own = tap - BEFORE[s]
            mine = (own >= 0) & (own < KERNELS[s][0] * KERNELS[s][1] * KERNELS[s][2])
            branch = tl.where(mine, s, branch)
            shift_d = tl.where(mine, own // (KERNELS[s][1] * KERNELS[s][2]) - (KERNELS[s][0] - 1) // 2, shift_d)
            shift_h = tl.where(mine, own // KERNELS[s][2] % KERNELS[s][1] - (KERNELS[s][1] - 1) // 2, shift_h)
            shift_w = tl.where(mine, own % KERNELS[s][2] - (KERNELS[s][2] - 1) // 2, shift_w)
    shift_d += FIRST[0]
    shift_h += FIRST[1]
    shift_w += FIRST[2]
    begin = tl.program_id(2) * boxes_per_split
    acc = tl.zeros([BM, BN], tl.float32)
    for box in tl.range(begin, tl.minimum(begin + boxes_per_split, boxes), num_stages=STAGES):
        p, p0 = box_of(box, low_size, BOX)
        low = voxels(
            low_ptr, low_desc, low_scale_ptr, p, p0, low_size, low_stride, branch * ROWS, first_row, BM, ROWS, S, BOX
        )
        q = (p[0], p[1] * STRIDE[0] + shift_d, p[2] * STRIDE[1] + shift_h, p[3] * STRIDE[2] + shift_w)
        q0 = (p0[0], p0[1] + shift_d, p0[2] + shift_h, p0[3] + shift_w)  # descriptors serve stride 1 only
        high = voxels(
            high_ptr, high_desc, high_scale_ptr, q, q0, high_size, high_stride, branch * COLUMNS, first_column, BN,
            COLUMNS, S, BOX,
        )  # fmt: skip
        acc = tl.dot(tl.trans(low), high, acc, input_precision=PRECISION)
    at = (wide(tl.program_id(2)) * tl.num_programs(1) + tap) * ROWS
    mask = (row < ROWS)[:, None] & (column < COLUMNS)[None, :]
    tl.store(out_ptr + (at + row)[:, None] * COLUMNS + column[None, :], acc, mask)


@triton.jit
def voxels(
    ptr, desc, scale_ptr, at, first, size, stride, branch_channel, first_channel, BC: tl.constexpr, CHANNELS,
    S: tl.constexpr, BOX: tl.constexpr,
):  # fmt: skip
    """A tile (voxels, BC) of one branch, zeros outside; times scale[n, channel] where there is one.

    What a descriptor reads beyond the branch's channels is another branch's, and is not stored.
    """
    n, d, h, w = at
    channel = first_channel + tl.arange(0, BC)
    real = (channel < CHANNELS)[None, :]
    there = n < size[0]
    if desc is not None:
        M: tl.constexpr = BOX[0] * BOX[1] * BOX[2] * BOX[3]
        tile = tl.reshape(desc.load([first[0], first[1], first[2], first[3], branch_channel + first_channel]), [M, BC])
    else:
        mask = there & inside(d, size[1]) & inside(h, size[2]) & inside(w, size[3])
        channels = wide(branch_channel + channel) * stride[1]
        tile = tl.load(ptr + rows_at(n, d, h, w, stride)[:, None] + channels[None, :], mask[:, None] & real, 0)
    if scale_ptr is not None:
        pointers = scale_ptr + (wide(n) * (S * CHANNELS) + branch_channel)[:, None] + channel[None, :]
        tile = (tile.to(tl.float32) * tl.load(pointers, there[:, None] & real, 0).to(tl.float32)).to(tile.dtype)
    return tile


# ---------------------------------------------------------------------------------- the epilogue and its backward


@triton.jit
def voxel_offsets(n, voxel, size, stride, DENSE: tl.constexpr):
    """Offsets of voxels given by their number in a sample. DENSE: they follow each other at one distance."""
    if DENSE:
        offsets = wide(n) * stride[0] + wide(voxel) * stride[4]
    else:
        w = voxel % size[2]
        h = voxel // size[2] % size[1]
        d = voxel // size[2] // size[1]
        offsets = rows_at(n, d, h, w, stride)
    return offsets


@triton.jit
def in_branch_order(channel, C, S: tl.constexpr):
    """Where a channel of the shuffled order lies in branch order."""
    return channel % S * (C // S) + channel // S


@triton.jit
def branch_order_tile(ptr, offsets, first, rows, stride_c, C, S: tl.constexpr, BC: tl.constexpr):
    """A tile (M, BC), float32, of the shuffled channels first .. first + BC of a tensor in branch order."""
    if S == 1 or S == 2 or S == 4:  # each branch's channels side by side, interleaved in registers
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
        tile = interleaved(a, b, c, d, S)
    else:
        channels = first + tl.arange(0, BC)
        mask = rows[:, None] & (channels < C)[None, :]
        order = wide(in_branch_order(channels, C, S)) * stride_c
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
    offsets = voxel_offsets(n, voxel, (D, H, W), z_stride, DENSE)
    z = branch_order_tile(z_ptr, offsets, first, rows, z_stride[1], C, S, BC)
    samples = n + 0 * voxel
    y = finished(z, samples, voxel, channels, mask, C, bias_ptr, scale_ptr, noise_ptr, noise_stride, slope, gain, clamp)
    store(y_ptr, y, (wide(n) * count + voxel) * C, channels, mask)


@triton.jit(do_not_specialize=["D", "H", "W", "slope", "gain", "clamp"])
def epilogue_backward_kernel(
    gy_ptr, y_ptr, z_ptr, scale_ptr, gz_ptr, bias_sums_ptr, noise_sums_ptr, scale_sums_ptr,
    D, H, W, gy_stride, y_stride, z_stride, slope, gain, clamp, C,
    S: tl.constexpr, GY_DENSE: tl.constexpr, Y_DENSE: tl.constexpr, Z_DENSE: tl.constexpr, CLAMPED: tl.constexpr,
    BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """gz (N, C, D, H, W) in branch order, and float32 sums of pre = gy * d y / d (scale * shuffle(z) + noise + bias):

    bias_sums, scale_sums (N, blocks, C): over a block's voxels of pre, and of pre * shuffle(z); noise_sums (N, D*H*W):
    over the channels. Each may be None. Grid: (N * blocks of BV voxels of a sample,).
    """
    size = (D, H, W)
    count = D * H * W
    blocks = tl.cdiv(count, BV)
    n = tl.program_id(0) // blocks
    voxel = tl.program_id(0) % blocks * BV + tl.arange(0, BV)
    rows = voxel < count
    gy_at = voxel_offsets(n, voxel, size, gy_stride, GY_DENSE)
    y_at = voxel_offsets(n, voxel, size, y_stride, Y_DENSE)
    gz_at = (wide(n) * count + voxel) * C
    sums_at = wide(tl.program_id(0)) * C
    noise = tl.zeros([BV], tl.float32)
    for first in range(0, C, BC):
        channels = first + tl.arange(0, BC)
        real = channels < C
        mask = rows[:, None] & real[None, :]
        pointers = gy_ptr + gy_at[:, None] + (wide(channels) * gy_stride[1])[None, :]
        pre = tl.load(pointers, mask, 0).to(tl.float32) * gain
        y = tl.load(y_ptr + y_at[:, None] + (wide(channels) * y_stride[1])[None, :], mask, 0).to(tl.float32)
        pre = tl.where(tl.where(gain > 0, y, -y) > 0, pre, pre * slope)
        if CLAMPED:
            pre = tl.where(tl.abs(y) < clamp, pre, 0.0)
        if bias_sums_ptr is not None:
            tl.store(bias_sums_ptr + sums_at + channels, tl.sum(pre, 0), real)
        if noise_sums_ptr is not None:
            noise += tl.sum(pre, 1)
        if z_ptr is not None:
            z_at = voxel_offsets(n, voxel, size, z_stride, Z_DENSE)
            z = branch_order_tile(z_ptr, z_at, first, rows, z_stride[1], C, S, BC)
            tl.store(scale_sums_ptr + sums_at + channels, tl.sum(pre * z, 0), real)
        if scale_ptr is not None:
            pre *= tl.load(scale_ptr + wide(n) * C + channels, real, 0).to(tl.float32)[None, :]
        if S == 2 or S == 4:  # taken apart in registers, each branch's channels stored side by side
            BRANCH: tl.constexpr = BC // S
            lanes = first // S + tl.arange(0, BRANCH)
            mask = rows[:, None] & (lanes < C // S)[None, :]
            if S == 2:
                a, b = tl.split(tl.reshape(pre, [BV, BRANCH, 2]))
                store(gz_ptr, a, gz_at, lanes, mask)
                store(gz_ptr, b, gz_at, C // 2 + lanes, mask)
            else:
                even, odd = tl.split(tl.reshape(pre, [BV, BRANCH, 2, 2]))
                a, c = tl.split(even)
                b, d = tl.split(odd)
                store(gz_ptr, a, gz_at, lanes, mask)
                store(gz_ptr, b, gz_at, C // 4 + lanes, mask)
                store(gz_ptr, c, gz_at, C // 4 * 2 + lanes, mask)
                store(gz_ptr, d, gz_at, C // 4 * 3 + lanes, mask)
        else:
            store(gz_ptr, pre, gz_at, in_branch_order(channels, C, S), mask)
    if noise_sums_ptr is not None:
        tl.store(noise_sums_ptr + wide(n) * count + voxel, noise, rows)


# ----------------------------------------------------------------------------------------------------- resampling


@triton.jit(do_not_specialize=["D", "H", "W", "YD", "YH", "YW", "PD", "PH", "PW"])
def upfirdn_kernel(
    x_ptr, taps_d_ptr, taps_h_ptr, taps_w_ptr, y_ptr, D, H, W, x_stride, YD, YH, YW, PD, PH, PW, C,
    UP: tl.constexpr, DOWN: tl.constexpr, LENGTHS: tl.constexpr, BV: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y[o] = sum over the taps t of f[length - 1 - t] * x'[o*down + t - padding], where x' has up - 1 zeros after every
    sample of x and zeros outside; the product of three such filters along D, H, W, each possibly None.

    LENGTHS: of the three filters, 1 for None. Grid: (N * blocks of BV voxels of a sample, blocks of BC channels).
    """
    count = YD * YH * YW
    blocks = tl.cdiv(count, BV)
    n = tl.program_id(0) // blocks
    voxel = tl.program_id(0) % blocks * BV + tl.arange(0, BV)
    rows = voxel < count
    channels = tl.program_id(1) * BC + tl.arange(0, BC)
    real = (channels < C)[None, :]
    d = voxel // YW // YH * DOWN[0] - PD
    h = voxel // YW % YH * DOWN[1] - PH
    w = voxel % YW * DOWN[2] - PW
    base = x_ptr + wide(n) * x_stride[0] + (wide(channels) * x_stride[1])[None, :]
    acc = tl.zeros([BV, BC], tl.float32)
    for i in range(0, (LENGTHS[0] + UP[0] - 1) // UP[0]):  # the taps that can meet a sample
        at_d, f_d, in_d = sample(d, i, taps_d_ptr, LENGTHS[0], UP[0], D)
        for j in range(0, (LENGTHS[1] + UP[1] - 1) // UP[1]):
            at_h, f_h, in_h = sample(h, j, taps_h_ptr, LENGTHS[1], UP[1], H)
            for k in range(0, (LENGTHS[2] + UP[2] - 1) // UP[2]):
                at_w, f_w, in_w = sample(w, k, taps_w_ptr, LENGTHS[2], UP[2], W)
                mask = rows & in_d & in_h & in_w
                offset = wide(at_d) * x_stride[2] + wide(at_h) * x_stride[3] + wide(at_w) * x_stride[4]
                x = tl.load(base + offset[:, None], mask[:, None] & real, 0).to(tl.float32)
                acc += x * (f_d * f_h * f_w)[:, None]
    store(y_ptr, acc, (wide(n) * count + voxel) * C, channels, rows[:, None] & real)


@triton.jit
def sample(position, i, taps_ptr, length: tl.constexpr, up: tl.constexpr, size):
    """The i-th tap that meets a sample of a filter that begins at `position` of the zero-inserted input: the sample,
    the tap's value, and whether there is one."""
    before = tl.where(position < 0, (-position) % up, (up - position % up) % up)  # taps before the first that does
    tap = before + i * up
    at = position + tap  # a multiple of up, possibly negative
    there = (tap < length) & (at >= 0) & (at < size * up)
    value = there.to(tl.float32)
    if taps_ptr is not None:
        value = tl.load(taps_ptr + length - 1 - tap, there, 0).to(tl.float32)
    return at // up, value, there
