"""Networks: dense 2D ones against a StyleGAN2 without our code; shapes, parameter counts and options of all."""

import dataclasses

import pytest
import torch

from ssgan.config.network import ARCHITECTURES, NetworkConfig, plan_levels
from ssgan.config.presets import PRESETS, preset
from ssgan.config.training import TrainConfig
from ssgan.models.conditioning import Condition
from ssgan.models.layers import Conv, MinibatchStd, ModulatedConv, kernel_stages
from ssgan.models.networks import Discriminator, Generator
from ssgan.models.parameters import layer_rows, share_table
from ssgan.summary import main
from ssgan.utils.errors import ConfigError
from tests.support import oracle_stylegan2

SHAPES = [(16, 24, 16), (8, 40, 24), (4, 12, 20), (32, 32, 48)]


def small(shape=(16, 24, 16), arch="split_depth", **changes) -> NetworkConfig:
    base, scales = plan_levels(shape)
    widths = (16, 12, 8, 8)[: len(scales) + 1]
    values = {"z_dim": 10, "w_dim": 14, "mapping_layers": 3, **changes}
    return NetworkConfig(shape, base, scales, widths, arch, **values)


def randomised(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Biases, noise strengths and constants away from their initial zeros, in float64."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return net


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("noise", ["const", "none"])
def test_the_dense_2d_generator_is_stylegan2(shape, noise):
    cfg = small(shape, "dense").flat()
    G = randomised(Generator(cfg), 1)
    z = torch.randn(3, cfg.z_dim, dtype=torch.float64)
    expected = oracle_stylegan2.generator(G.state_dict(), z, 3, len(cfg.scales), noise == "const")
    torch.testing.assert_close(G(z, noise=noise)[:, :, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [1, 3, 4, 6, 8])
def test_the_dense_2d_discriminator_is_stylegan2(shape, batch):
    cfg = small(shape, "dense").flat()
    D = randomised(Discriminator(cfg), 2)
    x = torch.randn(batch, 1, *cfg.shape, dtype=torch.float64)
    expected = oracle_stylegan2.discriminator(D.state_dict(), x[:, :, 0], len(cfg.scales), cfg.mbstd_group)
    torch.testing.assert_close(D(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("label_layers", [None, 0, 2])
def test_the_conditional_dense_2d_networks_are_stylegan2s(label_layers):
    cfg = small((4, 12, 20), "dense", classes=3, label_layers=label_layers, conv_clamp=1.5).flat()
    G, D = randomised(Generator(cfg), 1), randomised(Discriminator(cfg), 2)
    z, c = torch.randn(4, cfg.z_dim, dtype=torch.float64), torch.tensor([2, 0, 1, 2])
    onehot = torch.eye(3, dtype=torch.float64)[c]
    images = oracle_stylegan2.generator(G.state_dict(), z, 3, 2, True, onehot, 1.5)
    made = G(z, Condition(c), noise="const")
    torch.testing.assert_close(made[:, :, 0], images, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(G(z, Condition(onehot), noise="const"), made, rtol=0, atol=0)
    layers = 3 if label_layers is None else label_layers
    logits = oracle_stylegan2.discriminator(D.state_dict(), images, 2, 4, onehot, layers, 1.5)
    torch.testing.assert_close(D(images[:, :, None], Condition(c)), logits, rtol=1e-9, atol=1e-9)
    assert (D(images[:, :, None], Condition((c + 1) % 3)) - logits).abs().min() > 1e-6
    saved = {n for n in (*G.state_dict(), *D.state_dict()) if "mapping" in n or n.startswith("head.out")}
    assert {"mapping.embed.weight", "mapping.w_avg"} <= saved


def test_without_classes_names_and_numbers_are_as_before():
    """Checkpoints of earlier versions load, and a seed makes the networks that it made."""
    cfg = small()
    nets = []
    for make in (Generator, Discriminator):
        torch.manual_seed(7)
        nets.append(make(cfg).state_dict())
    assert not [n for state in nets for n in state if "embed" in n] and not [n for n in nets[1] if "mapping" in n]
    torch.manual_seed(7)
    assert torch.equal(nets[0]["mapping.layers.0.weight"], torch.randn(14, 10) / 0.01)
    assert nets[1]["head.out.weight"].shape == (1, 16)
    old = TrainConfig(cfg, *[preset("demo").stage_2d] * 2).to_json()
    for name in ("classes", "label_layers"):
        del old["network"][name]
    assert TrainConfig.from_json(old).network == cfg


def test_conditional_networks_train_in_any_architecture():
    for arch in ARCHITECTURES:
        cfg = small((4, 12, 20), arch, classes=2)
        G, D = Generator(cfg), Discriminator(cfg)
        c = Condition(torch.tensor([0, 1]))
        x = G(torch.randn(2, 10), c).detach().requires_grad_(True)
        logits = D(x, c)
        (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
        gradient.square().sum().backward()
        assert D.mapping.embed.weight.grad.abs().sum() > 0
        D(G(torch.randn(2, 10), c), c).sum().backward()
        assert G.mapping.embed.weight.grad.abs().sum() > 0


def test_w_avg_of_a_conditional_network_is_over_all_classes():
    mapping = randomised(Generator(small(classes=2)), 4).mapping
    z, c = torch.randn(64, 10, dtype=torch.float64), torch.arange(64) % 2
    before = mapping.w_avg.clone()
    mapping.update_w_avg(mapping(z, c).detach().mean(0))
    torch.testing.assert_close(mapping.w_avg, 0.995 * before + 0.005 * mapping(z, c).mean(0))
    torch.testing.assert_close(mapping(z, c, truncation=0.0), mapping.w_avg.expand(64, -1))


@pytest.mark.parametrize(
    ("c", "message"),
    [
        (None, "the network has 3 classes; expected class numbers 0..2"),
        (1, "labels: the network has 3 classes"),
        (torch.tensor([0, 3]), r"got \[0, 3\]"),
        (torch.tensor([0, -1]), r"got \[-1, 0\]"),
        (torch.tensor([0, 1], dtype=torch.int32), "int32"),
        (torch.tensor([0.0, 1.0]), "expected class numbers"),
        (torch.eye(2), r"got \(2, 2\)"),
        (torch.tensor([0, 1, 2]), "a label for each of 2 images; got 3"),
    ],
    ids=["missing", "number", "range", "negative", "int32", "float", "width", "count"],
)
def test_labels_that_do_not_fit_are_named(c, message):
    cfg = small((4, 12, 20), classes=3)
    with pytest.raises(ValueError, match=message):
        Generator(cfg)(torch.randn(2, 10), Condition(c))
    with pytest.raises(ValueError, match=message):
        Discriminator(cfg)(torch.randn(2, 1, *cfg.shape), Condition(c))


def test_labels_for_networks_without_classes_are_refused():
    cfg = small((4, 12, 20))
    for call in (
        lambda c: Generator(cfg)(torch.randn(2, 10), c),
        lambda c: Discriminator(cfg)(torch.ones(2, 1, 4, 12, 20), c),
    ):
        with pytest.raises(ValueError, match="made without classes"):
            call(Condition(torch.tensor([0, 0])))
    for field in ("classes", "label_layers"):
        with pytest.raises(ConfigError, match=f"{field}: expected at least 0; got -1"):
            small(**{field: -1})


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 32, 32)], ids=str)
def test_any_architecture_makes_and_judges_any_shape(arch, shape):
    for cfg in (small(shape, arch), small(shape, arch).flat()):
        G, D = Generator(cfg), Discriminator(cfg)
        volumes = G(torch.randn(2, cfg.z_dim))
        assert volumes.shape == (2, 1, *cfg.shape)
        logits = D(volumes)
        assert logits.shape == (2, 1)
        logits.sum().backward()
        grads = {n: p.grad for net in (G, D) for n, p in net.named_parameters()}
        assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
        idle = [n for n, g in grads.items() if not g.any()]
        assert not idle, f"parameters that nothing depends on: {idle}"


@pytest.mark.parametrize("name", PRESETS)
def test_split_depth_has_at_most_48_5_percent_of_denses_parameters(name):
    shares = {arch: share for arch, _, _, share in share_table(name)}
    assert shares["dense"] == 1.0
    assert shares["split_depth"] <= 0.485


def test_the_summary_counts_every_parameter_once(capsys):
    cfg = small()
    for net in (Generator(cfg), Discriminator(cfg)):
        assert sum(count for _, _, count in layer_rows(net, "net")) == sum(p.numel() for p in net.parameters())
    assert main(["--preset", "demo"]) == 0
    table = capsys.readouterr().out
    assert all(arch in table for arch in ARCHITECTURES)
    assert main(["--preset", "demo", "--arch", "acs4", "--flat"]) == 0
    assert "G.synthesis.blocks.1.conv0.stages.0" in capsys.readouterr().out
    assert main(["--preset", "nothing"]) == 2
    assert "expected one of demo" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_layers_differentiate_twice(arch):
    """R1 and path length need the gradient of a gradient through every kind of layer."""
    stages = kernel_stages(arch, flat=False)
    torch.manual_seed(0)
    up = ModulatedConv(4, 4, 3, stages, (4, 4, 6), (2, 2, 2), clamp=50.0).double()
    down = Conv(4, 4, stages, (1, 2, 2)).double()
    x = torch.randn(1, 4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(1, 3, dtype=torch.float64, requires_grad=True)

    def chain(x, w):
        return down(up(x, w, up.noise_image(1, "const")))

    assert torch.autograd.gradcheck(chain, (x, w), fast_mode=True)
    assert torch.autograd.gradgradcheck(chain, (x, w), fast_mode=True)


def test_truncation_moves_towards_the_running_mean():
    G = Generator(small())
    z = torch.randn(64, 10)
    for _ in range(50):
        G.mapping.update_w_avg(G.mapping(z).detach().mean(0))
    full, half, none = (G.mapping(z, truncation=t) for t in (1.0, 0.5, 0.0))
    expected = G.mapping(z).mean(0) * (1 - 0.995**50)
    torch.testing.assert_close(G.mapping.w_avg, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(none, G.mapping.w_avg.expand(64, -1))
    torch.testing.assert_close(half, (full + none) / 2)


def test_noise_is_drawn_from_the_generator_given():
    G = randomised(Generator(small()), 3).float()
    z = torch.randn(2, 10)

    def draw(seed):
        return G(z, noise="random", generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.allclose(draw(1), draw(2))
    assert torch.equal(G(z, noise="const"), G(z, noise="const"))
    with pytest.raises(ValueError, match="noise: expected random, const or none"):
        G(z, noise="loud")


def test_the_layers_of_ws_reach_their_levels():
    """Style mixing: the last w reaches only the finest image layer, the first everything."""
    G = randomised(Generator(small()), 4)
    ws = torch.randn(1, G.num_ws, 14, dtype=torch.float64)
    image = G.synthesis(ws, noise="none")
    changed = []
    for i in range(G.num_ws):
        other = ws.clone()
        other[:, i] += 0.5
        changed.append(float((G.synthesis(other, noise="none") - image).detach().abs().max()))
    assert min(changed) > 0
    with pytest.raises(ValueError, match="ws: expected shape"):
        G.synthesis(ws[:, 1:])


def test_minibatch_std_takes_any_batch_and_is_the_definition():
    x = torch.randn(6, 5, 1, 3, 2, dtype=torch.float64)
    y = MinibatchStd(4)(x)  # groups of 3: samples 0, 2, 4 and 1, 3, 5
    for first in (0, 1):
        expected = (x[first::2].var(0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[first::2, 5], expected.expand(3, 1, 3, 2))
    for batch in (1, 2, 5, 7):
        assert MinibatchStd(4)(x[:1].repeat(batch, 1, 1, 1, 1)).shape == (batch, 6, 1, 3, 2)


def test_wrong_inputs_are_named():
    cfg = small()
    with pytest.raises(ValueError, match=r"x: expected shape \(N, 1, 16, 24, 16\)"):
        Discriminator(cfg)(torch.randn(2, 1, 16, 16, 24))
    with pytest.raises(ValueError, match=r"z: expected shape \(N, 10\)"):
        Generator(cfg)(torch.randn(2, 11))


@pytest.mark.parametrize(
    ("shape", "base", "scales"),
    [
        ((32, 48, 32), (4, 6, 4), [(2, 2, 2)] * 3),
        ((16, 64, 64), (4, 4, 4), [(2, 2, 2)] * 2 + [(1, 2, 2)] * 2),
        ((128, 128, 128), (4, 4, 4), [(2, 2, 2)] * 5),
        ((24, 40, 32), (3, 5, 4), [(2, 2, 2)] * 3),
        ((5, 32, 32), (5, 4, 4), [(1, 2, 2)] * 3),
    ],
    ids=str,
)
def test_levels_of_shapes(shape, base, scales):
    assert plan_levels(shape) == (base, tuple(scales))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((32, 48, 34), "axis W has 34 voxels"),
        ((32, 7, 64), "cannot be halved equally often"),
        ((128, 16, 16), "D = 128 needs more halvings"),
        ((32, 48), "expected three positive integers"),
        ((0, 16, 16), "expected three positive integers"),
        ((4, 4, 4), "too small"),
    ],
)
def test_shapes_that_no_network_takes(shape, message):
    with pytest.raises(ConfigError, match=message):
        plan_levels(shape)


def test_configurations_survive_json_and_refuse_nonsense():
    cfg = preset("hippocampus").train_config("hippocampus", (16, 24, 16), "acs4", seed=5)
    assert TrainConfig.from_json(cfg.to_json()) == cfg
    with pytest.raises(ConfigError, match="unknown fields"):
        TrainConfig.from_json({**cfg.to_json(), "colour": "red"})
    with pytest.raises(ConfigError, match="arch: expected one of"):
        preset("demo").network(arch="convolutional")
    with pytest.raises(ConfigError, match="cannot be split into 4 branches"):
        dataclasses.replace(cfg.network, widths=(64, 64, 30))
    with pytest.raises(ConfigError, match="preset: expected one of"):
        preset("liver")
    with pytest.raises(ConfigError, match="inflate: expected one of"):
        preset("demo").train_config("demo", inflate="twice")
