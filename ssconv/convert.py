"""Other people's models: nn.Conv3d and nn.ConvTranspose3d swapped for SplitShuffleConv3d, in place."""

from __future__ import annotations

import fnmatch
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssconv.layers import SplitShuffleConv3d
from ssconv.spec import KERNEL_SETS, Triple, check_branches

KernelSizes = str | Sequence[Sequence[int]]
Skip = str | Sequence[str] | Callable[[str, nn.Module], bool] | None
Convolution = nn.Conv3d | nn.ConvTranspose3d


@dataclass(frozen=True)
class LayerReport:
    """One nn.Conv3d or nn.ConvTranspose3d of the model.

    name: where it is. kind: its class. kernel: its extents. branches: the extents per branch that it has now, None
    where it was left alone. reason: why it was left alone, "" where it was swapped. before, after: parameters.
    """

    name: str
    kind: str
    kernel: Triple
    branches: tuple[Triple, ...] | None
    reason: str
    before: int
    after: int


@dataclass(frozen=True)
class ConvertReport:
    """What `convert` did: a row for each convolution, and the parameters of the whole model before and after."""

    layers: tuple[LayerReport, ...]
    before: int
    after: int

    @property
    def swapped(self) -> tuple[LayerReport, ...]:
        return tuple(row for row in self.layers if row.branches is not None)

    @property
    def kept(self) -> tuple[LayerReport, ...]:
        return tuple(row for row in self.layers if row.branches is None)

    def __str__(self) -> str:
        rows = [("layer", "kernel", "becomes", "parameters", "now")]
        for row in self.layers:
            now = " + ".join(_extents(b) for b in row.branches) if row.branches else f"left alone: {row.reason}"
            rows.append((row.name, _extents(row.kernel), now, f"{row.before:,}", f"{row.after:,}"))
        widths = [max(len(r[i]) for r in rows) for i in range(5)]
        lines = [
            "  ".join(c.rjust(w) if i > 2 else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
            for r in rows
        ]
        share = f"{self.after / self.before:.1%}" if self.before else "no parameters"
        lines.append(
            f"{len(self.swapped)} of {len(self.layers)} convolutions swapped; the model has {self.after:,} parameters "
            f"of {self.before:,} ({share})"
        )
        return "\n".join(line.rstrip() for line in lines)


def _extents(kernel: Sequence[int]) -> str:
    return "x".join(map(str, kernel))


def convert(model: nn.Module, kernel_sizes: KernelSizes = "split_depth", *, skip: Skip = None) -> ConvertReport:
    """Swaps every nn.Conv3d and nn.ConvTranspose3d that fits for `SplitShuffleConv3d`, in place.

    "dense" keeps the function. The split sets start from the dense weights: with S branches, output j*S + s reads the
    inputs of branch s only, so its weight is the dense weight of that output and those inputs, the middle taps where
    the branch is smaller. What falls away would make the output smaller, so a branch's weights are multiplied by
    sqrt(sum of squares of its outputs' dense weights / sum of squares of the kept ones): for inputs that are
    uncorrelated and of one variance, the mean variance of a branch's outputs stays what it was. The bias is copied.

    Args:
        model: any module tree; layers are found by their class. A module that stands at several places stays shared.
        kernel_sizes: "split_depth", "acs4", "grouped" or "dense", which follow a layer's own extents where they have 3
            (a 5x5x5 layer gets 5x5x5 and 1x5x5); or extents per branch, for layers of just that window.
        skip: names or patterns (fnmatch: "encoder.*"), or a function of name and module, of what to leave alone.

    Returns:
        What was swapped, what was not and why, with parameter counts; print it. Make optimizers afterwards: the
        parameters are new ones.

    Raises:
        TypeError, ValueError: the model is itself a convolution (see `from_conv3d`), or kernel_sizes is not valid.

    Example:
        >>> net = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
        >>> report = convert(net)
        >>> [row.name for row in report.swapped], report.kept[0].reason
        (['2'], 'in_channels 1 is not a multiple of the 2 branches')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module; got {type(model).__name__}")
    if isinstance(model, (nn.Conv3d, nn.ConvTranspose3d)):
        raise TypeError(
            f"model: expected a module that holds convolutions; got a {type(model).__name__}, which cannot be swapped "
            "in place; use ssconv.from_conv3d(model)"
        )
    _named(kernel_sizes)
    places: dict[int, list[str]] = {}
    found: dict[int, Convolution] = {}
    owners: Counter[int] = Counter()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            found[id(module)] = module
            places.setdefault(id(module), []).append(name)
    for module in model.modules():
        owners.update(id(p) for p in module.parameters(recurse=False))
    before, rows = _count(model), []
    for key, conv in found.items():
        names = places[key]
        new: SplitShuffleConv3d | str = "skipped" if any(_skipped(skip, n, conv) for n in names) else ""
        if not new and any(owners[id(p)] > 1 for p in conv.parameters(recurse=False)):
            new = "shares a parameter with another module"
        new = new or _swap(conv, kernel_sizes)
        if isinstance(new, SplitShuffleConv3d):
            for name in names:
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, new)
        swapped = isinstance(new, SplitShuffleConv3d)
        rows.append(
            LayerReport(
                name=" = ".join(names),
                kind=type(conv).__name__,
                kernel=tuple(conv.kernel_size),  # type: ignore[arg-type]
                branches=new.kernel_sizes if swapped else None,
                reason="" if swapped else new,
                before=_count(conv),
                after=_count(new if swapped else conv),
            )
        )
    return ConvertReport(tuple(rows), before, _count(model))


def from_conv3d(conv: Convolution, kernel_sizes: KernelSizes = "split_depth") -> SplitShuffleConv3d:
    """One nn.Conv3d or nn.ConvTranspose3d as SplitShuffleConv3d, its weights made from the layer's as by `convert`.

    Raises:
        TypeError: it is neither. ValueError: it does not fit; the message says why.

    Example:
        >>> from_conv3d(nn.Conv3d(4, 8, 3, padding=1), "dense").weights[0].shape
        torch.Size([8, 4, 3, 3, 3])
    """
    if not isinstance(conv, (nn.Conv3d, nn.ConvTranspose3d)):
        raise TypeError(f"conv: expected an nn.Conv3d or nn.ConvTranspose3d; got {type(conv).__name__}")
    _named(kernel_sizes)
    new = _swap(conv, kernel_sizes)
    if isinstance(new, str):
        raise ValueError(f"conv: {conv} does not fit: {new}")
    return new


def _named(kernel_sizes: KernelSizes) -> tuple[Triple, ...]:
    """The branches of a set by name, or of extents; raises ValueError."""
    if isinstance(kernel_sizes, str):
        if kernel_sizes not in KERNEL_SETS:
            raise ValueError(f"kernel_sizes: expected extents or one of {', '.join(KERNEL_SETS)}; got {kernel_sizes!r}")
        return KERNEL_SETS[kernel_sizes]
    if any(k is None for k in kernel_sizes):
        raise ValueError("kernel_sizes: an identity branch (None) has no weights to start from; name extents")
    return check_branches(kernel_sizes)


def _skipped(skip: Skip, name: str, module: nn.Module) -> bool:
    if skip is None:
        return False
    if callable(skip):
        return bool(skip(name, module))
    return any(fnmatch.fnmatchcase(name, p) for p in ([skip] if isinstance(skip, str) else skip))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _swap(conv: Convolution, kernel_sizes: KernelSizes) -> SplitShuffleConv3d | str:
    """The layer that takes the place of `conv`, or the reason why none can."""
    branches = _branches(conv, kernel_sizes)
    if isinstance(branches, str):
        return branches
    padding = _padding(conv)
    reason = _obstacle(conv, len(branches)) or ("" if padding in ("same", "valid") else padding)
    if reason:
        return reason
    new = SplitShuffleConv3d(
        conv.in_channels,
        conv.out_channels,
        branches,
        stride=tuple(conv.stride),
        padding=padding,
        transposed=isinstance(conv, nn.ConvTranspose3d),
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    _fill(new, conv)
    return new.train(conv.training)


def _branches(conv: Convolution, kernel_sizes: KernelSizes) -> tuple[Triple, ...] | str:
    """The extents per branch for this layer, or why there are none."""
    kernel, named = tuple(conv.kernel_size), _named(kernel_sizes)
    if any(k % 2 == 0 for k in kernel):
        return f"kernel {_extents(kernel)} has an even extent"
    if not isinstance(kernel_sizes, str):
        window = tuple(max(b[d] for b in named) for d in range(3))
        if window != kernel:
            return f"its kernel {_extents(kernel)} is not the window {_extents(window)} of the branches"
        return named
    branches = tuple(tuple(k if e > 1 else 1 for e, k in zip(b, kernel, strict=True)) for b in named)
    if len(branches) > 1 and kernel == (1, 1, 1):
        return "kernel 1x1x1 has nothing to split"
    if len(set(branches)) == 1 < len(set(named)):
        return f"kernel {_extents(kernel)} gives all branches of {kernel_sizes} the same extents"
    return branches  # type: ignore[return-value]


def _obstacle(conv: Convolution, count: int) -> str:
    """What else keeps `conv` from being swapped for `count` branches, or ""."""
    if type(conv) not in (nn.Conv3d, nn.ConvTranspose3d):
        return f"{type(conv).__name__} is a subclass, or has parametrizations, that would be lost"
    if any(value for name, value in vars(conv).items() if name.endswith("_hooks")):
        return "has hooks, that would be lost"
    if conv.groups != 1:
        return f"groups {conv.groups}"
    if tuple(conv.dilation) != (1, 1, 1):
        return f"dilation {tuple(conv.dilation)}"
    if any(s not in (1, 2) for s in conv.stride):
        return f"stride {tuple(conv.stride)}"
    if conv.padding_mode != "zeros":
        return f"padding_mode {conv.padding_mode!r}"
    for name, channels in (("in_channels", conv.in_channels), ("out_channels", conv.out_channels)):
        if channels % count:
            return f"{name} {channels} is not a multiple of the {count} branches"
    return ""


def _padding(conv: Convolution) -> str:
    """ "same" or "valid" where the layer's padding is that, else a sentence."""
    if isinstance(conv.padding, str):  # nn.Conv3d's own words; its "same" has stride 1
        return conv.padding
    half, none = tuple((k - 1) // 2 for k in conv.kernel_size), (0, 0, 0)
    padding, transposed = tuple(conv.padding), isinstance(conv, nn.ConvTranspose3d)
    extra = tuple(conv.output_padding)
    if padding == half and (not transposed or extra == tuple(s - 1 for s in conv.stride)):
        return "same"
    if padding == none and (not transposed or extra == none):
        return "valid"
    ending = f" and output_padding {extra}" if transposed else ""
    return f"padding {padding}{ending} for kernel {_extents(conv.kernel_size)} and stride {tuple(conv.stride)}"


@torch.no_grad()
def _fill(new: SplitShuffleConv3d, conv: Convolution) -> None:
    """Weights and bias of `new` from those of `conv`, and what they require."""
    dense = conv.weight.transpose(0, 1) if isinstance(conv, nn.ConvTranspose3d) else conv.weight
    count = len(new.weights)
    width = conv.in_channels // count
    for s, weight in enumerate(new.weights):
        rows = dense[s::count]
        weight.copy_(_middle(rows[:, s * width : (s + 1) * width], weight.shape[2:]))
        if count > 1:
            weight.mul_(_factor(rows, weight))
        weight.requires_grad_(conv.weight.requires_grad)
    if new.bias is not None and conv.bias is not None:
        new.bias.copy_(conv.bias)
        new.bias.requires_grad_(conv.bias.requires_grad)


def _middle(weight: Tensor, extents: Sequence[int]) -> Tensor:
    for d, (outer, inner) in enumerate(zip(weight.shape[2:], extents, strict=True), start=2):
        weight = weight.narrow(d, (outer - inner) // 2, inner)
    return weight


def _factor(all_weights: Tensor, kept: Tensor) -> float | Tensor:
    """sqrt(sum of squares of all / of the kept); 1 where nothing was kept. On the meta device there are no values."""
    if kept.is_meta:
        return 1.0
    total, part = float(all_weights.double().square().sum()), float(kept.double().square().sum())
    return math.sqrt(total / part) if part > 0 else 1.0
