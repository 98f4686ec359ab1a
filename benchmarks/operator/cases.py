"""The layers that are timed, and the contenders: everything that can compute one of them.

Every contender is one 3x3x3 layer with bias and leaky ReLU (slope 0.2). On a CPU it is (N, C, E, E, E) float32, C in, C
out; `benchmarks.gpu.cases` has strides and scales too. A dense layer has every weight; "grouped" and "split_depth"
split the channels into two branches and shuffle them afterwards; "acs" gives a third of the outputs to each plane
(Yang et al. 2021). They compute different functions of different cost: that difference is what the operator is for, so
the figure of merit is time against the best dense layer in the same run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ssconv

SLOPE = 0.2


@dataclass(frozen=True)
class Layer:
    """One layer: (batch, channels, edge, edge, edge) in; as many channels out unless out_channels says otherwise.

    transposed: the adjoint of the strided convolution, edge * stride out. scaled: per-sample scales of the input's and
    the output's channels, as StyleGAN2 modulates and demodulates.
    """

    batch: int
    channels: int
    edge: int
    out_channels: int | None = None
    stride: int = 1
    transposed: bool = False
    scaled: bool = False

    @property
    def name(self) -> str:
        channels = f"{self.channels}" if self.out == self.channels else f"{self.channels}->{self.out}"
        kind = "" if self.stride == 1 else f" {'transposed' if self.transposed else 'stride'} {self.stride}"
        return f"{self.batch}x{channels}x{self.edge}^3{kind}{' scaled' if self.scaled else ''}"

    @property
    def out(self) -> int:
        return self.channels if self.out_channels is None else self.out_channels

    @property
    def out_edge(self) -> int:
        return self.edge * self.stride if self.transposed else -(-self.edge // self.stride)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        return (self.batch, self.channels, self.edge, self.edge, self.edge)

    @property
    def out_shape(self) -> tuple[int, int, int, int, int]:
        return (self.batch, self.out, self.out_edge, self.out_edge, self.out_edge)


LAYERS = (Layer(2, 32, 32), Layer(2, 64, 32), Layer(4, 128, 16), Layer(8, 256, 8), Layer(1, 16, 64), Layer(1, 64, 64))

# Kernel set -> kernel size per branch. Written out again, since the check must not take them from what it checks.
KERNELS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "dense": ((3, 3, 3),),
    "grouped": ((3, 3, 3), (3, 3, 3)),
    "split_depth": ((3, 3, 3), (1, 3, 3)),
}


Expand = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Contender:
    """One way to compute a layer.

    Attributes:
        kernels: the kernel set, such as "split_depth".
        implementation: the library, its backend and layout.
        forward: x -> y.
        parameters: the leaves whose gradients are taken, bias last.
        expand: from tensors shaped like the parameters without the bias (weights or their gradients) to one dense
            (Cout, Cin, 3, 3, 3) with explicit zeros, rows in output order.
        memory_format: of the input.
        expand_bias: from a tensor shaped like the bias to (Cout,) in output order.
        twice: whether it can be differentiated twice.
        scales: of a layer that is `scaled`, the leaves in_scale (N, Cin) and out_scale (N, Cout).
        environment: variables that are set while it runs.
    """

    kernels: str
    implementation: str
    forward: Callable[[Tensor], Tensor]
    parameters: tuple[Tensor, ...]
    expand: Expand
    memory_format: torch.memory_format
    expand_bias: Callable[[Tensor], Tensor] = lambda bias: bias
    twice: bool = True
    scales: tuple[Tensor, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextmanager
    def with_environment(self) -> Iterator[None]:
        """Sets the variables of `environment` while the forward or its gradients are called."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value

    @property
    def name(self) -> str:
        return f"{self.kernels}/{self.implementation}"


