"""Cases of the two operators, hypothesis strategies that draw them, and the checks that a case goes through.

A check takes the package under test as `lib`, so that the same check also runs on copies with planted faults
(test_planted_faults.py). Expected values come from `oracle`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.support import oracle

Triple = tuple[int, int, int]
LAYOUTS = ("contiguous", "channels_last", "sliced", "permuted")
# Allowed error in roundings at the result's own magnitude. Errors of sums in the wide types grow slowly with their
# length; the 16-bit types are rounded at in_scale * x, at z and at the end, and accumulate wide.
ROUNDINGS = {torch.float64: 16.0, torch.float32: 16.0, torch.bfloat16: 2.0, torch.float16: 2.0}


def numpy64(t: Tensor) -> np.ndarray:
    """A tensor of any dtype, device and layout as float64 numpy."""
    return t.detach().to("cpu", torch.float64).numpy()


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; differentiable."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "sliced":
        return torch.nn.functional.pad(x, (1, 2, 0, 1, 2, 0, 1, 1))[:, 1:-1, 2:, :-1, 1:-2]
    if layout == "permuted":
        return x.permute(2, 0, 4, 1, 3).contiguous().permute(1, 3, 0, 4, 2)
    return x.contiguous()


@dataclass(frozen=True)
class Epilogue:
    """Which parts the epilogue has. noise: None, "each" (one per sample) or "shared" (one for the batch)."""

    bias: bool = False
    out_scale: bool = False
    noise: str | None = None
    activation: str = "linear"
    negative_slope: float = 0.2
    gain: float = 1.0
    clamp: float | None = None

    def options(self) -> dict[str, Any]:
        return {n: getattr(self, n) for n in ("activation", "negative_slope", "gain", "clamp")}

    def bound(self) -> dict[str, Any]:
        """Options under which absolute inputs give an upper bound of every absolute output."""
        return {"gain": abs(self.gain) * max(1.0, self.negative_slope if self.activation == "lrelu" else 1.0)}

    def arrays(self, rng: np.random.Generator, batch: int, channels: int, size: Triple) -> dict[str, np.ndarray]:
        result = {}
        if self.bias:
            result["bias"] = rng.normal(size=channels)
        if self.out_scale:
            result["out_scale"] = rng.normal(size=(batch, channels))
        if self.noise:
            result["noise"] = rng.normal(size=(batch if self.noise == "each" else 1, 1, *size))
        return result


@dataclass(frozen=True)
class ConvCase:
    """One call of split_shuffle_conv3d. kernels: extents per branch or None; cin, cout: channels per branch."""

    kernels: tuple[Triple | None, ...] = ((3, 3, 3), (1, 3, 3))
    cin: int = 2
    cout: int = 3
    batch: int = 2
    size: Triple = (3, 5, 4)
    stride: Triple = (1, 1, 1)
    padding: str = "same"
    transposed: bool = False
    shuffle: bool = True
    in_scale: bool = False
    epilogue: Epilogue = Epilogue()
    layout: str = "contiguous"
    wide_companions: bool = False  # beside a 16-bit x: bias, scales and noise in float32
    frozen: tuple[str, ...] = ()  # names of tensors that need no gradient
    seed: int = 0

    @property
    def window(self) -> Triple:
        return tuple(max([1, *(k[d] for k in self.kernels if k)]) for d in range(3))

    @property
    def out_size(self) -> Triple:
        return oracle.output_size(self.size, self.window, self.stride, self.padding, self.transposed)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every tensor of the call by name: x, in_scale, weights[s], bias, out_scale, noise."""
        rng = np.random.default_rng(self.seed)
        count = len(self.kernels)
        result = {"x": rng.normal(size=(self.batch, count * self.cin, *self.size))}
        if self.in_scale:
            result["in_scale"] = rng.normal(size=(self.batch, count * self.cin))
        for s, kernel in enumerate(self.kernels):
            if kernel is not None:
                result[f"weights[{s}]"] = rng.normal(size=(self.cout, self.cin, *kernel))
        return result | self.epilogue.arrays(rng, self.batch, count * self.cout, self.out_size)

    def call(self, lib: ModuleType, tensors: dict[str, Tensor], backend: str = "reference") -> Tensor:
        return lib.split_shuffle_conv3d(
            lay_out(tensors["x"], self.layout),
            [tensors.get(f"weights[{s}]") for s in range(len(self.kernels))],
            tensors.get("bias"),
            in_scale=tensors.get("in_scale"),
            out_scale=tensors.get("out_scale"),
            noise=tensors.get("noise"),
            stride=self.stride,
            padding=self.padding,
            transposed=self.transposed,
            shuffle=self.shuffle,
            backend=backend,
            **self.epilogue.options(),
        )

    def _oracle_arguments(self, arrays: dict[str, np.ndarray]) -> tuple[tuple, dict[str, Any]]:
        named = {n: a for n, a in arrays.items() if n != "x" and not n.startswith("weights")}
        geometry = {n: getattr(self, n) for n in ("stride", "padding", "transposed", "shuffle")}
        return (arrays["x"], [arrays.get(f"weights[{s}]") for s in range(len(self.kernels))]), named | geometry

    def expected(self, arrays: dict[str, np.ndarray], **options) -> np.ndarray:
        positional, named = self._oracle_arguments(arrays)
        return oracle.conv(*positional, **named, **(options or self.epilogue.options()))

    def expected_gradients(self, grad: np.ndarray, arrays: dict[str, np.ndarray], **options) -> dict[str, np.ndarray]:
        positional, named = self._oracle_arguments(arrays)
        return oracle.conv_gradients(grad, *positional, **named, **(options or self.epilogue.options()))

    def linear_part(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        positional, named = self._oracle_arguments(arrays)
        return oracle.conv(*positional, **{n: v for n, v in named.items() if n not in ("bias", "out_scale", "noise")})


@dataclass(frozen=True)
class UpfirdnCase:
    """One call of upfirdn3d. taps: their number per dimension, None for no filter, or one int for all dimensions."""

    taps: tuple[int | None, ...] | int = (3, 4, None)
    channels: int = 3
    batch: int = 2
    size: Triple = (3, 5, 4)
    up: Triple = (1, 1, 1)
    down: Triple = (1, 1, 1)
    padding: tuple[int, ...] | int = 2
    depth_border: str = "zero"
    epilogue: Epilogue = Epilogue()
    layout: str = "contiguous"
    wide_companions: bool = False
    frozen: tuple[str, ...] = ()
    seed: int = 0

    @property
    def six(self) -> tuple[int, ...]:
        if isinstance(self.padding, int):
            return (self.padding,) * 6
        return self.padding if len(self.padding) == 6 else tuple(p for p in self.padding for _ in range(2))

    @property
    def lengths(self) -> tuple[int | None, ...]:
        return (self.taps,) * 3 if isinstance(self.taps, int) else self.taps

    @property
    def out_size(self) -> Triple:
        per_dim = zip(self.size, self.lengths, self.up, self.down, self.six[::2], self.six[1::2], strict=True)
        return tuple(-(-(n * u + a + b - (t or 1) + 1) // d) for n, t, u, d, a, b in per_dim)

    def arrays(self) -> dict[str, np.ndarray]:
        """Every differentiable tensor of the call by name: x, bias, out_scale, noise."""
        rng = np.random.default_rng(self.seed)
        result = {"x": rng.normal(size=(self.batch, self.channels, *self.size))}
        return result | self.epilogue.arrays(rng, self.batch, self.channels, self.out_size)

    def filters(self) -> list[np.ndarray | None]:
        """The taps per dimension: lopsided, so that a flip shows; exact in 16 bit."""
        rng = np.random.default_rng(self.seed + 1)
        if isinstance(self.taps, int):
            return [rng.integers(1, 32, size=self.taps) / 32] * 3
        return [None if n is None else rng.integers(1, 32, size=n) / 32 for n in self.taps]

    def call(self, lib: ModuleType, tensors: dict[str, Tensor], backend: str = "reference") -> Tensor:
        x = tensors["x"]
        taps = [None if f is None else torch.tensor(f, dtype=x.dtype, device=x.device) for f in self.filters()]
        return lib.upfirdn3d(
            lay_out(x, self.layout),
            taps[0] if isinstance(self.taps, int) else taps,
            up=self.up,
            down=self.down,
            padding=self.padding,
            depth_border=self.depth_border,
            bias=tensors.get("bias"),
            out_scale=tensors.get("out_scale"),
            noise=tensors.get("noise"),
            backend=backend,
            **self.epilogue.options(),
        )

    def _oracle_options(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        named = {n: a for n, a in arrays.items() if n != "x"}
        return named | {"up": self.up, "down": self.down, "padding": self.six, "depth_border": self.depth_border}

    def expected(self, arrays: dict[str, np.ndarray], **options) -> np.ndarray:
        options = options or self.epilogue.options()
        return oracle.upfirdn(arrays["x"], self.filters(), **self._oracle_options(arrays), **options)

    def expected_gradients(self, grad: np.ndarray, arrays: dict[str, np.ndarray], **options) -> dict[str, np.ndarray]:
        options = options or self.epilogue.options()
        return oracle.upfirdn_gradients(grad, arrays["x"], self.filters(), **self._oracle_options(arrays), **options)

    def linear_part(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        return oracle.upfirdn(arrays["x"], self.filters(), **self._oracle_options({"x": arrays["x"]}))


Case = ConvCase | UpfirdnCase

# ------------------------------------------------------------------------------------------------------ checks


def tensors_of(case: Case, dtype: torch.dtype, device: str = "cpu", requires_grad: bool = False) -> dict[str, Tensor]:
    """The case's tensors in `dtype`, rounded once; if any is to require a gradient, all that are not frozen do."""
    result = {}
    for name, array in case.arrays().items():
        companion = name != "x" and not name.startswith("weights")
        own = torch.float32 if companion and case.wide_companions and dtype.itemsize == 2 else dtype
        wanted = requires_grad and name not in case.frozen
        result[name] = torch.tensor(array, dtype=own, device=device, requires_grad=wanted)
    if requires_grad and not any(t.requires_grad for t in result.values()):
        result["x"].requires_grad_()
    return result


def assert_close(actual: Tensor, expected: np.ndarray, bound: np.ndarray, dtype: torch.dtype, what: str) -> None:
    """|actual - expected| within a few roundings of `dtype` at the magnitude `bound`; NaN and wrong shapes fail."""
    assert tuple(actual.shape) == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {expected.shape}"
    info = torch.finfo(dtype)
    allowed = ROUNDINGS[dtype] * info.eps * bound + 4 * info.smallest_normal * info.eps
    error = np.abs(numpy64(actual) - expected)
    wrong = ~(error <= allowed)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{what}: {wrong.sum()} of {wrong.size} wrong, first at {at}: {numpy64(actual)[at]}, "
            f"expected {expected[at]} within {allowed[at]:.3g}"
        )


def is_native(t: Tensor) -> bool:
    return t.is_contiguous(memory_format=torch.channels_last_3d)


def check_forward(
    lib: ModuleType,
    case: Case,
    dtype: torch.dtype = torch.float64,
    backend: str = "reference",
    device: str = "cpu",
) -> None:
    """Values, shape, dtype and memory layout of the output."""
    tensors = tensors_of(case, dtype, device)
    y = case.call(lib, tensors, backend)
    arrays = {n: numpy64(t) for n, t in tensors.items()}
    bound = case.expected({n: np.abs(a) for n, a in arrays.items()}, **case.epilogue.bound())
    assert y.dtype == dtype, f"output has dtype {y.dtype}"
    assert is_native(y), f"output has strides {y.stride()}"
    assert_close(y, case.expected(arrays), bound, dtype, "output")


def check_gradients(
    lib: ModuleType,
    case: Case,
    dtype: torch.dtype = torch.float64,
    backend: str = "reference",
    device: str = "cpu",
) -> None:
    """First derivatives with a random upstream gradient, which is zero where rounding decides on which side of a
    kink of the epilogue a voxel lies."""
    tensors = tensors_of(case, dtype, device, requires_grad=True)
    arrays = {n: numpy64(t) for n, t in tensors.items()}
    magnitudes = {n: np.abs(a) for n, a in arrays.items()}
    pre = {n: arrays[n] for n in ("bias", "out_scale", "noise") if n in arrays}
    margin = 2 * ROUNDINGS[dtype] * torch.finfo(dtype).eps * case.expected(magnitudes, **case.epilogue.bound())
    kink = oracle.kink_distance(case.linear_part(arrays), **case.epilogue.options(), **pre)
    upstream = np.random.default_rng(case.seed + 2).normal(size=margin.shape) * (kink > margin)
    y = case.call(lib, tensors, backend)
    gy = torch.tensor(upstream, dtype=dtype, device=device)
    names = [n for n, t in tensors.items() if t.requires_grad]
    found = dict(zip(names, torch.autograd.grad(y, [tensors[n] for n in names], gy), strict=True))
    expected = case.expected_gradients(numpy64(gy), arrays)
    bound = case.expected_gradients(np.abs(numpy64(gy)), magnitudes, **case.epilogue.bound())
    for name in names:
        assert found[name].dtype == tensors[name].dtype, f"gradient of {name} has dtype {found[name].dtype}"
        assert_close(found[name], expected[name], bound[name], dtype, f"gradient of {name}")


def _flat(lib: ModuleType, case: Case, backend: str) -> tuple[Callable[..., Tensor], list[Tensor]]:
    tensors = tensors_of(case, torch.float64, requires_grad=True)
    names = list(tensors)
    return lambda *args: case.call(lib, dict(zip(names, args, strict=True)), backend), list(tensors.values())


def check_gradcheck(lib: ModuleType, case: Case, fast: bool = True, backend: str = "reference") -> None:
    """First derivatives in every tensor against finite differences in float64."""
    function, inputs = _flat(lib, case, backend)
    assert gradcheck(function, inputs, fast_mode=fast)


def check_gradgradcheck(lib: ModuleType, case: Case, fast: bool = True, backend: str = "reference") -> None:
    """Second derivatives in every tensor and in the upstream gradient, which is not contiguous."""
    function, inputs = _flat(lib, case, backend)
    generator_state = torch.random.get_rng_state()
    torch.manual_seed(case.seed)
    try:
        assert gradgradcheck(function, inputs, fast_mode=fast, gen_non_contig_grad_outputs=True)
    finally:
        torch.random.set_rng_state(generator_state)


# -------------------------------------------------------------------------------------------------- strategies

_SLOPES = (0.2, 0.0, 0.01, 1.5)
_GAINS = (1.0, 2**0.5, -0.7, 3.0)
_CLAMPS = (None, 0.7, 2.5)


_NAMES = ("x", "in_scale", "out_scale", "bias", "noise", "weights[0]", "weights[1]", "weights[2]")


def frozen_names() -> st.SearchStrategy[tuple[str, ...]]:
    """Which tensors need no gradient: this changes how the other gradients are computed."""
    return st.one_of(st.just(()), st.lists(st.sampled_from(_NAMES), max_size=5, unique=True).map(tuple))


@st.composite
def epilogues(draw: st.DrawFn) -> Epilogue:
    return Epilogue(
        bias=draw(st.booleans()),
        out_scale=draw(st.booleans()),
        noise=draw(st.sampled_from((None, "each", "shared"))),
        activation=draw(st.sampled_from(("linear", "lrelu"))),
        negative_slope=draw(st.sampled_from(_SLOPES)),
        gain=draw(st.sampled_from(_GAINS)),
        clamp=draw(st.sampled_from(_CLAMPS)),
    )


@st.composite
def conv_cases(draw: st.DrawFn, max_branches: int = 4, max_channels: int = 3, max_size: int = 6) -> ConvCase:
    """The whole option space of split_shuffle_conv3d; shrinks towards one 1x1x1 branch on one voxel."""
    identity = draw(st.sampled_from((False, False, True)))
    transposed = not identity and draw(st.booleans())
    stride = (1, 1, 1) if identity else draw(st.tuples(*[st.sampled_from((1, 2))] * 3))
    padding = draw(st.sampled_from(("same", "valid")))
    cin = draw(st.integers(1, max_channels))
    cout = cin if identity else draw(st.integers(1, max_channels))
    branch = st.tuples(*[st.sampled_from((1, 3, 3, 5))] * 3)
    if identity:
        branch = st.one_of(branch, st.none())
    kernels = tuple(draw(st.lists(branch, min_size=1, max_size=max_branches)))
    window = [max([1, *(k[d] for k in kernels if k)]) for d in range(3)]
    least = [k if padding == "valid" and not transposed else 1 for k in window]
    size = tuple(draw(st.integers(n, max(max_size, n + 2))) for n in least)
    return ConvCase(
        kernels=kernels,
        cin=cin,
        cout=cout,
        batch=draw(st.integers(1, 3)),
        size=size,
        stride=stride,
        padding=padding,
        transposed=transposed,
        shuffle=draw(st.booleans()),
        in_scale=draw(st.booleans()),
        epilogue=draw(epilogues()),
        layout=draw(st.sampled_from(LAYOUTS)),
        wide_companions=draw(st.booleans()),
        frozen=draw(frozen_names()),
        seed=draw(st.integers(0, 1000)),
    )


@st.composite
def upfirdn_cases(draw: st.DrawFn, max_channels: int = 3, max_size: int = 5) -> UpfirdnCase:
    """The whole option space of upfirdn3d, crops and even numbers of taps included."""
    size = draw(st.tuples(*[st.integers(1, max_size)] * 3))
    up, down = draw(st.tuples(*[st.integers(1, 3)] * 3)), draw(st.tuples(*[st.integers(1, 3)] * 3))
    taps = draw(st.one_of(st.integers(1, 6), st.tuples(*[st.one_of(st.none(), st.integers(1, 6))] * 3)))
    lengths = [taps] * 3 if isinstance(taps, int) else [t or 1 for t in taps]
    # per dimension (before, after): at least one voxel of the signal is left, and at least one output
    pads = []
    for n, u, t in zip(size, up, lengths, strict=True):
        before = draw(st.integers(max(-3, 1 - n * u), 4))
        after = draw(st.integers(max(-3, 1 - n * u - min(before, 0)), 4))
        pads += [before, max(after, t - n * u - before)]
    form = draw(st.sampled_from((6, 3, 1)))
    least = max(-(-(t - n * u) // 2) for n, u, t in zip(size, up, lengths, strict=True))
    if form == 1:
        padding: Any = max(0, least, pads[0])
    elif form == 3:
        padding = tuple(max(0, least, p) for p in pads[::2])
    else:
        padding = tuple(pads)
    return UpfirdnCase(
        taps=taps,
        channels=draw(st.integers(1, max_channels)),
        batch=draw(st.integers(1, 3)),
        size=size,
        up=up,
        down=down,
        padding=padding,
        depth_border=draw(st.sampled_from(("zero", "replicate"))),
        epilogue=draw(epilogues()),
        layout=draw(st.sampled_from(LAYOUTS)),
        wide_companions=draw(st.booleans()),
        frozen=draw(frozen_names()),
        seed=draw(st.integers(0, 1000)),
    )


# ------------------------------------------------------------------------------------------------- named cases

_FULL = Epilogue(True, True, "each", "lrelu", 0.2, 2**0.5, 2.5)
CONV_CASES: dict[str, ConvCase] = {
    "dense": ConvCase(((3, 3, 3),), seed=1),
    "pointwise": ConvCase(((1, 1, 1),), cin=3, cout=1, size=(1, 1, 1), batch=1, seed=2),
    "grouped-no-shuffle": ConvCase(((3, 3, 3), (3, 3, 3)), shuffle=False, seed=3),
    "split-depth-full": ConvCase(in_scale=True, epilogue=_FULL, layout="channels_last", seed=4),
    "split-depth-stride-2": ConvCase(size=(4, 5, 3), stride=(2, 2, 2), in_scale=True, epilogue=_FULL, seed=5),
    "split-depth-stride-122": ConvCase(size=(3, 6, 5), stride=(1, 2, 2), epilogue=_FULL, layout="sliced", seed=6),
    "split-depth-valid": ConvCase(size=(4, 5, 3), padding="valid", in_scale=True, seed=7),
    "split-depth-valid-stride-2": ConvCase(size=(6, 5, 4), padding="valid", stride=(2, 2, 1), seed=8),
    "transposed-stride-2": ConvCase(size=(2, 3, 2), stride=(2, 2, 2), transposed=True, epilogue=_FULL, seed=9),
    "transposed-valid-stride-212": ConvCase(
        size=(2, 3, 2), stride=(2, 1, 2), transposed=True, padding="valid", in_scale=True, layout="permuted", seed=10
    ),
    "transposed-stride-1": ConvCase(size=(3, 2, 4), transposed=True, shuffle=False, seed=11),
    "acs4": ConvCase(((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)), cin=1, cout=2, in_scale=True, seed=12),
    "acs4-full-bf16-companions": ConvCase(
        ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1)), 2, 1, epilogue=_FULL, wide_companions=True, seed=13
    ),
    "constant-scales": ConvCase(
        in_scale=True, epilogue=_FULL, stride=(1, 2, 1), frozen=("in_scale", "out_scale", "weights[0]"), seed=21
    ),
    "constant-input": ConvCase(in_scale=True, epilogue=_FULL, frozen=("x", "noise", "bias"), seed=22),
    "tiny-full": ConvCase(
        ((1, 3, 1), None), 1, 1, 2, (1, 3, 2), in_scale=True, epilogue=replace(_FULL, clamp=None), seed=23
    ),
    "tiny-constant-scales": ConvCase(
        ((1, 1, 3), (1, 1, 1)), 1, 2, 2, (1, 1, 4), (1, 1, 2), in_scale=True, epilogue=_FULL,
        frozen=("in_scale", "out_scale"), seed=24,
    ),
    "extents-5-and-1": ConvCase(((5, 1, 3), (1, 5, 1)), size=(4, 6, 3), stride=(2, 1, 2), seed=14),
    "identity": ConvCase(((3, 3, 3), None), 2, 2, in_scale=True, epilogue=_FULL, seed=15),
    "identity-valid": ConvCase((None, (3, 1, 5), None), 1, 1, size=(4, 2, 6), padding="valid", seed=16),
    "all-identity": ConvCase((None, None, None), 2, 2, in_scale=True, seed=17),
    "shared-noise-negative-gain": ConvCase(epilogue=Epilogue(True, False, "shared", "lrelu", 0.2, -0.7, 0.7), seed=18),
    "linear-clamp": ConvCase(epilogue=Epilogue(out_scale=True, gain=3.0, clamp=0.7), seed=19),
    "relu-shared-noise-scale": ConvCase(epilogue=Epilogue(True, True, "shared", "lrelu", 0.0, 3.0, None), seed=20),
}  # fmt: skip
UPFIRDN_CASES: dict[str, UpfirdnCase] = {
    "smooth": UpfirdnCase(4, padding=(2, 1, 2, 1, 2, 1), seed=1),
    "up-2": UpfirdnCase(4, up=(2, 2, 2), padding=(2, 1, 2, 1, 2, 1), epilogue=Epilogue(gain=8.0), seed=2),
    "up-122": UpfirdnCase((None, 4, 4), up=(1, 2, 2), padding=(0, 0, 2, 1, 2, 1), seed=3),
    "down-2": UpfirdnCase(4, size=(4, 6, 5), down=(2, 2, 2), padding=1, seed=4),
    "replicate-up-2": UpfirdnCase(
        4, up=(2, 2, 2), padding=(2, 1, 2, 1, 2, 1), depth_border="replicate", epilogue=_FULL, seed=5
    ),
    "replicate-down-2": UpfirdnCase(
        4, size=(4, 5, 3), down=(2, 2, 2), padding=(1, 1, 1), depth_border="replicate", layout="permuted", seed=6
    ),
    "replicate-one-slice": UpfirdnCase((5, 3, 1), size=(1, 3, 2), padding=(4, 3, 1, 0, 0, 0), depth_border="replicate"),
    # Outputs of no sample between those of the last one and those that repeat it.
    "replicate-gaps": UpfirdnCase((1, 3, 2), 2, 1, (5, 3, 4), (3, 1, 1), padding=(4, 2, 1, 1, 1, 0),
                                  depth_border="replicate", layout="channels_last", seed=11),
    "crop": UpfirdnCase((2, None, 3), size=(4, 5, 6), up=(2, 1, 1), padding=(-1, 3, -2, -1, 0, -1), seed=7),
    "up-3-down-2": UpfirdnCase((5, 6, 2), up=(3, 2, 1), down=(2, 3, 2), padding=3, epilogue=_FULL, seed=8),
    "epilogue-only": UpfirdnCase((None, None, None), padding=0, epilogue=_FULL, seed=9),
    "linear-shared-noise": UpfirdnCase(
        (3, 3, 3), padding=1, epilogue=Epilogue(True, True, "shared", "linear", 0.2, -0.7, 0.7), layout="sliced",
        seed=10,
    ),
}  # fmt: skip
