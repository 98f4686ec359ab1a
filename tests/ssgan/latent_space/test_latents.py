"""`ssgan latents`: paths against their formulas, PCA against NumPy, projections that must find what is there."""

import hashlib
import json
import signal

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from ssgan import latents
from ssgan.data.dataset import VolumeDataset
from ssgan.latent_space import styles
from ssgan.latent_space.directions import principal_directions
from ssgan.latent_space.files import LatentError, load_tensors, save_tensors
from ssgan.latent_space.projection import (
    FeatureDistance,
    ProjectionConfig,
    Projector,
    noise_penalty,
    random_features,
    rate_factor,
    set_noise,
)
from ssgan.models.sampling import latents as draw
from ssgan.runs.generator import load_generator
from ssgan.utils.pictures import ImageError, cells_gif, table, three_plane_cell
from tests.support.tiny_runs import SHAPE, make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("latents"))


@pytest.fixture
def G(run):
    return load_generator(run).G


def go(run, out, command, *arguments):
    where = ["--run", str(run), "--out", str(out), "--device", "cpu"]
    return latents.main([command, *where, *map(str, arguments)])


def volumes(out):
    return {p.name.removesuffix(".nii.gz"): np.asarray(nibabel.load(p).dataobj) for p in out.glob("*.nii.gz")}


def digests(out):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir() if p.suffix != ".json"}


def synthesised(G, ws, noise="const"):
    with torch.no_grad():
        return G.synthesis(ws[None], noise=noise)[0, 0].numpy()


# ---- paths and styles ----


