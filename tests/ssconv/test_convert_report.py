"""The report of convert, and its errors."""

from __future__ import annotations

import pytest
from torch import nn

from ssconv import convert, from_conv3d
from tests.ssconv.test_convert import UP, Net

# ------------------------------------------------------------------------------------------- report, errors


def test_the_report_counts_parameters():
    model = Net()
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_modules()}
    report = convert(model, "acs4", skip="up")
    assert report.before == sizes[""] and report.after == sum(p.numel() for p in model.parameters())
    for row in report.layers:
        assert row.before == sizes[row.name]
        assert row.after == sum(p.numel() for p in model.get_submodule(row.name).parameters())
    assert report.before - report.after == sum(r.before - r.after for r in report.layers) > 0
    assert {*report.swapped, *report.kept} == {*report.layers} and not {*report.swapped} & {*report.kept}
    with pytest.raises(AttributeError):
        report.before = 0


def test_the_report_as_a_table():
    model = nn.Module()
    model.a = nn.Conv3d(4, 8, 3, padding=1)
    model.b = model.c = nn.ConvTranspose3d(8, 8, 3, **UP)
    model.d = nn.Conv3d(8, 8, 1, bias=False)
    model.e = nn.Linear(5, 100)
    expected = """\
layer                 was                    becomes                                           parameters  now
a                     Conv3d 3x3x3           3x3x3 + 1x3x3                                            872  296
b (and 1 more place)  ConvTranspose3d 3x3x3  3x3x3 + 3x3x3                                          1,736  872
d                     Conv3d 1x1x1           left alone: kernel 1x1x1 leaves nothing to split          64   64
2 swapped, 1 left alone; parameters of the whole model: 3,272 -> 1,832 (56.0%)"""
    assert str(convert(model)) == expected


def test_a_model_without_convolutions():
    report = convert(nn.ReLU())
    assert report.layers == () and report.before == 0
    assert str(report).endswith("0 swapped, 0 left alone; parameters of the whole model: 0 -> 0")


def test_a_model_of_2d_convolutions_is_sent_to_inflate_model():
    flat = [nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)]
    text = str(convert(nn.Sequential(*flat)))
    assert text.endswith("no 3D convolution, but 2 nn.Conv2d: `inflate_model` makes the model 3D first")
    assert "inflate_model" not in str(convert(nn.Sequential(*flat, nn.Conv3d(8, 8, 1))))


def wrapped() -> nn.Module:
    """A DistributedDataParallel, made without the process group that its constructor needs."""
    model = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(model)
    model.module = Net()
    return model


ERRORS = {
    "a convolution": (nn.Conv3d(4, 4, 3), {}, TypeError, "model: expected a module that holds .* use ssconv.from"),
    "a transposed one": (nn.ConvTranspose3d(4, 4, 3), {}, TypeError, "got a ConvTranspose3d, which cannot be replaced"),
    "no module": ([nn.Conv3d(4, 4, 3)], {}, TypeError, "model: expected an nn.Module; got list"),
    "distributed": (
        wrapped(), {}, ValueError, "model: expected one without DistributedDataParallel, .* first, then wrap it"
    ),
    "an unknown set": (Net(), {"kernel_sizes": "split"}, ValueError, "kernel_sizes: expected extents or one of dense,"),
    "even extents": (Net(), {"kernel_sizes": ((2, 3, 3),)}, ValueError, r"kernel_sizes\[0\]: expected three odd"),
    "identity": (Net(), {"kernel_sizes": ((3, 3, 3), None)}, ValueError, "kernel_sizes: .* cannot hold a layer's"),
    "no branches": (Net(), {"kernel_sizes": ()}, ValueError, "kernel_sizes: expected at least one branch"),
    "a skip that matches nothing": (
        Net(), {"skip": ["up", "dwon"]}, ValueError, "skip: expected names .* 'dwon' matches no nn.Conv3d"
    ),
    "a skip of another type": (Net(), {"skip": [nn.Conv3d]}, TypeError, "skip: expected names, patterns or a callable"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "options", "error", "message"), ERRORS.values(), ids=ERRORS)
def test_errors_name_the_argument_and_change_nothing(model, options, error, message):
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=message):
        convert(model, **options)
    assert all(a is b for a, b in zip(modules, model.modules() if modules else []))


def test_from_conv3d_raises_for_other_modules():
    with pytest.raises(TypeError, match=r"conv: expected an nn.Conv3d or nn.ConvTranspose3d; got Conv2d"):
        from_conv3d(nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match="kernel_sizes: expected extents or one of"):
        from_conv3d(nn.Conv3d(4, 4, 3), "split")
