"""Rotation, scale and shift of volumes as passes of matrix products along one axis at a time.

A pass reads each line of voxels along an axis at positions that may depend on one other axis, through a dense
interpolation matrix. A rotation in a plane is three shears (Unser et al. 1995, "Convolution-based interpolation for
fast, high-quality rotation of images"), each of them a pass. Reasons for passes instead of `grid_sample`:

- They are `torch.matmul`: differentiable to any order, and the same bits in every run on a GPU, where the gradient of
  a gather adds up in no fixed order.
- The filter may be as long as it likes for the same price, so lines keep their detail: Lanczos with 4 lobes, widened
  where an image shrinks. That takes the place of ADA's sampling at twice the resolution, eight times the voxels in 3D.

Outside the volume everything is background. Where a position is a whole number the voxel there is taken as it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BACKGROUND = -1.0  # air, what `prepare` pads with: mirrored anatomy would teach organs that nobody has
LOBES = 4  # of the Lanczos filter on each side

_SPATIAL = (2, 3, 4)


def interpolation_matrix(position: Tensor, size: int, stretch: Tensor | None = None, most: float = 1.0) -> Tensor:
    """(..., M) positions on a line of `size` voxels -> (..., M, size), the weights that read the line there.

    position: float64, in voxels, voxel i being at i. stretch: >= 1, broadcast to position: the filter is widened so
    much, for an image that shrinks by it; at most `most`. Weights sum to 1 but for the share that lies outside.
    """
    reach = math.ceil(LOBES * most)
    near = position.clamp(-2.0 * reach, size + 2.0 * reach)  # further out nothing is read either
    base = near.floor()
    taps = torch.arange(1 - reach, reach + 1, dtype=position.dtype, device=position.device)
    distance = (base - near).unsqueeze(-1) + taps
    if stretch is not None:
        distance = distance / stretch.unsqueeze(-1)
    weight = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance.abs() < LOBES)
    weight = weight * (weight.abs() > 1e-12)  # sinc at whole numbers is 0, not 1e-17
    weight = weight / weight.sum(-1, keepdim=True)
    # Taps outside land in the frame, which is cut off.
    index = (base.unsqueeze(-1) + taps + reach).clamp(0, size + 2 * reach - 1).long()
    dense = weight.new_zeros(*position.shape, size + 2 * reach).scatter_(-1, index, weight)
    return dense[..., reach : reach + size]


def resample_axis(x: Tensor, axis: int, other: int | None, matrix: Tensor) -> Tensor:
    """One pass: (N, C, D, H, W) with `axis` (0, 1, 2 for D, H, W) of n voxels -> the same with m.

    matrix: (N, m, n), or (N, size of `other`, m, n) where it depends on the place along `other`. The share of a weight
    that is missing to 1 reads BACKGROUND.
    """
    lines = [d for d in _SPATIAL if d - 2 != axis and (other is None or d - 2 != other)]
    order = (0, *(() if other is None else (2 + other,)), 2 + axis, 1, *lines)
    moved = x.permute(order)
    head = moved.shape[: matrix.dim() - 2]
    flat = moved.reshape(math.prod(head), moved.shape[len(head)], -1)
    weight = matrix.to(x.dtype).reshape(-1, *matrix.shape[-2:])
    outside = ((1 - matrix.sum(-1, keepdim=True)) * BACKGROUND).to(x.dtype).reshape(-1, matrix.shape[-2], 1)
    y = torch.baddbmm(outside, weight, flat)
    y = y.reshape(*head, matrix.shape[-2], *moved.shape[len(head) + 1 :])
    return y.permute(tuple(order.index(d) for d in range(5)))


def rotate_plane(
    x: Tensor, plane: tuple[int, int], angle: Tensor, spacing: tuple[float, float], limit: float
) -> Tensor:
    """Rotates in the plane of two axes (0, 1, 2 for D, H, W) about the volume's centre; the extents stay.

    angle: (N,) radians, float64, |angle| <= limit < pi / 2. With i, j the plane's axes in mm from the centre, output
    (i, j) reads input (cos i - sin j, sin i + cos j). spacing: voxel size along the two axes.
    """
    first, second = plane
    n, m = x.shape[2 + first], x.shape[2 + second]
    ratio = spacing[1] / spacing[0]
    frame = math.ceil(math.tan(limit / 2) * ratio * (m - 1) / 2) + LOBES  # what the second shear may call back
    i = torch.arange(-frame, n + frame, dtype=angle.dtype, device=angle.device)
    j = torch.arange(m, dtype=angle.dtype, device=angle.device)
    lean = (angle / 2).tan()[:, None, None] * ratio * (j - (m - 1) / 2)[None, :, None]  # (N, m, 1)
    climb = angle.sin()[:, None, None] / ratio * (i - (n - 1) / 2)[None, :, None]  # (N, n + 2 frame, 1)
    x = resample_axis(x, first, second, interpolation_matrix(i - lean, n))
    x = resample_axis(x, second, first, interpolation_matrix(j + climb, m))
    return resample_axis(x, first, second, interpolation_matrix(i[frame : frame + n] + frame - lean, n + 2 * frame))


def scale_and_shift(x: Tensor, axis: int, scale: Tensor, shift: Tensor, most: float) -> Tensor:
    """Enlarges by `scale` about the centre, then moves by `shift` voxels towards higher indices, along one axis.

    scale, shift: (N,) float64; 1 / scale <= most.
    """
    n = x.shape[2 + axis]
    centre = (n - 1) / 2
    place = torch.arange(n, dtype=scale.dtype, device=scale.device)
    position = centre + (place - centre - shift[:, None]) / scale[:, None]
    stretch = (1 / scale).clamp(min=1.0)[:, None]
    return resample_axis(x, axis, None, interpolation_matrix(position, n, stretch, most))