def test_slerp_goes_evenly_along_the_arc():
    a, b = torch.tensor([2.0, 0, 0]), torch.tensor([0, 4.0, 0])
    path = styles.slerp(a, b, torch.linspace(0, 1, 5))
    angles = np.arange(5) * np.pi / 8
    expected = np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1) * np.linspace(2, 4, 5)[:, None]
    np.testing.assert_allclose(path.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("small", [0.0, 1e-6, 1e-3, 0.5, 3.0])
def test_slerp_keeps_its_digits_at_every_angle(small):
    a = torch.tensor([1.0, 0.0])
    b = torch.tensor([np.cos(small), np.sin(small)], dtype=torch.float32)
    middle = styles.slerp(a, b, torch.tensor([0.5]))[0].numpy()
    np.testing.assert_allclose(middle, [np.cos(small / 2), np.sin(small / 2)], atol=1e-6)


def test_slerp_refuses_what_has_no_shortest_way():
    a = torch.tensor([1.0, 0.0])
    with pytest.raises(LatentError, match="opposite"):
        styles.slerp(a, -a, torch.tensor([0.5]))
    with pytest.raises(LatentError, match="length zero"):
        styles.slerp(a, 0 * a, torch.tensor([0.5]))


def test_levels_own_all_of_ws_and_change_only_what_follows_them(G):
    slices = styles.level_slices(G)
    owned = [i for part in slices for i in range(G.num_ws)[part]]
    assert owned == list(range(G.num_ws)) and len(slices) == len(G.synthesis.blocks)
    ws, other = torch.randn(2, G.num_ws, 8)
    mixed = styles.mix(G, ws, other, [1])
    assert torch.equal(mixed[slices[0]], ws[slices[0]]) and torch.equal(mixed[slices[1]], other[slices[1]])
    assert torch.equal(styles.mix(G, ws, other, []), ws) and torch.equal(styles.mix(G, ws, other, [0, 1]), other)
    # The features of level 0 come from the styles of level 0 alone.
    seen = []
    handle = G.synthesis.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    for changed in (ws, mixed, styles.mix(G, ws, other, [0])):
        synthesised(G, changed)
    handle.remove()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_directions_are_those_of_an_svd(G):
    found = principal_directions(G, 5, samples=400, seed=3)
    z = torch.randn(400, 6, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        w = G.mapping(z).double().numpy()
    _, sizes, rows = np.linalg.svd(w - w.mean(0), full_matrices=False)
    np.testing.assert_allclose(found.mean, w.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.std, sizes[:5] / np.sqrt(399), rtol=1e-4)
    np.testing.assert_allclose(found.share, sizes[:5] ** 2 / (sizes**2).sum(), rtol=1e-4)
    overlap = np.abs((found.components.double().numpy() * rows[:5]).sum(1))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)
    largest = np.take_along_axis(found.components.numpy(), np.abs(found.components.numpy()).argmax(1)[:, None], 1)
    assert (largest > 0).all()
    with pytest.raises(LatentError, match="8 dimensions, so 1 to 8 directions; got 9"):
        principal_directions(G, 9, samples=400, seed=0)
    with pytest.raises(LatentError, match="more than the 8 dimensions"):
        principal_directions(G, 2, samples=8, seed=0)


# ---- the commands that make tables ----


def test_interpolation_ends_at_its_seeds(run, G, tmp_path):
    assert go(run, tmp_path, "interpolate", "--seeds", "3,1", "--steps", 2, "--truncation", 0.5) == 0
    made = volumes(tmp_path)
    assert sorted(made) == [f"seed0003-to-0001-{i:03d}" for i in range(3)]
    info = load_generator(run).info
    for name, seed in (("000", 3), ("002", 1)):
        with torch.no_grad():
            expected = G(draw([seed], 6), truncation=0.5, noise="const")[0, 0].numpy()
        raw = (expected + 1) / 2 * (info.intensity_high - info.intensity_low) + info.intensity_low
        np.testing.assert_allclose(made[f"seed0003-to-0001-{name}"], raw.transpose(2, 1, 0), atol=0.01 * np.ptp(raw))
    image = nibabel.load(tmp_path / "seed0003-to-0001-001.nii.gz")
    np.testing.assert_allclose(image.affine, info.affine)
    with Image.open(tmp_path / "interpolation.gif") as gif:
        assert gif.n_frames == 4  # there, and back without the ends


def test_interpolation_in_w_is_straight_and_loops(run, G, tmp_path):
    assert go(run, tmp_path, "interpolate", "--seeds", "0-1", "--steps", 2, "--space", "w", "--loop") == 0
    with torch.no_grad():
        w = G.mapping(draw([0, 1], 6))
    middle = synthesised(G, w.mean(0).expand(G.num_ws, -1))
    made = volumes(tmp_path)
    a, b = made["seed0000-to-0001-001"], made["seed0001-to-0000-001"]
    np.testing.assert_allclose(a, b, atol=0.01 * np.ptp(a))
    correlation = np.corrcoef(a.ravel(), middle.transpose(2, 1, 0).ravel())[0, 1]
    assert correlation > 0.9999
    with Image.open(tmp_path / "interpolation.gif") as gif:
        assert gif.n_frames == 4


def test_mixing_and_its_sources(run, G, tmp_path):
    assert go(run, tmp_path, "mix", "--rows", "0-1", "--columns", "2", "--levels", "1") == 0
    made = volumes(tmp_path)
    assert sorted(made) == ["seed0000", "seed0000-with-0002", "seed0001", "seed0001-with-0002", "seed0002"]
    with torch.no_grad():
        w = G.mapping(draw([1, 2], 6))
    cut = styles.level_slices(G)[1].start
    ws = torch.cat([w[0].expand(cut, -1), w[1].expand(G.num_ws - cut, -1)])
    expected = synthesised(G, ws).transpose(2, 1, 0)
    assert np.corrcoef(made["seed0001-with-0002"].ravel(), expected.ravel())[0, 1] > 0.9999
    assert (tmp_path / "mixing.png").is_file() and (tmp_path / "mixing.gif").is_file()


def test_truncation_zero_is_the_mean_of_all(run, tmp_path):
    assert go(run, tmp_path, "truncation", "--seeds", "0-1", "--values", 0, 1) == 0
    made = volumes(tmp_path)
    np.testing.assert_array_equal(made["seed0000-truncation0"], made["seed0001-truncation0"])
    assert not np.array_equal(made["seed0000-truncation1"], made["seed0001-truncation1"])


def test_directions_sweep_and_rerun(run, tmp_path, capsys):
    arguments = ("--components", 2, "--samples", 200, "--steps", 3, "--seeds", "4,5")
    assert go(run, tmp_path / "a", "directions", *arguments) == 0
    assert go(run, tmp_path / "b", "directions", *arguments) == 0
    assert "2 directions explain" in capsys.readouterr().out
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    made = volumes(tmp_path / "a")
    assert len(made) == 2 * 2 * 3
    np.testing.assert_array_equal(made["direction01-seed4-+0.00"], made["direction02-seed4-+0.00"])
    assert not np.array_equal(made["direction01-seed4-+3.00"], made["direction02-seed4-+3.00"])
    # Fewer volumes in a second call: those of the first that are no longer made are gone, other files stay.
    (tmp_path / "a" / "notes.txt").write_text("mine")
    assert go(run, tmp_path / "a", "directions", "--components", 1, "--samples", 200, "--steps", 2) == 0
    assert sorted(volumes(tmp_path / "a")) == ["direction01-mean-+3.00", "direction01-mean--3.00"]
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


# ---- projection ----


def test_the_noise_penalty_is_that_of_its_definition():
    noise = np.random.default_rng(0).standard_normal((4, 16, 6)).astype(np.float32)
    total, x = 0.0, noise.astype(np.float64)
    for _ in range(2):
        for axis in range(3):
            total += np.mean(x * np.roll(x, 1, axis)) ** 2
        pairs = x.reshape(4, x.shape[1] // 2, 2, 6)
        x = pairs.sum(2) / np.sqrt(2)
    np.testing.assert_allclose(float(noise_penalty(torch.from_numpy(noise))), total, rtol=1e-4)
    structure = torch.linspace(-1.7, 1.7, 16).reshape(1, 16, 1).expand(4, 16, 6)
    assert float(noise_penalty(structure)) > 10 * total


def test_the_rate_rises_stays_and_falls():
    assert rate_factor(0) == 0 and rate_factor(0.025) == pytest.approx(0.5)
    assert rate_factor(0.05) == rate_factor(0.75) == 1
    assert rate_factor(0.875) == pytest.approx(0.5) and rate_factor(1) == pytest.approx(0)


def test_the_feature_distance_is_that_of_its_definition(G):
    D = random_features(G)
    x, y = torch.randn(2, 1, 1, *SHAPE)
    own, other = ([D.from_image(v)] for v in (x, y))
    for maps in (own, other):
        maps += [D.blocks[0](maps[0])]
    expected = []
    for a, b in zip(own, other, strict=True):
        a, b = (v.double().numpy() / np.sqrt((v.double().numpy() ** 2).sum(1, keepdims=True)) for v in (a, b))
        expected.append(((a - b) ** 2).sum(1).mean())
    distance = FeatureDistance(D, y)
    np.testing.assert_allclose(float(distance(x)), np.mean(expected), rtol=1e-4)
    assert float(distance(y)) == 0
    again = random_features(G)
    assert all(torch.equal(a, b) for a, b in zip(D.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("space", ["w", "w+"])
def test_a_generated_volume_is_found_again(run, space):
    """A target of the generator's own has a w; a planted stranger has not, and w+ comes nearer to it than w."""
    G = load_generator(run).G
    with torch.no_grad():
        target = G(draw([5], 6), noise="const")[0, 0]
        mean = G.synthesis(styles.map_latents(G, torch.randn(500, 6)).mean(0).expand(1, G.num_ws, -1), noise="const")[
            0, 0
        ]
    cfg = ProjectionConfig(space=space, steps=150, features="random", fit_noise=False)
    projector = Projector(G, random_features(G), target, cfg)
    for _ in range(cfg.steps):
        projector.advance()
    start = float((mean - target).square().mean().sqrt())
    assert projector.figures()["rms"] < 0.2 * start
    assert projector.figures()["psnr"] == pytest.approx(20 * np.log10(2 / projector.figures()["rms"]))
    assert len(projector.ws.unique(dim=1)[0]) == (1 if space == "w" else G.num_ws)


def projector_of(run, **changes):
    G = load_generator(run).G
    target = torch.from_numpy(np.array(VolumeDataset(run.parent / "data").volumes[0]))
    return Projector(G, random_features(G), target, ProjectionConfig(**{"space": "w+", "steps": 12, **changes}))


def test_noise_maps_stay_white_and_of_unit_size(run):
    projector = projector_of(run)
    before = {name: n.detach().clone() for name, n in projector.noise.items()}
    for _ in range(12):
        projector.advance()
    for name, n in projector.state().items():
        if not name.startswith("noise."):
            continue
        n = n.detach()
        assert float(n.mean()) == pytest.approx(0, abs=1e-5)
        assert float(n.square().mean()) == pytest.approx(1, abs=1e-4)
        assert not torch.equal(n, before[name.removeprefix("noise.")])
    assert projector_of(run, fit_noise=False).noise == {}


def test_a_projection_taken_up_again_is_the_same_bit_for_bit(run, tmp_path):
    whole = projector_of(run)
    for _ in range(12):
        whole.advance()
    first = projector_of(run)
    for _ in range(5):
        first.advance()
    file = save_tensors(tmp_path / "p.safetensors", "projection", first.state(), {"step": first.step})
    tensors, record = load_tensors(file, "projection")
    second = projector_of(run)
    second.load(tensors, record["step"])
    while second.step < 12:
        second.advance()
    a, b = whole.state(), second.state()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    other = projector_of(run, seed=1)
    other.advance()
    assert not torch.equal(other.ws, first.ws)


def test_project_and_edit(run, tmp_path, capsys):
    """The files, the geometry of the target itself, and an edit of strength zero that changes nothing."""
    arguments = ("--index", 2, "--space", "w+", "--steps", 20)
    assert go(run, tmp_path / "p", "project", *arguments) == 0
    out = capsys.readouterr().out
    assert "step 20 of 20" in out and "PSNR" in out
    names = {p.name for p in (tmp_path / "p").iterdir()}
    expected = {"target.nii.gz", "reconstruction.nii.gz", "projection.png", "projection.gif", "projection.safetensors"}
    assert names == expected | {"latents.json"}
    record = json.loads((tmp_path / "p" / "latents.json").read_text())
    assert "squared distance between features" in record["protocol"] and record["figures"]["rms"] > 0
    target = nibabel.load(tmp_path / "p" / "target.nii.gz")
    data = VolumeDataset(run.parent / "data")
    stored = data.records[2]
    np.testing.assert_allclose(target.affine, stored["affine"])
    low, high = stored["intensity_low"], stored["intensity_high"]
    raw = (data.volumes[2].transpose(2, 1, 0) + 1) / 2 * (high - low) + low
    np.testing.assert_allclose(np.asarray(target.dataobj), raw, atol=0.01 * (high - low))
    # Again: finished, nothing is computed, the reconstruction stays.
    before = digests(tmp_path / "p")["projection.safetensors"]
    assert go(run, tmp_path / "p", "project", *arguments) == 0
    assert "finished before" in capsys.readouterr().out
    assert digests(tmp_path / "p")["projection.safetensors"] == before
    assert go(run, tmp_path / "p", "project", *arguments[:-1], 21) == 2
    assert "holds another projection (the settings differ)" in capsys.readouterr().err

    assert go(run, tmp_path / "d", "directions", "--components", 2, "--samples", 100, "--steps", 2) == 0
    files = [
        "--projection",
        tmp_path / "p/projection.safetensors",
        "--directions",
        tmp_path / "d/directions.safetensors",
    ]
    assert go(run, tmp_path / "e", "edit", *files, "--components", "2", "--steps", 3, "--levels", "0") == 0
    made = volumes(tmp_path / "e")
    assert sorted(made) == [f"direction02-projection-{a}" for a in ("+0.00", "+3.00", "-3.00")]
    G = load_generator(run).G
    tensors, _ = load_tensors(tmp_path / "p" / "projection.safetensors", "projection")
    set_noise(G, tensors)
    unmoved = synthesised(G, tensors["ws"][0]).transpose(2, 1, 0)
    still = made["direction02-projection-+0.00"]
    assert np.corrcoef(still.ravel(), unmoved.ravel())[0, 1] > 0.9999
    assert np.abs(made["direction02-projection-+3.00"] - still).max() > 0
    assert go(run, tmp_path / "e2", "edit", *files, "--components", "3") == 2
    assert "has directions 1 to 2; got 3" in capsys.readouterr().err


def test_a_nifti_file_of_the_data_set_is_prepared_like_it(run, tmp_path):
    """A stored phantom written as NIfTI and read back is the stored phantom."""
    assert go(run, tmp_path / "a", "project", "--index", 1, "--steps", 1) == 0
    scan = tmp_path / "a" / "target.nii.gz"
    assert (
        go(run, tmp_path / "b", "project", "--volume", scan, "--steps", 1, "--noise", "const", "--voxel-weight", 0) == 0
    )
    a, b = (nibabel.load(tmp_path / x / "target.nii.gz") for x in "ab")
    np.testing.assert_allclose(a.affine, b.affine, atol=1e-4)
    np.testing.assert_allclose(np.asarray(a.dataobj), np.asarray(b.dataobj), atol=0.01 * np.ptp(a.dataobj))


def test_interrupted_it_saves_and_goes_on_to_the_same_end(run, tmp_path, monkeypatch, capsys):
    arguments = ("--index", 0, "--space", "w+", "--features", "random", "--steps", 9)
    assert go(run, tmp_path / "whole", "project", *arguments) == 0
    real, calls = Projector.advance, []

    def advance(self):
        calls.append(0)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(self)

    monkeypatch.setattr(Projector, "advance", advance)
    assert go(run, tmp_path / "stopped", "project", *arguments) == 128 + signal.SIGINT
    assert "step 4 of 9" in (out := capsys.readouterr().out) and "the same command goes on from there" in out
    assert (tmp_path / "stopped" / "reconstruction.nii.gz").is_file()
    assert go(run, tmp_path / "stopped", "project", *arguments) == 0
    assert len(calls) == 9
    assert digests(tmp_path / "stopped") == digests(tmp_path / "whole")


# ---- errors ----


@pytest.mark.parametrize(
    ("command", "arguments", "match"),
    [
        ("interpolate", ["--seeds", "1"], "at least 2"),
        ("interpolate", ["--seeds", "x"], "--seeds: expected numbers and ranges"),
        ("mix", ["--rows", "0", "--columns", "1", "--levels", "2"], "--levels: expected numbers"),
        ("mix", ["--rows", "0", "--columns", "1", "--levels", "1-0"], "0: 3x4x6; 1: 6x8x12; got '1-0'"),
        ("truncation", ["--seeds", "0", "--values", "nan"], "--values"),
        ("truncation", ["--seeds", "0", "--values", "1", "1"], "different numbers"),
        ("truncation", ["--seeds", "0-999"], "6000 volumes are more than 4096"),
        ("directions", ["--components", "9"], "8 dimensions"),
        ("project", ["--index", "6"], "has volumes 0 to 5; got 6"),
        ("project", ["--index", "0", "--data", "nowhere"], "nowhere does not exist"),
        ("project", ["--volume", "nowhere.nii"], "nowhere.nii: no such file"),
        ("project", ["--index", "0", "--rate", "nan"], "learning_rate: expected a number above 0; got nan"),
        ("project", ["--index", "0", "--voxel-weight", "-1"], "voxel_weight: expected a number at least 0"),
        ("project", ["--volume", "a.nii", "--data", "x"], "--data: only with --index"),
        ("edit", ["--projection", "nowhere", "--directions", "nowhere"], "nowhere does not exist"),
        ("interpolate", ["--seeds", "0-1", "--run", "nowhere"], "not a run's folder"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(run, tmp_path, capsys, command, arguments, match):
    assert go(run, tmp_path / "out", command, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ssgan latents: error: ") and match in error
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_2d_run_and_foreign_folders_are_refused(run, tmp_path, capsys):
    flat = make_run(tmp_path / "flat", "2d")
    assert go(flat, tmp_path / "out", "truncation", "--seeds", "0") == 2
    assert "stage 2d, which makes slices" in capsys.readouterr().err
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "seed0000-truncation1.nii.gz").write_bytes(b"mine")
    assert go(run, foreign, "truncation", "--seeds", "0") == 2
    assert "was not made by `ssgan latents`" in capsys.readouterr().err
    assert (foreign / "seed0000-truncation1.nii.gz").read_bytes() == b"mine"
    assert go(run, tmp_path / "t", "truncation", "--seeds", "0", "--values", 1) == 0
    assert go(run, tmp_path / "t", "mix", "--rows", "0", "--columns", "1") == 2
    assert "holds the results of `ssgan latents truncation`" in capsys.readouterr().err


def test_files_of_another_kind_or_damaged_are_refused(tmp_path):
    file = save_tensors(tmp_path / "d.safetensors", "directions", {"mean": torch.zeros(3)}, {})
    with pytest.raises(LatentError, match="holds directions; expected projection"):
        load_tensors(file, "projection")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LatentError, match="damaged"):
        load_tensors(file, "directions")


def test_pictures_of_tables_refuse_what_does_not_fit(tmp_path):
    cell = three_plane_cell(np.zeros((4, 5, 6)))
    with pytest.raises(ImageError, match="expected 1 rows of 2"):
        table([[cell]], ["a"], ["b", "c"], tmp_path / "a.png", "t")
    with pytest.raises(ImageError, match="every place"):
        table([[None]], ["a"], ["b"], tmp_path / "a.png", "t")
    with pytest.raises(ImageError, match="equally many"):
        cells_gif([[cell], []], ["a", "b"], tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
