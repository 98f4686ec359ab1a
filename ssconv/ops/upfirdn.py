"""The registered op `ssconv::upfirdn`: zero-insert, filter, decimate. Its adjoint is an upfirdn with flipped taps and
the adjoint border."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ssconv.backend.dispatch import implementation
from ssconv.ops.registration import Op, empty_result, input_gradient, own_result
from ssconv.ops.transforms import transformable
from ssconv.spec import ADJOINT_BORDER, upfirdn_size

UPFIRDN = Op(
    "upfirdn",
    "Tensor x, Tensor? taps_d, Tensor? taps_h, Tensor? taps_w, int[] up, int[] down, SymInt[] padding, str backend, "
    'str border="zero"',
    "Tensor",
)


def _lengths(taps: Sequence[Tensor | None]) -> list[int]:
    return [1 if t is None else t.shape[0] for t in taps]


@UPFIRDN.kernel
def _kernel(x, taps_d, taps_h, taps_w, up, down, padding, backend, border="zero"):
    y = implementation(backend).upfirdn(x, (taps_d, taps_h, taps_w), up, down, padding, border)
    return own_result(y, x.dtype, x)


@UPFIRDN.fake
def _fake(x, taps_d, taps_h, taps_w, up, down, padding, backend, border="zero"):
    size = upfirdn_size(x.shape[2:], _lengths((taps_d, taps_h, taps_w)), up, down, padding)
    return empty_result(x, (*x.shape[:2], *size))


def _setup(ctx, inputs, output):
    x, *taps, up, down, padding, backend, border = inputs
    ctx.save_for_backward(*taps)
    ctx.size, ctx.output_size = list(x.shape[2:]), list(output.shape[2:])
    ctx.up, ctx.down, ctx.padding, ctx.backend, ctx.border = up, down, padding, backend, border
    ctx.contiguous = x.is_contiguous()


def _vjp(ctx, need, g):
    taps, up, down = ctx.saved_tensors, ctx.up, ctx.down
    adjoint = []
    for d, length in enumerate(_lengths(taps)):
        p0 = ctx.padding[2 * d]
        adjoint += [length - p0 - 1, ctx.size[d] * up[d] - ctx.output_size[d] * down[d] + p0 - up[d] + 1]
    distinct = {id(t): t for t in taps if t is not None}  # one where all axes have the same tensor
    flipped = {key: t.flip(0) for key, t in distinct.items()}
    adjoint_taps = [flipped.get(id(t)) for t in taps]
    gx = upfirdn(g, *adjoint_taps, down, up, adjoint, ctx.backend, ADJOINT_BORDER[ctx.border])
    return (input_gradient(gx, ctx.contiguous),)


def _jvp(args, output, tangents):
    return upfirdn(tangents[0], *args[1:])


upfirdn = transformable(UPFIRDN, _setup, _vjp, _jvp, lambda *args: (0,))
