"""Makes the 3D networks of a trained 2D GAN, from a checkpoint of a run's 2D stage or from a StyleGAN2-ADA pickle."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ssgan.config.network import NetworkConfig, plan_levels
from ssgan.models import stylegan2
from ssgan.models.dense_to_split import select_weights
from ssgan.models.inflation import InflationReport, inflate_network
from ssgan.models.mask_channels import add_mask_channels
from ssgan.models.networks import Discriminator, Generator
from ssgan.runs import checkpoint
from ssgan.runs.config import config_of_checkpoint, read_config
from ssgan.utils.errors import UserError
from ssgan.utils.seeding import stream_seed

NETWORKS = ("G", "D", "G_ema")


class InflateError(UserError):
    """A 2D GAN that cannot be inflated as asked, or an output that would overwrite a file."""


@dataclass(frozen=True)
class Source2d:
    """A trained 2D GAN.

    network: its 3D counterpart of the same architecture. nets: the 2D networks G, D and G_ema. images: real images that
    its discriminator was shown. seed: of the tensors without a counterpart in 2D, drawn as a run of that seed draws
    them. run: whether it comes from a run of this project.
    """

    network: NetworkConfig
    nets: dict[str, nn.Module]
    pl_mean: Tensor
    images: int
    seed: int
    run: bool


def load_run_source(file: Path, config: Path | None = None) -> Source2d:
    """Loads the 2D networks of a run's checkpoint. config: the run's config.json, where the file is not in its run.

    Raises:
        InflateError, CheckpointError: not a checkpoint of stage 2d, or one without a config.json.
    """
    tensors, meta = checkpoint.load(file)
    if meta.stage != "2d":
        raise InflateError(f"--source {file} is of stage {meta.stage}; expected a checkpoint of stage 2d")
    found = read_config(config) if config is not None and config.is_file() else None
    found = found or (config_of_checkpoint(file) if config is None else None)
    if found is None:
        raise InflateError(f"--source {file} is not in a run's folder and has no config.json; give --config")
    network = found.train.network
    nets: dict[str, nn.Module] = {n: (Discriminator if n == "D" else Generator)(network.flat()) for n in NETWORKS}
    for name, net in nets.items():
        checkpoint.load_module(net, name, tensors, str(file))
    images = meta.images_before + meta.images
    return Source2d(network, nets, tensors["pl_mean"], images, found.train.seed, run=True)


def load_pickle_source(file: Path, channels: str = "grey", depth: int | None = None) -> Source2d:
    """Loads the networks of a StyleGAN2-ADA (PyTorch) pickle. depth: of the volumes; default the images' height."""
    published = stylegan2.load(file, channels)
    _, height, width = published.network.shape
    shape = (depth or height, height, width)
    base, scales = plan_levels(shape, ("D (--depth)", "H", "W"), "give another --depth")
    network = dataclasses.replace(published.network, shape=shape, base=base, scales=scales)
    nets = {name: published.build(name) for name in NETWORKS}
    # The file does not say how many images were shown. 1 stands for "some": warm-up and path length depend on that.
    return Source2d(network, nets, torch.zeros(()), images=1, seed=0, run=False)


def target_network(
    source: Source2d, arch: str | None = None, arch_d: str | None = None, dense_levels: tuple[int, ...] | None = None,
    mask_classes: int | None = None,
) -> NetworkConfig:  # fmt: skip
    """Describes the 3D networks that the options --arch, --arch-d, --dense-levels and --mask-classes ask for.

    Without `arch` a run keeps its own architecture, and a pickle becomes split_depth.

    Raises:
        InflateError: dense_levels without arch, of a run; mask_classes for networks that cannot get them.
    """
    own = source.network
    if mask_classes is not None:
        if own.image_channels != 1:
            have = (
                f"masks of {own.mask_classes} classes" if own.mask_classes else f"{own.image_channels} image channels"
            )
            raise InflateError(
                f"--mask-classes: is for a source of one image channel; this one has {have}; leave it out"
            )
        own = own.with_masks(mask_classes)
    if arch is not None or not source.run:
        return own.with_arch(arch or "split_depth", arch_d, dense_levels or ())
    if dense_levels is not None:
        raise InflateError(
            f"--dense-levels: needs --arch, the architecture of the other levels; without it the networks stay "
            f"{own.arch_name}, as the source is"
        )
    return own.with_arch(own.arch, arch_d or own.arch_d, own.dense_levels)


