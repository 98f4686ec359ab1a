"""Pickles in the form of NVIDIA's training, made without its source: a pickler that writes NVIDIA's names, and networks
of random weights under these names. `images` and `logits` compute the networks' outputs without code of ssgan."""

import io
import math
import pickle
import types

import numpy as np
import torch

from tests.support import oracle_stylegan2 as oracle

MARKER = "raise SystemExit('the source code in the pickle was run')"


def reconstruct(meta):
    raise AssertionError("only its name is wanted")


reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
reconstruct.__name__ = "_reconstruct_persistent_obj"


class EasyDict(dict):
    pass


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"


class Saved:
    """An object that pickles as those of torch_utils.persistence do."""

    def __init__(self, class_name, state):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = {
            "type": "class", "version": 6, "module_src": MARKER, "class_name": self.class_name, "state": self.state,
        }  # fmt: skip
        return reconstruct, (meta,), None


def dumps(data, protocol=4):
    """Pickles `data`; the modules that it names exist only while it is written."""
    import sys

    names = {"torch_utils": {}, "torch_utils.persistence": {"_reconstruct_persistent_obj": reconstruct}}
    names |= {"dnnlib": {}, "dnnlib.util": {"EasyDict": EasyDict}}
    try:
        for name, content in names.items():
            sys.modules[name] = types.ModuleType(name)
            vars(sys.modules[name]).update(content)
        return pickle.dumps(data, protocol)
    finally:
        for name in names:
            del sys.modules[name]


def module(class_name, parameters=(), buffers=(), modules=(), **attributes):
    from collections import OrderedDict

    parameters = {n: torch.nn.Parameter(t, False) if t is not None else None for n, t in dict(parameters).items()}
    state = {"training": False, "_parameters": OrderedDict(parameters), "_buffers": OrderedDict(buffers)}
    state |= {"_modules": OrderedDict(modules), "_non_persistent_buffers_set": set(), "_forward_hooks": OrderedDict()}
    state |= {"_init_args": (), "_init_kwargs": EasyDict(a=1, b=[1, 2]), "act_gain": np.sqrt(2)}
    return Saved(class_name, state | attributes)


