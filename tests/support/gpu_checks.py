"""The checks of the tests on a GPU, for any device and backend, so that they can be tried on a CPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ssconv
from benchmarks.gpu.training import computed_by
from ssgan.config.augmentation import policy
from ssgan.config.presets import PRESETS
from ssgan.config.training import StageConfig
from ssgan.training.precision import Execution
from ssgan.training.step import StageTrainer
from tests.support.steps import stepped
from tests.support.strategies import _FULL, CONV_CASES, Case, ConvCase, UpfirdnCase, tensors_of

# Relative to the norm of the float64 result. 16 bit: an input product, a sum and a result are each rounded, by half an
# eps of 2^-7 or 2^-10; second derivatives go through twice as many tensors.
NORMS = {torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 1.5e-3}
SECOND_ORDER = 2.0
# Nearer than this share of the largest output to a kink of the epilogue, rounding decides on which side a voxel lies.
KINK = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

# Extents and channels that no tile divides; channels that fill no 16-byte row.
LARGE: dict[str, Case] = {
    "dense": ConvCase(((3, 3, 3),), 40, 72, 2, (13, 35, 29), epilogue=_FULL, layout="channels_last", seed=1),
    "split-depth": ConvCase(cin=33, cout=65, batch=3, size=(11, 37, 23), in_scale=True, epilogue=_FULL, seed=2),
    "split-depth-wide": ConvCase(cin=136, cout=120, batch=2, size=(9, 14, 17), in_scale=True, epilogue=_FULL, seed=3),
    "grouped-one-row": ConvCase(((3, 3, 3), (3, 3, 3)), 16, 16, 1, (1, 1, 1031), epilogue=_FULL, seed=4),
    "stride-2": ConvCase(cin=24, cout=40, size=(15, 33, 27), stride=(2, 2, 2), padding="valid", seed=5),
    "transposed-2": ConvCase(
        cin=40, cout=24, size=(9, 17, 13), stride=(2, 2, 2), transposed=True, padding="valid", in_scale=True, seed=6
    ),
    "many-samples": ConvCase(cin=8, cout=8, batch=37, size=(3, 7, 5), in_scale=True, epilogue=_FULL, seed=7),
    "three-channels": ConvCase(((3, 3, 3),), 3, 17, 2, (17, 31, 41), layout="sliced", seed=8),
    "filter-up": UpfirdnCase(
        4,
        19,
        2,
        (9, 23, 17),
        up=(2, 2, 2),
        padding=(2, 1, 2, 1, 2, 1),
        depth_border="replicate",
        epilogue=_FULL,
        seed=9,
    ),
    "filter-down": UpfirdnCase(4, 64, 2, (21, 34, 27), down=(2, 2, 2), padding=1, depth_border="replicate", seed=10),
}
# In float32: over so few voxels, 16-bit sums may cancel to less than their rounding.
SMALL = CONV_CASES


def deviation(actual: Tensor, expected: Tensor) -> float:
    """Computes |actual - expected| / |expected|, of norms; infinite if there is a NaN."""
    actual, expected = actual.detach(), expected.detach().double()
    size = float(expected.norm())
    found = float((actual.double() - expected).norm())
    if not np.isfinite(found):
        return float("inf")
    return found / size if size else found


def derivatives(
    case: Case, tensors: dict[str, Tensor], upstream: Tensor, cotangents: dict[str, Tensor], backend: str
) -> dict[str, Tensor]:
    """Computes output, gradients of <output, upstream>, and gradients of the sum of <gradient, cotangent>, by name;
    that of the upstream gradient only where it is not zero."""
    nonzero = upstream != 0
    names = [n for n, t in tensors.items() if t.requires_grad]
    leaves = [tensors[n] for n in names]
    upstream = upstream.detach().requires_grad_()
    y = case.call(ssconv, tensors, backend)
    first = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    result = {"output": y.detach()}
    result |= {f"gradient of {n}": g.detach() for n, g in zip(names, first, strict=True)}
    graphs = [(g, cotangents[n]) for n, g in zip(names, first, strict=True) if g.requires_grad]
    second = torch.autograd.grad([g for g, _ in graphs], [*leaves, upstream], [c for _, c in graphs], allow_unused=True)
    pairs = zip([*names, "upstream"], second, strict=True)
    result |= {f"second gradient of {n}": g for n, g in pairs if g is not None}
    result["second gradient of upstream"] = result["second gradient of upstream"] * nonzero
    return result


def check_against_float64(case: Case, dtype: torch.dtype, backend: str, device: str) -> None:
    """Compares output, first and second derivatives with the reference in float64 on the same device, for sizes at
    which the oracle takes too long. gradgradcheck cannot be used: float32's rounding hides finite differences."""
    tensors = tensors_of(case, dtype, device, requires_grad=True)
    wide = {n: t.detach().double().requires_grad_(t.requires_grad) for n, t in tensors.items()}
    with torch.no_grad():
        y = case.call(ssconv, wide, "reference")
    options = case.epilogue.options()
    far = torch.full_like(y, float("inf"))
    if options["activation"] == "lrelu":
        far = y.abs()
    if options["clamp"] is not None:
        far = torch.minimum(far, (y.abs() - options["clamp"]).abs())
    generator = torch.Generator(device).manual_seed(case.seed + 2)

    def drawn(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, device=device).to(dtype)

    upstream = drawn(y) * (far > KINK[dtype] * y.abs().max())
    cotangents = {n: drawn(t).to(t.dtype) for n, t in tensors.items() if t.requires_grad}
    expected = derivatives(case, wide, upstream.double(), {n: c.double() for n, c in cotangents.items()}, "reference")
    found = derivatives(case, tensors, upstream, cotangents, backend)
    assert found.keys() == expected.keys()
    for what, value in found.items():
        allowed = NORMS[dtype] * (SECOND_ORDER if what.startswith("second") else 1.0)
        off = deviation(value, expected[what])
        assert off <= allowed, f"{what}: off by {off:.3g} of its norm; allowed {allowed:.3g}"


