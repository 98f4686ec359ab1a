"""The layers and contenders of a GPU run.

Every contender is one 3x3x3 layer with bias and leaky ReLU, as in `benchmarks.operator.cases`; some halve or double the
extents, and a `scaled` one has StyleGAN2's per-sample scales, whose gradients a step then also gives. The rivals are
what PyTorch offers: nn.Conv3d and nn.ConvTranspose3d in both memory layouts, their grouped form with channel_shuffle,
eager and under torch.compile, and for scaled layers the modulated convolution with one group per sample (Karras et al.
2020).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssconv
from benchmarks.operator.cases import (
    KERNELS,
    LAYOUTS,
    SLOPE,
    Contender,
    Layer,
    conv_module,
    drawn_scales,
    split_shuffle,
    torch_conv,
)
from ssconv.backend.dispatch import resolve

PLAIN_LAYERS = (
    Layer(8, 128, 64),
    Layer(8, 64, 64),
    Layer(4, 32, 128),
    Layer(16, 256, 32),
    Layer(32, 512, 8),
    Layer(8, 256, 16),
    Layer(8, 64, 64, out_channels=128, stride=2),
    Layer(8, 128, 32, out_channels=64, stride=2, transposed=True),
)
# Without scales first: when time runs out, only scaled variants are missing.
GPU_LAYERS: tuple[Layer, ...] = (*PLAIN_LAYERS, *(dataclasses.replace(layer, scaled=True) for layer in PLAIN_LAYERS))

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}


def part(layers: Sequence[Layer], which: str) -> list[Layer]:
    """Takes every n-th layer from the i-th for which = "i/n"; the n parts together are all layers, each once.

    Raises:
        ValueError: `which` is not i/n with 1 <= i <= n.
    """
    number, _, count = which.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise ValueError(f"part: expected i/n with 1 <= i <= n, such as 1/3; got {which!r}")
    return list(layers[int(number) - 1 :: int(count)])


def serving(device: str) -> list[str]:
    """Lists the available backends of ssconv that take tensors on that device, without computing anything."""
    probe = torch.empty(1, 1, 1, 1, 1, device=device)

    def serves(name: str) -> bool:
        try:
            resolve(name, probe)
        except RuntimeError:
            return False
        return True

    return [name for name, state in ssconv.backends().items() if state == "available" and serves(name)]


def gpu_backends() -> list[str]:
    """Lists "auto" and the backends made for GPUs. "reference" serves there too, but it defines the operator."""
    return ["auto", *(name for name in serving("cuda") if name != "reference")]


def hopper_state(device: str) -> str:
    """Says whether the cuda backend has its sm_90a kernels there: "available", or why not."""
    if ssconv.backends()["cuda"] != "available":
        return ssconv.backends()["cuda"]
    from ssconv.backend.cuda import conv

    reason = conv.sm90_unavailable(torch.device(device))
    return "available" if reason is None else f"not available: {reason}"


# The families of the cuda backend's convolutions by the label of their contender. "sm_80" computes every layer.
FAMILIES = {
    "im2col": "sm90_im2col", "cluster": "sm90_cluster", "halo": "sm90_halo", "halo swizzled": "sm90_halo_swizzled",
    "sm_80": "sm80_conv",
}  # fmt: skip


def family_alone(name: str) -> dict[str, str]:
    """The environment in which one family serves, and sm_80's what it cannot compute."""
    others = ["sm80_conv", "sm80_wgrad"] if name == "sm80_conv" else ["sm80_conv", "sm90_wgrad", "sm80_wgrad"]
    return {"SSCONV_FAMILIES": ",".join(dict.fromkeys([name, *others]))}


def gpu_contenders(
    layer: Layer,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cuda",
    backends: Sequence[str] = (),
    compiled: bool = True,
) -> list[Contender]:
    """Lists everything that computes the layer: PyTorch's own ways, and ssconv with each of `backends`.

    compiled: also the grouped convolution under torch.compile, whose first call takes seconds. Where the cuda backend
    has its sm_90a kernels, each of its families is a contender too; those with a halo only at stride 1.
    """
    options = {"dtype": dtype, "device": device}
    found = [torch_conv(layer, "dense", layout, **options) for layout in LAYOUTS]
    if layer.scaled:
        found.append(_modulated(layer, **options))
    found += [torch_conv(layer, "grouped", layout, **options) for layout in LAYOUTS]
    if compiled:
        found.append(torch_conv(layer, "grouped", "channels_last", compiled=True, **options))
    found += [split_shuffle(layer, kernels, backend, **options) for backend in backends for kernels in KERNELS]
    if "cuda" in backends and dtype.itemsize == 2 and hopper_state(device) == "available":
        able = {n: f for n, f in FAMILIES.items() if layer.stride == 1 or not n.startswith("halo")}
        found += [
            split_shuffle(layer, kernels, "cuda", label=label, environment=family_alone(family), **options)
            for label, family in able.items()
            for kernels in KERNELS
        ]
    return found


def _modulated(layer: Layer, *, dtype: torch.dtype, device: str) -> Contender:
    """StyleGAN2's modulated convolution: a weight per sample, the batch as the groups of one convolution."""
    conv = conv_module(layer).to(device=device, dtype=dtype)
    bias, scales = conv.bias, drawn_scales(layer, dtype, device)
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
