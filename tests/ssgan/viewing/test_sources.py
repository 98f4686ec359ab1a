"""What `ssgan view` shows: a run's volumes against the networks and against the commands that are to make the same,
the newest checkpoint, training volumes; data sets and files, and nothing beside them."""

import dataclasses
import gzip
import json
import shlex
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from ssgan import cli
from ssgan.data.dataset import VolumeDataset, to_nifti
from ssgan.data.writer import DatasetWriter
from ssgan.latent_space.directions import principal_directions
from ssgan.models.sampling import class_mean, latents
from ssgan.runs.generator import load_generator
from ssgan.training import loop
from ssgan.utils.errors import UserError
from ssgan.viewing.browsing import DatasetBrowser, FileBrowser
from ssgan.viewing.exploring import RunExplorer
from ssgan.viewing.replies import Forbidden, NotFound
from tests.support.tiny_runs import CONFIG, SHAPE, add_checkpoint, make_class_run, make_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("viewing"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return make_class_run(tmp_path_factory.mktemp("classes"))


def explore(run, checkpoint=None, data=None):
    return RunExplorer(run, checkpoint, data, CPU)


def asked(text):
    return dict(pair.split("=") for pair in text.split("&")) if text else {}


def image(reply):
    data = gzip.decompress(reply.body) if reply.name.endswith(".gz") else reply.body
    return nibabel.Nifti1Image.from_bytes(data)


def voxels(reply):
    return np.asarray(image(reply).dataobj)


# ---- a run's volumes ----


def test_a_seed_is_the_generators_volume_with_the_data_sets_geometry(run):
    source = load_generator(run)
    with torch.no_grad():
        expected = source.G(latents([5], 6), noise="none", truncation=0.25)[0, 0].numpy()
    shown = image(explore(run).volume(asked("seed=5&noise=none&truncation=0.25"), save=False))
    ours = to_nifti(expected, source.info)
    np.testing.assert_allclose(np.asarray(shown.dataobj), np.asarray(ours.dataobj), rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(shown.affine, ours.affine)
    assert shown.shape == SHAPE[::-1] and shown.header.get_xyzt_units()[0] == "mm"


def test_film_mixing_and_directions_by_their_formulas(run):
    """On the ws, written out: w is (6 -> 8 wide), the network's two levels own the styles 0 and 1 to 3."""
    G, info = load_generator(run).G, load_generator(run).info
    with torch.no_grad():
        w = {seed: G.mapping.w_avg + 0.5 * (G.mapping(latents([seed], 6))[0] - G.mapping.w_avg) for seed in (1, 2, 3)}
        ws = (0.75 * w[1] + 0.25 * w[2]).repeat(4, 1)
        ws[1:] = w[3]
        found = principal_directions(G, 8, 10_000, 0)
        ws += 1.5 * found.std[0] * found.components[0] - 2 * found.std[2] * found.components[2]
        expected = G.synthesis(ws[None], noise="const")[0, 0].numpy()
    shown = explore(run).volume(
        asked("seed=1&truncation=0.5&to=2&at=0.25&mix=3&levels=1&moves=1:1.5,2:0,3:-2"), save=False
    )
    np.testing.assert_allclose(voxels(shown), np.asarray(to_nifti(expected, info).dataobj), rtol=1e-4, atol=1e-2)


QUERIES = {
    "a seed": "seed=3",
    "truncated, without noise": "seed=12345&truncation=0.35&noise=none",
    "on the way to another seed": "seed=3&to=4&at=0.125",
    "mixed": "seed=3&truncation=0.7&mix=9&levels=1",
    "moved": "seed=3&moves=1:1.7,4:-0.1",
    "all of it": "seed=3&truncation=0.9&noise=none&to=1&at=0.3&mix=9&levels=0&moves=2:-3",
}


@pytest.mark.parametrize("text", QUERIES.values(), ids=QUERIES)
def test_the_command_makes_the_same_volume_bit_for_bit(run, tmp_path, monkeypatch, text):
    explorer, query = explore(run), asked(text)
    words = shlex.split(explorer.command(query))
    assert words[0] == "ssgan"
    monkeypatch.chdir(tmp_path)
    assert cli.main(words[1:]) == 0
    (file,) = tmp_path.rglob("*.nii.gz")
    made, shown = nibabel.load(file), image(explorer.volume(query, save=True))
    np.testing.assert_array_equal(np.asarray(made.dataobj), np.asarray(shown.dataobj))
    assert made.header.binaryblock == shown.header.binaryblock
    assert np.asarray(made.dataobj).tobytes() == np.asarray(shown.dataobj).tobytes()


@pytest.mark.parametrize("text", ["seed=2&class=1&truncation=0.5", "seed=2&class=1&moves=1:2"], ids=["seed", "moved"])
def test_the_command_names_the_class(classes, tmp_path, monkeypatch, text):
    explorer = explore(classes)
    assert explorer.about()["classes"] == ["AD", "a class"]
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(explorer.command(asked(text)))[1:]) == 0
    (file,) = tmp_path.rglob("*.nii.gz")
    shown = voxels(explorer.volume(asked(text), save=False))
    np.testing.assert_array_equal(np.asarray(nibabel.load(file).dataobj), shown)
    assert np.abs(shown - voxels(explorer.volume(asked(text.replace("class=1", "class=0")), save=False))).max() > 0.1


def test_truncation_moves_towards_the_mean_of_the_class(classes):
    source = load_generator(classes)
    with torch.no_grad():
        ws = class_mean(source.G, 1)[None, None].expand(1, source.G.num_ws, -1)
        expected = to_nifti(source.G.synthesis(ws, noise="const")[0, 0].numpy(), source.info)
    shown = explore(classes).volume(asked("class=1&truncation=0"), save=False)
    np.testing.assert_allclose(voxels(shown), np.asarray(expected.dataobj), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("seed=-1", "--seed: expected 0 to 4294967295; got -1"),
        ("seed=x", "seed: expected a number; got 'x'"),
        ("truncation=1.5", "--truncation: expected 0 to 1; got 1.5"),
        ("truncation=nan", "--truncation: expected 0 to 1; got nan"),
        ("noise=random", "--noise: expected const or none; got 'random'"),
        ("at=0.5", "--at: needs the seed of --to-seed"),
        ("levels=1", "--mix-seed and --mix-levels: expected both or neither"),
        ("mix=1&levels=2", "--mix-levels: expected levels 0 to 1; got [2]"),
        ("mix=1&levels=a", "levels: expected numbers such as 0,1; got 'a'"),
        ("moves=9:1", "--move: expected directions 1 to 8; got 9"),
        ("moves=1:1,1:2", "--move: expected each direction once"),
        ("moves=1:nan", "moved by at most 100"),
        ("moves=1", "--move: expected a direction and standard deviations, such as 2:-1.5; got '1'"),
    ],
)
def test_bad_values_are_named(run, text, match):
    with pytest.raises(UserError) as error:
        explore(run).volume(asked(text), save=False)
    assert match in str(error.value)


