"""Networks of several architectures, from the command to the report: another one for D, and dense levels."""

import dataclasses
import json

import pytest
import torch

from ssgan import generate, inflate, report, summary, train
from ssgan.config.network import NetworkConfig
from ssgan.config.presets import preset
from ssgan.config.training import TrainConfig
from ssgan.data.phantom import write_phantom_dataset
from ssgan.latent_space.projection import random_features
from ssgan.models import parameters
from ssgan.models.inflation import inflate_network
from ssgan.models.networks import Discriminator, Generator
from ssgan.reporting.content import collect, count_parameters
from ssgan.runs import checkpoint
from ssgan.runs.config import identity
from ssgan.utils.errors import ConfigError
from tests.ssgan.models.test_inflation import relative
from tests.ssgan.models.test_networks import randomised, small
from tests.support.tiny_runs import CONFIG, SHAPE

MIXED = CONFIG.network.with_arch("split_depth", "dense")


def shapes(net):
    return {name: tuple(t.shape) for name, t in net.state_dict().items()}


@pytest.mark.parametrize(("arch", "other"), [("split_depth", "dense"), ("dense", "grouped"), ("acs4", "separable")])
def test_each_network_is_that_of_its_own_architecture(arch, other):
    cfg = CONFIG.network.with_arch(arch, other)
    assert shapes(Generator(cfg)) == shapes(Generator(CONFIG.network.with_arch(arch)))
    assert shapes(Discriminator(cfg)) == shapes(Discriminator(CONFIG.network.with_arch(other)))
    assert shapes(Discriminator(cfg)) != shapes(Discriminator(CONFIG.network.with_arch(arch)))
    assert cfg.arch_name == f"{arch} G, {other} D" and cfg.with_arch(arch, arch) == CONFIG.network.with_arch(arch)
    assert NetworkConfig.from_json(json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg
    assert shapes(random_features(Generator(cfg))) == shapes(Discriminator(CONFIG.network.with_arch("dense")))


def test_after_centre_the_discriminator_of_a_constant_volume_is_the_2d_one_s():
    cfg = small((6, 8, 12), "split_depth").with_arch("split_depth", "acs4")
    flat, full = randomised(Discriminator(cfg.flat()), 1), randomised(Discriminator(cfg), 2)
    inflate_network(flat, full, "centre")
    x = torch.randn(2, 1, 1, 8, 12, dtype=torch.float64)
    inside = full.double()(x.expand(-1, -1, 6, -1, -1))
    assert relative(inside, flat.double()(x)) < 1e-6


def test_architectures_that_cannot_be():
    with pytest.raises(ConfigError, match=r"dense_levels: both networks are dense at every level; leave \(0,\) out"):
        CONFIG.network.with_arch("dense", dense_levels=(0,))
    with pytest.raises(ConfigError, match=r"the discriminator has nothing split at level 0; leave \(0,\) out"):
        CONFIG.network.with_arch("dense", "split_depth", dense_levels=(0,))
    finer = CONFIG.network.with_arch("dense", "split_depth", dense_levels=(0, 1))
    assert finer.arch_at(1, discriminator=True) == "dense"
    with pytest.raises(ConfigError, match=r"arch_d: expected one of dense, .*; got 'denser'"):
        CONFIG.network.with_arch("dense", "denser")
    odd = dataclasses.replace(CONFIG.network.with_arch("dense"), widths=(6, 6))
    with pytest.raises(ConfigError, match=r"widths: 6 channels cannot be split into 4 branches \(acs4\)"):
        odd.with_arch("dense", "acs4")


@pytest.mark.parametrize(("arch", "other"), [("split_depth", None), ("acs4", "separable"), ("dense", "grouped")])
def test_each_level_is_that_of_its_own_architecture(arch, other):
    """By the shapes of every tensor, for both networks and their 2D counterparts."""
    cfg = small((16, 24, 16)).with_arch(arch, other, dense_levels=[1])
    assert cfg.dense_levels == (1,) and len(cfg.widths) == 3
    for of in (cfg, cfg.flat()):
        for net, dense, at in ((Generator, arch, "synthesis.blocks.1."), (Discriminator, other or arch, "blocks.1.")):
            own, whole, none = (shapes(net(of.with_arch(a, None, n))) for a, n in (
                (dense, [1] if dense != "dense" else []), ("dense", []), (dense, [])))  # fmt: skip
            found = shapes(net(of))
            assert found == own
            assert {n: s for n, s in found.items() if n.startswith(at)} == {
                n: s for n, s in whole.items() if n.startswith(at)
            }
            assert {n: s for n, s in found.items() if not n.startswith(at)} == {
                n: s for n, s in none.items() if not n.startswith(at)
            }
    assert cfg.arch_name.endswith(", dense at level 1")
    assert NetworkConfig.from_json(json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg


@pytest.mark.parametrize("arch", ["split_depth", "acs4", "separable"])
def test_with_dense_levels_too_a_constant_volume_gives_what_the_slice_gave(arch):
    cfg = small((16, 24, 16)).with_arch(arch, dense_levels=(0, 2))
    flat, full = randomised(Discriminator(cfg.flat()), 1), randomised(Discriminator(cfg), 2)
    inflate_network(flat, full, "centre")
    x = torch.randn(2, 1, 1, 24, 16, dtype=torch.float64)
    inside = full.double()(x.expand(-1, -1, 16, -1, -1))
    assert relative(inside, flat.double()(x)) < 1e-6


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ((3,), r"dense_levels: expected different levels in rising order, of 0 \(the coarsest\) .. 1; got \(3,\)"),
        ((-1,), r"got \(-1,\)"),
        ((1, 1), r"got \(1, 1\)"),
        ((0.5,), r"got \(0.5,\)"),
    ],
)
def test_levels_that_cannot_be(levels, message):
    with pytest.raises(ConfigError, match=message):
        CONFIG.network.with_arch("split_depth", dense_levels=levels)


