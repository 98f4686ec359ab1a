"""Inflates a trained 2D network into a 3D one: copies every 2D tensor or spreads it along depth, and reports which.

The networks scale their parameters at run time (equalised learning rate), and a 3D kernel has a larger fan-in. So the
stored parameter is rescaled such that the effective weight of the convolution is exactly the 2D weight times the depth
profile. Demodulation has its own correction (`BranchWeights.depth_gain`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import nn

from ssconv import depth_profile, inflate_weight
from ssgan.config.network import PROFILES
from ssgan.models.layers import BranchWeights, ModulatedConv
from ssgan.models.networks import SynthesisBlock
from ssgan.utils.errors import UserError


@dataclass(frozen=True)
class InflationReport:
    """Where each tensor of the 3D network comes from: rows of (name, action, 2D shape or None, 3D shape).

    Actions: copied, inflated, fresh; preceded by "selected" or "identity" where the architecture changed
    (`ssgan.models.dense_to_split`); widened where channels for masks were added (`ssgan.models.mask_channels`).
    """

    profile: str
    rows: list[tuple[str, str, tuple[int, ...] | None, tuple[int, ...]]] = field(default_factory=list)

    def __str__(self) -> str:
        counts = Counter(action for _, action, _, _ in self.rows)
        width = max((len(name) for name, *_ in self.rows), default=4)
        plain = ("copied", "inflated", "fresh")
        others = [f"{counts[a]} {a.replace(', ', ' and ')}" for a in sorted(set(counts) - set(plain))]
        summary = ", ".join([f"{counts[a]} {a}" for a in plain] + others)
        column = max((len(action) for _, action, _, _ in self.rows), default=8)
        lines = [f"inflation with profile {self.profile}: {summary}"]
        for name, action, before, after in self.rows:
            shapes = str(after) if before in (None, after) else f"{before} -> {after}"
            lines.append(f"  {name:<{width}}  {action:<{column}}  {shapes}")
        return "\n".join(lines)


def inflate_network(net2d: nn.Module, net3d: nn.Module, profile: str = "average") -> InflationReport:
    """Loads the weights of a 2D network into a 3D one of the same architecture and widths, in place.

    Convolution weights (O, I, 1, kh, kw) become (O, I, kd, kh, kw) by the depth profile ("average", "centre" or
    "triangle", each with sum 1). The learned constant is repeated along depth; with `depth_places` it already has a
    depth and is copied, like the discriminator's embedding of slice indices. The noise buffers keep their fresh values
    (a noise image has no counterpart in a volume), all else is copied. "none" leaves the 3D network as it is.

    After "centre" every slice of G3D(z) without noise is G2D(z), and D3D of a volume that is constant along depth is
    D2D of its slice.

    Raises:
        UserError: the networks do not fit together; the message names the first tensor that does not fit.
    """
    if profile not in PROFILES:
        raise UserError(f"profile: expected one of {', '.join(PROFILES)}; got {profile!r}")
    target = dict(net3d.named_parameters()) | dict(net3d.named_buffers())
    report = InflationReport(profile)
    if profile == "none":
        report.rows.extend((name, "fresh", None, tuple(t.shape)) for name, t in target.items())
        return report
    source = dict(net2d.named_parameters()) | dict(net2d.named_buffers())
    missing, surplus = sorted(set(target) - set(source)), sorted(set(source) - set(target))
    if missing or surplus:
        raise UserError(
            "the 2D network is not the 2D counterpart of the 3D one (same architecture and levels expected): "
            f"only in 3D {missing[:3]}, only in 2D {surplus[:3]}"
        )
    with torch.no_grad():
        special = _special_tensors(net2d, net3d, profile)
        for name, tensor in target.items():
            before = source[name]
            if name in special:
                value = special[name]
                if value is None:
                    report.rows.append((name, "fresh", None, tuple(tensor.shape)))
                    continue
            else:
                value = before
            if value.shape != tensor.shape:
                raise UserError(
                    f"{name}: the 2D network's {tuple(before.shape)} cannot become the 3D network's "
                    f"{tuple(tensor.shape)}; use the same widths, base height and width, and z_dim"
                )
            tensor.copy_(value)
            action = "copied" if before.shape == tensor.shape and torch.equal(before, tensor) else "inflated"
            report.rows.append((name, action, tuple(before.shape), tuple(tensor.shape)))
    return report


def _special_tensors(net2d: nn.Module, net3d: nn.Module, profile: str) -> dict[str, torch.Tensor | None]:
    """Returns new values, by full name, of tensors that are not copied unchanged; None keeps the fresh value."""
    flat = dict(net2d.named_modules())
    special: dict[str, torch.Tensor | None] = {}
    for prefix, module in net3d.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, BranchWeights):
            special.update({dot + name: value for name, value in _branches(flat[prefix], module, profile).items()})
        elif isinstance(module, SynthesisBlock) and hasattr(module, "const"):
            const = flat[prefix].const
            special[dot + "const"] = const.expand(-1, module.const.shape[1], -1, -1) if len(const[0]) == 1 else const
        elif isinstance(module, ModulatedConv) and module.size != flat[prefix].size:
            special[dot + "noise_const"] = None
    return special


def _branches(flat: BranchWeights, deep: BranchWeights, profile: str) -> dict[str, torch.Tensor]:
    """Inflates the weights of one set of branches; also returns the correction of demodulation for each branch."""
    values = {}
    depth_gain = flat.depth_gain.clone()
    for i, (w2, w3) in enumerate(zip(flat.weights, deep.weights, strict=True)):
        depth = w3.shape[2]
        rescale = flat.gains[i] / deep.gains[i]
        values[f"weights.{i}"] = inflate_weight(w2[:, :, 0], depth, profile) * rescale
        # Demodulation divides by the norm, which is sqrt(sum(p^2)) that of the 2D weight once rescale has cancelled.
        depth_gain[i] *= depth_profile(depth, profile).square().sum().sqrt().to(depth_gain)
    values["depth_gain"] = depth_gain
    return values
