"""Training on classes: both networks are told the label in every phase, and generate by class what they learnt."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ssgan import evaluate, generate, inflate, report, train
from ssgan import latents as latents_command
from ssgan.data.dataset import VolumeDataset
from ssgan.data.writer import DatasetWriter
from ssgan.models.conditioning import Condition
from ssgan.models.sampling import class_shares, latents, synthesise
from ssgan.runs.config import RunError
from ssgan.training import loop
from ssgan.training.real_images import RealImages
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError
from tests.support import stylegan2_cases as cases
from tests.support.steps import stepped
from tests.support.tiny_runs import CONFIG, SHAPE

CPU = torch.device("cpu")
NAMES = ("AD", "CN", "MCI")
LABELLED = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, classes=3))


def write_data(path, labels, shape=SHAPE, seed=0):
    """Volumes of noise around a level of their class: -0.6, 0 and 0.6."""
    rng = np.random.Generator(np.random.PCG64(seed))
    with DatasetWriter(path, shape) as writer:
        for i, label in enumerate(labels):
            record = {"source": f"{i}", "intensity_low": 0.0, "intensity_high": 100.0, "affine": np.eye(4).tolist()}
            record |= {"warnings": []} | ({"class_label": label} if label else {})
            level = NAMES.index(label) * 0.6 - 0.6 if label else 0.0
            writer.add((level + 0.05 * rng.standard_normal(shape)).clip(-1, 1).astype(np.float32), record)
        return writer.finish(spacing=[1.0] * 3, affine=np.eye(4), slice_axis="axial", recipe="mri")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("classes") / "data", ["AD", "CN", "CN", "MCI", "CN", "AD", "CN", "CN"])


def trainer(counts=(1, 5, 2), cfg=LABELLED):
    return StageTrainer(cfg, "3d", CPU, class_counts=counts)


def reals(n=4, seed=3):
    return torch.rand(n, 1, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_generated_images_have_the_classes_of_the_data(data):
    assert data.class_counts == (2, 5, 1)
    net = trainer((1, 0, 3))
    drawn = []
    for net.step in range(300):
        drawn += net.draw("d_main", 4).condition.labels.argmax(1).tolist()
    share = np.bincount(drawn, minlength=3) / len(drawn)
    assert share[1] == 0 and share[2] == pytest.approx(0.75, abs=0.05)
    assert class_shares((2, 5, 1), 8).tolist() == [0, 0, 1, 1, 1, 1, 1, 2] and class_shares((), 8) is None
    assert class_shares((1, 0, 1), 4).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("step", [0, 1])
def test_the_discriminator_sees_the_class_of_each_image(step):
    """Compares with D's loss written out; step 0 has all phases, step 1 only generator and discriminator."""
    net, images, real = trainer(), reals(), Condition(torch.tensor([2, 0, 1, 1]))
    net.step = step
    frozen = trainer()  # D before the step, G after it: the generator's phases come first
    frozen.step = step
    inputs = frozen.draw("d_main", 4)
    stats = stepped(net, images, real)
    frozen.G.load_state_dict(net.G.state_dict())
    w, other = (frozen.G.mapping(z, inputs.condition.labels) for z in (inputs.z, inputs.z_mixed))
    ws = torch.stack([w if i < inputs.crossover else other for i in range(frozen.G.num_ws)], 1)
    fakes = frozen.G.synthesis(ws, inputs.noise)
    loss = F.softplus(frozen.D(fakes, inputs.condition)) + F.softplus(-frozen.D(images, real))
    assert stats["loss_d"] == pytest.approx(loss.mean().item(), rel=1e-4)
    assert stats["sign_real"] == pytest.approx(frozen.D(images, real).sign().mean().item())


