"""Convolutions, their input gradients and weight gradients on the CUDA backend.

Several families of kernels compute each, with configurations of their own. Where none is chosen, the first family that
can compute the call does so, in its default configuration.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssconv.backend import families
from ssconv.backend.cuda import plan, runner, sm80, sm90, sm90_halo
from ssconv.backend.cuda.plan import Layout
from ssconv.backend.cuda.sm80 import ConvCall, ConvPlan, WgradCall, WgradPlan
from ssconv.backend.cuda.table import TABLE, Key
from ssconv.backend.gpu import architecture, arithmetic, check_size, contiguous, empty, multiprocessors, too_large
from ssconv.spec import ABSENT, IDENTITY, Epilogue, Geometry

Chosen = tuple[str, Any] | None  # a family's name and its configuration

# The first that can compute a call does, where nothing has been measured.
CONV_FAMILIES = ("sm90_im2col", "sm90_halo", "sm90_cluster", "sm90_halo_swizzled", "sm80_conv")
WGRAD_FAMILIES = ("sm90_wgrad", "sm80_wgrad")


def _pack_input(x: Tensor, scale: Tensor | None, branches: int) -> Tensor:
    """x * scale, as convolutions can read it in chunks."""
    launch, padded = plan.pack_input(Layout.of(x), branches)
    out = empty(x, branches * padded, x.shape[2:])
    runner.run(launch, {"source": x, "in_scale": runner.float32(scale), "packed_input": out})
    return out


# -------------------------------------------------------------------------------------- forward and input gradient


@dataclass(frozen=True)
class _Conv:
    """The branches' convolutions of x, or their adjoints, to an output of extents `size`, with the epilogue.

    swap: weights are read with input and output channels exchanged.
    """

    x: Tensor
    weights: Sequence[Tensor]
    swap: bool
    bias: Tensor | None
    in_scale: Tensor | None
    out_scale: Tensor | None
    noise: Tensor | None
    geometry: Geometry
    adjoint: bool
    size: tuple[int, ...]
    settings: Epilogue
    save_z: bool

    @property
    def out_channels(self) -> int:
        """Output channels of a branch."""
        if len(self.weights):
            return self.weights[0].shape[1 if self.swap else 0]
        return self.x.shape[1] // len(self.geometry.branches)

    @functools.cached_property
    def described(self) -> tuple[ConvCall, Key, bool]:
        """What plans need to know, the class of sm_80's configuration, and whether x has to be packed before."""
        x, geometry, settings = self.x, self.geometry, self.settings
        count = len(geometry.branches)
        layout, kind = Layout.of(x), arithmetic(x.dtype)
        scaled = self.in_scale is not None
        key, packs_input = sm80.conv_key(
            layout, scaled, self.out_channels, geometry, settings.groups, architecture(x.device), kind
        )
        if packs_input:
            layout = plan.packed_layout(layout, count)
        call = ConvCall(
            x=layout,
            in_channels=x.shape[1] // count,
            weight_strides=tuple(w.stride() for w in self.weights),
            swap=self.swap,
            noise=runner.noise_of(self.noise),
            geometry=geometry,
            adjoint=self.adjoint,
            size=self.size,
            out_channels=self.out_channels,
            groups=settings.groups,
            clamped=settings.clamp is not None,
            arithmetic=sm80.arithmetic_of(x.dtype, kind),
        )
        return call, key, packs_input

    def configs(self, family: str) -> Iterator[Any]:
        """The configurations of a family that can compute it, the default first."""
        if too_large(self.size):
            return
        call, key, _ = self.described
        if family == "sm80_conv":
            yield from TABLE.configs(key)
        elif key.singly or sm90_unavailable(self.x.device):
            return
        elif family in sm90_halo.LAYOUTS:
            yield from sm90_halo.configs(call, family)
        elif sm90.conv_unsupported(*call.question()) is None:
            yield None

    def run(self, chosen: Chosen = None) -> tuple[Tensor, Tensor | None]:
        """Computes y and, where it is asked for, z."""
        x, count = self.x, len(self.geometry.branches)
        check_size(self.size)
        y = empty(x, self.out_channels * count, self.size)
        z = torch.empty_like(y) if self.save_z else None
        if y.numel() == 0:
            return y, z
        family, config = chosen or _first(CONV_FAMILIES, self.configs)
        call, key, packs_input = self.described
        in_scale = self.in_scale
        if packs_input:
            x, in_scale = _pack_input(x, in_scale, count), None
        tensors: runner.Tensors = {
            "x": x, "in_scale": runner.float32(in_scale), "out_scale": runner.float32(self.out_scale),
            "bias": runner.float32(self.bias), "noise": self.noise, "y": y, "z": z,
        }  # fmt: skip
        numbers = (n for n, kernel in enumerate(self.geometry.branches) if sm80.has_weights(kernel))
        tensors |= {f"weight{n}": w for n, w in zip(numbers, self.weights, strict=True)}
        floats = runner.epilogue_floats(self.settings)
        planned = _plan_conv(family, config, call, key, multiprocessors(x.device))
        for (pack, conv), elements in zip(planned.launches, planned.packed, strict=True):
            tensors["packed_weights"] = x.new_empty(elements)
            if pack is not None:
                runner.run(pack, tensors)
            runner.run(conv, tensors, floats)
        return y, z


