"""Published networks by others' code or written out anew as functions of a state dict; nothing from ssgan."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F


def synthetic(shapes, seed=0):
    """A state dict of the given shapes: He-scaled weights, and batch norms that are no identity."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            fan = torch.Size(shape[1:]).numel()
            state[name] = torch.randn(shape, generator=draw) * (2 / fan) ** 0.5
        elif name.endswith("running_var") or name.endswith("weight"):
            state[name] = 0.5 + torch.rand(shape, generator=draw)
        else:
            state[name] = 0.1 * torch.randn(shape, generator=draw)
    return state


def monai_medicalnet(depth):
    """MONAI's ResNet of MedicalNet's files, the strides and dilations of Tencent/MedicalNet put into its modules."""
    from monai.networks.nets import resnet

    make = getattr(resnet, f"resnet{depth}")
    kind = "A" if depth in (18, 34) else "B"
    net = make(spatial_dims=3, n_input_channels=1, feed_forward=False, shortcut_type=kind, bias_downsample=False,
               conv1_t_stride=2)  # fmt: skip
    for layer, dilation in ((net.layer3, 2), (net.layer4, 4)):
        for block in layer:
            for conv in block.modules():
                if isinstance(conv, torch.nn.Conv3d):
                    conv.stride = (1, 1, 1)
                    if conv.kernel_size == (3, 3, 3):
                        conv.dilation = conv.padding = (dilation,) * 3
            if isinstance(block.downsample, functools.partial):
                block.downsample = functools.partial(
                    block.downsample.func, **{**block.downsample.keywords, "stride": 1}
                )
    return net.eval()


