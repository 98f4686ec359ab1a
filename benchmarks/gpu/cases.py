"""What is timed on a GPU: layers of a 3D GAN, everything that can compute one of them, and the least work it takes.

Every contender is one 3x3x3 layer with bias and leaky ReLU, as in `cases.py`; some halve or double the extents, and a
`scaled` one has StyleGAN2's per-sample scales, whose gradients a step then also gives. The rivals are what PyTorch
offers: nn.Conv3d and nn.ConvTranspose3d in both memory layouts, their grouped form with channel_shuffle, eager and
under torch.compile, and for scaled layers the modulated convolution with one group per sample (Karras et al. 2020).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssconv
from benchmarks.operator.cases import KERNELS, LAYOUTS, SLOPE, Contender, Layer, shuffled
from ssconv.backend.dispatch import resolve

_PLAIN = (
    Layer(8, 128, 64),
    Layer(8, 64, 64),
    Layer(4, 32, 128),
    Layer(16, 256, 32),
    Layer(32, 512, 8),
    Layer(8, 256, 16),
    Layer(8, 64, 64, out_channels=128, stride=2),
    Layer(8, 128, 32, out_channels=64, stride=2, transposed=True),
)
# Without scales first: what the time does not reach is then the variant, not the layer.
GPU_LAYERS: tuple[Layer, ...] = (*_PLAIN, *(dataclasses.replace(layer, scaled=True) for layer in _PLAIN))

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
PASSES = ("forward", "input gradient", "weight gradient", "full step", "double backward")


def part(layers: Sequence[Layer], which: str) -> list[Layer]:
    """Every n-th layer from the i-th for which = "i/n"; the n parts together are all layers, each once.

    Raises:
        ValueError: `which` is not i/n with 1 <= i <= n.
    """
    number, _, count = which.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"part: expected i/n with 1 <= i <= n, such as 1/3; got {which!r}")
    return list(layers[int(number) - 1 :: int(count)])


# ------------------------------------------------------------------------------------------------ least work


@dataclass(frozen=True)
class Work:
    """The floating-point operations of a pass and the fewest bytes it moves: each input read once, each output
    written once."""

    operations: int
    bytes: int

    def floor(self, operations_per_second: float, bytes_per_second: float) -> float:
        """Seconds under which no kernel gets: the larger of arithmetic and traffic."""
        return max(self.operations / operations_per_second, self.bytes / bytes_per_second)


def work(layer: Layer, kernels: str, what: str, item_size: int) -> Work:
    """What a pass of a layer with that kernel set takes at least.

    A multiply-add counts as two operations. Taps that fall outside of the volume are counted too (a few percent), the
    scales, the bias and the pointwise arithmetic are not. Gradients read the output for the activation's slope. The
    double backward is forward, input gradient, and that gradient's derivatives for the weights and the upstream.
    """
    branches = KERNELS[kernels]
    weights = layer.channels * layer.out * sum(math.prod(k) for k in branches) // len(branches) ** 2
    centres = layer.batch * (layer.edge if layer.transposed else layer.out_edge) ** 3
    x, y, w = math.prod(layer.shape), math.prod(layer.out_shape), weights
    products, items = {
        "forward": (1, x + w + y),
        "input gradient": (1, 2 * y + w + x),
        "weight gradient": (1, 2 * y + x + w),
        "full step": (3, (x + w + y) + (2 * y + x + w) + (x + w)),
        "double backward": (4, (x + w + y) + (2 * y + w + x) + (x + 2 * y + w) + (w + y)),
    }[what]
    return Work(2 * products * centres * weights, items * item_size)


# ------------------------------------------------------------------------------------------------ contenders


def serving(device: str) -> list[str]:
    """The available backends of ssconv that take tensors on that device; nothing is computed to find out."""
    probe = torch.empty(1, 1, 1, 1, 1, device=device)

    def serves(name: str) -> bool:
        try:
            resolve(name, probe)
        except RuntimeError:
            return False
        return True

    return [name for name, state in ssconv.backends().items() if state == "available" and serves(name)]


def gpu_backends() -> list[str]:
    """Those made for GPUs. "reference" serves there too, but it defines the operator and is not meant to be fast."""
    return [name for name in serving("cuda") if name != "reference"]


def hopper_state(device: str) -> str:
    """Whether the cuda backend has products of sm_90a there: "available", or why not."""
    if ssconv.backends()["cuda"] != "available":
        return ssconv.backends()["cuda"]
    from ssconv.backend.cuda import launch  # imports only where it can serve

    reason = launch.sm90_unavailable(torch.device(device))
    return "available" if reason is None else f"not available: {reason}"


def gpu_contenders(
    layer: Layer,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    backends: Sequence[str] = (),
    compiled: bool = True,
) -> list[Contender]:
    """Everything that computes the layer: PyTorch's own ways, and ssconv with each of `backends`.

    compiled: with the grouped convolution under torch.compile, whose first call takes seconds. Where the cuda backend
    has products of sm_90a, its products of sm_80 are contenders of their own, and so are, of split_depth, those of
    sm_90a in clusters of one block and of two.
    """
    place = {"dtype": dtype, "device": device}
    hopper = "cuda" in backends and dtype.itemsize == 2 and hopper_state(device) == "available"
    return [
        *(_torch_conv(layer, "dense", name, **place) for name in LAYOUTS),
        *([_modulated(layer, **place)] if layer.scaled else []),
        *(_halo_otherwise(layer, **place) if hopper and layer.stride == 1 else []),
        *(_torch_conv(layer, "grouped", name, **place) for name in LAYOUTS),
        *([_torch_conv(layer, "grouped", "channels_last", compiled=True, **place)] if compiled else []),
        *(_ssconv(layer, kernels, backend, **place) for backend in backends for kernels in KERNELS),
        *(_ssconv(layer, kernels, "cuda", only="sm_80", **place) for kernels in KERNELS if hopper),
        *(_ssconv(layer, "split_depth", "cuda", only=only, **place) for only in ("cluster 1", "cluster 2") if hopper),
    ]


# What the environment says for a layer that the cuda backend computes with its halo in shared memory in the other
# layout, or by im2col copies.
HALO_OTHERWISE = {"halo swizzled": {"SSCONV_HALO": "swizzled"}, "im2col": {"SSCONV_HALO": "0"}}


def _halo_otherwise(layer: Layer, *, dtype: torch.dtype, device: str) -> list[Contender]:
    """Contenders of their own."""
    plain = [_ssconv(layer, kernels, "cuda", dtype=dtype, device=device) for kernels in KERNELS]
    return [
        dataclasses.replace(c, implementation=f"{c.implementation}, {name}", environment=environment)
        for name, environment in HALO_OTHERWISE.items()
        for c in plain
    ]


def _drawn_scales(layer: Layer, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """in_scale (N, Cin) and out_scale (N, Cout) near 1, different for each sample and channel."""
    if not layer.scaled:
        return ()
    generator = torch.Generator().manual_seed(3)
    shapes = ((layer.batch, layer.channels), (layer.batch, layer.out))
    drawn = [1 + 0.25 * torch.randn(shape, generator=generator) for shape in shapes]
    return tuple(t.to(device, dtype).requires_grad_() for t in drawn)


def _per_channel(scale: Tensor) -> Tensor:
    return scale[:, :, None, None, None]


def _modules(layer: Layer, groups: int, bias: bool) -> nn.Conv3d | nn.ConvTranspose3d:
    torch.manual_seed(1)
    options = {"stride": layer.stride, "padding": 1, "groups": groups, "bias": bias}
    if layer.transposed:
        return nn.ConvTranspose3d(layer.channels, layer.out, 3, output_padding=layer.stride - 1, **options)
    return nn.Conv3d(layer.channels, layer.out, 3, **options)


def _torch_conv(
    layer: Layer, kernels: str, layout: str, *, dtype: torch.dtype, device: str, compiled: bool = False
) -> Contender:
    """PyTorch's module, followed by the shuffle where there are groups; scales as two multiplications around it."""
    groups = len(KERNELS[kernels])
    conv = _modules(layer, groups, bias=True).to(device=device, dtype=dtype, memory_format=LAYOUTS[layout])
    weight, bias, scales = conv.weight, conv.bias, _drawn_scales(layer, dtype, device)
    if scales:
        conv.register_parameter("bias", None)  # it comes after the scales

    def forward(x: Tensor) -> Tensor:
        z = conv(x * _per_channel(scales[0])) if scales else conv(x)
        if groups > 1:
            z = F.channel_shuffle(z, groups)
        if scales:
            z = z * _per_channel(scales[1]) + bias[:, None, None, None]
        return F.leaky_relu(z, SLOPE)

    def branches(tensors: Sequence[Tensor]) -> Tensor:
        parts = tensors[0].chunk(groups)
        return shuffled([p.transpose(0, 1) for p in parts] if layer.transposed else parts)

    return Contender(
        kernels,
        f"nn.Conv3d {layout}{' compiled' if compiled else ''}",
        torch.compile(forward, dynamic=False, fullgraph=True) if compiled else forward,
        (weight, bias),
        branches,
        LAYOUTS[layout],
        # The module's own bias is numbered as the groups are, not as the output is.
        (lambda b: b) if scales else (lambda b: b.view(groups, -1).t().flatten()),
        twice=not compiled,
        scales=scales,
    )