def _plan_conv(family: str, config: Any, call: ConvCall, key: Key, multiprocessors: int) -> ConvPlan:
    """What a family launches for a convolution."""
    if family == "sm80_conv":
        return sm80.conv_sm80(call, key, config)
    if family in sm90_halo.LAYOUTS:
        return sm90_halo.conv_sm90_halo(call, family, config, multiprocessors)
    return sm90.conv_sm90(call, multiprocessors, sm90.CLUSTERS[family])


def _first(names: Sequence[str], configs: Callable[[str], Iterator[Any]]) -> tuple[str, Any]:
    """The first family that can compute a call, by name, and its default configuration."""
    allowed = [name for name in names if families.allowed(name)]
    for name in allowed:
        for config in configs(name):
            return name, config
    raise RuntimeError(
        f"backend: no kernel of 'cuda' computes this call; {families.SWITCH} in the environment leaves "
        f"{', '.join(allowed) or 'none'} of {', '.join(names)}"
    )


def sm90_unavailable(device: torch.device) -> str | None:
    """Why the kernels of sm_90a compute no call on a device, or None."""
    if not runner.has_sm90a:
        return "the compiled module has no code for sm_90a"
    found = architecture(device)
    return None if found == sm90.ARCHITECTURE else f"compute capability {found // 10}.{found % 10}, not 9.0"


def forward(
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    in_scale: Tensor | None,
    out_scale: Tensor | None,
    noise: Tensor | None,
    geometry: Geometry,
    settings: Epilogue,
    save_z: bool,
) -> _Conv:
    """The convolution that `convolve` is, by its arguments."""
    return _Conv(
        x, weights, False, bias, in_scale, out_scale, contiguous(noise), geometry, geometry.transposed,
        tuple(geometry.output_size(x.shape[2:])), settings, save_z,
    )  # fmt: skip


def dgrad(
    g: Tensor, weights: Sequence[Tensor], in_scale: Tensor | None, geometry: Geometry, size: Sequence[int]
) -> _Conv:
    """The convolution that `input_grad` is, by its arguments: the adjoint, its output scaled."""
    return _Conv(
        g, weights, True, None, None, in_scale, None, geometry, not geometry.transposed, tuple(size), Epilogue(), False
    )


def convolve(*args: Any) -> tuple[Tensor, Tensor | None]:
    """y (N, Cout, D', H', W') after the epilogue, and z before it in branch order where it is asked for; the arguments
    are those of `forward`."""
    return forward(*args).run()


def input_grad(*args: Any) -> Tensor:
    """in_scale * A^T g, (N, Cin, *size), for g in branch order: the same kernels with the adjoint; the arguments are
    those of `dgrad`."""
    return dgrad(*args).run()[0]


# -------------------------------------------------------------------------------------------------- weight gradient


