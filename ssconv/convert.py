"""Replaces the dense 3D convolutions of a model by split-and-shuffle ones, initialised from the dense weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized

from ssconv.layers import SplitShuffleConv3d
from ssconv.spec import DTYPES, IDENTITY, KERNEL_SETS, MAX_EXTENT, KernelSet, Padding, Triple, check_branches, window_of

CONVOLUTIONS = (nn.Conv3d, nn.ConvTranspose3d)

Convolution = nn.Conv3d | nn.ConvTranspose3d
KernelSizes = KernelSet | Sequence[Sequence[int]]
Skip = str | Sequence[str] | Callable[[str, nn.Module], bool] | None


@dataclass(frozen=True)
class LayerReport:
    """The row of one nn.Conv3d or nn.ConvTranspose3d in the report.

    name: of the module in the model. also: its other names, if it is shared. kind: its class. kernel: its extents.
    branches: the extents per branch of the new layer, or None if it was left alone. reason: why it was left alone, or
    "". before, after: number of parameters, with bias.
    """

    name: str
    also: tuple[str, ...]
    kind: str
    kernel: tuple[int, ...]
    branches: tuple[Triple, ...] | None
    reason: str
    before: int
    after: int


@dataclass(frozen=True)
class ConvertReport:
    """The result of `convert`: a row per convolution, and the parameters of the whole model before and after.

    conv2d: number of nn.Conv2d in the model, which `convert` does not look at. `print(report)` shows it as a table.
    """

    layers: tuple[LayerReport, ...]
    before: int
    after: int
    conv2d: int = 0

    @property
    def swapped(self) -> tuple[LayerReport, ...]:
        """The rows of the layers that were replaced."""
        return tuple(row for row in self.layers if row.branches is not None)

    @property
    def kept(self) -> tuple[LayerReport, ...]:
        """The rows of the layers that were left alone."""
        return tuple(row for row in self.layers if row.branches is None)

    def __str__(self) -> str:
        lines = table(("layer", "was", "becomes", "parameters", "now"), map(_line, self.layers))
        share = f" ({self.after / self.before:.1%})" if self.before else ""
        lines.append(
            f"{len(self.swapped)} swapped, {len(self.kept)} left alone; parameters of the whole model: "
            f"{self.before:,} -> {self.after:,}{share}"
        )
        if self.conv2d and not self.layers:
            lines.append(f"no 3D convolution, but {self.conv2d} nn.Conv2d: `inflate_model` makes the model 3D first")
        return "\n".join(lines)


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Formats a table as lines with aligned columns; the last two, numbers, are flush right."""
    cells = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    left = len(head) - 2
    return [
        "  ".join(c.rjust(w) if i >= left else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]


def _line(row: LayerReport) -> tuple[str, ...]:
    others = f" (and {len(row.also)} more place{'s' * (len(row.also) > 1)})" if row.also else ""
    now = " + ".join(_extents(b) for b in row.branches) if row.branches else f"left alone: {row.reason}"
    return (row.name + others, f"{row.kind} {_extents(row.kernel)}", now, f"{row.before:,}", f"{row.after:,}")


def _extents(kernel: Sequence[object]) -> str:
    return "x".join(str(k) for k in kernel)


def convert(model: nn.Module, kernel_sizes: KernelSizes = "split_depth", *, skip: Skip = None) -> ConvertReport:
    """Replaces the eligible nn.Conv3d and nn.ConvTranspose3d of a model by SplitShuffleConv3d, in place.

    Eligible are layers with odd extents, stride 1 or 2, no dilation, groups or padding mode, and padding (k - 1) / 2
    everywhere or 0 everywhere; transposed ones with output_padding = stride - 1 or 0; with channels that S branches
    divide. Every other layer is left alone, and the report says why. So is a layer that would lose something: hooks,
    parametrizations, a weight tied to another module's, a subclass that overrides more than its constructor.

    Extents. A branch with the set's largest extent in a dimension (above 1) gets the layer's own extent there; a
    branch with a smaller one keeps it, up to the layer's extent. With "split_depth" 3x3x3 becomes 3x3x3 + 1x3x3 and
    7x7x7 becomes 7x7x7 + 1x7x7. Layers of 1x1x1, and layers on which branches that differ in the set would not differ
    (1x3x3 with "split_depth"), have nothing to split and are left alone; "dense" replaces them too. In a dimension in
    which a transposed convolution strides, every branch keeps the layer's extent: a narrower one would leave output
    slices that no input reaches.

    Weights. "dense" computes the same function, to rounding. Otherwise output channel j*S + s of the new layer is dense
    channel j*S + s restricted to the input channels and the central taps of its branch s, times a factor that restores
    its sum of squares: for white input each output channel keeps its variance, and so the scale that bias, norms and
    later layers expect. (A channel of which only zeros are kept is not scaled.) After that, a trained model needs
    fine-tuning; a freshly initialised one trains as it would have.

    Training mode, device, dtype and requires_grad are kept. A module that is used several times in the model is
    replaced everywhere. Biases, and in "dense" weights that need no transposition, remain the same Parameter objects;
    all others are new, so create optimisers and wrap in DistributedDataParallel afterwards. Skip a layer whose
    `.weight` the model reads, or a transposed one that it calls with `output_size`. It can also help to skip the last
    layer, since each of its outputs would see 1/S of the features.

    Args:
        model: any module tree. A convolution by itself cannot be swapped in place: use `from_conv3d`.
        kernel_sizes: a name of `ssconv.KERNEL_SETS`, or extents (kd, kh, kw) per branch for a 3x3x3 layer.
        skip: names of layers, or of modules for all layers within, as fnmatch patterns ("decoder.*.conv1"); or a
            callable (name, module) -> bool, true for a layer to leave alone.

    Returns:
        A report with a row per convolution.

    Raises:
        ValueError, TypeError: an argument is wrong; the model is unchanged. The message says what to do.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
        >>> print(convert(model))
        layer  was           becomes                                                        parameters  now
        0      Conv3d 3x3x3  left alone: in_channels 1 is not a multiple of the 2 branches         224  224
        2      Conv3d 3x3x3  3x3x3 + 1x3x3                                                       1,736  584
        1 swapped, 1 left alone; parameters of the whole model: 1,960 -> 808 (41.2%)
    """
    branches = _named_branches(kernel_sizes)
    _check_model(model)
    found: dict[Convolution, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CONVOLUTIONS):
            found[module].append(name)
    skipped, ties, before = _skipped(skip, found), _ties(model), count_parameters(model)

    rows: list[LayerReport] = []
    layers: dict[Convolution, SplitShuffleConv3d] = {}
    for conv, names in found.items():
        reason = "skip asks for it" if conv in skipped else why_not(conv, branches) or ties.get(conv, "")
        new = None
        if not reason:
            layers[conv] = new = _split(conv, branches)
            new.bias = conv.bias
            if new.kernel_sizes == (conv.kernel_size,) and not new.transposed:
                new.weights[0] = conv.weight
        rows.append(
            LayerReport(
                name=names[0],
                also=tuple(names[1:]),
                kind=type(conv).__name__,
                kernel=conv.kernel_size,
                branches=_branches_of(new) if new else None,
                reason=reason,
                before=count_parameters(conv),
                after=count_parameters(new or conv),
            )
        )
    for conv, layer in layers.items():
        for name in found[conv]:
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layer)
    conv2d = sum(isinstance(m, nn.Conv2d) for m in model.modules())
    return ConvertReport(tuple(rows), before, count_parameters(model), conv2d)


