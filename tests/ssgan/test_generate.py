"""`ssgan generate`: volumes from a run, each from its seed alone, and clear errors."""

import dataclasses
import hashlib
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ssgan import generate
from ssgan.config.network import NetworkConfig
from ssgan.config.presets import preset
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.data.dataset import to_nifti
from ssgan.data.phantom import write_phantom_dataset
from ssgan.models.conditioning import Condition
from ssgan.models.networks import Generator
from ssgan.models.sampling import latents, synthesise
from ssgan.runs import checkpoint
from ssgan.runs.config import RunError, load_config
from ssgan.runs.generator import load_generator, parse_seeds
from ssgan.training import loop
from ssgan.utils.errors import UserError
from ssgan.utils.files import read_json, write_json_atomic

SHAPE = (6, 8, 12)
CONFIG = TrainConfig(
    network=NetworkConfig(
        shape=SHAPE, base=(3, 4, 6), scales=((2, 2, 2),), widths=(4, 4), z_dim=6, w_dim=6, mapping_layers=1
    ),
    stage_2d=StageConfig(kimg=0.008, batch=4),
    stage_3d=StageConfig(kimg=0.008, batch=4, lr_g=0.05),
    stage="3d",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs "3d" and "2d" of two steps."""
    root = tmp_path_factory.mktemp("generate")
    data = write_phantom_dataset(root / "data", count=4, shape=SHAPE, seed=1)
    for stage in ("3d", "2d"):
        cfg = dataclasses.replace(CONFIG, stage=stage)
        assert loop.train(cfg, data, root / stage, progress=False, echo=lambda text: None) == 0
    return root


def go(runs, out, *arguments, run="3d"):
    return generate.main(["--run", str(runs / run), "--out", str(out), "--device", "cpu", *map(str, arguments)])


def volumes(out):
    return {p.name.split(".")[0]: np.asarray(nibabel.load(p).dataobj) for p in sorted(out.glob("*.nii.gz"))}


def digests(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.glob("*.nii.gz")}


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_another_batch_changes_a_seed_by_rounding_as_the_help_says(batch, capsys):
    """In networks as wide as a preset's, with noise: a few millionths of the range."""
    torch.manual_seed(0)
    G = Generator(preset("hippocampus").network((16, 24, 16)))
    for name, strength in G.named_parameters():
        if name.endswith("noise_strength"):
            strength.detach().fill_(0.1)
    z = latents(range(7), G.cfg.z_dim)
    alone, together = (synthesise(G, z, batch=n) for n in (1, batch))
    assert np.abs(alone - together).max() < 3e-6 * np.ptp(alone)
    with pytest.raises(SystemExit):
        generate.main(["--help"])
    assert "rounding: about a millionth of its range" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [3]), ("0-3,20", [0, 1, 2, 3, 20]), (" 7 , 5-6", [7, 5, 6]), ("4294967295", [2**32 - 1])],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "1,,2", "3-1", "-1", "1-", "1.5", "4294967296", "0-99999999", "1,0-2", "1;2"]
)
def test_bad_seeds(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_latents_are_each_from_its_seed_alone():
    z = latents([5, 9, 0], 7)
    assert z.shape == (3, 7) and z.dtype == torch.float32
    assert torch.equal(z[1:2], latents([9], 7))
    np.testing.assert_array_equal(z[0].numpy(), np.random.RandomState(5).randn(1, 7)[0].astype(np.float32))
    assert not torch.equal(z[0], z[1])


def test_files_and_values(runs, tmp_path, capsys):
    assert go(runs, tmp_path, "--seeds", "0-2,12345") == 0
    names = {p.name for p in tmp_path.iterdir()}
    stems = ["seed0000", "seed0001", "seed0002", "seed12345"]
    assert names == {f"{s}.{e}" for s in stems for e in ("nii.gz", "png", "gif")} | {"montage.png", "generate.json"}
    source = load_generator(runs / "3d")
    info = source.info
    assert source.meta.images == 8
    with torch.no_grad():
        expected = source.G(latents([1], 6), noise="const")[0, 0].numpy()
    image = nibabel.load(tmp_path / "seed0001.nii.gz")
    expected_image = to_nifti(expected, info)
    values = np.asarray(expected_image.dataobj)
    # Batches round differently, and the file's scale may be an integer one.
    np.testing.assert_allclose(np.asarray(image.dataobj), values, atol=1e-3 * np.ptp(values))
    np.testing.assert_array_equal(image.affine, expected_image.affine)
    assert image.shape == SHAPE[::-1]
    assert "4 volumes" in capsys.readouterr().out


@pytest.mark.parametrize("noise", ["const", "random", "none"])
def test_a_seed_does_not_depend_on_its_batch(runs, tmp_path, noise):
    assert go(runs, tmp_path / "a", "--seeds", "0-4", "--batch", 3, "--noise", noise) == 0
    assert go(runs, tmp_path / "b", "--seeds", "4,2", "--batch", 1, "--noise", noise) == 0
    together, alone = volumes(tmp_path / "a"), volumes(tmp_path / "b")
    scale = np.ptp(together["seed0002"])
    for name in ("seed0002", "seed0004"):
        np.testing.assert_allclose(together[name], alone[name], atol=1e-3 * scale)
    assert np.abs(together["seed0002"] - together["seed0004"]).max() > 1e-2 * scale


def test_truncation_zero_makes_every_volume_the_mean(runs, tmp_path):
    assert go(runs, tmp_path / "mean", "--seeds", "0,1", "--truncation", 0, "--noise", "none") == 0
    assert go(runs, tmp_path / "full", "--seeds", "0,1", "--noise", "none") == 0
    mean, full = volumes(tmp_path / "mean"), volumes(tmp_path / "full")
    scale = np.ptp(full["seed0000"])
    np.testing.assert_allclose(mean["seed0000"], mean["seed0001"], atol=1e-3 * scale)
    assert np.abs(mean["seed0000"] - full["seed0000"]).max() > 1e-2 * scale


def test_again_is_the_same_and_leaves_other_files(runs, tmp_path):
    assert go(runs, tmp_path, "--seeds", "0-1") == 0
    before = digests(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    assert go(runs, tmp_path, "--seeds", "1-2") == 0
    after = digests(tmp_path)
    assert set(after) == {"seed0000.nii.gz", "seed0001.nii.gz", "seed0002.nii.gz"}
    first, again = (nibabel.load(tmp_path / "seed0001.nii.gz") for _ in range(2))
    np.testing.assert_array_equal(np.asarray(first.dataobj), np.asarray(again.dataobj))
    assert after["seed0000.nii.gz"] == before["seed0000.nii.gz"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_2d_run_gives_slices_and_says_so(runs, tmp_path, capsys):
    assert go(runs, tmp_path, "--seeds", "0-1", run="2d") == 0
    assert {p.name for p in tmp_path.iterdir()} == {"seed0000.png", "seed0001.png", "montage.png", "generate.json"}
    assert "stage 2d" in capsys.readouterr().out


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A run's folder with classes, as train writes it: config.json that names them and one checkpoint."""
    run = tmp_path_factory.mktemp("conditional") / "run"
    data = write_phantom_dataset(run.parent / "data", count=2, shape=SHAPE, seed=1)
    cfg = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, classes=3))
    info = {**data.info.to_json(), "classes": ["healthy", "7", "0"]}
    write_json_atomic(run / "config.json", {"config": cfg.to_json(), "data": {"info": info}})
    torch.manual_seed(0)
    G = Generator(cfg.network)
    G.mapping.w_avg.normal_()
    meta = checkpoint.CheckpointMeta("3d", 2, 8, "")
    checkpoint.save(
        checkpoint.final_path(run / "checkpoints", "3d"), checkpoint.with_prefix("G_ema", G.state_dict()), meta
    )
    return run.parent


def test_every_class_of_a_seed(conditional, tmp_path, capsys):
    assert go(conditional, tmp_path, "--seeds", "0-1", "--class", "all", run="run") == 0
    stems = [f"class{i}-seed000{s}" for i in range(3) for s in range(2)]
    montages = {f"montage-class{i}.png" for i in range(3)}
    names = {f"{s}.{e}" for s in stems for e in ("nii.gz", "png", "gif")} | montages | {"generate.json"}
    assert {p.name for p in tmp_path.iterdir()} == names
    out = capsys.readouterr().out
    assert all(f"2 volumes of class {name} in" in out for name in ("healthy", "7", "0"))
    source = load_generator(conditional / "run")
    G, info = source.G, source.info
    with torch.no_grad():
        expected = G(latents([1], 6), Condition(torch.tensor([2])), noise="const")[0, 0].numpy()
    values = np.asarray(to_nifti(expected, info).dataobj)
    found = volumes(tmp_path)
    np.testing.assert_allclose(found["class2-seed0001"], values, atol=1e-3 * np.ptp(values))
    assert np.abs(found["class0-seed0001"] - found["class2-seed0001"]).max() > 1e-2 * np.ptp(values)


@pytest.mark.parametrize(("text", "number"), [("healthy", 0), ("7", 1), ("1", 1), ("0", 2), ("2", 2)])
def test_a_class_by_name_or_number(conditional, tmp_path, text, number):
    """ "0" is the name of class 2: names go first."""
    assert go(conditional, tmp_path, "--seeds", "3", "--class", text, run="run") == 0
    assert (tmp_path / f"class{number}-seed0003.nii.gz").is_file() and len(volumes(tmp_path)) == 1


def test_truncation_moves_to_the_mean_of_the_class_or_of_all(conditional, tmp_path):
    arguments = ("--seeds", "0", "--class", "all", "--truncation", 0, "--noise", "none")
    assert go(conditional, tmp_path / "own", *arguments, run="run") == 0
    assert go(conditional, tmp_path / "all", *arguments, "--truncation-centre", "all", run="run") == 0
    own, overall = volumes(tmp_path / "own"), volumes(tmp_path / "all")
    scale = max(np.ptp(v) for v in own.values())
    np.testing.assert_allclose(overall["class0-seed0000"], overall["class2-seed0000"], atol=1e-3 * scale)
    assert np.abs(own["class0-seed0000"] - own["class2-seed0000"]).max() > 1e-2 * scale
    source = load_generator(conditional / "run")
    G, info = source.G, source.info
    with torch.no_grad():
        w = G.mapping(torch.randn(200_000, 6), torch.full((200_000,), 2)).mean(0)
        expected = G.synthesis(w.expand(1, G.num_ws, -1), "none")[0, 0].numpy()
    values = np.asarray(to_nifti(expected, info).dataobj)
    np.testing.assert_allclose(own["class2-seed0000"], values, atol=0.05 * np.ptp(values))


@pytest.mark.parametrize(
    ("run", "arguments", "match"),
    [
        ("run", [], "trained with classes; give one of 0 (healthy), 1 (7), 2 (0), or all"),
        ("run", ["--class", "ill"], "--class: expected one of 0 (healthy), 1 (7), 2 (0), or all; got 'ill'"),
        ("run", ["--class", "3"], "got '3'"),
        ("run", ["--class", "-1"], "got '-1'"),
    ],
    ids=["missing", "unknown", "range", "negative"],
)
def test_bad_classes_write_nothing(conditional, tmp_path, capsys, run, arguments, match):
    arguments = [f"--class={arguments[1]}"] if arguments else []
    assert go(conditional, tmp_path / "out", "--seeds", "0", *arguments, run=run) == 2
    assert match in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_class_of_a_run_without_classes(runs, tmp_path, capsys):
    assert go(runs, tmp_path / "out", "--seeds", "0", "--class", "1") == 2
    assert "was trained without classes; leave --class out" in capsys.readouterr().err


def test_a_record_with_other_classes_than_the_networks(conditional, tmp_path):
    record = read_json(conditional / "run" / "config.json")
    config = load_config(conditional / "run")
    assert config.class_names == ["healthy", "7", "0"] and config.class_counts == [1, 1, 1]
    record["config"]["network"]["classes"] = 2
    write_json_atomic(tmp_path / "config.json", record)
    with pytest.raises(RunError, match="names 3 classes, its networks have 2"):
        load_config(tmp_path).class_names  # noqa: B018
    record["data"]["info"]["classes"] = None
    write_json_atomic(tmp_path / "config.json", record)
    assert load_config(tmp_path).class_names == ["0", "1"]


def test_a_checkpoint_by_its_file(runs, tmp_path):
    final = checkpoint.final_path(runs / "3d" / "checkpoints", "3d")
    assert go(runs, tmp_path / "a", "--seeds", "3", "--checkpoint", final) == 0
    assert go(runs, tmp_path / "b", "--seeds", "3") == 0
    a, b = volumes(tmp_path / "a"), volumes(tmp_path / "b")
    np.testing.assert_array_equal(a["seed0003"], b["seed0003"])


def test_a_checkpoint_by_its_name_in_the_run(runs, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "3d", run)
    tensors, meta = checkpoint.load(checkpoint.final_path(run / "checkpoints", "3d"))
    best = checkpoint.best_path(run / "checkpoints", "3d")
    checkpoint.save(best, {n: t * 0 if n.startswith("G_ema") else t for n, t in tensors.items()}, meta)
    for name in ("3d-best", "3d-best.safetensors"):
        source = load_generator(run, Path(name))
        assert source.path == best and all(not p.any() for p in source.G.parameters())
    assert load_generator(run).path.name == "3d-final.safetensors"
    monkeypatch.chdir(tmp_path)
    assert go(tmp_path, "out", "--seeds", "0", "--checkpoint", "3d-000000050", run="run") == 2
    numbered = [p.stem for p in run.glob("checkpoints/3d-0*")]
    listed = ", ".join(sorted([*numbered, "3d-best", "3d-final"]))
    assert f"no checkpoint '3d-000000050' in {run}; it has {listed}\n" in capsys.readouterr().err
    (tmp_path / "3d-best").write_bytes(b"a file of that name goes first")
    with pytest.raises(UserError, match="3d-best is damaged"):
        load_generator(run, Path("3d-best"))


def test_foreign_folder_is_left_alone(runs, tmp_path, capsys):
    (tmp_path / "seed0000.nii.gz").write_bytes(b"somebody's")
    assert go(runs, tmp_path, "--seeds", "0") == 2
    assert "not made by `ssgan generate`" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["seed0000.nii.gz"]
    assert (tmp_path / "seed0000.nii.gz").read_bytes() == b"somebody's"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--seeds", "0", "--truncation", "1.5"], "--truncation: expected 0 to 1; got 1.5"),
        (["--seeds", "0", "--truncation", "nan"], "--truncation"),
        (["--seeds", "zero"], "--seeds"),
        (["--seeds", "0", "--batch", "0"], "--batch"),
        (["--seeds", "0", "--checkpoint", "absent.safetensors"], "no checkpoint 'absent.safetensors' in"),
        (["--seeds", "0", "--run", "nowhere"], "--run nowhere is not a run's folder"),
    ],
    ids=["truncation", "nan", "seeds", "batch", "checkpoint", "run"],
)
def test_bad_arguments_write_nothing(runs, tmp_path, capsys, arguments, match):
    assert go(runs, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("ssgan generate: error: ") and match in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_a_run_without_checkpoints_and_a_damaged_one(runs, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_bytes((runs / "3d" / "config.json").read_bytes())
    with pytest.raises(RunError, match="no checkpoint yet"):
        load_generator(run)
    source = checkpoint.final_path(runs / "3d" / "checkpoints", "3d")
    target = run / "checkpoints" / source.name
    target.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(UserError, match="damaged"):
        load_generator(run)
    assert target.exists()  # reading a run changes nothing in it
