"""2D networks that are options the slice index: what they learn of each slice is the start of the 3D stage."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssgan import generate, inflate, report, train
from ssgan.config.network import NetworkConfig
from ssgan.config.training import StageConfig
from ssgan.data.dataset import VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.models.conditioning import Condition
from ssgan.models.inflation import inflate_network
from ssgan.models.networks import Discriminator, Generator, constant_at
from ssgan.models.sampling import latents, synthesise
from ssgan.runs import checkpoint
from ssgan.training import loop
from ssgan.training.precision import Execution
from ssgan.training.real_images import RealImages
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError
from tests.ssgan.models.test_inflation import relative
from tests.ssgan.models.test_networks import randomised, small
from tests.support.steps import stepped
from tests.support.tiny_runs import CONFIG, SHAPE

CPU = torch.device("cpu")
DEPTH = SHAPE[0]
AWARE = dataclasses.replace(CONFIG, network=CONFIG.network.depth_aware())


def at(*indices):
    """Condition of slices."""
    return Condition(slice_index=torch.tensor(indices))


def trainer(cfg=AWARE, stage="2d", **more):
    return StageTrainer(cfg, stage, CPU, **more)


def reals(n=4, seed=3):
    return torch.rand(n, 1, 1, *SHAPE[1:], generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("own", "depth"), [(4, 16), (3, 12), (5, 5), (1, 7), (3, 3)])
def test_the_constant_at_a_slice_is_interpolated_along_depth(own, depth):
    const = torch.randn(2, own, 3, 4, dtype=torch.float64)
    indices = torch.tensor([0, depth - 1, depth // 2, 0, depth // 3])
    found = constant_at(const, indices, depth)
    assert found.shape == (5, 2, 1, 3, 4)
    centres = (np.arange(own) + 0.5) * depth / own  # of the constant's slices, in voxels of the volume
    for n, c, y, x in itertools.product(range(5), range(2), range(3), range(4)):
        wanted = np.interp(float(indices[n]) + 0.5, centres, const[c, :, y, x])
        assert float(found[n, c, 0, y, x]) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("arch", ["split_depth", "dense", "separable"])
def test_where_depth_is_never_resampled_slices_of_g3d_are_those_of_g2d_at_their_index(arch):
    """Exactly, after centre inflation and without noise: constant and embedding are all that knows depth."""
    cfg = small((4, 32, 32), arch)
    scales = tuple((1, h, w) for _, h, w in cfg.scales)
    cfg = dataclasses.replace(cfg, base=(4, *cfg.base[1:]), scales=scales).depth_aware()
    z = torch.randn(3, cfg.z_dim, dtype=torch.float64)
    flat, full = randomised(Generator(cfg.flat()), 1), randomised(Generator(cfg), 2)
    rows = {name: action for name, action, *_ in inflate_network(flat, full, "centre").rows}
    assert rows["synthesis.blocks.0.const"] == "copied"
    volume = full(z, noise="none")
    for d in range(4):
        own, other = (flat(z, at(i, i, i), noise="none") for i in (d, (d + 1) % 4))
        assert relative(volume[:, :, d : d + 1], own) < 1e-7
        assert relative(own, other) > 1e-3

    flat, full = randomised(Discriminator(cfg.flat()), 3), randomised(Discriminator(cfg), 4)
    rows = {name: action for name, action, *_ in inflate_network(flat, full, "centre").rows}
    assert rows["depth_embedding"] == "copied"
    x = torch.randn(3, 1, *cfg.shape, dtype=torch.float64)
    features = full.features(x)
    for d in range(4):
        own, other = (flat.features(x[:, :, d : d + 1], torch.full((3,), i)) for i in (d, (d + 1) % 4))
        assert relative(features[:, :, d : d + 1], own) < 1e-7
        assert relative(own, other) > 1e-3


def test_with_nothing_that_depends_on_depth_it_is_the_plain_network():
    cfg = small((8, 12, 20))
    plain, aware = randomised(Discriminator(cfg), 5), Discriminator(cfg.depth_aware()).double()
    aware.load_state_dict(plain.state_dict() | {"depth_embedding": torch.zeros_like(aware.depth_embedding)})
    x = torch.randn(2, 1, *cfg.shape, dtype=torch.float64)
    assert torch.equal(aware(x), plain(x))
    assert not Discriminator(cfg.depth_aware()).depth_embedding.any()  # at first
    states = [Generator(c).state_dict() for c in (cfg, cfg.depth_aware())]
    assert [(n, t.shape) for n, t in states[0].items()] == [(n, t.shape) for n, t in states[1].items()]


def test_slices_of_a_2d_network_are_made_at_every_index_in_turn():
    G = trainer().G_ema
    z = latents(range(8), 6)
    made = synthesise(G, z, batch=3, noise="none")
    for i in range(8):
        own = G(z[i : i + 1], at(i % DEPTH), noise="none")
        np.testing.assert_allclose(made[i], own[0, 0].detach().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", [0, 1])
def test_the_discriminator_is_told_the_index_of_each_slice(step):
    """Compares with D's loss written out; step 0 has all phases, step 1 only generator and discriminator."""
    net, images, real = trainer(), reals(), at(5, 0, 2, 2)
    frozen = trainer()  # D before the step, G after it: the generator's phases come first
    for one in (net, frozen):
        one.step = step
        torch.nn.init.normal_(one.D.depth_embedding, generator=torch.Generator().manual_seed(9))
    inputs = frozen.draw("d_main", 4)
    drawn = inputs.condition.slice_index
    assert drawn.shape == (4,) and drawn.dtype == torch.int64
    stats = stepped(net, images, real)
    frozen.G.load_state_dict(net.G.state_dict())
    w, other = (frozen.G.mapping(z) for z in (inputs.z, inputs.z_mixed))
    ws = torch.stack([w if i < inputs.crossover else other for i in range(frozen.G.num_ws)], 1)
    fakes = frozen.G.synthesis(ws, inputs.noise, slice_index=drawn)
    loss = F.softplus(frozen.D(fakes, inputs.condition)) + F.softplus(-frozen.D(images, real))
    assert stats["loss_d"] == pytest.approx(loss.mean().item(), rel=1e-4)
    assert stats["sign_real"] == pytest.approx(frozen.D(images, real).sign().mean().item())