def _modulated(layer: Layer, *, dtype: torch.dtype, device: str) -> Contender:
    """StyleGAN2's modulated convolution: a weight per sample, all samples as the groups of one convolution."""
    conv = _modules(layer, 1, bias=True).to(device=device, dtype=dtype)
    bias, scales = conv.bias, _drawn_scales(layer, dtype, device)
    own = conv.weight.detach().transpose(0, 1) if layer.transposed else conv.weight.detach()
    weight = nn.Parameter(own.contiguous())
    n = layer.batch

    def forward(x: Tensor) -> Tensor:
        s, d = scales[0][:, None, :, None, None, None], scales[1][:, :, None, None, None, None]
        each = weight * s * d  # (N, Cout, Cin, 3, 3, 3)
        x = x.reshape(1, n * layer.channels, *x.shape[2:])
        if layer.transposed:
            each = each.transpose(1, 2).flatten(0, 1)
            z = F.conv_transpose3d(x, each, None, layer.stride, 1, layer.stride - 1, groups=n)
        else:
            z = F.conv3d(x, each.flatten(0, 1), None, layer.stride, 1, groups=n)
        return F.leaky_relu(z.reshape(layer.out_shape) + bias[:, None, None, None], SLOPE)

    return Contender(
        "dense", "modulated, groups=N", forward, (weight, bias), lambda t: t[0], torch.contiguous_format, scales=scales
    )


