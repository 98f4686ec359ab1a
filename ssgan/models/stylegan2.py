"""Converts NVIDIA's StyleGAN2-ADA (PyTorch) pickles to our dense 2D networks, with the same outputs.

`ssgan.models.stylegan2_pickle` reads them and runs none of their code; StyleGAN3's repository writes StyleGAN2 networks
in the same form. The architecture is taken from the tensors and attributes of the saved modules, not from a version's
defaults. The published kinds are supported: generators with image skips, residual discriminators, leaky ReLU, the
(1, 3, 3, 1) filter, one minibatch-std channel, square images of 4 * 2^k pixels, with labels or without. NVIDIA's half
precision at the finest levels (num_fp16_res) is ignored: ours computes in float32, as theirs with force_fp32.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssgan.config.network import NetworkConfig
from ssgan.models.networks import Discriminator, Generator
from ssgan.models.stylegan2_pickle import Persistent, describe, read
from ssgan.utils.errors import UserError

NETWORKS = ("G", "D", "G_ema")
CHANNELS = ("grey", "keep")
KINDS = {"G": "Generator", "G_ema": "Generator", "D": "Discriminator"}
WHOLE_BATCH = 1 << 16  # a minibatch-std group of more samples than any batch has
FIR = torch.tensor([1.0, 3.0, 3.0, 1.0])

Weights = dict[str, Tensor]


class StyleGAN2Error(UserError):
    """A pickle whose networks have an architecture that ours do not have."""


@dataclass(frozen=True)
class Published:
    """Contents of a pickle for our networks: a dense 2D configuration and the state dicts of G, D and G_ema."""

    network: NetworkConfig
    states: dict[str, Weights]

    def build(self, name: str) -> Generator | Discriminator:
        """Makes the network "G", "D" or "G_ema" with its weights."""
        net = (Discriminator if name == "D" else Generator)(self.network)
        net.load_state_dict(self.states[name])
        return net


def load(path: Path, channels: str = "grey") -> Published:
    """Loads the networks of a pickle.

    channels: "grey" turns RGB networks into networks of one channel, as volumes have: the generator gives the mean of
    its three channels (as long as no channel is clamped, at 256 in published networks), and the discriminator's logit
    of a grey image is that of the image repeated to RGB. "keep" leaves them as they are.

    Raises:
        PickleError: the file is no such pickle, or needs more than plain data.
        StyleGAN2Error: its networks have an architecture that ours do not have; the message names it and its module.
    """
    data = read(path)
    if not isinstance(data, dict) or not all(isinstance(data.get(name), Persistent) for name in NETWORKS):
        raise StyleGAN2Error(f"{path}: expected a pickle of the networks G, D and G_ema of StyleGAN2-ADA's training")
    modules = {name: Module(f"{path}: {name}", data[name]) for name in NETWORKS}
    for name, module in modules.items():
        module.expect("class", module.kind, KINDS[name])
    configs = {n: (discriminator_config if n == "D" else generator_config)(m) for n, m in modules.items()}
    differ = [f for f in configs["D"] if any(c[f] != configs["G_ema"][f] for c in configs.values())]
    if differ:
        values = "; ".join(f"{f}: " + ", ".join(f"{n} {c[f]}" for n, c in configs.items()) for f in differ)
        raise StyleGAN2Error(f"{path}: expected G, D and G_ema that agree; {values}")
    network = NetworkConfig(arch="dense", **configs["G_ema"], **mapping_config(modules), **head_config(modules["D"]))
    states = {n: (discriminator_state if n == "D" else generator_state)(m, network) for n, m in modules.items()}
    if channels == "grey" and network.image_channels != 1:
        if network.image_channels != 3:
            raise StyleGAN2Error(f"{path}: expected 1 or 3 channels to make grey; got {network.image_channels}")
        network, states = grey(network, states)
    return Published(network, states)


@dataclass(frozen=True)
class Module:
    """A module of the pickle and its path, for messages."""

    where: str
    saved: Persistent

    @property
    def kind(self) -> str:
        return self.saved.class_name

    def fail(self, what: str, expected: Any, got: Any) -> StyleGAN2Error:
        hint = "; StyleGAN3 networks are not supported" if what == "synthesis" else ""
        return StyleGAN2Error(f"{self.where}: {what}: expected {expected}; got {describe(got)}{hint}")

    def expect(self, what: str, got: Any, expected: Any) -> None:
        if type(got) not in (str, int, float) or got != expected:
            raise self.fail(what, expected, got)

    def child(self, name: str) -> Module:
        found = self._held("_modules").get(name)
        if not isinstance(found, Persistent):
            raise self.fail(name, f"a module {name} of StyleGAN2", found)
        return Module(f"{self.where}.{name}", found)

    def path(self, names: str) -> Module:
        module = self
        for name in names.split("."):
            module = module.child(name)
        return module

    def has(self, name: str) -> bool:
        return any(self._held(group).get(name) is not None for group in ("_modules", "_parameters", "_buffers"))

    def attribute(self, name: str) -> Any:
        return self.saved.state.get(name)

    def count(self, name: str) -> int:
        value = self.attribute(name)
        if type(value) is not int or not 0 <= value <= 1 << 16:
            raise self.fail(name, "a whole number up to 65536", value)
        return value

    def tensor(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """Returns a parameter, or a buffer (FreezeD turns parameters into buffers), as float32."""
        value = self._held("_parameters").get(name)
        value = self._held("_buffers").get(name) if value is None else value
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise self.fail(name, "a tensor of numbers", type(value).__name__)
        if shape is not None and tuple(value.shape) != shape:
            raise self.fail(name, f"shape {shape}", tuple(value.shape))
        return value.float().contiguous()

    def _held(self, group: str) -> dict[str, Any]:
        held = self.saved.state.get(group)
        return held if isinstance(held, dict) else {}


# ----------------------------------------------------------------------------------------------------- configurations


def levels(net: Module) -> list[int]:
    """Returns the resolutions from 4 to that of the image."""
    resolution = net.count("img_resolution")
    if resolution < 8 or resolution & (resolution - 1):
        raise net.fail("img_resolution", "4 times a power of two, at least 8", resolution)
    return [2**i for i in range(2, resolution.bit_length())]


def common(net: Module, resolutions: list[int], widths: list[int], clamp: float | None) -> dict[str, Any]:
    size = resolutions[-1]
    return {
        "shape": (1, size, size),
        "base": (1, 4, 4),
        "scales": ((1, 2, 2),) * (len(resolutions) - 1),
        "widths": tuple(widths),
        "image_channels": net.count("img_channels"),
        "classes": net.count("c_dim"),
        "conv_clamp": clamp,
    }


def generator_config(net: Module) -> dict[str, Any]:
    """Fields of the configuration that generator and discriminator share."""
    synthesis, resolutions, widths = net.child("synthesis"), levels(net), []
    if synthesis.kind != "SynthesisNetwork" or not synthesis.has("b4"):
        raise net.fail("synthesis", "StyleGAN2's SynthesisNetwork with blocks b4, b8, ...", synthesis.kind)
    clamp = clamp_of(synthesis.path("b4.conv1"))
    for resolution in resolutions:
        block = synthesis.child(f"b{resolution}")
        block.expect("architecture", block.attribute("architecture"), "skip")
        check_filter(block)
        for name in ("conv0", "conv1")[resolution == 4 :]:
            layer = block.child(name)
            check_layer(layer, clamp)
            if layer.attribute("use_noise") is not True or not layer.has("noise_const"):
                raise layer.fail("use_noise", True, layer.attribute("use_noise"))
        same_clamp(block.child("torgb"), clamp)
        widths.append(block.path("conv1").tensor("weight").shape[0])
    if synthesis.has(f"b{2 * resolutions[-1]}"):
        raise net.fail("img_resolution", f"no block above b{resolutions[-1]}", f"b{2 * resolutions[-1]}")
    return common(net, resolutions, widths, clamp)


def discriminator_config(net: Module) -> dict[str, Any]:
    resolutions, head = levels(net), net.child("b4")
    if head.kind != "DiscriminatorEpilogue":
        raise net.fail("b4", "StyleGAN2's DiscriminatorEpilogue", head.kind)
    head.expect("architecture", head.attribute("architecture"), "resnet")
    clamp = clamp_of(head.child("conv"))
    widths = [head.child("conv").tensor("weight").shape[0]]
    for resolution in resolutions[1:]:
        block = net.child(f"b{resolution}")
        block.expect("architecture", block.attribute("architecture"), "resnet")
        check_filter(block)
        names = ("conv0", "conv1", *(("fromrgb",) if resolution == resolutions[-1] else ()))
        for name in names:
            check_layer(block.child(name), clamp)
        check_filter(block.child("skip"))
        widths.append(block.child("conv0").tensor("weight").shape[0])
    check_layer(head.child("conv"), clamp)
    head.child("fc").expect("activation", head.child("fc").attribute("activation"), "lrelu")
    return common(net, resolutions, widths, clamp)


def mapping_config(modules: dict[str, Module]) -> dict[str, Any]:
    """Fields of the generators' mapping networks, which G and G_ema share."""
    found = []
    for net in (modules["G"], modules["G_ema"]):
        mapping, w_dim = net.child("mapping"), net.count("w_dim")
        if not mapping.has("w_avg"):
            raise mapping.fail("w_avg", "the running mean of w", None)
        found.append({"z_dim": net.count("z_dim"), "w_dim": w_dim, "mapping_layers": check_mapping(mapping, w_dim)})
    if found[0] != found[1]:
        raise StyleGAN2Error(f"{modules['G'].where}: expected the mapping of G_ema, {found[1]}; got {found[0]}")
    return found[1]