def test_a_run_of_before_goes_on():
    """Its config.json has no arch_d, dense_levels and cooldown, and its hash has not changed."""
    record = json.loads(json.dumps(CONFIG.to_json()))
    now = identity(record)
    del record["network"]["arch_d"], record["network"]["dense_levels"], record["cooldown_kimg"]
    assert identity(record) == now and TrainConfig.from_json(record) == CONFIG
    for other in (MIXED, CONFIG.network.with_arch("split_depth", dense_levels=(0,))):
        assert identity(dataclasses.replace(CONFIG, network=other).to_json()) != now


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    write_phantom_dataset(folder, count=6, shape=(8, 8, 12), seed=1)
    return folder


def run(data, out, *more):
    told = ["--data", str(data), "--out", str(out), "--threads", "1", "--device", "cpu", "--no-progress"]
    budget = ["--kimg-2d", "0.004", "--kimg-3d", "0.004", "--batch-2d", "4", "--batch-3d", "4"]
    return train.main([*told, *budget, *more])


def test_from_the_command_to_the_report(data, tmp_path, capsys):
    mixed = ("--arch", "split_depth", "--arch-d", "dense")
    folder = tmp_path / "run"
    assert run(data, folder, *mixed) == 0
    assert run(data, folder, *mixed) == 0  # finished
    assert run(data, folder) == 2
    assert "network.arch_d was dense, now None" in capsys.readouterr().err
    assert run(data, tmp_path / "dry", *mixed, "--dry-run") == 0
    assert "split_depth G, dense D" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "made"), "--seeds", "0-1", "--device", "cpu"]
    assert generate.main(["--run", str(folder), *out]) == 0
    assert report.main(["--run", str(folder), "--count", "2"]) == 0
    page = (folder / "report.html").read_text()
    known = collect(folder, None, None, None, 2)
    rows = {row[0]: row[1:] for row in count_parameters(known.cfg)}
    assert rows["split_depth G, dense D"] == (rows["split_depth"][0], rows["dense"][1])
    own = [line for line in page.split("<tr") if 'class="own"' in line]
    assert len(own) == 1 and "split_depth G, dense D" in own[0]
    card = (folder / "MODEL_CARD.md").read_text()
    assert "architecture `split_depth G, dense D`" in card
    g, d = rows["split_depth G, dense D"]
    assert f"{g:,} (generator) and {d:,} (discriminator)" in card
    assert "--arch-d dense" in known.command


