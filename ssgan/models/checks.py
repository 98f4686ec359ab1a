"""Checks of the networks' arguments. Each raises ValueError: the argument's name, what was expected and what came."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ssgan.config.network import NetworkConfig


def check_latents(z: Any, z_dim: int) -> None:
    if not isinstance(z, Tensor) or z.dim() != 2 or z.shape[1] != z_dim:
        got = tuple(z.shape) if isinstance(z, Tensor) else z
        raise ValueError(f"z: expected shape (N, {z_dim}); got {got}")


def check_styles(ws: Tensor, num_ws: int) -> None:
    if ws.dim() != 3 or ws.shape[1] != num_ws:
        raise ValueError(f"ws: expected shape (N, {num_ws}, w_dim); got {tuple(ws.shape)}")


def check_images(x: Tensor, cfg: NetworkConfig) -> None:
    expected = (cfg.image_channels, *cfg.shape)
    if tuple(x.shape[1:]) != expected:
        raise ValueError(f"x: expected shape (N, {', '.join(map(str, expected))}); got {tuple(x.shape)}")