def monai_radimagenet():
    """MONAI's 2D ResNet-50 with biases, Keras' epsilon, and the strides in the first convolution of each bottleneck."""
    from monai.networks.nets import resnet

    net = resnet.resnet50(spatial_dims=2, n_input_channels=3, feed_forward=False, bias_downsample=True,
                          conv1_t_stride=2)  # fmt: skip
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is None:
            module.bias = torch.nn.Parameter(torch.zeros(module.out_channels))
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1.001e-5
        if isinstance(module, resnet.ResNetBottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
    return net.eval()


def monai_stages(net, x):
    """Outputs of stem and stages, and the pooled features."""
    found = []
    hooks = [m.register_forward_hook(lambda _, __, y: found.append(y.clone()))
             for m in (net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4)]  # fmt: skip
    with torch.no_grad():
        features = net(x)
    for hook in hooks:
        hook.remove()
    return found, features


# Inception-v3: branches as (name, output channels, kernel height, kernel width, stride, padding height, padding width).
def _a(last):
    return [
        [("branch1x1", 64, 1, 1, 1, 0, 0)],
        [("branch5x5_1", 48, 1, 1, 1, 0, 0), ("branch5x5_2", 64, 5, 5, 1, 2, 2)],
        [("branch3x3dbl_1", 64, 1, 1, 1, 0, 0), ("branch3x3dbl_2", 96, 3, 3, 1, 1, 1),
         ("branch3x3dbl_3", 96, 3, 3, 1, 1, 1)],
        ["average", ("branch_pool", last, 1, 1, 1, 0, 0)],
    ]  # fmt: skip


def _c(c):
    return [
        [("branch1x1", 192, 1, 1, 1, 0, 0)],
        [("branch7x7_1", c, 1, 1, 1, 0, 0), ("branch7x7_2", c, 1, 7, 1, 0, 3), ("branch7x7_3", 192, 7, 1, 1, 3, 0)],
        [("branch7x7dbl_1", c, 1, 1, 1, 0, 0), ("branch7x7dbl_2", c, 7, 1, 1, 3, 0),
         ("branch7x7dbl_3", c, 1, 7, 1, 0, 3), ("branch7x7dbl_4", c, 7, 1, 1, 3, 0),
         ("branch7x7dbl_5", 192, 1, 7, 1, 0, 3)],
        ["average", ("branch_pool", 192, 1, 1, 1, 0, 0)],
    ]  # fmt: skip


def _e(pool):
    a, b = (384, 1, 3, 1, 0, 1), (384, 3, 1, 1, 1, 0)
    one = ("branch3x3_1", 384, 1, 1, 1, 0, 0)
    two = [("branch3x3dbl_1", 448, 1, 1, 1, 0, 0), ("branch3x3dbl_2", 384, 3, 3, 1, 1, 1)]
    return [
        [("branch1x1", 320, 1, 1, 1, 0, 0)],
        [one, ("branch3x3_2a", *a)], [one, ("branch3x3_2b", *b)],
        [*two, ("branch3x3dbl_3a", *a)], [*two, ("branch3x3dbl_3b", *b)],
        [pool, ("branch_pool", 192, 1, 1, 1, 0, 0)],
    ]  # fmt: skip


def inception_table(last_pool):
    """Layer name -> its branches, or one convolution; sizes are those of the paper's table 1."""
    return {
        "Conv2d_1a_3x3": [[("", 32, 3, 3, 2, 0, 0)]],
        "Conv2d_2a_3x3": [[("", 32, 3, 3, 1, 0, 0)]],
        "Conv2d_2b_3x3": [[("", 64, 3, 3, 1, 1, 1), "halve"]],
        "Conv2d_3b_1x1": [[("", 80, 1, 1, 1, 0, 0)]],
        "Conv2d_4a_3x3": [[("", 192, 3, 3, 1, 0, 0), "halve"]],
        "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64),
        "Mixed_6a": [
            [("branch3x3", 384, 3, 3, 2, 0, 0)],
            [("branch3x3dbl_1", 64, 1, 1, 1, 0, 0), ("branch3x3dbl_2", 96, 3, 3, 1, 1, 1),
             ("branch3x3dbl_3", 96, 3, 3, 2, 0, 0)],
            ["halve"],
        ],
        "Mixed_6b": _c(128), "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192),
        "Mixed_7a": [
            [("branch3x3_1", 192, 1, 1, 1, 0, 0), ("branch3x3_2", 320, 3, 3, 2, 0, 0)],
            [("branch7x7x3_1", 192, 1, 1, 1, 0, 0), ("branch7x7x3_2", 192, 1, 7, 1, 0, 3),
             ("branch7x7x3_3", 192, 7, 1, 1, 3, 0), ("branch7x7x3_4", 192, 3, 3, 2, 0, 0)],
            ["halve"],
        ],
        "Mixed_7b": _e("average"), "Mixed_7c": _e(last_pool),
    }  # fmt: skip


def _steps(name, branch):
    for step in branch:
        yield step if isinstance(step, str) else (f"{name}.{step[0]}" if step[0] else name, *step[1:])


def inception_shapes(classes):
    """Every tensor of the published file without the auxiliary head, from the table alone."""
    shapes, cin = {}, 3
    for name, branches in inception_table("average").items():
        cout, seen = 0, {}
        for branch in branches:
            width = cin
            for step in _steps(name, branch):
                if isinstance(step, str):
                    continue
                seen[step[0]] = (step[1], width, step[2], step[3])
                width = step[1]
            cout += width
        for layer, shape in seen.items():
            shapes[f"{layer}.conv.weight"] = shape
            shapes |= {f"{layer}.bn.{n}": shape[:1] for n in ("weight", "bias", "running_mean", "running_var")}
        cin = cout
    return shapes | {"fc.weight": (classes, cin), "fc.bias": (classes,)}


def inception_stages(state, x, fid):
    """Outputs of every layer of the table, in order. Average pooling by hand: a sum over nine shifted images."""

    def average(y):
        padded = F.pad(y, (1, 1, 1, 1))
        height, width = y.shape[2:]
        total = sum(padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))
        if not fid:
            return total / 9
        ones = F.pad(torch.ones_like(y[:1, :1]), (1, 1, 1, 1))
        return total / sum(ones[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3))

    def apply(step, y):
        if step == "average":
            return average(y)
        if step == "maximum":
            padded = F.pad(y, (1, 1, 1, 1), value=-torch.inf)
            return padded.unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))
        if step == "halve":
            return y.unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
        name, _, _, _, stride, *padding = step
        y = F.conv2d(y, state[f"{name}.conv.weight"], stride=stride, padding=padding)
        scale = state[f"{name}.bn.weight"] / (state[f"{name}.bn.running_var"] + 0.001).sqrt()
        shift = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * scale
        return (y * scale[:, None, None] + shift[:, None, None]).relu()

    found = []
    for name, branches in inception_table("maximum" if fid else "average").items():
        parts = []
        for branch in branches:
            y = x
            for step in _steps(name, branch):
                y = apply(step, y)
            parts.append(y)
        x = torch.cat(parts, 1)
        found.append(x)
    return found
