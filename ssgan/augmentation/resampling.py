"""Rotates, scales and shifts volumes by resampling along one axis at a time.

A pass resamples each line of voxels along an axis by a dense interpolation matrix, at positions that may depend on one
other axis. A rotation in a plane is three shears (Unser et al. 1995, "Convolution-based interpolation for fast,
high-quality rotation of images"), each of them a pass. Passes have two advantages over `grid_sample`:

- They are matrix products: differentiable to any order, and bit-identical from run to run on a GPU, where the gradient
  of a gather is summed in no fixed order.
- A long filter costs no more than a short one. Lanczos with 4 lobes, widened where an image shrinks, keeps detail
  without ADA's sampling at twice the resolution, which would be eight times the voxels in 3D.

Outside the volume everything is background. At a whole-numbered position the voxel there is taken unchanged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BACKGROUND = -1.0  # air, with which `prepare` pads
LOBES = 4  # of the Lanczos filter on each side

_SPATIAL = (2, 3, 4)


def interpolation_matrix(position: Tensor, size: int, stretch: Tensor | None = None, most: float = 1.0) -> Tensor:
    """The matrix (..., M, size) that interpolates a line of `size` voxels at positions (..., M).

    Its rows sum to 1, less the share of the filter that lies outside the line.

    position: float64, in voxels; voxel i is at i.
    stretch: factor >= 1 by which the filter is widened, for an image that shrinks by it; broadcast to position. At most
        `most`.
    """
    reach = math.ceil(LOBES * most)
    near = position.clamp(-2.0 * reach, size + 2.0 * reach)  # nothing is read further out
    base = near.floor()
    taps = torch.arange(1 - reach, reach + 1, dtype=position.dtype, device=position.device)
    distance = (base - near).unsqueeze(-1) + taps
    if stretch is not None:
        distance = distance / stretch.unsqueeze(-1)
    weight = torch.sinc(distance) * torch.sinc(distance / LOBES) * (distance.abs() < LOBES)
    weight = weight * (weight.abs() > 1e-12)  # sinc at whole numbers is 0, not 1e-17
    weight = weight / weight.sum(-1, keepdim=True)
    # Taps outside the line fall into a margin, which is cut off.
    index = (base.unsqueeze(-1) + taps + reach).clamp(0, size + 2 * reach - 1).long()
    dense = weight.new_zeros(*position.shape, size + 2 * reach).scatter_(-1, index, weight)
    return dense[..., reach : reach + size]


def resample_axis(x: Tensor, axis: int, other: int | None, matrix: Tensor) -> Tensor:
    """Resamples (N, C, D, H, W) along `axis` (0, 1, 2 for D, H, W) from n to m voxels.

    matrix: (N, m, n), or (N, size of `other`, m, n) where it depends on the index along the axis `other`. What a row
    lacks to the sum 1 is the weight of BACKGROUND.
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
    """Rotates in the plane of two axes (0, 1, 2 for D, H, W) about the volume's centre; the shape stays.

    With i, j the distances from the centre in mm along the two axes, output (i, j) is the input at
    (cos i - sin j, sin i + cos j).

    angle: (N,) radians, float64, |angle| <= limit < pi / 2. spacing: voxel size in mm along the two axes.
    """
    first, second = plane
    n, m = x.shape[2 + first], x.shape[2 + second]
    ratio = spacing[1] / spacing[0]
    frame = math.ceil(math.tan(limit / 2) * ratio * (m - 1) / 2) + LOBES  # reach of the second shear
    i = torch.arange(-frame, n + frame, dtype=angle.dtype, device=angle.device)
    j = torch.arange(m, dtype=angle.dtype, device=angle.device)
    first_shear = (angle / 2).tan()[:, None, None] * ratio * (j - (m - 1) / 2)[None, :, None]  # (N, m, 1)
    second_shear = angle.sin()[:, None, None] / ratio * (i - (n - 1) / 2)[None, :, None]  # (N, n + 2 frame, 1)
    x = resample_axis(x, first, second, interpolation_matrix(i - first_shear, n))
    x = resample_axis(x, second, first, interpolation_matrix(j + second_shear, m))
    third = interpolation_matrix(i[frame : frame + n] + frame - first_shear, n + 2 * frame)
    return resample_axis(x, first, second, third)


def scale_and_shift(x: Tensor, axis: int, scale: Tensor, shift: Tensor, most: float) -> Tensor:
    """Scales by `scale` about the centre, then shifts by `shift` voxels towards higher indices, along one axis.

    scale, shift: (N,) float64; 1 / scale <= most.
    """
    n = x.shape[2 + axis]
    centre = (n - 1) / 2
    index = torch.arange(n, dtype=scale.dtype, device=scale.device)
    position = centre + (index - centre - shift[:, None]) / scale[:, None]
    stretch = (1 / scale).clamp(min=1.0)[:, None]
    return resample_axis(x, axis, None, interpolation_matrix(position, n, stretch, most))