def test_a_class_that_is_not_there(classes):
    with pytest.raises(UserError, match="class: expected 0 to 1; got 2"):
        explore(classes).volume({"class": "2"}, save=False)


@pytest.mark.parametrize("depth_aware", [False, True])
def test_the_2d_stage_shows_every_slice(tmp_path, depth_aware):
    cfg = dataclasses.replace(CONFIG, stage="2d", network=CONFIG.network.depth_aware(depth_aware))
    data = VolumeDataset(make_run(tmp_path).parent / "data")
    loop.train(cfg, data, tmp_path / "2d", progress=False, echo=lambda text: None)
    source, explorer = load_generator(tmp_path / "2d"), explore(tmp_path / "2d")
    with torch.no_grad():
        ws = source.G.mapping(latents([7], 6))[:, None].expand(1, source.G.num_ws, -1)
        index = [torch.tensor([d]) if depth_aware else None for d in range(SHAPE[0])]
        slices = [source.G.synthesis(ws, "const", slice_index=i)[0, 0, 0] for i in index]
    expected = np.asarray(to_nifti(torch.stack(slices).numpy(), source.info).dataobj)
    np.testing.assert_allclose(voxels(explorer.volume({"seed": "7"}, save=False)), expected, rtol=1e-5, atol=1e-3)
    assert explorer.state()["stage"] == "2d" and explorer.command({"seed": "7"}) == ""


# ---- the newest checkpoint ----


