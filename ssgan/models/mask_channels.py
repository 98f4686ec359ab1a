"""Starts networks of images with masks from trained ones of the intensities alone (`ssgan inflate --mask-classes`)."""

from __future__ import annotations

import torch
from torch import nn

from ssgan.models.layers import Conv, ToImage
from ssgan.models.networks import Discriminator
from ssgan.utils.errors import UserError


def add_mask_channels(source: nn.Module, target: nn.Module) -> dict[str, str]:
    """Loads a network of one image channel into one with class channels behind it, in place.

    The generator's intensities are the source's, and the rows of its class channels keep their fresh values. The
    discriminator does not see the class channels at first (weights 0) and judges as the source does.

    Returns the name of every tensor that is not copied unchanged, with "widened".

    Raises:
        UserError: another tensor differs in shape; the message names it.
    """
    before = dict(source.named_parameters()) | dict(source.named_buffers())
    layers = dict(source.named_modules())
    actions: dict[str, str] = {}
    with torch.no_grad():
        for prefix, module in target.named_modules():
            if isinstance(module, ToImage):
                names = [f"{prefix}.weight", f"{prefix}.bias"]
                for name, tensor in zip(names, (module.weight, module.bias), strict=True):
                    tensor[:1] = before[name]
                    actions[name] = "widened"
        if isinstance(target, Discriminator):
            assert isinstance(target.from_image, Conv)
            (new,), (old,) = target.from_image.stages, layers["from_image"].stages
            new.weights[0].zero_()
            new.weights[0][:, :1] = old.weights[0] * (old.gains[0] / new.gains[0])
            actions["from_image.stages.0.weights.0"] = "widened"
        for name, tensor in (dict(target.named_parameters()) | dict(target.named_buffers())).items():
            if name in actions:
                continue
            if name not in before or before[name].shape != tensor.shape:
                got = tuple(before[name].shape) if name in before else None
                raise UserError(f"{name}: expected {tuple(tensor.shape)} in the source; got {got}")
            tensor.copy_(before[name])
    return actions