def test_slice_indices_matter_in_every_phase_and_are_drawn_uniformly():
    nets = [trainer(), trainer()]
    for net in nets:
        torch.nn.init.normal_(net.D.depth_embedding, generator=torch.Generator().manual_seed(9))
    first = stepped(nets[0], reals(), at(0, 1, 2, 3))
    second = stepped(nets[1], reals(), at(5, 5, 2, 3))
    assert first["loss_d"] != second["loss_d"] and first["r1"] != second["r1"]
    assert first["loss_g"] == second["loss_g"] and first["path_length"] == second["path_length"]
    net, drawn = trainer(), []
    before = {n: p.detach().clone() for n, p in [*net.G.named_parameters(), *net.D.named_parameters()]}
    for net.step in range(300):
        drawn += net.draw("g_path", 4).condition.slice_index.tolist()
    share = np.bincount(drawn, minlength=DEPTH) / len(drawn)
    assert len(share) == DEPTH and np.allclose(share, 1 / DEPTH, atol=0.05)
    net.step = 0
    net.train_step(reals(), at(0, 1, 2, 3))
    moved = {n for n, p in [*net.G.named_parameters(), *net.D.named_parameters()] if not torch.equal(p, before[n])}
    assert {"synthesis.blocks.0.const", "depth_embedding"} <= moved


def test_micro_batches_have_the_slice_indices_of_the_whole_batch():
    real = torch.tensor([5, 0, 2, 3])
    alone = dataclasses.replace(AWARE, network=dataclasses.replace(AWARE.network, mbstd_group=1))
    results = []
    for count in (1, 2, 4):
        net = trainer(alone, execution=Execution(accumulate=count))
        torch.nn.init.normal_(net.D.depth_embedding, generator=torch.Generator().manual_seed(9))
        own = net.local_samples
        results.append(stepped(net, reals()[own], Condition(slice_index=real[own])))
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-3)