def inflate_source(
    source: Source2d, network: NetworkConfig, profile: str
) -> tuple[dict[str, Tensor], dict[str, InflationReport]]:
    """Inflates all networks of a 2D GAN. Returns the tensors of a 3D checkpoint, and a report per network.

    Raises:
        InflateError: see `select_and_inflate`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(source.seed, "3d", 0, "init"))
        nets: dict[str, nn.Module] = {"G": Generator(network), "D": Discriminator(network)}
        widened = _widened(source, network)
    nets["G_ema"] = copy.deepcopy(nets["G"])
    tensors, reports = {"pl_mean": source.pl_mean}, {}
    for name, net in nets.items():
        net2d, actions = widened.get(name, (source.nets[name], {}))
        before = source.network.with_masks(network.mask_classes) if widened else source.network
        report = select_and_inflate(net2d, before, net, network, profile)
        rows = []
        for tensor, action, shape2d, shape3d in report.rows:
            if tensor in actions:
                action, shape2d = actions[tensor], tuple(source.nets[name].state_dict()[tensor].shape)
            rows.append((tensor, action, shape2d, shape3d))
        reports[name] = InflationReport(profile, rows)
        tensors |= checkpoint.with_prefix(name, net.state_dict())
    return tensors, reports


def _widened(source: Source2d, network: NetworkConfig) -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """The source's networks with class channels, where `network` has them and the source has not; else nothing."""
    if source.network.mask_classes == network.mask_classes:
        return {}
    flat, found = source.network.with_masks(network.mask_classes).flat(), {}
    fresh: dict[type, nn.Module] = {Generator: Generator(flat), Discriminator: Discriminator(flat)}
    for name, net in source.nets.items():  # G and G_ema get the same fresh values
        wide = copy.deepcopy(fresh[type(net)])
        found[name] = (wide, add_mask_channels(net, wide))
    return found


def select_and_inflate(
    net2d: nn.Module, before: NetworkConfig, net3d: nn.Module, after: NetworkConfig, profile: str
) -> InflationReport:
    """Loads a 2D network of configuration `before.flat()` into a 3D one of `after`; reports the origin of every tensor.

    Raises:
        InflateError: `after` has another architecture at a level that is not dense in `before`.
    """
    actions: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    of_d = isinstance(net3d, Discriminator)
    levels = range(1 if of_d else 0, len(after.widths))  # a discriminator has no convolution at level 0
    changed = [n for n in levels if before.arch_at(n, of_d) != after.arch_at(n, of_d)]
    for level in changed:
        own, wanted = before.arch_at(level, of_d), after.arch_at(level, of_d)
        if own != "dense":
            name = type(net3d).__name__.lower()
            asked = f"--arch-d {wanted}" if of_d and after.arch_d else f"--arch {wanted}"
            if level in after.dense_levels:
                asked, own = f"--dense-levels {level}", f"{own} there"
            raise InflateError(
                f"{asked}: the source's {name} is {own}; expected that, or a dense source to select from"
            )
    if changed:
        shapes = {name: tuple(t.shape) for name, t in net2d.state_dict().items()}
        dense, net2d = net2d, type(net3d)(after.flat())
        actions = select_weights(dense, net2d)
    report = inflate_network(net2d, net3d, profile)
    rows = []
    for name, action, shape2d, shape3d in report.rows:
        if name in actions:
            action = actions[name] + (", inflated" if action == "inflated" else "")
            shape2d = shapes.get(name.rsplit(".", 1)[0] + ".0" if ".weights." in name else name)
        rows.append((name, action, shape2d, shape3d))
    return InflationReport(profile, rows)
