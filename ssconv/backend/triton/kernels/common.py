"""Device functions that several kernels use: boxes of voxels, offsets, the shuffle and the epilogue in registers."""

import triton
import triton.language as tl


@triton.jit
def box_of(index, counts, BOX: tl.constexpr):
    """The voxels of box number `index` among the boxes that cover `counts` = (samples, D, H, W).

    Returns four vectors of coordinates n, d, h, w, which may lie outside, and the coordinates of the first voxel.
    """
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
    """To 64 bits, as offsets must be: a tensor may have more than 2^31 elements. Also of a constant, which is what
    Triton makes of an argument that is 1."""
    return tl.cast(i, tl.int64)


@triton.jit
def inside(at, size):
    """Whether positions along one dimension lie within the volume."""
    return (at >= 0) & (at < size)


@triton.jit
def offsets_at(n, d, h, w, stride):
    """Offsets of voxels in a tensor with the strides (n, c, d, h, w), at channel 0."""
    return wide(n) * stride[0] + wide(d) * stride[2] + wide(h) * stride[3] + wide(w) * stride[4]


@triton.jit
def interleave(a, b, c, d, S: tl.constexpr):
    """The shuffle in registers: tiles (M, N) of S = 1, 2 or 4 branches -> (M, N*S), whose n*S + s is branch s's n."""
    if S == 1:
        tile = a
    elif S == 2:
        tile = tl.reshape(tl.join(a, b), [a.shape[0], a.shape[1] * 2])
    else:
        tile = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [a.shape[0], a.shape[1] * 4])
    return tile


@triton.jit
def apply_epilogue(z, n, voxel, channels, mask, C, bias_ptr, scale_ptr, noise_ptr, noise_stride, slope, gain, clamp):
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


@triton.jit
def store_tile(ptr, tile, at, channels, mask):
    """Stores a tile (M, channels) to voxels that begin at the offsets `at`, channels side by side."""
    tl.store(ptr + at[:, None] + channels[None, :], tile.to(ptr.dtype.element_ty), mask)