def test_wrong_slice_indices_are_refused():
    with pytest.raises(ValueError, match=r"slice_index: expected 4, one for each slice; got none"):
        trainer().train_step(reals())
    with pytest.raises(ValueError, match=r"slice_index: expected 4, one for each slice; got 3"):
        trainer().train_step(reals(), at(0, 1, 2))
    with pytest.raises(ValueError, match=r"slice_index: expected 0..5; got \[-1, 0\]"):
        trainer().train_step(reals(), at(0, -1, 0, 0))
    with pytest.raises(ValueError, match=r"slice_index: expected none, the networks take none; got 4"):
        trainer(CONFIG).train_step(reals(), at(0, 1, 2, 0))
    G, D = trainer().G, trainer().D
    z = latents([0, 1], 6)
    with pytest.raises(ValueError, match=r"slice_index: expected 0..5 of shape \(2,\), int64; got None"):
        G(z)
    with pytest.raises(ValueError, match=r"slice_index: expected 0..5 of shape \(2,\), int64; got \(2,\), torch.float"):
        G(z, at(0.0, 0.0))
    with pytest.raises(ValueError, match=r"slice_index: expected 0..5; got \[0, 6\]"):
        G(z, at(0, 6))
    with pytest.raises(ValueError, match=r"slice_index: expected .* of shape \(2,\), int64; got \(1,\), torch.int64"):
        D(reals(2), at(0))
    deep = trainer(stage="3d")
    with pytest.raises(ValueError, match=r"slice_index: only 2D networks made with depth_places take slice indices"):
        deep.G(z, at(0, 0))
    with pytest.raises(ValueError, match=r"slice_index: only 2D networks"):
        trainer(CONFIG).D(reals(2), at(0, 0))
    with pytest.raises(ConfigError, match=r"depth_places: expected \(3, 6\), base and shape; got \(3, 5\)"):
        dataclasses.replace(CONFIG.network, depth_places=(3, 5))
    with pytest.raises(ConfigError, match=r"depth_places: expected \(base's depth, volume's depth\)"):
        dataclasses.replace(CONFIG.network.flat(), depth_places=(7, 6))


