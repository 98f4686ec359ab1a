"""The expected results of the operators, in float64 numpy, written from the definition alone.

Nothing here comes from `ssconv`, and no convolution routine is called. A convolution becomes one dense weight with
explicit zeros; its rows are in the order of the output channels, an identity branch is a 1 in the window's middle, a
smaller branch lies in the middle of the window. That weight is then applied voxel by voxel through the positions of
the window centres. Filtering becomes one explicit matrix per dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

Array = np.ndarray
Triple = tuple[int, int, int]


def dense_weight(weights: Sequence[Array | None], in_channels: int, shuffle: bool) -> Array:
    """One dense weight (Cout, Cin, Kd, Kh, Kw) that computes all branches together."""
    branches = len(weights)
    real = [w for w in weights if w is not None]
    window = [max([1, *(w.shape[2 + d] for w in real)]) for d in range(3)]
    rows = real[0].shape[0] if real else in_channels // branches
    columns = in_channels // branches
    dense = np.zeros((rows * branches, in_channels, *window), dtype=np.float64)
    for s, weight in enumerate(weights):
        for j in range(rows):
            row = j * branches + s if shuffle else s * rows + j
            for i in range(columns):
                if weight is None:
                    if i == j:
                        dense[row, s * columns + i, window[0] // 2, window[1] // 2, window[2] // 2] = 1.0
                    continue
                for tap in np.ndindex(*weight.shape[2:]):
                    position = tuple(t - k // 2 + w // 2 for t, k, w in zip(tap, weight.shape[2:], window, strict=True))
                    dense[(row, s * columns + i, *position)] = weight[(j, i, *tap)]
    return dense


def output_size(size: Sequence[int], window: Sequence[int], stride: Triple, padding: str, transposed: bool) -> Triple:
    """Extents of the output: how many centres there are, or how far a transposed convolution reaches."""
    out = []
    for n, k, s in zip(size, window, stride, strict=True):
        if transposed:
            out.append(n * s if padding == "same" else (n - 1) * s + k)
        elif padding == "same":
            out.append(len(range(0, n, s)))
        else:
            out.append(len(range((k - 1) // 2, n - (k - 1) // 2, s)))
    return tuple(out)


def _centres(count: int, window: int, stride: int, padding: str) -> Array:
    first = 0 if padding == "same" else (window - 1) // 2
    return first + stride * np.arange(count)


def linear(x: Array, dense: Array, stride: Triple, padding: str, transposed: bool) -> Array:
    """z (N, Cout, D', H', W') = dense applied to x (N, Cin, D, H, W), one tap at a time."""
    window = dense.shape[2:]
    out = output_size(x.shape[2:], window, stride, padding, transposed)
    z = np.zeros((x.shape[0], dense.shape[0], *out), dtype=np.float64)
    # `near` is the side on which the window centres count positions, `far` the side that they point into.
    near, far = (x.shape[2:], out) if transposed else (out, x.shape[2:])
    centres = [_centres(near[d], window[d], stride[d], padding) for d in range(3)]
    for tap in np.ndindex(*window):
        at = [centres[d] + tap[d] - (window[d] - 1) // 2 for d in range(3)]
        inside = [np.flatnonzero((at[d] >= 0) & (at[d] < far[d])) for d in range(3)]
        here = np.ix_(range(x.shape[0]), range(dense.shape[1]), *inside)
        there = [at[d][inside[d]] for d in range(3)]
        if transposed:
            part = np.einsum("oi,nidhw->nodhw", dense[(..., *tap)], x[here])
            z[np.ix_(range(x.shape[0]), range(dense.shape[0]), *there)] += part
        else:
            source = x[np.ix_(range(x.shape[0]), range(dense.shape[1]), *there)]
            z[np.ix_(range(x.shape[0]), range(dense.shape[0]), *inside)] += np.einsum(
                "oi,nidhw->nodhw", dense[(..., *tap)], source
            )
    return z


def matrix(dense: Array, size: Sequence[int], stride: Triple, padding: str, transposed: bool) -> Array:
    """The same linear map as a matrix (Cout, out voxels, Cin, in voxels), filled voxel pair by voxel pair."""
    window = dense.shape[2:]
    out = output_size(size, window, stride, padding, transposed)
    result = np.zeros((dense.shape[0], int(np.prod(out)), dense.shape[1], int(np.prod(size))), dtype=np.float64)
    near, far = (size, out) if transposed else (out, size)
    first = [0 if padding == "same" else (k - 1) // 2 for k in window]
    pairs = []  # per dimension: (position on the near side, position on the far side, tap)
    for d in range(3):
        pairs.append(
            [
                (p, q, q - first[d] - p * stride[d] + (window[d] - 1) // 2)
                for p in range(near[d])
                for q in range(far[d])
                if abs(q - first[d] - p * stride[d]) <= (window[d] - 1) // 2
            ]
        )
    for (p0, q0, a), (p1, q1, b), (p2, q2, c) in itertools.product(*pairs):
        p = (p0 * near[1] + p1) * near[2] + p2
        q = (q0 * far[1] + q1) * far[2] + q2
        row, column = (q, p) if transposed else (p, q)
        result[:, row, :, column] = dense[:, :, a, b, c]
    return result


def _tail(scale: Array | None) -> Array | float:
    return 1.0 if scale is None else scale[:, :, None, None, None]


def _activate(pre: Array, activation: str, slope: float) -> tuple[Array, Array]:
    """act(pre) and its derivative."""
    if activation == "linear":
        return pre, np.ones_like(pre)
    rate = np.where(pre > 0, 1.0, slope)
    return pre * rate, rate


def epilogue(
    z: Array,
    bias: Array | None = None,
    out_scale: Array | None = None,
    noise: Array | None = None,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> Array:
    """clamp(gain * act(out_scale * z + noise + bias)), clamp to [-clamp, clamp]."""
    pre = _tail(out_scale) * z
    if noise is not None:
        pre = pre + noise
    if bias is not None:
        pre = pre + bias[None, :, None, None, None]
    y = gain * _activate(pre, activation, negative_slope)[0]
    return y if clamp is None else np.minimum(np.maximum(y, -clamp), clamp)


def epilogue_gradients(
    grad: Array,
    z: Array,
    bias: Array | None = None,
    out_scale: Array | None = None,
    noise: Array | None = None,
    activation: str = "linear",
    negative_slope: float = 0.2,
    gain: float = 1.0,
    clamp: float | None = None,
) -> dict[str, Array]:
    """d<grad, epilogue(z)>/d each of z, bias, out_scale, noise that is there."""
    pre = _tail(out_scale) * z
    if noise is not None:
        pre = pre + noise
    if bias is not None:
        pre = pre + bias[None, :, None, None, None]
    act, rate = _activate(pre, activation, negative_slope)
    flows = np.ones_like(pre) if clamp is None else (np.abs(gain * act) <= clamp)
    dpre = grad * flows * gain * rate
    result = {"z": _tail(out_scale) * dpre}
    if bias is not None:
        result["bias"] = dpre.sum((0, 2, 3, 4))
    if out_scale is not None:
        result["out_scale"] = (dpre * z).sum((2, 3, 4))
    if noise is not None:
        shared = dpre.sum(1, keepdims=True)
        result["noise"] = shared.sum(0, keepdims=True) if noise.shape[0] == 1 else shared
    return result


def kink_distance(z: Array, gain: float, activation: str, negative_slope: float, clamp: float | None, **pre) -> Array:
    """Distance of each voxel's value, on the scale of the output, from where the epilogue's slope jumps."""
    value = epilogue(z, gain=1.0, clamp=None, **pre)
    far = np.full_like(value, np.inf)
    if activation == "lrelu":
        far = np.minimum(far, np.abs(gain * value))
    if clamp is not None:
        far = np.minimum(far, np.abs(np.abs(gain * _activate(value, activation, negative_slope)[0]) - clamp))
    return far


def conv(
    x: Array,
    weights: Sequence[Array | None],
    *,
    stride: Triple = (1, 1, 1),
    padding: str = "same",
    transposed: bool = False,
    shuffle: bool = True,
    in_scale: Array | None = None,
    **tail,
) -> Array:
    """The whole of split_shuffle_conv3d in float64; `tail` goes to `epilogue`."""
    dense = dense_weight(weights, x.shape[1], shuffle)
    return epilogue(linear(_tail(in_scale) * x, dense, stride, padding, transposed), **tail)


def conv_gradients(
    grad: Array,
    x: Array,
    weights: Sequence[Array | None],
    *,
    stride: Triple = (1, 1, 1),
    padding: str = "same",
    transposed: bool = False,
    shuffle: bool = True,
    in_scale: Array | None = None,
    **tail,
) -> dict[str, Array]:
    """d<grad, conv(...)>/d each tensor; keys x, in_scale, bias, out_scale, noise, weights[0], weights[1], ..."""
    dense = dense_weight(weights, x.shape[1], shuffle)
    scaled = _tail(in_scale) * x
    result = epilogue_gradients(grad, linear(scaled, dense, stride, padding, transposed), **tail)
    dz = result.pop("z")
    flat_dz = dz.reshape(*dz.shape[:2], -1)
    dscaled = np.einsum("opiq,nop->niq", matrix(dense, x.shape[2:], stride, padding, transposed), flat_dz)
    dscaled = dscaled.reshape(x.shape)
    result["x"] = _tail(in_scale) * dscaled
    if in_scale is not None:
        result["in_scale"] = (dscaled * x).sum((2, 3, 4))

    # The map is linear in the dense weight: apply one tap at a time to get each entry's derivative, then look up
    # where every entry of every branch went by laying out labels instead of numbers.
    ddense = np.zeros_like(dense)
    flat_x = scaled.reshape(*scaled.shape[:2], -1)
    for tap in np.ndindex(*dense.shape[2:]):
        unit = np.zeros((1, 1, *dense.shape[2:]))
        unit[(0, 0, *tap)] = 1.0
        hits = matrix(unit, x.shape[2:], stride, padding, transposed)[0, :, 0, :]
        ddense[(..., *tap)] = np.einsum("nop,pq,niq->oi", flat_dz, hits, flat_x)
    labels, count = [], 1
    for weight in weights:
        labels.append(None if weight is None else np.arange(count, count + weight.size).reshape(weight.shape))
        count += 0 if weight is None else weight.size
    # an identity branch writes 1.0 but has no weight: replace it by an all-zero branch
    shape = next((w.shape[:2] for w in weights if w is not None), (x.shape[1] // len(weights),) * 2)
    blank = [np.zeros((*shape, 1, 1, 1)) if w is None else w for w in labels]
    positions = dense_weight(blank, x.shape[1], shuffle)
    for s, label in enumerate(labels):
        if label is not None:
            order = np.argsort(positions, axis=None)[-(count - 1) :]
            by_label = ddense.reshape(-1)[order]
            result[f"weights[{s}]"] = by_label[label - 1]
    return result


def filter_matrix(
    n: int, taps: Array | None, up: int, down: int, before: int, after: int, replicate: bool = False
) -> Array:
    """One dimension of upfirdn as a matrix (outputs, n).

    Zero insertion gives n * up samples, `before` and `after` pad (or crop, if negative), then a true convolution with
    `taps` over the positions where all of it fits, then every `down`-th value. `replicate`: the input goes on for ever
    with its border values.
    """
    taps = np.ones(1) if taps is None else taps
    length = n * up + before + after - len(taps) + 1
    result = np.zeros((len(range(0, length, down)), n), dtype=np.float64)
    for row, start in enumerate(range(0, length, down)):
        for j, tap in enumerate(taps):
            sample = start - before + len(taps) - 1 - j  # position in the zero-inserted signal, 0 = first input value
            if sample % up:
                continue
            source = sample // up
            if replicate:
                source = min(max(source, 0), n - 1)
            if 0 <= source < n:
                result[row, source] += tap
    return result


def _filters(
    size: Sequence[int],
    taps: Sequence[Array | None],
    up: Triple,
    down: Triple,
    padding: tuple[int, int, int, int, int, int],
    depth_border: str,
) -> list[Array]:
    return [
        filter_matrix(
            size[d],
            taps[d],
            up[d],
            down[d],
            padding[2 * d],
            padding[2 * d + 1],
            replicate=d == 0 and depth_border == "replicate",
        )
        for d in range(3)
    ]


def upfirdn(
    x: Array,
    taps: Sequence[Array | None],
    *,
    up: Triple = (1, 1, 1),
    down: Triple = (1, 1, 1),
    padding: tuple[int, int, int, int, int, int] = (0,) * 6,
    depth_border: str = "zero",
    **tail,
) -> Array:
    """The whole of upfirdn3d in float64; taps, up and down one per dimension, padding (d0, d1, h0, h1, w0, w1)."""
    depth, height, width = _filters(x.shape[2:], taps, up, down, padding, depth_border)
    return epilogue(np.einsum("ncdhw,Dd,Hh,Ww->ncDHW", x, depth, height, width), **tail)


def upfirdn_gradients(
    grad: Array,
    x: Array,
    taps: Sequence[Array | None],
    *,
    up: Triple = (1, 1, 1),
    down: Triple = (1, 1, 1),
    padding: tuple[int, int, int, int, int, int] = (0,) * 6,
    depth_border: str = "zero",
    **tail,
) -> dict[str, Array]:
    """d<grad, upfirdn(...)>/d x, bias, out_scale, noise."""
    depth, height, width = _filters(x.shape[2:], taps, up, down, padding, depth_border)
    result = epilogue_gradients(grad, np.einsum("ncdhw,Dd,Hh,Ww->ncDHW", x, depth, height, width), **tail)
    result["x"] = np.einsum("ncDHW,Dd,Hh,Ww->ncdhw", result.pop("z"), depth, height, width)
    return result