class _Wgrad(NamedTuple):
    """Gradients of the weights of some branches.

    low: the tensor that has a voxel per window, high: the other one, both as the kernels read them, with a voxel or
    more. rows, columns: channels of a branch of low and of high. groups: the numbers of the branches of each launch.
    """

    low: Tensor
    high: Tensor
    geometry: Geometry
    rows: int
    columns: int
    groups: tuple[tuple[int, ...], ...]

    def described(self, group: tuple[int, ...], low: Layout, high: Layout) -> WgradCall:
        """What plans need to know."""
        kind = sm80.arithmetic_of(self.low.dtype, arithmetic(self.low.dtype))
        return WgradCall(low, high, group, self.geometry, self.rows, self.columns, kind)

    def configs(self, family: str) -> Iterator[Any]:
        """The configurations of a family that can compute it, the default first."""
        if too_large(self.low.shape[2:]):
            return
        device = self.low.device
        if family == "sm80_wgrad":
            yield from TABLE.configs(sm80.wgrad_key(self.rows, architecture(device), arithmetic(self.low.dtype)))
        elif sm90_unavailable(device) is None:
            count = len(self.geometry.branches)
            low, high = (plan.readable_layout(Layout.of(t), count) for t in (self.low, self.high))
            calls = (self.described(group, low, high) for group in self.groups)
            if all(sm90.wgrad_unsupported(*call[:4]) is None for call in calls):
                yield None

    def run(self, family: str, config: Any, out: dict[int, Tensor]) -> None:
        """Fills the gradients, by the branches' numbers."""
        for group in self.groups:
            self._run_group(group, self.low, self.high, family, config, [out[n] for n in group])

    def _run_group(
        self, group: tuple[int, ...], low: Tensor, high: Tensor, family: str, config: Any, out: Sequence[Tensor]
    ) -> None:
        # A batch's voxels are numbered with 32 bits: two halves, added in order.
        if low.shape[0] * low[0, 0].numel() > plan.MAX_BATCH_VOXELS:
            half = low.shape[0] // 2
            halves = [[torch.empty_like(t) for t in out] for _ in range(2)]
            for sums, at in zip(halves, (slice(0, half), slice(half, None)), strict=True):
                self._run_group(group, low[at], high[at], family, config, sums)
            for t, a, b in zip(out, *halves, strict=True):
                torch.add(a, b, out=t)
            return
        call = self.described(group, Layout.of(low), Layout.of(high))
        planned = _plan_wgrad(family, config, call, multiprocessors(low.device))
        tensors: runner.Tensors = {"low": low, "high": high, **{f"out{i}": t for i, t in enumerate(out)}}
        tensors["workspace"] = low.new_empty(planned.workspace, dtype=torch.float32)
        runner.run(planned.multiply, tensors)
        runner.run(planned.reduce, tensors)


def _plan_wgrad(family: str, config: Any, call: WgradCall, multiprocessors: int) -> WgradPlan:
    """What a family launches for weight gradients."""
    if family == "sm80_wgrad":
        return sm80.wgrad_sm80(call, config)
    return sm90.wgrad_sm90(call, multiprocessors)


def wgrad(g: Tensor, x: Tensor, geometry: Geometry) -> _Wgrad:
    """The weight gradients of a call, g in branch order."""
    count = len(geometry.branches)
    low, high = (x, g) if geometry.transposed else (g, x)
    numbers = tuple(n for n, kernel in enumerate(geometry.branches) if kernel not in (IDENTITY, ABSENT))
    groups = tuple(numbers[i : i + sm80.BRANCHES] for i in range(0, len(numbers), sm80.BRANCHES))
    return _Wgrad(low, high, geometry, low.shape[1] // count, high.shape[1] // count, groups)


def weight_grad(
    g: Tensor, x: Tensor, in_scale: Tensor | None, geometry: Geometry, *, chosen: Chosen = None
) -> list[Tensor]:
    """Gradients of the weights, float32, one per branch that has one, for g in branch order."""
    count = len(geometry.branches)
    call = wgrad(g, x, geometry)
    extents = (call.columns, call.rows) if geometry.transposed else (call.rows, call.columns)
    kinds: dict[str, Any] = {"dtype": torch.float32, "device": x.device}
    out = {n: torch.empty((*extents, *geometry.branches[n]), **kinds) for group in call.groups for n in group}
    if not x.numel() or not g.numel():
        return [t.zero_() for t in out.values()]
    check_size(call.low.shape[2:])
    family, config = chosen or _first(WGRAD_FAMILIES, call.configs)
    if in_scale is not None or not Layout.of(x).in_chunks(x.shape[1] // count):
        x = _pack_input(x, in_scale, count)
    if not Layout.of(g).in_chunks(g.shape[1] // count):
        g = _pack_input(g, None, count)
    low, high = (x, g) if geometry.transposed else (g, x)
    call._replace(low=low, high=high).run(family, config, out)
    return list(out.values())