def test_inflation_keeps_selects_and_refuses_each_network_by_itself(data, tmp_path, capsys):
    assert run(data, tmp_path / "mixed", "--stage", "2d", "--arch-d", "dense") == 0
    source = str(tmp_path / "mixed" / "checkpoints" / "2d-final.safetensors")

    def inflated(name, *more):
        capsys.readouterr()
        status = inflate.main(["--source", source, "--out", str(tmp_path / f"{name}.safetensors"), *more])
        said = capsys.readouterr()
        return status, said.out + said.err

    status, text = inflated("as-it-was")
    assert status == 0 and "--arch-d dense --data DATASET" in text and "selected" not in text
    assert checkpoint.read_network(tmp_path / "as-it-was.safetensors")["arch_d"] == "dense"
    begun = ("--stage", "3d", "--init", str(tmp_path / "as-it-was.safetensors"))
    assert run(data, tmp_path / "other", *begun) == 2
    assert "discriminator_arch dense, this run's split_depth; give --arch-d dense" in capsys.readouterr().err
    assert run(data, tmp_path / "third", *begun, "--arch-d", "dense") == 0
    # The dense discriminator may become a split one, the split generator no other.
    status, text = inflated("split", "--arch", "split_depth")
    assert status == 0 and "selected, inflated" in text and "--arch-d" not in text
    assert "selected" not in text.split("\nD\n")[0] and "selected" in text.split("\nD\n")[1]
    assert checkpoint.read_network(tmp_path / "split.safetensors")["arch_d"] is None
    status, text = inflated("dense", "--arch", "dense")
    assert status == 2 and "--arch dense: the source's generator is split_depth; expected that, or a dense" in text
    assert run(data, tmp_path / "flat", "--stage", "2d", "--arch", "dense", "--arch-d", "grouped") == 0
    source = str(tmp_path / "flat" / "checkpoints" / "2d-final.safetensors")
    status, text = inflated("never", "--arch-d", "acs4")
    assert status == 2 and "--arch-d acs4: the source's discriminator is grouped; expected that, or a dense" in text


def test_dense_levels_from_the_command_to_the_report(data, tmp_path, capsys):
    levels = ("--dense-levels", "1")
    folder = tmp_path / "run"
    assert run(data, folder, *levels) == 0
    assert run(data, folder, *levels) == 0  # finished
    assert run(data, folder) == 2
    assert "network.dense_levels was [1], now" in capsys.readouterr().err
    assert run(data, tmp_path / "none", "--dense-levels", "2") == 2
    assert (
        "dense_levels: expected different levels in rising order, of 0 (the coarsest) .. 1" in capsys.readouterr().err
    )
    assert report.main(["--run", str(folder), "--count", "2"]) == 0
    known = collect(folder, None, None, None, 2)
    rows = {row[0]: row[1:] for row in count_parameters(known.cfg)}
    assert rows["split_depth"] < rows["split_depth, dense at level 1"] < rows["dense"]
    assert "--dense-levels 1" in known.command
    assert "architecture `split_depth, dense at level 1`" in (folder / "MODEL_CARD.md").read_text()