def test_it_follows_a_run_that_still_trains(run, tmp_path):
    training = tmp_path / "training"
    shutil.copytree(run, training)
    (kept,) = (p for p in (training / "checkpoints").iterdir() if p.name == "3d-final.safetensors")
    for file in (training / "checkpoints").iterdir():
        if file != kept:
            file.unlink()
    kept.rename(tmp_path / kept.name)
    explorer = explore(training)
    assert explorer.state() | {"trouble": ""} == {"checkpoint": None, "trouble": ""}
    assert "no checkpoint yet" in explorer.about()["state"]["trouble"] and explorer.about()["levels"] == []
    with pytest.raises(NotFound, match="no checkpoint yet"):
        explorer.volume({}, save=False)

    shutil.copy(tmp_path / kept.name, kept)
    assert explorer.about()["state"]["name"] == "3d-final" and explorer.about()["levels"] == ["3 x 4 x 6", "6 x 8 x 12"]
    first = voxels(explorer.volume({}, save=False))
    before = explorer.state()
    assert (before["seen"], before["trouble"]) == ("8 volumes", "")

    file = add_checkpoint(training, 0)
    after = explorer.state()
    assert (after["seen"], after["name"]) == ("12 volumes", file.stem) and after["checkpoint"] != before["checkpoint"]
    assert np.abs(voxels(explorer.volume({}, save=False)) - first).max() > 1
    assert f"--checkpoint {file.stem}" in explorer.command({})

    third = add_checkpoint(training, 1)
    third.write_bytes(third.read_bytes()[:-100])
    damaged = explorer.state()
    assert "cannot be loaded" in damaged["trouble"] and damaged["checkpoint"] == after["checkpoint"]
    explorer.volume({}, save=False)
    third.unlink()
    assert explorer.state() == after