def from_conv3d(conv: Convolution, kernel_sizes: KernelSizes = "split_depth") -> SplitShuffleConv3d:
    """Makes a SplitShuffleConv3d from one convolution, with extents and weights as `convert` chooses them.

    The layer shares no memory with `conv`.

    Raises:
        ValueError: the layer is not eligible; the message gives the reason that `convert` reports.
        TypeError: conv is not an nn.Conv3d or nn.ConvTranspose3d.

    Example:
        >>> from_conv3d(nn.Conv3d(8, 16, 3, padding=1, stride=2), "acs4").kernel_sizes
        ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1))
    """
    branches = _named_branches(kernel_sizes)
    if not isinstance(conv, CONVOLUTIONS):
        raise TypeError(f"conv: expected an nn.Conv3d or nn.ConvTranspose3d; got {type(conv).__name__}")
    if reason := why_not(conv, branches):
        raise ValueError(f"conv: expected a layer that SplitShuffleConv3d can stand for; got {conv}: {reason}")
    return _split(conv, branches)


@torch.no_grad()
def convert_state_dict(state_dict: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Maps the state dict of a model before `convert` onto the converted one, so that a dense checkpoint loads.

    The weights of the layers that were replaced become what `convert` would have made of them; everything else stays.

    Args:
        state_dict: of the model with nn.Conv3d and nn.ConvTranspose3d, such as a checkpoint's.
        model: the same model after `convert`.

    Returns:
        A state dict for `model.load_state_dict`.

    Raises:
        ValueError: a weight does not have the shape of the layer that was replaced; the message names it.

    Example:
        >>> model = nn.Sequential(nn.Conv3d(4, 8, 3, padding=1))
        >>> before = model.state_dict()
        >>> _ = convert(model)
        >>> model.load_state_dict(convert_state_dict(before, model))
        <All keys matched successfully>
    """
    converted = dict(state_dict)
    for name, layer in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if (
            not isinstance(layer, SplitShuffleConv3d)
            or f"{prefix}weight" not in converted
            or None in layer.kernel_sizes
        ):
            continue
        given = converted.pop(f"{prefix}weight")
        dense = given.transpose(0, 1) if layer.transposed else given
        branches = _branches_of(layer)
        extents = window_of(branches)
        if (
            dense.dim() != 5
            or dense.shape[:2] != (layer.out_channels, layer.in_channels)
            or any(n < k or n % 2 == 0 for n, k in zip(dense.shape[2:], extents, strict=True))
        ):
            raise ValueError(
                f"state_dict: {prefix}weight: expected the weight of a layer of {layer.in_channels} to "
                f"{layer.out_channels} channels and extents of {_extents(extents)}; got shape {tuple(given.shape)}"
            )
        for s, weight in enumerate(branch_weights(dense, branches)):
            converted[f"{prefix}weights.{s}"] = weight
    return converted


def _named_branches(kernel_sizes: KernelSizes) -> tuple[Triple, ...]:
    """Checks a set of kernels and returns the extents per branch."""
    if isinstance(kernel_sizes, str):
        if kernel_sizes not in KERNEL_SETS:
            raise ValueError(f"kernel_sizes: expected extents or one of {', '.join(KERNEL_SETS)}; got {kernel_sizes!r}")
        return KERNEL_SETS[kernel_sizes]
    branches = check_branches(kernel_sizes)
    if IDENTITY in branches:
        raise ValueError(
            f"kernel_sizes: expected extents for each branch; got {kernel_sizes!r}; an identity branch (None) cannot "
            "hold a layer's weights"
        )
    return branches


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module; got {type(model).__name__}")
    if isinstance(model, CONVOLUTIONS):
        raise TypeError(
            f"model: expected a module that holds convolutions; got a {type(model).__name__}, which cannot be replaced "
            "in place; use ssconv.from_conv3d(model)"
        )
    if any(isinstance(m, nn.parallel.DistributedDataParallel) for m in model.modules()):
        raise ValueError(
            "model: expected one without DistributedDataParallel, which would not synchronise the new weights; convert "
            "the model first, then wrap it"
        )


def _skipped(skip: Skip, layers: dict[Convolution, list[str]]) -> set[Convolution]:
    """The layers that `skip` names, of `layers` and their names. A shared module is skipped under all its names."""
    if callable(skip) and not isinstance(skip, nn.Module):
        return {conv for conv, names in layers.items() if any(skip(name, conv) for name in names)}
    if skip is not None and not isinstance(skip, Iterable):
        raise TypeError(f"skip: expected names, patterns or a callable (name, module) -> bool; got {skip!r}")
    patterns = [skip] if isinstance(skip, str) else skip or ()
    found: set[Convolution] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"skip: expected names, patterns or a callable (name, module) -> bool; got {pattern!r}")
        matches = {conv for conv, names in layers.items() if any(_within(name, pattern) for name in names)}
        if not matches:
            raise ValueError(
                f"skip: expected names from model.named_modules(); {pattern!r} matches no nn.Conv3d or "
                "nn.ConvTranspose3d, and no module that holds one"
            )
        found |= matches
    return found


def _within(name: str, pattern: str) -> bool:
    """Whether the pattern matches this name or that of a module around it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _ties(model: nn.Module) -> dict[nn.Module, str]:
    """For each module whose weight other modules share: the reason to leave it alone."""
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(name, recurse=False, remove_duplicate=False):
            holders[id(parameter)].append((module, own))
    ties = {}
    for shared in holders.values():
        for module, own in shared:
            others = [name for _, name in shared if name != own]
            if others and own.rpartition(".")[2] == "weight":
                ties[module] = f"its weight is tied to {' and '.join(others)}"
    return ties


def count_parameters(module: nn.Module) -> int:
    """Counts the parameters' elements; lazy parameters without a shape count 0."""
    return sum(0 if isinstance(p, UninitializedParameter) else p.numel() for p in module.parameters())


# ---------------------------------------------------------------------------------------------- eligibility


def why_not(conv: Convolution, branches: tuple[Triple, ...]) -> str:
    """The reason why this layer is left alone, or ""."""
    up = isinstance(conv, nn.ConvTranspose3d)
    if reason := why_not_other_class(conv, nn.ConvTranspose3d if up else nn.Conv3d) or why_not_rebuilt(conv):
        return reason
    weight = getattr(conv, "weight", None)
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, not an nn.Parameter"
    if weight.dtype not in DTYPES:
        return f"dtype is {weight.dtype}"
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}, not 'zeros'"
    if conv.dilation != (1, 1, 1):
        return f"dilation is {_extents(conv.dilation)}, not 1"
    if conv.groups != 1:
        return f"groups is {conv.groups}, not 1"
    kernel, count = conv.kernel_size, len(branches)
    if any(k % 2 == 0 for k in kernel):
        return f"kernel {_extents(kernel)} has an even extent"
    if max(kernel) > MAX_EXTENT:
        return f"kernel {_extents(kernel)} has an extent above {MAX_EXTENT}"
    if any(s not in (1, 2) for s in conv.stride):
        return f"stride is {_extents(conv.stride)}, not 1 or 2"
    padding = _padding(conv)
    if not padding and up:
        both = f"padding {_extents(conv.padding)} with output_padding {_extents(conv.output_padding)}"
        return f"{both} is neither (k - 1) / 2 with stride - 1, nor 0 with 0"
    if not padding:
        return f"padding {_extents(conv.padding)} is neither (k - 1) / 2 everywhere nor 0 everywhere"
    for name, channels in (("in_channels", conv.in_channels), ("out_channels", conv.out_channels)):
        if channels < 1:
            return f"{name} is {channels}"
        if channels % count:
            return f"{name} {channels} is not a multiple of the {count} branches"
    fitted = _fitted(branches, kernel)
    if count > 1 and (kernel == (1, 1, 1) or len(set(fitted)) == 1 < len(set(branches))):
        return f"kernel {_extents(kernel)} leaves nothing to split"
    window = window_of(fitted)
    if padding == "valid" and window != kernel:
        return f"padding 0 needs branches that span the kernel; they span {_extents(window)}"
    return ""


