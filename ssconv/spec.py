"""The operator described once: branches, geometry, epilogue, and the checks that every backend relies on.

Nothing here computes. A backend receives a `Geometry` and an `Epilogue` that have been checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

Triple = tuple[int, int, int]
KernelSet = Literal["dense", "grouped", "split_depth", "acs4"]
Padding = Literal["same", "valid"]
Activation = Literal["linear", "lrelu"]
DepthBorder = Literal["zero", "replicate"]
Backend = Literal["auto", "reference", "cpu", "triton", "cuda"]

# Extents of branches without a weight.
IDENTITY: Triple = (0, 0, 0)  # the branch passes its channels through
ABSENT: Triple = (-1, -1, -1)  # the branch contributes zero; only derivatives of derivatives need it

KERNEL_SETS: dict[str, tuple[Triple, ...]] = {
    "dense": ((3, 3, 3),),
    "grouped": ((3, 3, 3), (3, 3, 3)),
    "split_depth": ((3, 3, 3), (1, 3, 3)),
    "acs4": ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)),
}

MAX_EXTENT = 63  # taps per dimension; the CPU kernels have room for this many
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def window_of(branches: Sequence[Triple]) -> Triple:
    """The largest extent (Kd, Kh, Kw) over the branches; the centres of all branches coincide in this window."""
    d, h, w = (max(1, *(branch[axis] for branch in branches)) for axis in range(3))
    return d, h, w


# torch.compile traces both classes: they have methods and no properties, which older releases of it do not follow.


class Geometry(NamedTuple):
    """The linear part of a call: the branches' extents and where their windows lie.

    branches: kernel extents (kd, kh, kw) per branch, or IDENTITY or ABSENT. stride: 1 or 2 along D, H, W.
    padding: "same" or "valid". transposed: the adjoint of the strided convolution.
    """

    branches: tuple[Triple, ...]
    stride: Triple = (1, 1, 1)
    padding: str = "same"
    transposed: bool = False

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Spatial output extents (D', H', W') for the input extents `size` = (D, H, W)."""
        pairs = zip(size, self.stride, window_of(self.branches), strict=True)
        if self.transposed:
            return tuple(n * s if self.padding == "same" else (n - 1) * s + k for n, s, k in pairs)
        return tuple((n + s - 1) // s if self.padding == "same" else (n - k) // s + 1 for n, s, k in pairs)

    def first_centre(self) -> Triple:
        """Input position (D, H, W) of the first window's centre."""
        d, h, w = ((k - 1) // 2 if self.padding == "valid" else 0 for k in window_of(self.branches))
        return d, h, w

    def without_identity(self) -> Geometry:
        """The same with no identity branch. It has no weight, so derivatives in the weights do not see it."""
        return self._replace(branches=tuple(ABSENT if b == IDENTITY else b for b in self.branches))


class Epilogue(NamedTuple):
    """What follows the linear part: y = clamp(gain * act(out_scale * shuffle(z) + noise + bias)).

    groups: number of branches that the shuffle interleaves, 1 for no shuffle. negative_slope: of the leaky ReLU, 1 for
    a linear activation. clamp: bound of |y|, or None. As it stands without arguments it changes nothing.
    """

    groups: int = 1
    negative_slope: float = 1.0
    gain: float = 1.0
    clamp: float | None = None


def triple(value: int | Sequence[int], name: str) -> Triple:
    """An int, or a sequence of three, as a triple for D, H, W. `name` is the caller's argument, for the error."""
    if isinstance(value, int):
        return (value, value, value)
    values = tuple(value) if isinstance(value, Sequence) else ()
    if len(values) != 3 or not all(isinstance(v, int) for v in values):
        raise ValueError(f"{name}: expected an int or three of them for D, H, W; got {value!r}")
    return values


def check_branches(kernel_sizes: Sequence[Sequence[int] | None], name: str = "kernel_sizes") -> tuple[Triple, ...]:
    """Checks kernel extents and returns them as triples, with IDENTITY for None. `name` is the caller's argument."""
    if not isinstance(kernel_sizes, Sequence):
        raise ValueError(
            f"{name}: expected extents (kd, kh, kw) for each branch, such as ((3, 3, 3), (1, 3, 3)); "
            f"got {kernel_sizes!r}"
        )
    if not kernel_sizes:
        raise ValueError(f"{name}: expected at least one branch; got none")
    branches = []
    for i, kernel in enumerate(kernel_sizes):
        if kernel is None:
            branches.append(IDENTITY)
            continue
        extents = tuple(kernel) if isinstance(kernel, Sequence) else ()
        if len(extents) != 3 or any(not isinstance(k, int) or not 1 <= k <= MAX_EXTENT or k % 2 == 0 for k in extents):
            raise ValueError(
                f"{name}[{i}]: expected three odd positive extents (kd, kh, kw) of at most {MAX_EXTENT}, or None for "
                f"the identity; got {kernel!r}"
            )
        branches.append(extents)
    return tuple(branches)


def check_defaults(dilation: Any, groups: int, padding_mode: str) -> None:
    """Checks that keywords of nn.Conv3d which the operator does not support have their defaults."""
    if (tuple(dilation) if isinstance(dilation, Sequence) else (dilation,)) not in ((1,), (1, 1, 1)):
        raise ValueError(
            f"dilation: expected 1, the operator does not support dilation; got {dilation!r}; "
            "keep nn.Conv3d for this layer"
        )
    if groups != 1:
        raise ValueError(
            f"groups: expected 1, the branches are the groups; got {groups!r}; use one branch per group, such as "
            f"kernel_sizes=((3, 3, 3),) * {groups}, with shuffle=False for nn.Conv3d's channel order"
        )
    if padding_mode != "zeros":
        raise ValueError(
            f'padding_mode: expected "zeros"; got {padding_mode!r}; pad x with torch.nn.functional.pad and use '
            'padding="valid"'
        )


def check_geometry(
    branches: tuple[Triple, ...],
    in_channels: int,
    out_channels: int,
    spec_stride: Any,
    padding: str,
    transposed: bool,
    names: tuple[str, str, str] = ("in_channels", "out_channels", "kernel_sizes"),
) -> Triple:
    """Checks channels, stride and padding against the branches and returns the stride as a triple.

    names: what the caller calls the first three arguments, for the errors.
    """
    count = len(branches)
    for name, channels in zip(names, (in_channels, out_channels), strict=False):
        if channels < 1 or channels % count:
            raise ValueError(
                f"{name}: expected a positive multiple of the {count} branches; got {channels}; "
                f"use a multiple of {count} or fewer branches"
            )
    stride = triple(spec_stride, "stride")
    if any(s not in (1, 2) for s in stride):
        raise ValueError(f"stride: expected 1 or 2 in each dimension; got {spec_stride!r}")
    if padding not in ("same", "valid"):
        raise ValueError(
            f'padding: expected "same" or "valid"; got {padding!r}; use "same" for extents // 2 zeros on each side, '
            '"valid" for none'
        )
    if IDENTITY in branches:
        if in_channels != out_channels:
            raise ValueError(
                f"{names[2]}: an identity branch (None) needs as many output as input channels; "
                f"got {in_channels} in and {out_channels} out"
            )
        if stride != (1, 1, 1) or transposed:
            raise ValueError(
                f"{names[2]}: an identity branch (None) needs stride 1 and transposed=False; "
                f"got stride {stride}, transposed={transposed}"
            )
    return stride


def check_epilogue(activation: str, negative_slope: float, clamp: float | None) -> None:
    """Checks the options of the epilogue."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {', '.join(ACTIVATIONS)}; got {activation!r}")
    if not negative_slope >= 0:
        raise ValueError(f"negative_slope: expected at least 0; got {negative_slope}")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp: expected a positive bound or None; got {clamp}")


def check_input(x: Tensor) -> None:
    """Checks the type, dimensions and dtype of x."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a tensor (N, C, D, H, W); got {type(x).__name__}")
    if x.dim() != 5:
        raise ValueError(f"x: expected five dimensions (N, C, D, H, W); got shape {tuple(x.shape)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected float16, bfloat16, float32 or float64; got {x.dtype}")


def check_companion(x: Tensor, other: Tensor | None, name: str, shapes: Sequence[tuple[int, ...]], axes: str) -> None:
    """Checks a bias, scale, noise or weight: one of `shapes`, x's device, x's dtype (or float32 with a 16-bit x)."""
    if other is None:
        return
    if not isinstance(other, Tensor):
        raise TypeError(f"{name}: expected a tensor {axes} or None; got {type(other).__name__}")
    # Extent by extent: under a dynamic torch.compile the shapes are symbols, which `in` does not compare.
    if not any(len(s) == other.dim() and all(a == b for a, b in zip(s, other.shape, strict=True)) for s in shapes):
        expected = " or ".join(str(s) for s in dict.fromkeys(shapes))
        raise ValueError(f"{name}: expected shape {axes} = {expected}; got {tuple(other.shape)}")
    if other.dtype != x.dtype and not (x.dtype.itemsize == 2 and other.dtype == torch.float32):
        raise TypeError(f"{name}: expected dtype {x.dtype} as x has; got {other.dtype}; convert one of them")
    if other.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as x has; got {other.device}; move one of them")


def check_noise(x: Tensor, noise: Tensor | None, size: Sequence[int]) -> None:
    """Checks the noise for an output of extents `size`."""
    shapes = [(x.shape[0], 1, *size), (1, 1, *size)]
    check_companion(x, noise, "noise", shapes, "(N or 1, 1, D, H, W) of the output")


def check_call(
    x: Tensor,
    weights: Sequence[Tensor | None],
    bias: Tensor | None,
    stride: Any,
    padding: str,
    transposed: bool,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
) -> Geometry:
    """Checks the tensors of one call against each other and returns its geometry.

    Raises:
        ValueError, TypeError: the message names the argument, what was expected, what was given and what to do.
    """
    check_input(x)
    if isinstance(weights, Tensor) or (not isinstance(weights, Sequence) and not hasattr(weights, "__iter__")):
        raise TypeError("weights: expected a sequence with one tensor (Cout/S, Cin/S, kd, kh, kw) or None per branch")
    weights = list(weights)
    for i, weight in enumerate(weights):
        if weight is not None and (not isinstance(weight, Tensor) or weight.dim() != 5):
            got = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise ValueError(f"weights[{i}]: expected a tensor (Cout/S, Cin/S, kd, kh, kw) or None; got {got}")
    branches = check_branches([None if w is None else tuple(int(k) for k in w.shape[2:]) for w in weights], "weights")
    count, in_channels = len(branches), x.shape[1]
    real = [w for w in weights if w is not None]
    if real and all(w.shape[1] == real[0].shape[1] for w in real) and real[0].shape[1] * count != in_channels:
        raise ValueError(f"x: expected {real[0].shape[1] * count} channels; got {in_channels}")
    out_channels = real[0].shape[0] * count if real else in_channels
    names = ("channels of x", "output channels of weights", "weights")
    stride = check_geometry(branches, in_channels, out_channels, stride, padding, transposed, names)
    for i, weight in enumerate(weights):
        if weight is not None:
            shape = (out_channels // count, in_channels // count, *branches[i])
            check_companion(x, weight, f"weights[{i}]", [shape], "(Cout/S, Cin/S, kd, kh, kw)")
            if weight.dtype != x.dtype:
                raise TypeError(
                    f"weights[{i}]: expected dtype {x.dtype} as x has; got {weight.dtype}; convert one of them"
                )
    geometry, window = Geometry(branches, stride, padding, transposed), window_of(branches)
    if padding == "valid" and not transposed and any(n < k for n, k in zip(x.shape[2:], window, strict=True)):
        raise ValueError(f'x: padding="valid" needs extents of at least {window}; got {tuple(x.shape[2:])}')
    if any(n < 1 for n in x.shape[2:]):
        raise ValueError(f"x: expected at least one voxel along D, H and W; got shape {tuple(x.shape)}")
    check_companion(x, bias, "bias", [(out_channels,)], "(Cout,)")
    check_companion(x, in_scale, "in_scale", [(x.shape[0], in_channels)], "(N, Cin)")
    check_companion(x, out_scale, "out_scale", [(x.shape[0], out_channels)], "(N, Cout)")
    check_noise(x, noise, geometry.output_size(x.shape[2:]))
    return geometry


def upfirdn_size(
    size: Sequence[int], lengths: Sequence[int], up: Sequence[int], down: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """Output extents (D', H', W') of an upfirdn: ceil((n * up + p0 + p1 - taps + 1) / down) per dimension.

    lengths: numbers of taps along D, H, W. padding: (d0, d1, h0, h1, w0, w1).
    """
    return [(size[d] * up[d] + padding[2 * d] + padding[2 * d + 1] - lengths[d] + down[d]) // down[d] for d in range(3)]


# What upfirdn takes for the samples beyond the ends of D: zeros; the outer slices again; or zeros, and what outputs
# beyond the first and the last would be is added to those. The last two are adjoint to each other.
BORDERS = ("zero", "replicate", "fold")
ADJOINT_BORDER = {"zero": "zero", "replicate": "fold", "fold": "replicate"}


def replicated_slices(up: int, padding: Sequence[int]) -> tuple[int, int]:
    """How often the border "replicate" repeats the first slice and the last one."""
    return max(0, -(-padding[0] // up)), max(0, -(-padding[1] // up))


def folded_slices(samples: int, outputs: int, length: int, up: int, down: int, before: int) -> tuple[int, int]:
    """How many outputs along D the border "fold" adds to the first one and to the last one."""
    return max(0, (length - 1 - before) // down), max(0, ((samples - 1) * up + before) // down - (outputs - 1))
