"""Makes a 3D network from a 2D CNN, its convolution weights spread along depth, as I3D and ACSConv do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ssconv.convert import count_parameters, table, why_not_other_class, why_not_rebuilt
from ssconv.functional import replicate_depth
from ssconv.inflate import Profile, depth_profile
from ssconv.spec import DepthBorder

Rule = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class InflatedLayer:
    """The row of one replaced module: name, 2D and 3D layer, number of parameters before and after."""

    name: str
    was: str
    now: str
    before: int
    after: int


@dataclass(frozen=True)
class InflateReport:
    """The report of `inflate_model`: a row per replaced module, the number of unchanged leaf modules, all parameters.

    `print(report)` shows it as a table.
    """

    layers: tuple[InflatedLayer, ...]
    unchanged: int
    before: int
    after: int

    def __str__(self) -> str:
        rows = [(row.name, row.was, row.now, f"{row.before:,}", f"{row.after:,}") for row in self.layers]
        lines = table(("layer", "was", "becomes", "parameters", "now"), rows)
        lines.append(
            f"{len(self.layers)} replaced, {self.unchanged} as they were; parameters of the whole model: "
            f"{self.before:,} -> {self.after:,}"
        )
        return "\n".join(lines)


def inflate_model(
    model2d: nn.Module,
    depth: int = 3,
    profile: Profile = "average",
    *,
    depth_stride: bool = True,
    depth_border: DepthBorder = "zero",
    rules: Mapping[type[nn.Module], Rule] | None = None,
) -> tuple[nn.Module, InflateReport]:
    """Makes a network on volumes (N, C, D, H, W) from a 2D network (N, C, H, W).

    The weights are inflated as in Carreira and Zisserman 2017 (I3D). The 2D network stays unchanged.

    Depth follows one rule: a layer of stride s makes ceil(n / s) slices of n, a transposed one n * s, whatever it does
    to height and width. So paths that meet in 2D meet in 3D. Pooling may round down, so n should be a multiple of the
    strides. The stride along depth is the smaller in-plane one; with depth_stride=False it is 1, and depth stays.

        Conv2d                      Conv3d with `depth` taps (1 for a 1x1 kernel), the 2D weight times the profile,
                                    padded to keep depth; dilation along depth is the smaller in-plane one; groups
                                    and padding_mode stay
        ConvTranspose2d             ConvTranspose3d, as above. With a stride s along depth at least 2 * s - 1 taps, and
                                    those that meet in one output slice sum to 1: "centre" repeats each slice s times,
                                    the others interpolate. A kernel as large as its stride has s taps of 1.
        BatchNorm2d, InstanceNorm2d, Dropout2d      their 3D classes, with the same parameters, buffers and hooks
        MaxPool2d, AvgPool2d        with a stride along depth the window extends there too (MaxPool as in the plane,
                                    AvgPool as far as the stride), else it has extent 1
        LPPool2d                    extent 1 along depth
        AdaptiveAvgPool2d, AdaptiveMaxPool2d        to depth 1
        Upsample                    along depth by the smaller in-plane factor; bilinear becomes trilinear
        ReflectionPad2d, ReplicationPad2d, CircularPad2d, ZeroPad2d, ConstantPad2d      no padding along depth
        Softmax2d                   Softmax over channels
        modules without spatial dimensions (activations, Linear, GroupNorm, SyncBatchNorm, Flatten) stay

    In eval mode, for a volume that is constant along depth, each output slice equals the 2D network's output for that
    slice, to rounding: everywhere with "centre" or depth_border="replicate", else away from the first and last slices.
    With "centre" and depth_stride=False this holds for the slices of any volume, unless a layer pools or normalises
    over the whole volume.

    Code in a forward() cannot be inflated: F.max_pool2d, F.interpolate(mode="bilinear"), x.mean((2, 3)),
    n, c, h, w = x.shape, a view as (N, C, 1, 1). Turn these into modules first, or pass a rule for the class.

    For a split network, convert the result: `model3d, _ = inflate_model(model2d); print(convert(model3d))`.

    Args:
        model2d: any module tree.
        depth: taps along depth, odd.
        profile: "average", "centre" or "triangle", see `depth_profile`.
        depth_stride: whether strides, pooling and upsampling act along depth.
        depth_border: "zero": convolutions read zeros beyond the first and last slice, as nn.Conv3d does. "replicate":
            they repeat those slices, by classes of their own that `convert` leaves alone.
        rules: {class: function}, tried before the above. The function gets a module of that class (a copy, with its
            children) and returns its 3D version. `lambda m: m` leaves it unchanged.

    Returns:
        The 3D network and the report. Training mode, device, dtype, requires_grad, shared modules and tied weights are
        as in the 2D network.

    Raises:
        ValueError, TypeError: an argument is wrong, or a 2D module has no rule; the message names it.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(2))
        >>> net3d, report = inflate_model(net, profile="centre")
        >>> net3d(torch.zeros(1, 1, 8, 12, 10)).shape
        torch.Size([1, 8, 4, 6, 5])
    """
    if not isinstance(model2d, nn.Module):
        raise TypeError(f"model2d: expected an nn.Module; got {type(model2d).__name__}")
    depth_profile(depth, profile)  # checks both
    if depth_border not in ("zero", "replicate"):
        raise ValueError(f'depth_border: expected "zero" or "replicate"; got {depth_border!r}')
    how, rules = Inflation(depth, profile, depth_stride, depth_border), rules or {}
    model3d = copy.deepcopy(model2d)
    done: dict[nn.Module, nn.Module | None] = {}
    replaced: dict[str, nn.Module] = {}
    rows, unchanged, inside = [], 0, None
    for name, module in model3d.named_modules(remove_duplicate=False):
        if inside is not None and name.startswith(inside):
            continue
        if module not in done:
            was, before = _summary(module), count_parameters(module)
            done[module] = new = _inflated(name, module, how, rules)
            if new is not None and new is not module:
                rows.append(InflatedLayer(name or "(the model)", was, _summary(new), before, count_parameters(new)))
            else:
                unchanged += new is module or not any(module.children())
        if (new := done[module]) is not None:
            replaced[name] = new
            inside = f"{name}." if name else ""
    for name, new in replaced.items():
        if not name:
            model3d = new
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(model3d.get_submodule(parent), attribute, new)
    return model3d, InflateReport(tuple(rows), unchanged, count_parameters(model2d), count_parameters(model3d))


def _inflated(name: str, module: nn.Module, how: Inflation, rules: Mapping[type[nn.Module], Rule]) -> nn.Module | None:
    """The 3D version of a module; None if it stays and its children are to be inflated."""
    if (rule := rules.get(type(module))) is not None:
        new = rule(module)
        if not isinstance(new, nn.Module):
            raise TypeError(f"rules: expected an nn.Module for {name} ({type(module).__name__}); got {new!r}")
        return new
    base = next((c for c in type(module).__mro__ if c in RULES), None)
    try:
        if base is None:
            _check_not_2d(module)
            return None
        if reason := why_not_other_class(module, base) or (base not in SAME_STATE and why_not_rebuilt(module)):
            raise NoRule(reason)
        return RULES[base](module, how).train(module.training)
    except NoRule as reason:
        kind = type(module).__name__
        shown = kind if any(module.children()) else module  # with children it prints in several lines
        raise ValueError(
            f"model2d: {name or 'the model'}, {shown}, cannot be inflated: it {reason}; change it in the 2D model, or "
            f"pass rules={{{kind}: a function that returns its 3D version}}"
        ) from None


def _check_not_2d(module: nn.Module) -> None:
    """Raises NoRule if a module without a rule seems to need 2D input."""
    if isinstance(module, WITHOUT_RULE) or ("2d" in type(module).__name__.lower() and not any(module.children())):
        raise NoRule("works on images, and there is no rule for it")
    if isinstance(module, nn.Unflatten) and len(module.unflattened_size) > 2:
        raise NoRule("makes an image, of unknown depth")
    for name, t in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if t.dim() > 2:
            raise NoRule(f"holds {name} of shape {tuple(t.shape)}, which may not fit volumes")


def _summary(module: nn.Module) -> str:
    """Class and main settings of a layer, for the report: kernel, stride, extents, factor."""
    text = type(module).__name__
    for name, prefix in (("kernel_size", ""), ("stride", "stride "), ("output_size", "to "), ("scale_factor", "by ")):
        value = getattr(module, name, None)
        if value is not None and not (name == "stride" and set(_each(value)) == {1}):
            text += f" {prefix}{'x'.join('n' if v is None else f'{v:g}' for v in _each(value))}"
    return text


# ----------------------------------------------------------------------------------------------- rules


class NoRule(Exception):
    """A module cannot be inflated. The message is the reason, to follow the word "it"."""


@dataclass
class Inflation:
    """The options of one `inflate_model`, and the weights inflated so far, so that tied ones stay tied."""

    depth: int
    profile: Profile
    depth_stride: bool
    depth_border: DepthBorder
    weights: dict[int, tuple[Tensor, Tensor, nn.Parameter]] = field(default_factory=dict)

    def stride(self, in_plane: Any) -> Any:
        """Stride or factor along depth, from those in the plane."""
        return min(_pair(in_plane)) if self.depth_stride else 1

    def taps(self, kernel: Sequence[int]) -> Tensor:
        """Factors (kd,) of the 2D weight along depth."""
        return depth_profile(1 if tuple(kernel) == (1, 1) else self.depth, self.profile)

    def fill(
        self, conv3d: nn.Conv3d | nn.ConvTranspose3d, conv2d: nn.Conv2d | nn.ConvTranspose2d, taps: Tensor
    ) -> nn.Module:
        """Gives conv3d the 2D weight (.., kh, kw), spread to (.., kd, kh, kw), and the same bias; returns it."""
        old = conv2d.weight
        _, before, weight = self.weights.get(id(old), (old, taps, None))
        if before.tolist() != taps.tolist():
            raise NoRule("shares its weight with a layer that needs other taps along depth")
        if weight is None:
            spread = old.detach()[:, :, None] * taps.to(old)[None, None, :, None, None]
            weight = nn.Parameter(spread, requires_grad=old.requires_grad)
            self.weights[id(old)] = (old, taps, weight)
        conv3d.weight, conv3d.bias = weight, conv2d.bias
        return conv3d


class ReplicateDepthConv3d(nn.Conv3d):
    """nn.Conv3d that first repeats the first and last slice of its input `depth_border` times.

    `padding` comes on top; along depth it is 0.
    """

    def __init__(self, *args: Any, depth_border: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.depth_border = depth_border

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(replicate_depth(x, self.depth_border, self.depth_border))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, depth_border={self.depth_border}"  # type: ignore[no-untyped-call]


class ReplicateDepthConvTranspose3d(nn.ConvTranspose3d):
    """nn.ConvTranspose3d of a volume whose first and last slice are repeated beyond its ends; depth n -> n * stride."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        if output_size is not None:
            raise ValueError("output_size: expected None, the depth of the output is n * stride; crop the output")
        stride = self.stride[0]
        border = -(-int(self.padding[0]) // stride)
        y = super().forward(replicate_depth(x, border, border))
        return y[:, :, border * stride : (border + x.shape[2]) * stride]


def _conv(conv: nn.Conv2d, how: Inflation) -> nn.Module:
    taps = how.taps(conv.kernel_size)
    kd = len(taps)
    dilation = min(conv.dilation) if kd > 1 else 1
    border = dilation * (kd - 1) // 2
    padding = conv.padding
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(conv.kernel_size, conv.dilation, strict=True)]
        if any(t % 2 for t in total):
            raise NoRule('has even extents and padding="same", which pads one side more')
        padding = tuple(t // 2 for t in total)
    replicate = how.depth_border == "replicate" and border > 0
    options = {"depth_border": border} if replicate else {}
    new = (ReplicateDepthConv3d if replicate else nn.Conv3d)(
        conv.in_channels,
        conv.out_channels,
        (kd, *_pair(conv.kernel_size)),
        (how.stride(conv.stride), *conv.stride),
        (0 if replicate else border, *padding),
        (dilation, *_pair(conv.dilation)),
        conv.groups,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",  # no random initialisation: the weights are set below
        **options,
    )
    return how.fill(new, conv, taps)


def _conv_transpose(conv: nn.ConvTranspose2d, how: Inflation) -> nn.Module:
    stride = how.stride(conv.stride)
    if stride > 1 and conv.kernel_size == conv.stride:
        taps, border = torch.ones(stride, dtype=torch.float64), 0
    elif stride > 1:
        taps = _meeting_taps(max(len(how.taps(conv.kernel_size)), 2 * stride - 1), stride, how.profile)
        border = len(taps) // 2
    else:
        taps = how.taps(conv.kernel_size)
        border = len(taps) // 2
    replicate = how.depth_border == "replicate" and border > 0
    new = (ReplicateDepthConvTranspose3d if replicate else nn.ConvTranspose3d)(
        conv.in_channels,
        conv.out_channels,
        (len(taps), *_pair(conv.kernel_size)),
        (stride, *conv.stride),
        (border, *_pair(conv.padding)),
        (stride - 1 if border else 0, *_pair(conv.output_padding)),
        conv.groups,
        conv.bias is not None,
        (1, *_pair(conv.dilation)),
        device="meta",
    )
    return how.fill(new, conv, taps)


def _meeting_taps(count: int, stride: int, profile: Profile) -> Tensor:
    """Taps of a transposed convolution: those that meet in one output slice, every stride-th, sum to 1."""
    middle = count // 2
    if profile == "centre":
        taps = torch.zeros(count, dtype=torch.float64)
        taps[middle : middle + stride] = 1
        return taps
    taps = depth_profile(count, profile)
    for phase in range(stride):
        taps[phase::stride] /= taps[phase::stride].sum()
    return taps


def _max_pool(pool: nn.MaxPool2d, how: Inflation) -> nn.Module:
    stride = how.stride(pool.stride)
    kernel = min(_pair(pool.kernel_size)) if stride > 1 else 1
    # n / stride windows fit into n slices, rounded up or down.
    padding = max(0, (kernel - stride + (not pool.ceil_mode)) // 2)
    return nn.MaxPool3d(
        (kernel, *_pair(pool.kernel_size)),
        (stride, *_pair(pool.stride)),
        (padding, *_pair(pool.padding)),
        (1, *_pair(pool.dilation)),
        pool.return_indices,
        pool.ceil_mode,
    )


def _avg_pool(pool: nn.AvgPool2d, how: Inflation) -> nn.Module:
    stride = how.stride(pool.stride)
    return nn.AvgPool3d(
        (stride, *_pair(pool.kernel_size)),
        (stride, *_pair(pool.stride)),
        (0, *_pair(pool.padding)),
        pool.ceil_mode,
        pool.count_include_pad,
        None if pool.divisor_override is None else pool.divisor_override * stride,
    )


def _lp_pool(pool: nn.LPPool2d, how: Inflation) -> nn.Module:
    strides = _pair(pool.kernel_size if pool.stride is None else pool.stride)
    # Extent 1 along depth: a larger window would sum over more values.
    return nn.LPPool3d(
        pool.norm_type, (1, *_pair(pool.kernel_size)), (how.stride(strides), *strides), ceil_mode=pool.ceil_mode
    )


def _upsample(module: nn.Upsample, how: Inflation) -> nn.Module:
    if module.scale_factor is None:
        raise NoRule(f"goes to size {module.size}, whatever the depth; use scale_factor")
    if module.mode == "bicubic":
        raise NoRule("is bicubic, which PyTorch has for images only")
    factors = _pair(module.scale_factor)
    return nn.Upsample(
        scale_factor=(float(how.stride(factors)), *factors),
        mode="trilinear" if module.mode == "bilinear" else module.mode,
        align_corners=module.align_corners,
        recompute_scale_factor=module.recompute_scale_factor,
    )


def _as(kind: type[nn.Module]) -> Callable[[nn.Module, Inflation], nn.Module]:
    """A rule for classes that differ only in their input: an object of class `kind` with the same attributes."""

    def rule(module: nn.Module, how: Inflation) -> nn.Module:
        new = kind.__new__(kind)
        vars(new).update(vars(module))
        return new

    return rule


SAME_STATE = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.Dropout2d)

RULES: dict[type[nn.Module], Callable[[Any, Inflation], nn.Module]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transpose,
    nn.BatchNorm2d: _as(nn.BatchNorm3d),
    nn.InstanceNorm2d: _as(nn.InstanceNorm3d),
    nn.Dropout2d: _as(nn.Dropout3d),
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _avg_pool,
    nn.LPPool2d: _lp_pool,
    nn.AdaptiveAvgPool2d: lambda m, how: nn.AdaptiveAvgPool3d((1, *_pair(m.output_size))),
    nn.AdaptiveMaxPool2d: lambda m, how: nn.AdaptiveMaxPool3d((1, *_pair(m.output_size)), m.return_indices),
    nn.Upsample: _upsample,
    nn.ReflectionPad2d: lambda m, how: nn.ReflectionPad3d((*m.padding, 0, 0)),
    nn.ReplicationPad2d: lambda m, how: nn.ReplicationPad3d((*m.padding, 0, 0)),
    nn.CircularPad2d: lambda m, how: nn.CircularPad3d((*m.padding, 0, 0)),
    nn.ZeroPad2d: lambda m, how: nn.ZeroPad3d((*m.padding, 0, 0)),
    nn.ConstantPad2d: lambda m, how: nn.ConstantPad3d((*m.padding, 0, 0), m.value),
    nn.Softmax2d: lambda m, how: nn.Softmax(dim=1),
}

# Modules of torch.nn for images that have no "2d" in their names.
WITHOUT_RULE = (nn.PixelShuffle, nn.PixelUnshuffle, nn.Fold, nn.Unfold)


def _pair(value: Any) -> tuple[Any, Any]:
    return tuple(value) if isinstance(value, Sequence) else (value, value)


def _each(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Sequence) else (value,)