def why_not_other_class(module: nn.Module, base: type[nn.Module]) -> str:
    """Why a module, an instance of `base`, may behave differently from `base` and cannot be replaced; "" if not."""
    if isinstance(module, LazyModuleMixin):
        return "is lazy, its weights are not there yet; run the model once first"
    if is_parametrized(module):
        parametrized = [name for name, _ in module.get_submodule("parametrizations").named_children()]
        return f"has a parametrization of {', '.join(parametrized)}"
    if overrides := _overrides(type(module), base):
        return f"is a subclass of nn.{base.__name__} that overrides {', '.join(overrides)}"
    if replaced := [name for name in vars(module) if callable(getattr(type(module), name, None))]:
        return f"has a {' and a '.join(replaced)} of its own, set on the object"
    return ""


def why_not_rebuilt(module: nn.Module) -> str:
    """What a module would lose if it were rebuilt from constructor arguments, weight and bias; "" for nothing."""
    # There is no public way to ask a module for its hooks; all of them are in dictionaries with such names.
    hooks = [name for name, held in vars(module).items() if name.endswith("_hooks") and held]
    if hooks:
        return f"has {' and '.join(name.strip('_').replace('_', ' ') for name in hooks)}"
    held = (*dict(module.named_parameters()), *dict(module.named_buffers()), *dict(module.named_children()))
    if surplus := [name for name in held if name not in ("weight", "bias")]:
        return f"holds {', '.join(surplus)} besides weight and bias"
    return ""