def test_inflation_of_dense_levels(data, tmp_path, capsys):
    """A dense source becomes split at the levels asked for, and stays dense at the others."""
    assert run(data, tmp_path / "flat", "--stage", "2d", "--arch", "dense") == 0

    def inflated(run, name, *more):
        source = str(tmp_path / run / "checkpoints" / "2d-final.safetensors")
        capsys.readouterr()
        status = inflate.main(["--source", source, "--out", str(tmp_path / f"{name}.safetensors"), *more])
        said = capsys.readouterr()
        return status, said.out + said.err

    status, text = inflated("flat", "start", "--arch", "split_depth", "--dense-levels", "0")
    assert status == 0 and "--init" in text and "--dense-levels 0 --data DATASET" in text
    selected = [line.split()[0] for line in text.splitlines() if "selected" in line and "->" in line]
    assert {name.rsplit(".stages", 1)[0] for name in selected} == {
        "synthesis.blocks.1.conv0", "synthesis.blocks.1.conv1", "blocks.0.conv0", "blocks.0.conv1",
    }  # fmt: skip
    begun = ("--stage", "3d", "--init", str(tmp_path / "start.safetensors"))
    assert run(data, tmp_path / "other", *begun) == 2
    assert "dense_levels (0,), this run's (); give --dense-levels 0" in capsys.readouterr().err
    assert run(data, tmp_path / "third", *begun, "--dense-levels", "0") == 0
    # Without --arch the networks stay as they are, levels and all; a split level becomes no dense one.
    status, text = inflated("flat", "never", "--dense-levels", "0")
    assert status == 2 and "--dense-levels: needs --arch" in text and "stay dense" in text
    assert run(data, tmp_path / "levels", "--stage", "2d", "--dense-levels", "1") == 0
    status, text = inflated("levels", "as-it-was")
    assert status == 0 and "--dense-levels 1 --data DATASET" in text and "selected" not in text
    status, text = inflated("levels", "not", "--arch", "split_depth", "--dense-levels", "0")
    assert status == 2 and "--dense-levels 0: the source's generator is split_depth there; expected that" in text


def test_the_summary_of_both(capsys):
    assert summary.main(["--preset", "demo", "--arch", "split_depth", "--arch-d", "dense"]) == 0
    text = capsys.readouterr().out
    table = {a: (g, d) for a, g, d, _ in parameters.share_table("demo")}
    assert "demo, split_depth G, dense D:" in text
    assert f"{table['split_depth'][0]:,}" in text and f"{table['dense'][1]:,}" in text
    assert f"{table['split_depth'][1]:,}" not in text
    assert summary.main(["--arch-d", "dense"]) == 2
    assert "--arch-d dense: needs --arch" in capsys.readouterr().err
    assert summary.main(["--dense-levels", "0"]) == 2
    assert "--dense-levels: needs --arch" in capsys.readouterr().err
    assert summary.main(["--preset", "demo", "--arch", "split_depth", "--dense-levels", "0", "1"]) == 0
    assert "demo, split_depth, dense at levels 0, 1:" in capsys.readouterr().out


def test_every_option_of_a_stage_reaches_its_own_stage():
    """--lr sets both stages and networks; an option of one of them overrides it."""
    parser = __import__("argparse").ArgumentParser()
    train.add_arguments(parser)
    own = {"kimg": 3.0, "batch": 6, "r1_gamma": 0.25, "lr_g": 0.003, "lr_d": 0.007, "pl_weight": 0.5,
           "style_mixing": 0.25, "ema_kimg": 0.75}  # fmt: skip
    words = [w for k, v in own.items() for w in (f"--{k.replace('_', '-')}-3d", str(v))]
    cfg = train.config_from(parser.parse_args(["--out", "run", "--lr", "0.0001", *words]), SHAPE)
    usual = preset("demo")
    assert cfg.stage_3d == dataclasses.replace(usual.stage_3d, **own)
    assert cfg.stage_2d == dataclasses.replace(usual.stage_2d, lr_g=0.0001, lr_d=0.0001)
    for bad in ("--lr-g-2d 0", "--style-mixing-3d 1.5", "--ema-kimg-2d -1", "--pl-weight-2d -1", "--arch-d cubic"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--out", "run", *bad.split()])