def test_labels_matter_in_every_phase():
    """Other labels of the same real images change D's loss and R1; another mix of classes changes G's."""
    first = stepped(trainer(), reals(), Condition(torch.tensor([0, 0, 0, 0])))
    second = stepped(trainer(), reals(), Condition(torch.tensor([2, 1, 2, 1])))
    assert first["loss_d"] != second["loss_d"] and first["r1"] != second["r1"]
    assert first["loss_g"] == second["loss_g"] and first["path_length"] == second["path_length"]
    other = stepped(trainer((9, 0, 0)), reals(), Condition(torch.tensor([0, 0, 0, 0])))
    assert other["loss_g"] != first["loss_g"] and other["path_length"] != first["path_length"]
    net = trainer()
    before = {n: p.detach().clone() for n, p in [*net.G.named_parameters(), *net.D.named_parameters()]}
    for _ in range(2):
        net.train_step(reals(), Condition(torch.tensor([0, 1, 2, 1])))
    moved = {n for n, p in [*net.G.named_parameters(), *net.D.named_parameters()] if not torch.equal(p, before[n])}
    assert {"mapping.embed.weight", "mapping.layers.0.weight"} <= moved


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match=r"labels: expected 4, one for each image; got none"):
        trainer().train_step(reals())
    with pytest.raises(ValueError, match=r"labels: expected 4, one for each image; got 3"):
        trainer().train_step(reals(), Condition(torch.tensor([0, 1, 2])))
    with pytest.raises(ValueError, match=r"labels: expected none, the networks have no classes; got 4"):
        trainer(None, CONFIG).train_step(reals(), Condition(torch.tensor([0, 1, 2, 0])))
    with pytest.raises(ConfigError, match=r"class_counts: expected 3"):
        trainer((1, 2))


def run(data, out, *more):
    arguments = ["--data", str(data.path), "--out", str(out), "--preset", "demo", "--threads", "1", "--no-progress"]
    return train.main([*arguments, "--kimg-2d", "0.032", "--kimg-3d", "0.016", "--snapshot-kimg", "0.016", *more])


def test_from_the_command_to_volumes_of_a_class(tmp_path, capsys):
    """Both stages, inflation, metrics by class share, resume, generation by name."""
    data = write_data(tmp_path / "data", ["AD", "CN", "CN", "MCI"] * 6, shape=(8, 12, 8))
    metrics = ("--metrics", "frechet,msssim,coverage", "--metrics-every", "8")
    assert run(data, tmp_path / "run", "--conditional", *metrics) == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["network"]["classes"] == 3 and record["data"]["class_counts"] == [6, 12, 6]
    report = (tmp_path / "run" / "inflation.txt").read_text()
    assert "mapping.embed.weight" in report
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for stage in ("2d", "3d"):
        assert all(np.isfinite(r[n]) for r in rows if r["stage"] == stage and "loss_g" in r and "frechet" in r
                   for n in ("distance", "frechet", "msssim", "coverage"))  # fmt: skip
        measured = [(r["images"], r["frechet"]) for r in rows if r["stage"] == stage and "frechet" in r]
        events = EventAccumulator(str(tmp_path / "run" / "tensorboard" / stage)).Reload()
        assert measured and [e.step for e in events.Scalars("frechet")] == [i for i, _ in measured if i]
        values = [e.value for e in events.Scalars("frechet")]
        np.testing.assert_allclose(values, [v for i, v in measured if i], rtol=1e-6)
    assert run(data, tmp_path / "run", "--conditional", *metrics) == 0  # finished
    out = ["--out", str(tmp_path / "made"), "--seeds", "0", "--device", "cpu"]
    assert generate.main(["--run", str(tmp_path / "run"), "--class", "MCI", "--truncation", "0.5", *out]) == 0
    looked_at_by_class(tmp_path / "run", tmp_path, capsys)
    assert run(data, tmp_path / "run") == 2
    assert "network.classes was 3, now 0" in capsys.readouterr().err
    assert run(data, tmp_path / "dry", "--conditional", "--dry-run", "--stage", "3d") == 0
    assert "parameters: G" in capsys.readouterr().out and not (tmp_path / "dry").exists()