def _overrides(kind: type, base: type) -> list[str]:
    """Attributes of `base` that its subclasses override, other than for construction and printing."""
    harmless = {"__init__", "reset_parameters", "extra_repr"}
    special = {"__call__", "__getattr__", "__getattribute__", "__setattr__"}
    below = kind.__mro__[: kind.__mro__.index(base)]
    names = {name for c in below for name in vars(c) if hasattr(base, name) or name in special}
    return sorted(n for n in names - harmless if n in special or not (n.startswith("__") and n.endswith("__")))


def _padding(conv: Convolution) -> Padding | Literal[""]:
    """The layer's padding as the operator has it, "same" or "valid"; "" for any other."""
    if isinstance(conv.padding, str):
        return "same" if conv.padding == "same" else "valid"
    dims = list(zip(conv.kernel_size, conv.stride, conv.padding, conv.output_padding, strict=True))
    up = isinstance(conv, nn.ConvTranspose3d)
    if all(p == k // 2 and extra == (s - 1 if up else 0) for k, s, p, extra in dims):
        return "same"
    return "valid" if all(p == 0 and extra == 0 for _, _, p, extra in dims) else ""


# ------------------------------------------------------------------------------------------------- the new layer


def _fitted(
    branches: tuple[Triple, ...], kernel: Sequence[int], kept: Sequence[bool] = (False,) * 3
) -> tuple[Triple, ...]:
    """Extents per branch for a layer of extents `kernel`, from a set for a 3x3x3 layer; see `convert`.

    kept: per dimension, whether every branch keeps the layer's extent.
    """
    largest = window_of(branches)

    def fit(branch: Triple) -> Triple:
        d, h, w = (
            own if whole or 1 < k == most else min(k, own)
            for k, most, own, whole in zip(branch, largest, kernel, kept, strict=True)
        )
        return d, h, w

    return tuple(map(fit, branches))


def _branches_of(layer: SplitShuffleConv3d) -> tuple[Triple, ...]:
    """The extents per branch of a layer that has no identity branch."""
    return tuple(kernel for kernel in layer.kernel_sizes if kernel)


@torch.no_grad()
def _split(conv: Convolution, branches: tuple[Triple, ...]) -> SplitShuffleConv3d:
    """The new layer for an eligible convolution."""
    transposed, padding = isinstance(conv, nn.ConvTranspose3d), _padding(conv)
    assert padding, "why_not has checked it"
    layer = SplitShuffleConv3d(
        conv.in_channels,
        conv.out_channels,
        _fitted(branches, conv.kernel_size, [transposed and s > 1 for s in conv.stride]),
        stride=conv.stride,
        padding=padding,
        transposed=transposed,
        bias=conv.bias is not None,
        device="meta",  # no random initialisation: the weights are set below
    )
    dense = conv.weight.transpose(0, 1) if transposed else conv.weight
    for s, weight in enumerate(branch_weights(dense, _branches_of(layer))):
        layer.weights[s] = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    if conv.bias is not None:
        layer.bias = nn.Parameter(conv.bias.clone(), requires_grad=conv.bias.requires_grad)
    return layer.train(conv.training)


def branch_weights(dense: Tensor, branches: Sequence[Triple]) -> list[Tensor]:
    """Cuts a dense weight (Cout, Cin, Kd, Kh, Kw) into one (Cout/S, Cin/S, kd, kh, kw) per branch, in new memory.

        W_s[j, i] = f[j*S + s] * dense[j*S + s, s*Cin/S + i], central taps

    with f such that the sum of squares of each output channel is the dense one's.
    """
    count = len(branches)
    width = dense.shape[1] // count
    wide = dense if dense.dtype == torch.float64 else dense.float()
    weights = []
    for s, kernel in enumerate(branches):
        middle = tuple(slice((n - k) // 2, (n + k) // 2) for n, k in zip(dense.shape[2:], kernel, strict=True))
        rows = wide[s::count]
        kept = rows[(slice(None), slice(s * width, (s + 1) * width), *middle)]
        if kept.shape != rows.shape:
            norm, left = (t.flatten(1).norm(dim=1) for t in (rows, kept))
            # Without reading a value: the weights may be on the meta device.
            factor = torch.where(left > 0, norm / left, 1.0)
            kept = kept * factor[:, None, None, None, None]
        weights.append(kept.to(dense.dtype, copy=True, memory_format=torch.contiguous_format))
    return weights