def shuffled(branches: Sequence[Tensor]) -> Tensor:
    """Expands one (Cout/S, Cin/S, kd, kh, kw) per branch to one dense weight; output j*S + s is row j of branch s."""
    count = len(branches)
    rows, columns = branches[0].shape[:2]
    dense = branches[0].new_zeros(rows * count, columns * count, 3, 3, 3)
    for s, branch in enumerate(branches):
        middle = (slice((3 - k) // 2, (3 + k) // 2) for k in branch.shape[2:])
        dense[(slice(s, None, count), slice(s * columns, (s + 1) * columns), *middle)] = branch
    return dense


def layer_input(layer: Layer, contender: Contender, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws x and the upstream gradient of y, standard normal, in the layout, dtype and device of the contender."""
    like = contender.parameters[-1]
    generator = torch.Generator(like.device).manual_seed(seed)
    x, upstream = (
        torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)
        for shape in (layer.shape, layer.out_shape)
    )
    return tuple(t.contiguous(memory_format=contender.memory_format) for t in (x, upstream))  # type: ignore[return-value]


LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}


def contenders(layer: Layer, compiled: bool = True) -> list[Contender]:
    """Lists everything that computes the layer on this CPU: PyTorch's own modules, ACSConv where it is installed, and
    ssconv with every backend that is available.

    compiled: also under torch.compile, whose first call takes half a minute.
    """
    backends = [name for name, state in ssconv.backends().items() if state == "available"]
    return [
        *(torch_conv(layer, "dense", name) for name in LAYOUTS),
        *(torch_conv(layer, "grouped", name) for name in LAYOUTS),
        *(torch_conv(layer, "grouped", name, compiled=True) for name in LAYOUTS if compiled),
        *(_acsconv(layer, name) for name in LAYOUTS if importlib.util.find_spec("acsconv")),
        *(split_shuffle(layer, kernels, backend) for backend in backends for kernels in KERNELS),
    ]


def drawn_scales(layer: Layer, dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Draws in_scale (N, Cin) and out_scale (N, Cout) near 1; none for a layer that is not scaled."""
    if not layer.scaled:
        return ()
    generator = torch.Generator().manual_seed(3)
    shapes = ((layer.batch, layer.channels), (layer.batch, layer.out))
    drawn = [1 + 0.25 * torch.randn(shape, generator=generator) for shape in shapes]
    return tuple(t.to(device, dtype).requires_grad_() for t in drawn)


def conv_module(layer: Layer, groups: int = 1) -> nn.Conv3d | nn.ConvTranspose3d:
    """Builds PyTorch's module for the layer, always from the same seed."""
    torch.manual_seed(1)
    options = {"stride": layer.stride, "padding": 1, "groups": groups}
    if layer.transposed:
        return nn.ConvTranspose3d(layer.channels, layer.out, 3, output_padding=layer.stride - 1, **options)
    return nn.Conv3d(layer.channels, layer.out, 3, **options)


def torch_conv(
    layer: Layer,
    kernels: str,
    layout: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compiled: bool = False,
) -> Contender:
    """PyTorch's module, then its channel shuffle where there are groups; scales are multiplications around it."""
    groups = len(KERNELS[kernels])
    conv = conv_module(layer, groups).to(device=device, dtype=dtype, memory_format=LAYOUTS[layout])
    weight, bias, scales = conv.weight, conv.bias, drawn_scales(layer, dtype, device)
    if scales:
        conv.register_parameter("bias", None)  # it is added after the scales

    def forward(x: Tensor) -> Tensor:
        z = conv(x * scales[0][:, :, None, None, None]) if scales else conv(x)
        if groups > 1:
            z = F.channel_shuffle(z, groups)
        if scales:
            z = z * scales[1][:, :, None, None, None] + bias[:, None, None, None]
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


def split_shuffle(
    layer: Layer,
    kernels: str,
    backend: str,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    label: str = "",
    environment: Mapping[str, str] | None = None,
) -> Contender:
    """ssconv with one of its backends. label: added to the implementation's name; environment: set while it runs."""
    torch.manual_seed(1)
    conv = ssconv.SplitShuffleConv3d(layer.channels, layer.out, KERNELS[kernels]).to(device=device, dtype=dtype)
    weights, bias, scales = tuple(conv.weights), conv.bias, drawn_scales(layer, dtype, device)
    in_scale, out_scale = scales or (None, None)

    def forward(x: Tensor) -> Tensor:
        return ssconv.split_shuffle_conv3d(
            x, weights, bias, stride=layer.stride, transposed=layer.transposed, in_scale=in_scale, out_scale=out_scale,
            activation="lrelu", negative_slope=SLOPE, backend=backend,
        )  # fmt: skip

    return Contender(
        kernels,
        f"ssconv {backend}{label and f', {label}'}",
        forward,
        (*weights, bias),
        shuffled,
        torch.channels_last_3d,
        scales=scales,
        environment=environment or {},
    )


def _acsconv(layer: Layer, layout: str) -> Contender:
    """The ACSConv package (Yang et al. 2021): (1,3,3), (3,1,3) and (3,3,1) kernels for a third of the outputs each."""
    from acsconv.operators import ACSConv

    torch.manual_seed(1)
    conv = ACSConv(layer.channels, layer.channels, 3, padding=1)

    def planes(tensors: Sequence[Tensor]) -> Tensor:
        weight = tensors[0]
        dense = weight.new_zeros(*weight.shape[:2], 3, 3, 3)
        a, b, _ = conv.acs_kernel_split
        dense[:a, :, 1] = weight[:a]
        dense[a : a + b, :, :, 1] = weight[a : a + b]
        dense[a + b :, :, :, :, 1] = weight[a + b :]
        return dense

    return Contender(
        "acs",
        f"ACSConv {layout}",
        lambda x: F.leaky_relu(conv(x), SLOPE),
        (conv.weight, conv.bias),
        planes,
        LAYOUTS[layout],
    )
