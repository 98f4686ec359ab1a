"""Counts the parameters of generator and discriminator, per architecture and layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from ssgan.config.network import ARCHITECTURES, NetworkConfig
from ssgan.config.presets import preset
from ssgan.models.networks import Discriminator, Generator


def build(cfg: NetworkConfig) -> tuple[Generator, Discriminator]:
    """Makes both networks on the meta device: shapes without memory."""
    with torch.device("meta"):
        return Generator(cfg), Discriminator(cfg)


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layer_rows(module: nn.Module, prefix: str) -> list[tuple[str, str, int]]:
    """Returns (name, shapes of the weights, number of parameters) of every module that owns parameters."""
    rows = []
    for name, layer in module.named_modules():
        # A ParameterList belongs to the layer that holds it.
        own = list(layer.parameters(recurse=False))
        own += [p for child in layer.children() if isinstance(child, nn.ParameterList) for p in child.parameters()]
        if own and not isinstance(layer, nn.ParameterList):
            shapes = " + ".join("x".join(map(str, p.shape)) or "scalar" for p in own)
            rows.append((f"{prefix}.{name}" if name else prefix, shapes, sum(p.numel() for p in own)))
    return rows


def share_table(preset_name: str, shape: tuple[int, int, int] | None = None) -> list[tuple[str, int, int, float]]:
    """Returns (architecture, parameters of G, of D, share of dense's G + D) at a preset's widths."""
    counts = {}
    for arch in ARCHITECTURES:
        counts[arch] = tuple(parameter_count(net) for net in build(preset(preset_name).network(shape, arch)))
    dense = sum(counts["dense"])
    return [(arch, g, d, (g + d) / dense) for arch, (g, d) in counts.items()]