def head_config(net: Module) -> dict[str, Any]:
    """Fields of the discriminator alone."""
    mbstd = net.path("b4.mbstd") if net.child("b4").has("mbstd") else None
    net.expect("mbstd_num_channels", 0 if mbstd is None else mbstd.attribute("num_channels"), 1)
    group = mbstd.attribute("group_size")
    if group is None:  # the whole batch, as legacy.py writes for networks of TensorFlow
        group = WHOLE_BATCH
    if type(group) is not int or not 1 <= group <= WHOLE_BATCH:
        raise mbstd.fail("group_size", "a number of at least 1", group)
    layers = {"label_layers": net.child("mapping").count("num_layers")} if net.count("c_dim") else {}
    return {"mbstd_group": group, **layers}


def check_layer(layer: Module, clamp: float | None) -> None:
    layer.expect("activation", layer.attribute("activation"), "lrelu")
    same_clamp(layer, clamp)
    check_filter(layer)


def clamp_of(layer: Module) -> float | None:
    clamp = layer.attribute("conv_clamp")
    if clamp is not None and (type(clamp) not in (int, float) or not 0 < clamp < math.inf):
        raise layer.fail("conv_clamp", "a number above 0 or None", clamp)
    return None if clamp is None else float(clamp)


def same_clamp(layer: Module, clamp: float | None) -> None:
    if clamp_of(layer) != clamp:
        raise layer.fail("conv_clamp", f"{clamp} as in the other layers", layer.attribute("conv_clamp"))


