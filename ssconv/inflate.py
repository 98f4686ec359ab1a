"""Inflates 2D convolution weights to 3D: spread along depth by a profile with sum 1 (Carreira and Zisserman 2017)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Profile = Literal["average", "centre", "triangle"]
PROFILES: tuple[Profile, ...] = get_args(Profile)


def depth_profile(depth: int, profile: Profile) -> Tensor:
    """The factors (depth,), float64, sum 1, by which a 2D weight is spread along depth.

    "average": 1/depth each. "centre": 1 in the middle. "triangle": rises linearly to the middle, (1/4, 1/2, 1/4) for
    depth 3. For depth 1 they are the same.

    Raises:
        ValueError: depth is not odd and positive, or the profile is unknown.

    Example:
        >>> depth_profile(3, "triangle")
        tensor([0.2500, 0.5000, 0.2500], dtype=torch.float64)
    """
    if not isinstance(depth, int) or depth < 1 or depth % 2 == 0:
        raise ValueError(f"depth: expected an odd positive number of taps; got {depth!r}")
    if profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}; got {profile!r}")
    middle = depth // 2
    offset = (torch.arange(depth, dtype=torch.float64) - middle).abs()
    if profile == "average":
        p = torch.ones(depth, dtype=torch.float64)
    elif profile == "centre":
        p = (offset == 0).double()
    else:
        p = middle + 1 - offset
    return p / p.sum()


def inflate_weight(weight2d: Tensor, depth: int, profile: Profile = "average") -> Tensor:
    """Spreads a 2D weight (O, I, kh, kw) along depth: (O, I, depth, kh, kw), same dtype and device, same sum.

    Raises:
        ValueError: weight2d has other dimensions, or as `depth_profile`.

    Example:
        >>> inflate_weight(torch.ones(1, 1, 3, 3), 3, "triangle")[0, 0, :, 0, 0]
        tensor([0.2500, 0.5000, 0.2500])
    """
    if not isinstance(weight2d, Tensor) or weight2d.dim() != 4:
        got = tuple(weight2d.shape) if isinstance(weight2d, Tensor) else type(weight2d).__name__
        raise ValueError(f"weight2d: expected a tensor (O, I, kh, kw); got {got}")
    p = depth_profile(depth, profile).to(weight2d)
    return weight2d[:, :, None] * p[None, None, :, None, None]