class Maker:
    """Makes networks of random weights. `weights[name]` of G, D, G_ema: every tensor by NVIDIA's name."""

    def __init__(
        self, resolution=16, widths=(12, 8, 4), c_dim=0, z=10, w=12, layers=2, clamp=None, group=4, channels=3,
        label_layers=1, seed=0,
    ):  # fmt: skip
        self.generator = torch.Generator().manual_seed(seed)
        self.resolution, self.widths, self.c_dim, self.z, self.w = resolution, widths, c_dim, z, w
        self.layers, self.clamp, self.group, self.channels = layers, clamp, group, channels
        self.label_layers = label_layers
        self.fir = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64

    def rand(self, *shape, mean=0.0, scale=1.0):
        return torch.randn(shape, generator=self.generator) * scale + mean

    def fc(self, fin, fout, activation="linear", lr=1, bias=0.0):
        tensors = {"weight": self.rand(fout, fin) / lr, "bias": self.rand(fout, mean=bias, scale=0.3)}
        gain = lr / np.sqrt(fin)
        return module("FullyConnectedLayer", tensors, activation=activation, bias_gain=lr, weight_gain=gain)

    def conv(self, cin, cout, k, bias=True, activation="lrelu", clamp=None):
        tensors = {"weight": self.rand(cout, cin, k, k), "bias": self.rand(cout, scale=0.3) if bias else None}
        return module(
            "Conv2dLayer", tensors, {"resample_filter": self.fir}, activation=activation, conv_clamp=clamp
        )  # fmt: skip

    def synthesis_layer(self, cin, cout, res):
        tensors = {"weight": self.rand(cout, cin, 3, 3), "bias": self.rand(cout, scale=0.3)}
        tensors["noise_strength"] = self.rand()
        buffers = {"resample_filter": self.fir, "noise_const": self.rand(res, res)}
        return module(
            "SynthesisLayer", tensors, buffers, {"affine": self.fc(self.w, cin, bias=1.0)},
            activation="lrelu", conv_clamp=self.clamp, use_noise=True, up=2,
        )  # fmt: skip

    def mapping(self, z, w, layers, w_avg):
        width = [z + (w if self.c_dim else 0)] + [w] * layers
        parts = {"embed": self.fc(self.c_dim, w)} if self.c_dim else {}
        parts |= {f"fc{i}": self.fc(width[i], w, "lrelu", 0.01) for i in range(layers)}
        buffers = {"w_avg": self.rand(w)} if w_avg else {}
        return module("MappingNetwork", {}, buffers, parts, num_layers=layers, w_avg_beta=0.995, z_dim=z, w_dim=w)

    def G(self):
        blocks = {}
        for i, cout in enumerate(self.widths):
            res, cin = 4 << i, self.widths[i - 1] if i else 0
            parts = {"conv0": self.synthesis_layer(cin, cout, res)} if i else {}
            parts["conv1"] = self.synthesis_layer(cout, cout, res)
            torgb = {"weight": self.rand(self.channels, cout, 1, 1), "bias": self.rand(self.channels)}
            affine = {"affine": self.fc(self.w, cout, bias=1.0)}
            parts["torgb"] = module("ToRGBLayer", torgb, {}, affine, conv_clamp=self.clamp)
            const = {} if i else {"const": self.rand(cout, 4, 4)}
            blocks[f"b{res}"] = module(
                "SynthesisBlock", const, {"resample_filter": self.fir}, parts, architecture="skip"
            )  # fmt: skip
        parts = {"synthesis": module("SynthesisNetwork", modules=blocks)}
        parts["mapping"] = self.mapping(self.z, self.w, self.layers, True)
        return module("Generator", modules=parts, z_dim=self.z, w_dim=self.w, **self.both())

    def both(self):
        return {"c_dim": self.c_dim, "img_resolution": self.resolution, "img_channels": self.channels}

    def D(self):
        parts = {}
        for i in range(len(self.widths) - 1, 0, -1):
            cin, cout = self.widths[i], self.widths[i - 1]
            layers = (
                {"fromrgb": self.conv(self.channels, cin, 1, clamp=self.clamp)} if i + 1 == len(self.widths) else {}
            )
            layers["conv0"] = self.conv(cin, cin, 3, clamp=self.clamp)
            layers["conv1"] = self.conv(cin, cout, 3, clamp=self.clamp)
            layers["skip"] = self.conv(cin, cout, 1, bias=False, activation="linear")
            parts[f"b{4 << i}"] = module(
                "DiscriminatorBlock", {}, {"resample_filter": self.fir}, layers, architecture="resnet"
            )  # fmt: skip
        width = self.widths[0]
        head = {"mbstd": module("MinibatchStdLayer", group_size=self.group, num_channels=1)}
        head["conv"] = self.conv(width + 1, width, 3, clamp=self.clamp)
        head["fc"] = self.fc(width * 16, width, "lrelu")
        head["out"] = self.fc(width, width if self.c_dim else 1)
        if self.c_dim:
            parts["mapping"] = self.mapping(0, width, self.label_layers, False)
        parts["b4"] = module("DiscriminatorEpilogue", modules=head, architecture="resnet")
        return module("Discriminator", modules=parts, **self.both())

    def snapshot(self):
        data = {"training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", path="x.zip")}
        data |= {"G": self.G(), "D": self.D(), "G_ema": self.G()}
        data["augment_pipe"] = module("AugmentPipe", {}, {"p": torch.tensor(0.5)}, xflip=1.0)
        return data