Step = Callable[..., list[Tensor]]


def step_of(case: Case, dtype: torch.dtype, backend: str, device: str) -> tuple[list[Tensor], Step]:
    """Gives the leaves of a call, x first, and a function from them to the output and all their gradients."""
    tensors = tensors_of(case, dtype, device, requires_grad=True)
    names = [n for n, t in tensors.items() if t.requires_grad]
    with torch.no_grad():
        shape = case.call(ssconv, tensors, backend).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(device, dtype)

    def step(*leaves: Tensor) -> list[Tensor]:
        y = case.call(ssconv, {**tensors, **dict(zip(names, leaves, strict=True))}, backend)
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    return [tensors[n] for n in names], step


def check_compiled(backend: str, device: str, compiler: str) -> None:
    """Compares forward and backward under torch.compile, in one graph, with eager ones."""
    case = CONV_CASES["split-depth-full"]
    tensors = tensors_of(case, torch.float32, device, requires_grad=True)

    def function(x: Tensor, weights: list[Tensor], bias: Tensor) -> Tensor:
        y = ssconv.split_shuffle_conv3d(x, weights, bias, activation="lrelu", backend=backend)
        return ssconv.upfirdn3d(y, y.new_ones(3) / 3, padding=1, backend=backend).tanh()

    def results(call: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [tensors["x"], tensors["weights[0]"], tensors["weights[1]"], tensors["bias"]]
        y = call(leaves[0], leaves[1:3], leaves[3])
        return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y) / 3)]

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend=compiler)
    for found, expected in zip(results(compiled), results(function), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


SLAB = 6  # slices at either end of the depth that are computed again by themselves
Operator = Callable[[Tensor, Sequence[Tensor], str], Tensor]


def split_depth(x: Tensor, weights: Sequence[Tensor], backend: str) -> Tensor:
    return ssconv.split_shuffle_conv3d(x, weights, activation="lrelu", backend=backend)


def smooth(x: Tensor, weights: Sequence[Tensor], backend: str) -> Tensor:
    taps = torch.tensor([0.25, 0.5, 0.125], dtype=x.dtype, device=x.device)
    return ssconv.upfirdn3d(x, taps, padding=1, backend=backend)


def check_both_ends(
    operator: Operator,
    shape: tuple[int, int, int, int, int],
    dtype: torch.dtype,
    backend: str,
    device: str,
    backward: bool = True,
) -> None:
    """Checks forward and backward of an operator that sees one slice to either side, on a volume of any size: compares
    its first and last slices with those of the slab that determines them. In the native layout they lie at both ends of
    the memory, in the first and the last sample."""
    n, c, depth, height, width = shape
    generator = torch.Generator(device).manual_seed(5)
    extents = ((c // 2, c // 2, 3, 3, 3), (c // 2, c // 2, 1, 3, 3))
    weights = [(torch.randn(e, generator=generator, device=device) / (13 * c) ** 0.5).to(dtype) for e in extents]
    x = torch.empty(n, depth, height, width, c, dtype=dtype, device=device).permute(0, 4, 1, 2, 3)
    x.normal_(generator=generator)
    x.requires_grad_(backward)
    own = [w.clone().requires_grad_() for w in weights] if operator is split_depth and backward else []
    y = operator(x, own or weights, backend)
    assert y.shape == x.shape
    first = (0, slice(0, SLAB), slice(0, SLAB - 2))
    last = (n - 1, slice(-SLAB, None), slice(2 - SLAB, None))
    for at, slab, inner in (first, last):
        small = x.detach()[at : at + 1, :, slab].double().requires_grad_()
        small_weights = [w.double().requires_grad_() for w in weights]
        expected = operator(small, small_weights, "reference")
        rounded = {"output": (y.detach()[at : at + 1, :, inner], expected.detach()[:, :, inner])}
        if backward:
            # An upstream gradient in these slices alone: what comes back lies in the slab.
            upstream = torch.zeros_like(y)
            part = upstream[at : at + 1, :, inner]
            part.copy_(torch.randn(part.shape, generator=generator, device=device))
            part.mul_(expected.detach()[:, :, inner].abs() > KINK[dtype] * expected.detach().abs().max())
            leaves = [x, *own]
            grads = torch.autograd.grad(y, leaves, upstream, retain_graph=slab == first[1])
            wanted = torch.zeros_like(expected)
            wanted[:, :, inner] = part.double()
            others = [small, *small_weights] if own else [small]
            expected_grads = torch.autograd.grad(expected, others, wanted)
            rounded["gradient of x"] = (grads[0][at : at + 1, :, slab], expected_grads[0])
            for i, pair in enumerate(zip(grads[1:], expected_grads[1:], strict=True)):
                rounded[f"gradient of weights[{i}]"] = pair
            # The gradient cannot reach the middle slice; comparing all slices would take twice as long.
            middle = grads[0][:, :, depth // 2]
            assert not middle.any(), "the gradient reaches slices that it cannot reach"
        for what, (found, exact) in rounded.items():
            off = deviation(found, exact)
            assert off <= NORMS[dtype], (
                f"{what}, sample {at}, slices {slab}: off by {off:.3g} of its norm; allowed {NORMS[dtype]:.3g}"
            )
        del upstream, grads


def phantoms(count: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """Draws random ellipsoids in [-1, 1], (count, 1, D, H, W); `ssgan.data.phantom` would need nibabel."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    volumes = []
    for _ in range(count):
        volume = np.full(shape, -1.0)
        for value, size in ((0.8, 0.9), (-0.4, 0.7), (0.4, 0.4)):
            radii = size * rng.uniform(0.7, 1.0, 3)
            centre = rng.normal(0, 0.08, 3)
            inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1
            volume[inside] = value
        volumes.append(volume)
    return torch.tensor(np.stack(volumes)[:, None], dtype=torch.float32)


# Every phase is in it, path length too; a tenth of the usual rates.
STAGE = StageConfig(kimg=2.0, batch=4, lr_g=0.0003, lr_d=0.0002, r1_gamma=1.0, ema_kimg=0.25)


def train(
    backend: str,
    steps: int,
    device: str,
    shape: tuple[int, int, int] = (8, 12, 8),
    execution: Execution | None = None,
    **changes: Any,
) -> dict[str, np.ndarray]:
    """Trains the demo preset's split_depth GAN on phantoms, all seeds fixed, with `changes` to its configuration and
    the stage `STAGE`. Gives the losses of every step, (steps,) by name.

    Training at a preset's rates is chaotic: Adam divides the rounding of a gradient near zero by itself, and from
    float32's 1e-7 the losses of two runs are 1 apart after 100 steps. With a tenth of the rates, and an epsilon that
    lets small gradients stay small, two runs stay together (see `TOGETHER`).
    """
    cfg = PRESETS["demo"].train_config("demo", shape=shape, arch="split_depth", adam_eps=1e-3, **changes)
    execution = execution or Execution()
    hyper = dataclasses.replace(STAGE, batch=STAGE.batch * execution.accumulate)
    cfg = dataclasses.replace(cfg, stage_3d=hyper)
    data = phantoms(32, shape, seed=1)
    order = np.random.default_rng(2).integers(0, len(data), (steps, cfg.stage_3d.batch))
    losses: dict[str, list[float]] = {"loss_g": [], "loss_d": []}
    with computed_by(backend):
        trainer = StageTrainer(cfg, "3d", torch.device(device), execution)
        for chosen in order:
            stats = stepped(trainer, data[torch.from_numpy(chosen)])
            for name, values in losses.items():
                values.append(stats[name])
    return {name: np.array(values) for name, values in losses.items()}


# How far the losses (about 1) of two backends may be apart in 200 steps. "reference" and "cpu", in float32 on a CPU,
# were 7e-7 apart after 100 steps and 3e-5 after 200: thirty times that is left for another order of additions. Outputs
# that are wrong by 1 % are noticed within eight steps (test_gpu_checks.py).
TOGETHER = 1e-3


def check_training_together(backend: str, other: str, steps: int, device: str) -> None:
    """Checks that the losses of two backends from the same seeds stay within `TOGETHER`, and change."""
    _together(train(backend, steps, device), train(other, steps, device))


# Configuration and execution of runs that are replayed; R1 and path length at every second step.
OFTEN = {"d_reg_interval": 2, "g_reg_interval": 2}
GRAPHED: dict[str, tuple[dict[str, Any], Execution]] = {
    "plain": (OFTEN, Execution()),
    "ada": (OFTEN | {"augment": policy("default", p_start=0.5, interval=2, kimg=0.1)}, Execution()),
    "accumulate": (OFTEN | {"precision": "bf16"}, Execution(accumulate=2)),
    "fp16": (OFTEN | {"precision": "fp16", "freeze_d": 1}, Execution(recompute=True)),
    "relativistic": (OFTEN | {"loss": "relativistic"}, Execution(accumulate=2)),
}


def check_replayed_training(case: str, backend: str, steps: int, device: str) -> None:
    """Checks that the losses with and without `--cuda-graphs` stay within `TOGETHER`, and change."""
    changes, execution = GRAPHED[case]
    graphs = dataclasses.replace(execution, cuda_graphs=True)
    found = train(backend, steps, device, execution=graphs, **changes)
    _together(found, train(backend, steps, device, execution=execution, **changes))


def _together(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, values in expected.items():
        gap = np.abs(found[name] - values)
        assert np.isfinite(found[name]).all()
        assert gap.max() <= TOGETHER, f"{name}: {gap.max():.3g} apart at step {gap.argmax()}"
        assert np.ptp(values) > 10 * TOGETHER, f"{name} hardly changes: nothing was trained"