def check_filter(module: Module) -> None:
    fir = module.tensor("resample_filter")
    if fir.shape != (4, 4) or not torch.allclose(fir, torch.outer(FIR, FIR) / 64, atol=1e-6):
        got = ", ".join(f"{value:.3g}" for value in fir.flatten()[:4].tolist())
        raise module.fail("resample_filter", "(1, 3, 3, 1) x (1, 3, 3, 1) / 64", f"{tuple(fir.shape)} of {got} ...")


def check_mapping(mapping: Module, w_dim: int) -> int:
    layers = mapping.count("num_layers")
    for i in range(layers):
        layer = mapping.child(f"fc{i}")
        layer.expect("activation", layer.attribute("activation"), "lrelu")
        layer.expect("lr_multiplier", layer.attribute("bias_gain"), 0.01)
        layer.tensor("weight", (w_dim, layer.tensor("weight").shape[-1]))
    return layers


# ------------------------------------------------------------------------------------------------------------ weights


class Copy:
    """Collects a state dict of ours from the pickle's modules; checks every shape against a network of ours, which
    takes no memory."""

    def __init__(self, kind: type[Generator | Discriminator], cfg: NetworkConfig):
        with torch.device("meta"):
            self.state: Weights = dict(kind(cfg).state_dict())
        # depth_gain exists in our networks only; it is 1 for a weight that has not been inflated.
        gains = [name for name in self.state if name.endswith("depth_gain")]
        self.missing = set(self.state) - set(gains)
        self.state |= {name: torch.ones_like(self.state[name], device="cpu") for name in gains}

    def __call__(self, theirs: Module, names: dict[str, str]) -> None:
        for their, our in names.items():
            own = self.state[our]
            value = theirs.tensor(their)
            if value.dim() + 1 == own.dim():  # depth 1
                value = value.unsqueeze(-3)
            if value.shape != own.shape:
                raise theirs.fail(their, f"{tuple(own.shape)} for our {our}", tuple(value.shape))
            self.state[our] = value.clone()
            self.missing.remove(our)

    def dense(self, theirs: Module, our: str) -> None:
        self(theirs, {"weight": f"{our}.weight", "bias": f"{our}.bias"})

    def mapping(self, theirs: Module, layers: int, embeds: bool) -> None:
        for i in range(layers):
            self.dense(theirs.child(f"fc{i}"), f"mapping.layers.{i}")
        if embeds:
            self.dense(theirs.child("embed"), "mapping.embed")

    def done(self) -> Weights:
        assert not self.missing, self.missing
        return self.state