def test_a_checkpoint_that_was_named_stays(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    explorer = explore(tmp_path / "run", Path("3d-final"))
    before = explorer.state()
    add_checkpoint(tmp_path / "run", 0)
    assert explorer.state() == before and "--checkpoint 3d-final" in explorer.command({})
    with pytest.raises(UserError, match="no checkpoint '3d-best2'"):
        explore(run, Path("3d-best2"))


# ---- training volumes ----


def test_nearest_training_volumes(run):
    """No axis has more than 16 voxels, so the distance is over voxels."""
    explorer, data = explore(run), VolumeDataset(run.parent / "data")
    with torch.no_grad():
        fake = load_generator(run).G(latents([2], 6), noise="const")[0, 0].numpy().clip(-1, 1)
    distances = [float(np.sqrt(((v - fake) ** 2).mean())) for v in data.volumes]
    found = explorer.nearest({"seed": "2"})
    order = sorted(range(6), key=lambda i: distances[i])[:5]
    assert [n["index"] for n in found["nearest"]] == order
    np.testing.assert_allclose([n["distance"] for n in found["nearest"]], [distances[i] for i in order], rtol=1e-5)
    assert [n["source"] for n in found["nearest"]] == [data.records[i]["source"] for i in order]
    own = [
        min(np.sqrt(((a - b) ** 2).mean()) for j, b in enumerate(data.volumes) if j != i)
        for i, a in enumerate(data.volumes)
    ]
    assert found["median"] == pytest.approx(float(np.median(own)), rel=1e-5) and found["low"] <= found["median"]


def test_a_training_volume_has_its_own_geometry_and_intensities(run):
    data = VolumeDataset(run.parent / "data")
    shown = image(explore(run).item("4"))
    record = data.records[4]
    np.testing.assert_allclose(shown.affine, record["affine"])
    low, high = record["intensity_low"], record["intensity_high"]
    expected = low + (np.asarray(data.volumes[4]).T + 1) / 2 * (high - low)
    np.testing.assert_allclose(np.asarray(shown.dataobj), expected, rtol=1e-5, atol=1e-3)
    for name in ("6", "-1", "a", "", "²", "../4"):
        with pytest.raises(NotFound, match="the data set has volumes 0 to 5"):
            explore(run).item(name)


def test_without_the_data_set_the_reason_is_told(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    record["data"]["path"] = str(tmp_path / "gone")
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    explorer = explore(tmp_path / "run")
    assert "name it with --data" in explorer.about()["no_training"] and explorer.about()["training"] == 0
    for call in (lambda: explorer.nearest({}), lambda: explorer.item("0")):
        with pytest.raises(NotFound, match="name it with --data"):
            call()
    assert explore(tmp_path / "run", data=run.parent / "data").about()["training"] == 6


# ---- data sets ----


def test_a_data_set_tells_the_verdict_window_and_class_of_each_volume(tmp_path):
    with DatasetWriter(tmp_path / "data", SHAPE) as writer:
        writer.skip({"file": "bad.nii.gz", "reason": "the file is empty (0 bytes)"})
        for i, label in enumerate(["AD", "CN"]):
            record = {"source": f"s{i}.nii", "intensity_low": -7.5 * i, "intensity_high": 100.0 + i, "warnings": []}
            record |= {"affine": np.diag([1.0, 2.0, 3.0, 1.0]).tolist(), "class_label": label}
            record |= {"original_shape": [9, 8, 7], "warnings": ["taken as mm"] * i}
            writer.add(np.full(SHAPE, -0.5 + i, np.float32) + np.linspace(0, 0.1, 12, dtype=np.float32), record)
        writer.finish(spacing=[1.0, 2.0, 3.0], affine=np.eye(4), slice_axis="axial", recipe="mri")
    browser = DatasetBrowser(tmp_path / "data")
    about = browser.about()
    assert about["kind"] == "dataset" and about["skipped"] == ["bad.nii.gz: the file is empty (0 bytes)"]
    assert [item["title"] for item in about["items"]] == ["0: s0.nii", "1: s1.nii"]
    lines = about["items"][1]["about"]
    assert lines == ["verdict: used, with warnings", "warning: taken as mm", "window: -7.5 to 101 became -1 to 1",
                     "class: CN", "as stored: 9 x 8 x 7 voxels"]  # fmt: skip
    shown = image(browser.item("1"))
    np.testing.assert_allclose(shown.affine, np.diag([1, 2, 3, 1]))
    assert np.asarray(shown.dataobj)[0, 0, 0] == pytest.approx(-7.5 + 1.5 / 2 * 108.5)


# ---- files ----


@pytest.fixture
def folder(tmp_path):
    """A folder with two volumes, a hidden one and a text; secret.nii lies beside it, and links lead there."""
    rng = np.random.Generator(np.random.PCG64(0))
    root = tmp_path / "scans"
    (root / "sub").mkdir(parents=True)
    for path in (root / "a.nii", root / "sub" / "b c.nii.gz", root / ".hidden.nii", tmp_path / "secret.nii"):
        nibabel.save(nibabel.Nifti1Image(rng.uniform(0, 9, (4, 5, 6)).astype(np.float32), np.eye(4)), path)
    (root / "notes.txt").write_text("private")
    (root / "link.nii").symlink_to(tmp_path / "secret.nii")
    (root / "out").symlink_to(tmp_path)
    (root / "own.nii").symlink_to(root / "a.nii")
    return root


def test_a_folder_shows_its_nifti_files_as_they_are(folder):
    browser = FileBrowser([folder])
    assert [item["name"] for item in browser.about()["items"]] == ["a.nii", "own.nii", "sub/b c.nii.gz"]
    assert browser.item("sub/b c.nii.gz").body == (folder / "sub" / "b c.nii.gz").read_bytes()
    assert browser.item("own.nii").body == (folder / "a.nii").read_bytes()
    assert browser.verdict("a.nii")[:2] == [
        "verdict: `ssgan prepare` would use it", "voxels: 4 x 5 x 6 of 1 x 1 x 1 mm (X x Y x Z)"
    ]  # fmt: skip
    (folder / "a.nii").write_bytes(b"")
    assert browser.verdict("a.nii") == ["verdict: `ssgan prepare` would leave it out: the file is empty (0 bytes)"]
    (folder / "own.nii").unlink()
    with pytest.raises(NotFound, match=r"'own.nii' is gone"):
        browser.item("own.nii")


ESCAPES = ("../secret.nii", "sub/../../secret.nii", "link.nii", "out/secret.nii", ".hidden.nii", "notes.txt", "",
           "a.nii\0", "/etc/passwd", "sub", "a.nii/../../secret.nii", "./a.nii")  # fmt: skip


@pytest.mark.parametrize("name", ESCAPES)
def test_nothing_else_is_served(folder, name):
    for ask in (FileBrowser([folder]).item, FileBrowser([folder]).verdict, FileBrowser([folder / "a.nii"]).item):
        with pytest.raises(Forbidden):
            ask(name)
    with pytest.raises(Forbidden):
        FileBrowser([folder]).item(str(folder.parent / "secret.nii"))


def test_files_that_were_named(folder, tmp_path):
    other = tmp_path / "other" / "a.nii"
    other.parent.mkdir()
    shutil.copy(tmp_path / "secret.nii", other)
    assert [i["name"] for i in FileBrowser([folder / "a.nii", folder / "link.nii"]).about()["items"]] == [
        "a.nii", "link.nii"
    ]  # fmt: skip
    both = FileBrowser([folder / "a.nii", other])
    assert [i["name"] for i in both.about()["items"]] == [str(folder / "a.nii"), str(other)]
    assert both.item(str(other)).body == other.read_bytes()
    with pytest.raises(Forbidden):
        both.item("a.nii")


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["scans/sub", "scans"], "is a folder; expected one run, data set or folder, or NIfTI files alone"),
        (["gone.nii"], "does not exist; expected a run, a data set, a folder or NIfTI files"),
        (["scans/notes.txt"], "is no NIfTI file by its name"),
        (["empty"], "is neither a run .* nor does it hold NIfTI"),
    ],
    ids=["folders", "absent", "text", "empty"],
)
def test_other_paths_are_refused(folder, names, match):
    (folder.parent / "empty").mkdir()
    with pytest.raises(UserError, match=match):
        FileBrowser([folder.parent / name for name in names])