def test_configurations_are_with_and_without_depth_places():
    cfg = AWARE.network
    assert cfg.depth_places == (3, 6) == cfg.flat().depth_places and cfg.depth_aware(False) == CONFIG.network
    assert NetworkConfig.from_json(json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg
    old = dataclasses.asdict(CONFIG.network)
    del old["depth_places"]
    assert NetworkConfig.from_json(old) == CONFIG.network  # of a version before there were depth_places


def test_a_frozen_discriminator_keeps_its_embedding():
    for frozen in (0, 1):
        net = trainer(dataclasses.replace(AWARE, freeze_d=frozen), "3d")
        net.train_step(torch.rand(4, 1, *SHAPE))
        assert bool(net.D.depth_embedding.any()) == (frozen == 0)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VolumeDataset:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms") / "data", count=6, shape=(8, 12, 8), seed=1)


def test_slice_indices_of_the_real_slices_are_theirs(data):
    images = RealImages(data, "2d", 0)
    got, (labels, indices, _) = images.batch(40, 12)
    for image, index in zip(got, indices, strict=True):
        same = [np.array_equal(image[0, 0], v) for v in data.volumes[:, int(index)]]
        assert any(same)
    some = [3, 0, 7]
    again, condition = images.batch(40, 12, some)
    assert torch.equal(condition.slice_index, indices[some]) and labels is condition.labels is None
    assert torch.equal(again, got[some])


def run(data, out, *more):
    words = ["--data", str(data.path), "--out", str(out), "--preset", "demo", "--threads", "1", "--no-progress"]
    return train.main([*words, "--kimg-2d", "0.032", "--kimg-3d", "0.016", "--snapshot-kimg", "0.016", *more])


def test_from_the_command_to_volumes(data, tmp_path, capsys):
    """Both stages, resume, the 2D stage's slices, `ssgan inflate` and a start from it, report; the same run when
    stopped between."""
    aware = ("--depth-aware", "--inflate", "centre")
    assert run(data, tmp_path / "run", *aware) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["network"]["depth_places"] == [4, 8]
    options = (tmp_path / "run" / "inflation.txt").read_text()
    assert "depth_embedding" in options
    assert run(data, tmp_path / "run", *aware) == 0  # finished
    assert run(data, tmp_path / "run", "--no-depth-aware", "--inflate", "centre") == 2
    assert "network.depth_places was [4, 8], now None" in capsys.readouterr().err
    assert run(data, tmp_path / "dry", *aware, "--dry-run") == 0
    assert "parameters: G" in capsys.readouterr().out
    flat = tmp_path / "run" / "checkpoints" / "2d-final.safetensors"
    out = ["--out", str(tmp_path / "made"), "--seeds", "0-9", "--device", "cpu"]
    assert generate.main(["--run", str(tmp_path / "run"), *out]) == 0
    assert report.main(["--run", str(tmp_path / "run"), "--count", "6"]) == 0
    start = tmp_path / "start.safetensors"
    assert inflate.main(["--source", str(flat), "--out", str(start), "--profile", "centre"]) == 0
    assert checkpoint.read_network(start)["depth_places"] == [4, 8]
    begun = [*aware[1:], "--stage", "3d", "--init"]
    assert run(data, tmp_path / "third", *begun, str(start)) == 0  # networks as in the file
    first, _ = checkpoint.load(checkpoint.final_path(tmp_path / "run" / "checkpoints", "3d"))
    third, _ = checkpoint.load(checkpoint.final_path(tmp_path / "third" / "checkpoints", "3d"))
    assert all(torch.equal(first[n], third[n]) for n in first if n.startswith(("G_ema", "D.")))
    capsys.readouterr()
    assert run(data, tmp_path / "plain", *begun, str(flat), "--no-depth-aware") == 2
    assert "trained with slice indices, this run is without them; give --depth-aware" in capsys.readouterr().err
    assert run(data, tmp_path / "again", *begun, str(flat), "--depth-aware") == 0


def test_a_run_that_was_stopped_in_either_stage_is_the_same_run(data, tmp_path):
    cfg = dataclasses.replace(
        AWARE,
        network=dataclasses.replace(
            CONFIG.network, shape=(8, 12, 8), base=(4, 6, 4), scales=((2, 2, 2),)
        ).depth_aware(),
        stage_2d=StageConfig(kimg=0.016, batch=4), stage_3d=StageConfig(kimg=0.016, batch=4),
        stage="both", inflate="centre", snapshot_kimg=0.004,
    )  # fmt: skip
    options = {"progress": False, "echo": lambda text: None}
    assert loop.train(cfg, data, tmp_path / "whole", **options) == 0
    step, count = StageTrainer.train_step, [0]

    def interrupted(self, *inputs):
        count[0] += 1
        if count[0] in (3, 8):
            raise KeyboardInterrupt
        return step(self, *inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageTrainer, "train_step", interrupted)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                loop.train(cfg, data, tmp_path / "parts", **options)
        assert loop.train(cfg, data, tmp_path / "parts", **options) == 0
    whole, parts = (
        checkpoint.load(checkpoint.final_path(tmp_path / name / "checkpoints", "3d"))[0] for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and all(torch.equal(whole[n], parts[n]) for n in whole)


def test_the_start_of_the_3d_stage_has_what_belongs_where():
    """Phantom volumes whose slices differ along depth alone: after the 2D stage the inflated generator has them in
    their order, which a generator without slice indices could not learn."""
    levels = torch.linspace(-0.8, 0.8, DEPTH)
    errors = {}
    for name, cfg in (("aware", AWARE), ("plain", CONFIG)):
        stage = dataclasses.replace(
            cfg.stage_2d, batch=8, lr_g=0.01, lr_d=0.01, ema_kimg=0.1, kimg=10.0, pl_weight=0, style_mixing=0
        )  # fmt: skip
        cfg = dataclasses.replace(cfg, stage_2d=stage)
        net = trainer(cfg)
        draw = torch.Generator().manual_seed(4)
        for _ in range(200):
            indices = torch.randint(DEPTH, (8,), generator=draw)
            images = levels[indices][:, None, None, None, None].expand(-1, 1, 1, *SHAPE[1:]).contiguous()
            net.train_step(images, Condition(slice_index=indices if net.slice_count else None))
        deep = trainer(cfg, "3d")
        deep.inflate_from(net, "centre", images=net.images)
        means = synthesise(deep.G_ema, latents(range(16), 6), batch=8, noise="none").mean((0, 2, 3))
        errors[name] = np.abs(means - levels.numpy()).mean()
    assert errors["aware"] < 0.5 * errors["plain"], errors
