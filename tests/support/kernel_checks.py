"""Checks for the kernels of any GPU backend, by its name, and cases whose sizes no tile divides."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

import ssconv
from tests.support.strategies import (
    CONV_CASES,
    UPFIRDN_CASES,
    Case,
    ConvCase,
    Epilogue,
    check_forward,
    check_gradients,
    tensors_of,
)

implementation = importlib.import_module("ssconv.backend.dispatch").implementation

FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 2.5)
SHARED = Epilogue(True, False, "shared", "lrelu", 0.1, -0.7, None)
ACS4 = ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1))

# Larger than the small tiles below in every direction, several boxes, blocks of channels and steps; and few taps, since
# the interpreter takes milliseconds for each.
LINES = ((3, 1, 1), (1, 3, 1))
LARGE: dict[str, Case] = {
    "split-depth": ConvCase(((1, 3, 1), (1, 1, 3)), 18, 20, 1, (3, 3, 5), in_scale=True, epilogue=FULL, seed=1),
    "aligned": ConvCase(LINES, 24, 16, 1, (3, 4, 5), epilogue=FULL, layout="channels_last", seed=2),
    "four-branches": ConvCase((*LINES, (1, 1, 3), (1, 1, 1)), 3, 17, 1, (3, 3, 4), epilogue=FULL, seed=3),
    "three-branches": ConvCase((*LINES, (1, 1, 5)), 17, 18, 1, (2, 2, 4), epilogue=SHARED, seed=4),
    "grouped-no-shuffle": ConvCase(LINES, 17, 33, 1, (2, 3, 5), shuffle=False, in_scale=True, epilogue=FULL, seed=5),
    "stride-2": ConvCase(((3, 1, 1), (1, 3, 3)), 20, 17, 1, (3, 4, 5), (2, 1, 2), epilogue=FULL, seed=6),
    "transposed": ConvCase(
        ((1, 3, 3), (3, 1, 1)), 17, 9, 1, (2, 3, 4), (2, 2, 1), transposed=True, in_scale=True, seed=7
    ),
    "valid": ConvCase(((3, 1, 3), (1, 5, 1)), 16, 16, 1, (4, 6, 5), padding="valid", epilogue=SHARED, seed=8),
    "many-samples": ConvCase(LINES, 4, 3, 5, (1, 2, 2), in_scale=True, epilogue=FULL, seed=9),
    "many-samples-aligned": ConvCase(LINES, 16, 16, 5, (1, 3, 2), layout="channels_last", seed=10),
    "identity": ConvCase(((1, 3, 3), None), 18, 18, 1, (2, 4, 3), in_scale=True, epilogue=FULL, seed=11),
    "one-branch": ConvCase(((3, 1, 3),), 24, 17, 1, (3, 3, 5), epilogue=FULL, layout="channels_last", seed=12),
}


def check(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Output and first derivatives against the oracle."""
    try:
        check_forward(ssconv, case, dtype, backend)
        check_gradients(ssconv, case, dtype, backend)
    except (AssertionError, RuntimeError) as error:
        raise AssertionError(f"{error}; {dtype}, {case}") from None


@contextmanager
def _unchanged(t: torch.Tensor) -> Iterator[None]:
    before = t.clone()
    yield
    assert torch.equal(t, before), "an input changed"


def surroundings(backend: str) -> None:
    """Memory around a view holds NaN, and the result must not depend on it."""
    for case in (CONV_CASES["split-depth-full"], LARGE["many-samples-aligned"], CONV_CASES["acs4"]):
        tensors = tensors_of(case, torch.float32)
        x = tensors["x"]
        frame = torch.full([n + 3 for n in x.shape], torch.nan)
        frame = frame.contiguous(memory_format=torch.channels_last_3d)
        view = frame[tuple(slice(1, n + 1) for n in x.shape)]
        view.copy_(x)
        plain = dataclasses.replace(case, layout="contiguous")
        expected = plain.call(ssconv, tensors, backend)
        with _unchanged(view):
            found = ssconv.split_shuffle_conv3d(
                view,
                [tensors.get(f"weights[{s}]") for s in range(len(case.kernels))],
                tensors.get("bias"),
                in_scale=tensors.get("in_scale"),
                out_scale=tensors.get("out_scale"),
                noise=tensors.get("noise"),
                backend=backend,
                **case.epilogue.options(),
            )
        assert torch.equal(found, expected), f"memory beside the view shows; {case}"