# What the environment says for the contenders that are a part of what the cuda backend has. Clusters are im2col's: no
# other product of sm_90a shall serve in its place.
ONLY = {"": {}, "sm_80": {"SSCONV_HOPPER": "0"}}
ONLY |= {f"cluster {n}": {"SSCONV_CLUSTER": str(n), "SSCONV_HALO": "0"} for n in (1, 2)}


def _ssconv(layer: Layer, kernels: str, backend: str, *, dtype: torch.dtype, device: str, only: str = "") -> Contender:
    torch.manual_seed(1)
    conv = ssconv.SplitShuffleConv3d(layer.channels, layer.out, KERNELS[kernels]).to(device=device, dtype=dtype)
    weights, bias, scales = tuple(conv.weights), conv.bias, _drawn_scales(layer, dtype, device)
    in_scale, out_scale = scales or (None, None)

    def forward(x: Tensor) -> Tensor:
        return ssconv.split_shuffle_conv3d(
            x, weights, bias, stride=layer.stride, transposed=layer.transposed, in_scale=in_scale, out_scale=out_scale,
            activation="lrelu", negative_slope=SLOPE, backend=backend,
        )  # fmt: skip

    return Contender(
        kernels, f"ssconv {backend}{only and f', {only}'}", forward, (*weights, bias), shuffled,
        torch.channels_last_3d, scales=scales, environment=ONLY[only],
    )  # fmt: skip
