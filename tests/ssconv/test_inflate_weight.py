"""inflate_weight: 2D weights spread along depth."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import ssconv

PROFILES = ("average", "centre", "triangle")
EXPECTED = {
    ("average", 1): [1.0],
    ("average", 3): [1 / 3, 1 / 3, 1 / 3],
    ("average", 5): [0.2] * 5,
    ("centre", 1): [1.0],
    ("centre", 3): [0.0, 1.0, 0.0],
    ("centre", 5): [0.0, 0.0, 1.0, 0.0, 0.0],
    ("triangle", 1): [1.0],
    ("triangle", 3): [0.25, 0.5, 0.25],
}


@pytest.mark.parametrize(("profile", "depth"), EXPECTED, ids=lambda v: str(v))
def test_each_depth_tap_is_the_weight_times_the_profile(profile, depth):
    weight = torch.randn(4, 3, 3, 5, dtype=torch.float64)
    inflated = ssconv.inflate_weight(weight, depth, profile)
    assert inflated.shape == (4, 3, depth, 3, 5)
    for tap, factor in enumerate(EXPECTED[profile, depth]):
        torch.testing.assert_close(inflated[:, :, tap], weight * factor)


@pytest.mark.parametrize("depth", [1, 3, 5, 7])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_sum_along_depth_is_the_2d_weight_and_the_profile_is_symmetric(profile, depth):
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    inflated = ssconv.inflate_weight(weight, depth, profile)
    torch.testing.assert_close(inflated.sum(2), weight)
    torch.testing.assert_close(inflated, inflated.flip(2))
    torch.testing.assert_close(
        inflated, weight[:, :, None] * ssconv.depth_profile(depth, profile)[None, None, :, None, None]
    )


def test_the_default_profile_is_the_average():
    weight = torch.randn(2, 3, 3, 3)
    assert torch.equal(ssconv.inflate_weight(weight, 3), ssconv.inflate_weight(weight, 3, "average"))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_volume_constant_along_depth_is_convolved_as_its_slice(profile):
    """Away from the ends for the wide profiles; with "centre" everywhere."""
    plane, weight = torch.randn(2, 3, 6, 5, dtype=torch.float64), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    expected = F.conv2d(plane, weight, padding=1)
    inflated = ssconv.inflate_weight(weight, 3, profile)
    y = ssconv.split_shuffle_conv3d(plane[:, :, None].expand(2, 3, 5, 6, 5), [inflated])
    slices = range(5) if profile == "centre" else range(1, 4)
    for d in slices:
        torch.testing.assert_close(y[:, :, d], expected)
    if profile != "centre":
        assert not torch.allclose(y[:, :, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtype_and_values_survive(dtype):
    weight = torch.randn(2, 3, 3, 3).to(dtype)
    inflated = ssconv.inflate_weight(weight, 3, "centre")
    assert inflated.dtype == dtype
    assert torch.equal(inflated[:, :, 1], weight)
    assert not inflated[:, :, [0, 2]].any()


def test_the_result_is_new_memory():
    weight = torch.ones(1, 1, 3, 3)
    ssconv.inflate_weight(weight, 1, "centre").fill_(5.0)
    assert torch.equal(weight, torch.ones(1, 1, 3, 3))


@pytest.mark.parametrize(
    ("shape", "depth", "profile", "message"),
    [
        ((2, 3, 3, 3), 2, "average", "depth: expected an odd"),
        ((2, 3, 3, 3), 4, "triangle", "depth: expected an odd"),
        ((2, 3, 3, 3), 0, "centre", "depth: expected an odd"),
        ((2, 3, 3, 3), -3, "centre", "depth: expected an odd"),
        ((2, 3, 3, 3), 3.0, "centre", "depth: expected an odd"),
        ((2, 3, 3, 3), 3, "center", "profile: expected one of average, centre, triangle"),
        ((2, 3, 3), 3, "average", "weight2d: expected"),
        ((2, 3, 1, 3, 3), 3, "average", "weight2d: expected"),
    ],
)
def test_invalid_arguments_raise(shape, depth, profile, message):
    with pytest.raises(ValueError, match=message):
        ssconv.inflate_weight(torch.zeros(shape), depth, profile)


def test_a_weight_that_is_no_tensor_raises():
    with pytest.raises(ValueError, match="weight2d: expected a tensor"):
        ssconv.inflate_weight([[1.0]], 3, "average")