def infinities(backend: str) -> None:
    """An infinity in x spreads only to the outputs whose windows contain it."""
    case = dataclasses.replace(LARGE["three-branches"], in_scale=False, epilogue=Epilogue())
    tensors = tensors_of(case, torch.float32)
    at = (0, 20, 1, 1, 2)
    tensors["x"][at] = torch.inf
    y = case.call(ssconv, tensors, backend)
    ones = {n: torch.ones_like(t).double() for n, t in tensors.items()}
    ones["x"] = torch.zeros_like(ones["x"])
    ones["x"][at] = 1
    reached = case.call(ssconv, ones, "reference") != 0
    assert torch.equal(~y.isfinite(), reached), "an infinity shows in other outputs than it reaches"


def kinks(backend: str) -> None:
    """At 0 the slope is that of the negative side, as in PyTorch, for either sign of gain; beyond the clamp it is 0."""
    kernels = implementation(backend)
    z = torch.tensor([0.0, -0.0, 1.0, -1.0, 5.0, -5.0, torch.nan, torch.inf]).repeat(3).reshape(1, 12, 1, 1, 2)
    for gain, slope, groups, clamp in itertools.product((1.5, -1.5), (0.2, 0.0), (1, 2, 3, 4), (None, 2.0)):
        leaf = z.clone().requires_grad_()
        t = torch.nn.functional.leaky_relu(torch.nn.functional.channel_shuffle(leaf, groups), slope) * gain
        expected = t if clamp is None else t.clamp(-clamp, clamp)
        settings = ssconv.spec.Epilogue(groups, slope, gain, clamp)
        y = kernels.epilogue(z, None, None, None, settings)
        assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7)), f"epilogue: {gain}, {slope}, {groups}, {clamp}"
        finite = expected.isfinite()
        gy = torch.rand(y.shape) + 0.5
        gz, *_ = kernels.epilogue_backward(gy, y, None, None, settings, False, -1)
        (exact,) = torch.autograd.grad(expected, leaf, gy)
        finite = torch.nn.functional.channel_shuffle(finite.float(), 12 // groups) > 0
        assert torch.allclose(gz[finite], exact[finite], rtol=1e-6, atol=0), f"gradient at a kink: {gain}, {slope}"


def batches(backend: str) -> None:
    """An empty batch; the same bits twice; each sample alone gives the same as in the batch."""
    for case in (CONV_CASES["split-depth-full"], CONV_CASES["transposed-stride-2"], UPFIRDN_CASES["up-2"]):
        tensors = tensors_of(dataclasses.replace(case, batch=0), torch.float32, requires_grad=True)
        y = case.call(ssconv, tensors, backend)
        assert y.shape[0] == 0
        for name, t in tensors.items():
            (gradient,) = torch.autograd.grad(y, t, torch.zeros_like(y), retain_graph=True)
            assert gradient.shape == t.shape and (gradient == 0).all(), f"gradient of {name} without samples"
    case = LARGE["many-samples"]
    tensors = tensors_of(case, torch.float32, requires_grad=True)
    leaves = list(tensors.values())
    runs = []
    for _ in range(2):
        y = case.call(ssconv, tensors, backend)
        gy = torch.tensor(np.random.default_rng(0).normal(size=y.shape), dtype=torch.float32)
        runs.append([y, *torch.autograd.grad(y, leaves, gy)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True)), "other bits at the second call"
    for i in range(case.batch):
        alone = {
            n: t[i : i + 1].detach() if n in ("x", "in_scale", "out_scale", "noise") else t.detach()
            for n, t in tensors.items()
        }
        torch.testing.assert_close(case.call(ssconv, alone, backend), runs[0][0][i : i + 1], rtol=1e-5, atol=1e-5)