def tensors(saved, prefix=""):
    """Returns every parameter and buffer of a module by its full name in PyTorch."""
    found = {}
    for group in ("_parameters", "_buffers"):
        found |= {prefix + n: t.double() for n, t in saved.state[group].items() if t is not None}
    for name, child in saved.state["_modules"].items():
        found |= tensors(child, f"{prefix}{name}.")
    return found


# ---- what they compute: StyleGAN2 by NVIDIA's names, from the layers of the oracle ----


def mapped(state, prefix, z, layers, onehot):
    x = [] if z is None else [oracle.unit(z)]
    if onehot is not None:
        x.append(oracle.unit(oracle.dense(state, f"{prefix}embed", onehot)))
    x = torch.cat(x, 1)
    for i in range(layers):
        x = oracle.dense(state, f"{prefix}fc{i}", x, lr=0.01, act=True)
    return x


def images(maker, saved, z, onehot=None, psi=1.0, noise=True):
    s, clamp = tensors(saved), maker.clamp or math.inf
    w = mapped(s, "mapping.", z, maker.layers, onehot)
    w = s["mapping.w_avg"] + psi * (w - s["mapping.w_avg"])
    x, image = s["synthesis.b4.const"][None].repeat(len(z), 1, 1, 1), None
    for i in range(len(maker.widths)):
        block = f"synthesis.b{4 << i}"
        for layer in [f"{block}.conv0", f"{block}.conv1"][i == 0 :]:
            styles = oracle.dense(s, f"{layer}.affine", w)
            x = oracle.modulated(x, s[f"{layer}.weight"], styles, up=layer.endswith("conv0"))
            x = x + (s[f"{layer}.noise_const"] * s[f"{layer}.noise_strength"] if noise else 0)
            x = oracle.lrelu(x, s[f"{layer}.bias"]).clamp(-clamp, clamp)
        weight = s[f"{block}.torgb.weight"]
        styles = oracle.dense(s, f"{block}.torgb.affine", w) / math.sqrt(weight.shape[1])
        y = oracle.modulated(x, weight, styles, demodulate=False) + s[f"{block}.torgb.bias"][:, None, None]
        y = y.clamp(-clamp, clamp)
        image = y if image is None else oracle.upsampled(image) + y
    return image


def logits(maker, saved, x, onehot=None):
    s, clamp = tensors(saved), maker.clamp or math.inf
    half, conv2d = math.sqrt(0.5), torch.nn.functional.conv2d

    def weight(name):
        w = s[f"{name}.weight"]
        return w / math.sqrt(w[0].numel())

    def layer(x, name, gain=1.0, **how):
        return oracle.lrelu(conv2d(x, weight(name), **how), s[f"{name}.bias"], gain).clamp(-clamp * gain, clamp * gain)

    x = layer(x, f"b{maker.resolution}.fromrgb")
    for i in range(len(maker.widths) - 1, 0, -1):
        block = f"b{4 << i}"
        skip = conv2d(oracle.filtered(x, 1, 1, down=2), weight(f"{block}.skip")) * half
        y = layer(x, f"{block}.conv0", padding=1)
        x = skip + layer(oracle.filtered(y, 2, 2), f"{block}.conv1", half, stride=2)
    n, c, h, w = x.shape
    statistic = x.reshape(min(maker.group, n), -1, c, h, w)
    statistic = (statistic.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3)).repeat(min(maker.group, n))
    x = layer(torch.cat([x, statistic[:, None, None, None].expand(n, 1, h, w)], 1), "b4.conv", padding=1)
    y = oracle.dense(s, "b4.out", oracle.dense(s, "b4.fc", x.flatten(1), act=True))
    if onehot is None:
        return y
    label = mapped(s, "mapping.", None, maker.label_layers, onehot)
    return (y * label).sum(1, keepdim=True) / math.sqrt(y.shape[1])


def storage_stream(data):
    """Writes one storage in torch.save's old format, as a tensor's pickle holds it."""
    stream = io.BytesIO()
    torch.save(data._typed_storage(), stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()