def looked_at_by_class(path, folder, capsys):
    """evaluate, report and latents of a run with classes."""
    told = ["--real", str(folder / "data"), "--fake", str(path), "--out", str(folder / "metrics.json")]
    assert evaluate.main([*told, "--count", "12"]) == 0
    assert report.main(["--run", str(path), "--count", "6"]) == 0
    where = ["--run", str(path), "--device", "cpu"]
    walk = ["truncation", *where, "--out", str(folder / "walk"), "--seeds", "0", "--values", "0.5"]
    assert latents_command.main([*walk, "--class", "MCI"]) == 0
    (mine,) = (folder / "walk").glob("*.nii.gz")
    (made,) = (folder / "made").glob("*.nii.gz")
    # To the class's own mean, as `generate` goes.
    np.testing.assert_allclose(nibabel.load(mine).get_fdata(), nibabel.load(made).get_fdata(), atol=1e-2)
    common = ["--out", str(folder / "more"), "--class", "AD"]
    assert latents_command.main(["interpolate", *where, *common, "--seeds", "0-1", "--steps", "2"]) == 0
    common[1] = str(folder / "project")
    project = ["project", *where, *common, "--data", str(folder / "data"), "--index", "0", "--steps", "2"]
    assert latents_command.main(project) == 0
    capsys.readouterr()
    assert latents_command.main([*walk, "--class", "all"]) == 2
    assert "works within one class; name it" in capsys.readouterr().err
    assert latents_command.main(walk) == 2
    assert "was trained with classes; give one of 0 (AD), 1 (CN), 2 (MCI)" in capsys.readouterr().err


def test_without_classes_it_says_so(tmp_path, capsys):
    data = write_data(tmp_path / "data", [None] * 4, shape=(8, 12, 8))
    assert run(data, tmp_path / "run", "--conditional") == 2
    assert "--conditional: expected a data set with at least two classes, this one has none" in capsys.readouterr().err
    one = write_data(tmp_path / "one", ["AD"] * 4, shape=(8, 12, 8))
    assert run(one, tmp_path / "run", "--conditional") == 2
    assert "this one has only 'AD'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"classes: the networks have 3, the data set .* has 0"):
        loop.train(LABELLED, data, tmp_path / "run", progress=False)


def test_a_run_does_not_go_on_with_other_classes(data, tmp_path):
    quiet = {"progress": False, "echo": lambda text: None}
    assert loop.train(LABELLED, data, tmp_path / "run", **quiet) == 0
    head = json.loads((data.path / "dataset.json").read_text())
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "volumes.npy").hardlink_to(data.path / "volumes.npy")
    head["volumes"][0]["class_label"] = "CN"
    (changed / "dataset.json").write_text(json.dumps(head))
    with pytest.raises(RunError, match="the classes of the data set"):
        loop.train(LABELLED, VolumeDataset(changed), tmp_path / "run", **quiet)


def test_classes_are_learnt(data):
    """Each class has its level of grey: after 150 steps G has them too."""
    stage = dataclasses.replace(LABELLED.stage_3d, batch=8, lr_g=0.01, lr_d=0.01, ema_kimg=0.1, kimg=10.0, pl_weight=0)
    cfg = dataclasses.replace(LABELLED, stage_3d=stage)
    net = StageTrainer(cfg, "3d", CPU)
    images = RealImages(data, "3d", 0)
    for _ in range(150):
        net.train_step(*images.batch(net.images, 8, net.local_samples))
    z = latents(range(8), cfg.network.z_dim)
    means = [synthesise(net.G_ema, z, batch=8, c=torch.full((8,), k)).mean((1, 2, 3)) for k in range(3)]
    assert [float(m.mean()) for m in means] == pytest.approx([-0.6, 0.0, 0.6], abs=0.2)


def test_a_published_network_with_classes_starts_a_run_with_as_many(tmp_path, capsys):
    maker = cases.Maker(resolution=8, widths=(8, 4), c_dim=3)
    source, start = tmp_path / "classes.pkl", tmp_path / "start.safetensors"
    source.write_bytes(cases.dumps(maker.snapshot()))
    assert inflate.main(["--source", str(source), "--out", str(start)]) == 0
    data = write_data(tmp_path / "data", ["AD", "CN", "MCI", "CN"], shape=(8, 8, 8))
    told = ["--stage", "3d", "--init", str(start), "--batch-3d", "4", "--kimg-3d", "0.008"]
    assert run(data, tmp_path / "run", *told) == 2
    assert "its networks have classes 3, this run's 0" in capsys.readouterr().err
    assert run(data, tmp_path / "run", *told, "--conditional") == 0