def generator_state(net: Module, cfg: NetworkConfig) -> Weights:
    copy, mapping = Copy(Generator, cfg), net.child("mapping")
    copy.mapping(mapping, cfg.mapping_layers, bool(cfg.classes))
    copy(mapping, {"w_avg": "mapping.w_avg"})
    for level in range(len(cfg.widths)):
        block, our = net.path(f"synthesis.b{4 << level}"), f"synthesis.blocks.{level}"
        if level == 0:
            copy(block, {"const": f"{our}.const"})
        for name in ("conv0", "conv1")[level == 0 :]:
            layer = block.child(name)
            copy.dense(layer.child("affine"), f"{our}.{name}.affine")
            names = {n: f"{our}.{name}.{n}" for n in ("bias", "noise_const", "noise_strength")}
            copy(layer, {"weight": f"{our}.{name}.stages.0.weights.0", **names})
        copy.dense(block.path("torgb.affine"), f"{our}.to_image.affine")
        copy.dense(block.child("torgb"), f"{our}.to_image")
    return copy.done()


def discriminator_state(net: Module, cfg: NetworkConfig) -> Weights:
    copy, count = Copy(Discriminator, cfg), len(cfg.scales)

    def convolution(theirs: Module, our: str) -> None:
        bias = {"bias": f"{our}.bias"} if f"{our}.bias" in copy.state else {}
        copy(theirs, {"weight": f"{our}.stages.0.weights.0", **bias})

    convolution(net.path(f"b{4 << count}.fromrgb"), "from_image")
    for i in range(count):
        for name in ("conv0", "conv1", "skip"):
            convolution(net.path(f"b{4 << (count - i)}.{name}"), f"blocks.{i}.{name}")
    convolution(net.path("b4.conv"), "head.conv")
    copy.dense(net.path("b4.fc"), "head.fc")
    copy.dense(net.path("b4.out"), "head.out")
    if cfg.classes:
        layers = check_mapping(net.child("mapping"), cfg.widths[0])
        copy.mapping(net.child("mapping"), layers, True)
    return copy.done()


def grey(network: NetworkConfig, states: dict[str, Weights]) -> tuple[NetworkConfig, dict[str, Weights]]:
    """Turns networks of three channels into networks of one; see `load`."""
    result = {name: dict(state) for name, state in states.items()}
    for state in (result["G"], result["G_ema"]):
        for name in [n for n in state if n.endswith(("to_image.weight", "to_image.bias"))]:
            state[name] = state[name].mean(0, keepdim=True)
    first = "from_image.stages.0.weights.0"
    # Equalised: the layer scales by 1 / sqrt(channels) when it runs.
    result["D"][first] = result["D"][first].sum(1, keepdim=True) / math.sqrt(network.image_channels)
    return dataclasses.replace(network, image_channels=1), result
