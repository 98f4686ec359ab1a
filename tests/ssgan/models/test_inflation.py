"""Inflation: the inflated 3D network computes the same as the 2D network, and the report names every tensor."""

import pytest
import torch

from ssgan.config.network import ARCHITECTURES
from ssgan.models.conditioning import Condition
from ssgan.models.inflation import inflate_network
from ssgan.models.layers import BranchWeights, Conv, ModulatedConv, kernel_stages
from ssgan.models.networks import Discriminator, Generator
from ssgan.utils.errors import UserError
from tests.ssgan.models.test_networks import SHAPES, randomised, small

PROFILES = ("average", "centre", "triangle")


def pair(kind, cfg, profile, seed=0):
    """Makes a 2D network with random weights and the 3D one inflated from it, both float64."""
    torch.manual_seed(seed)
    flat, full = randomised(kind(cfg.flat()), seed), randomised(kind(cfg), seed + 1)
    return flat, full, inflate_network(flat, full, profile)


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


@pytest.mark.parametrize("shape", [*SHAPES, (4, 32, 32)], ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_after_centre_every_slice_of_g3d_is_g2d(arch, shape):
    cfg = small(shape, arch)
    flat, full, _ = pair(Generator, cfg, "centre")
    z = torch.randn(3, cfg.z_dim, dtype=torch.float64)
    slices = flat(z, noise="none")
    volume = full(z, noise="none")
    assert volume.shape[2] == shape[0]
    for d in range(shape[0]):
        assert relative(volume[:, :, d : d + 1], slices) < 1e-7
    single = full.float()(z.float(), noise="none")
    assert relative(single, slices.expand_as(single)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_after_centre_d3d_of_a_constant_volume_is_d2d(arch, shape):
    cfg = small(shape, arch)
    flat, full, _ = pair(Discriminator, cfg, "centre")
    x = torch.randn(4, 1, *cfg.flat().shape, dtype=torch.float64)
    volume = x.expand(-1, -1, shape[0], -1, -1)
    features, expected = full.features(volume), flat.features(x)
    for d in range(features.shape[2]):
        assert relative(features[:, :, d : d + 1], expected) < 1e-7
    assert relative(full(volume), flat(x)) < 1e-7


def test_conditional_networks_inflate_with_their_labels():
    cfg = small((8, 12, 20), classes=3, label_layers=1)
    c = Condition(torch.tensor([2, 0, 1]))
    flat, full, report = pair(Generator, cfg, "centre")
    z = torch.randn(3, cfg.z_dim, dtype=torch.float64)
    volume = full(z, c, noise="none")
    assert relative(volume, flat(z, c, noise="none").expand_as(volume)) < 1e-7
    assert ("mapping.embed.weight", "copied") in {row[:2] for row in report.rows}
    flat, full, report = pair(Discriminator, cfg, "centre")
    x = torch.randn(3, 1, *cfg.flat().shape, dtype=torch.float64)
    assert relative(full(x.expand(-1, -1, 8, -1, -1), c), flat(x, c)) < 1e-7
    assert ("mapping.layers.0.weight", "copied") in {row[:2] for row in report.rows}
    with pytest.raises(UserError, match="not the 2D counterpart"):
        inflate_network(Generator(small((8, 12, 20)).flat()), Generator(cfg), "centre")


def depth_constant(channels, depth, seed=5):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, channels, 1, 6, 4, generator=generator, dtype=torch.float64)
    return x, x.expand(-1, -1, depth, -1, -1)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("scale", [(1, 1, 1), (2, 2, 2), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_any_profile_keeps_a_modulated_layer_away_from_the_ends(arch, scale, profile):
    """For features constant along depth the output is the 2D layer's, except where the window leaves the volume."""
    depth = 9
    torch.manual_seed(0)
    flat_scale = (1, *scale[1:])
    size = (depth * scale[0], 6 * scale[1], 4 * scale[2])
    flat = randomised(ModulatedConv(8, 12, 5, kernel_stages(arch, True), (1, *size[1:]), flat_scale), 1)
    full = randomised(ModulatedConv(8, 12, 5, kernel_stages(arch, False), size, scale), 2)
    inflate_network(flat, full, profile)
    x, volume = depth_constant(8, depth)
    w = torch.randn(2, 5, dtype=torch.float64)
    expected, found = flat(x, w), full(volume, w)
    inner = found[:, :, 2 * scale[0] : -2 * scale[0]]
    assert inner.shape[2] == (depth - 4) * scale[0]
    assert relative(inner, expected.expand_as(inner)) < 1e-6
    if profile == "centre":
        assert relative(found, expected.expand_as(found)) < 1e-6
    if profile != "centre":  # without the correction the layer would be amplified by 1 / sqrt(sum(p^2))
        for module in full.modules():
            if isinstance(module, BranchWeights):
                module.depth_gain.fill_(1.0)
        wrong = full(volume, w)[:, :, 2 * scale[0] : -2 * scale[0]]
        assert arch == "separable" or relative(wrong, inner) > 0.1


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("scale", [(1, 1, 1), (2, 2, 2), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_any_profile_keeps_a_discriminator_layer_away_from_the_ends(arch, scale, profile):
    depth = 12
    flat = randomised(Conv(8, 12, kernel_stages(arch, True), (1, *scale[1:])), 1)
    full = randomised(Conv(8, 12, kernel_stages(arch, False), scale), 2)
    inflate_network(flat, full, profile)
    x, volume = depth_constant(8, depth)
    expected, found = flat(x), full(volume)
    assert found.shape[2] == depth // scale[0]
    inner = found[:, :, 1:-1]
    assert relative(inner, expected.expand_as(inner)) < 1e-9


@pytest.mark.parametrize("kind", [Generator, Discriminator])
@pytest.mark.parametrize("profile", [*PROFILES, "none"])
def test_the_report_names_every_tensor(kind, profile):
    cfg = small()
    torch.manual_seed(0)
    flat, full = kind(cfg.flat()), kind(cfg)
    before = {name: t.clone() for name, t in full.state_dict().items()}
    report = inflate_network(flat, full, profile)
    actions = {name: action for name, action, _, _ in report.rows}
    state, source = full.state_dict(), flat.state_dict()
    assert set(state) <= set(actions)
    assert len(actions) == len(report.rows)
    for name, tensor in state.items():
        if actions[name] == "fresh":
            assert torch.equal(tensor, before[name])
        elif actions[name] == "copied":
            assert torch.equal(tensor, source[name])
        else:
            assert actions[name] == "inflated"
            assert tensor.shape != source[name].shape or not torch.equal(tensor, source[name])
    if profile == "none":
        assert set(actions.values()) == {"fresh"}
    else:
        assert "inflated" in actions.values()
        kinds = {"noise_const"} if kind is Generator else set()
        assert {name.rsplit(".", 1)[1] for name, action in actions.items() if action == "fresh"} == kinds
    assert f"profile {profile}" in str(report)
    assert all(name in str(report) for name in actions)


def test_networks_that_do_not_belong_together_are_refused():
    cfg = small()
    with pytest.raises(UserError, match="profile: expected one of"):
        inflate_network(Generator(cfg.flat()), Generator(cfg), "wide")
    with pytest.raises(UserError, match="not the 2D counterpart"):
        inflate_network(Generator(cfg.flat()), Discriminator(cfg), "average")
    with pytest.raises(UserError, match="not the 2D counterpart"):
        inflate_network(Generator(small(arch="acs4").flat()), Generator(cfg), "average")
    with pytest.raises(UserError, match="cannot become"):
        inflate_network(Generator(small((16, 16, 24)).flat()), Generator(cfg), "average")
