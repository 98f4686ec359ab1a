"""The features of deepbet: the network against the traced one, its file, and what happens without the package."""

import json
import warnings
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssgan import evaluate
from ssgan.data.axes import to_array_axes, to_world_axes
from ssgan.data.phantom import write_phantom_dataset
from ssgan.metrics import distances, registry
from ssgan.metrics.extractors import deepbet
from ssgan.metrics.extractors.choose import make_extractor
from ssgan.metrics.extractors.torchscript import read_torchscript
from ssgan.metrics.extractors.weights import WeightsError
from ssgan.metrics.prdc import compute_prdc

INSTALLED = deepbet.is_installed()
needs_deepbet = pytest.mark.skipif(not INSTALLED, reason=f"deepbet is not installed ({deepbet.INSTALL})")
WIDTHS = (16, 32, 64, 128)


def norm(x):
    """Instance norm without PyTorch's."""
    flat = x.flatten(2)
    std = (flat.var(2, correction=0) + 1e-5).sqrt()
    return ((flat - flat.mean(2, keepdim=True)) / std[..., None]).view(x.shape)


def written_out(weights, x):
    """Outputs of the stem and of the four stages, from the tensors' names alone."""
    y = F.max_pool3d(norm(F.conv3d(x, weights["init.0.weight"], stride=2, padding=3)).relu(), 3, 2, 1)
    found = [y]
    for i in range(4):
        for block in ("block1", "block2"):
            name, stride = f"down{i}.{block}", 2 if i and block == "block1" else 1
            z = norm(F.conv3d(y, weights[f"{name}.double_conv.0.weight"], stride=stride, padding=1)).relu()
            z = norm(F.conv3d(z, weights[f"{name}.double_conv.3.weight"], padding=1))
            if stride == 2:
                y = norm(F.conv3d(y, weights[f"{name}.downsample.0.weight"], stride=2))
            y = (y + z).relu()
        found.append(y)
    return found


class Whole(nn.Module):
    """A network with deepbet's four stages and a head, whose TorchScript file stands in for deepbet's."""

    def __init__(self):
        super().__init__()
        encoder = deepbet.Encoder()
        for name, child in encoder.named_children():
            setattr(self, name, child)
        self.down3 = deepbet.Stage(64, 128, 2)
        self.tp_conv2 = nn.Conv3d(128, 2, 1)

    def forward(self, x):
        x = self.init(x)
        for stage in (self.down0, self.down1, self.down2, self.down3):
            x = stage(x)
        return self.tp_conv2(x)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("deepbet") / "model.pt"
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(3)
        warnings.simplefilter("ignore")  # torch.jit is deprecated; deepbet's files are of its time
        torch.jit.trace(Whole(), torch.zeros(1, 1, 64, 64, 64)).save(str(path))
    return path


@pytest.fixture
def stand_in(file, monkeypatch):
    monkeypatch.setattr(deepbet, "installed_file", lambda: file)
    return file


def volumes(count=3, shape=(16, 24, 20), seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, *shape)).astype(np.float32)


# ---- the network ----


def test_the_network_is_the_written_out_one_layer_by_layer(stand_in):
    weights = read_torchscript(stand_in).tensors
    x = torch.randn(2, 1, 40, 33, 46, generator=torch.Generator().manual_seed(1))
    outputs, expected = make_extractor("deepbet", None).network(x), written_out(weights, x)
    assert [y.shape[1] for y in outputs] == [16, 16, 32, 64]
    for y, e in zip(outputs, expected):
        torch.testing.assert_close(y, e, rtol=1e-4, atol=1e-4)
        assert float(e.std()) > 0.1


def test_features_are_means_and_deviations_of_three_stages_of_the_enlarged_volume(stand_in):
    extractor, given = make_extractor("deepbet", None), volumes(2)
    found = extractor(given)
    assert found.shape == (2, deepbet.FEATURES) == (2, 224) and found.dtype == np.float64
    v = given[1].astype(np.float64).transpose(2, 1, 0)  # axial: the array's axes are Z, Y, X
    x = torch.from_numpy((v - v.mean()) / v.std(ddof=1) * 0.226 + 0.449).float()[None, None]
    x = F.interpolate(x, size=(40, 48, 32), mode="trilinear")  # the shortest axis from 16 to 32 voxels
    stages = [y.numpy().astype(np.float64) for y in written_out(read_torchscript(stand_in).tensors, x)[1:4]]
    expected = [y.mean((0, 2, 3, 4)) for y in stages] + [y.std((0, 2, 3, 4)) for y in stages]
    np.testing.assert_allclose(found[1], np.concatenate(expected), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(extractor(given[1:]), found[1:])  # of each volume by itself
    for axis in ("sagittal", "coronal"):  # the same volumes, sliced along another axis
        turned = to_array_axes(to_world_axes(given[1], "axial"), axis)[None]
        np.testing.assert_array_equal(make_extractor("deepbet", None, axis)(turned), found[1:])


@pytest.mark.parametrize(
    ("shape", "enlarged"),
    [
        ((16, 24, 16), (32, 48, 32)),
        ((32, 48, 32), (32, 48, 32)),
        ((12, 40, 33), (36, 120, 99)),
    ],
)
def test_small_volumes_are_enlarged_by_a_whole_factor(shape, enlarged):
    assert deepbet.enlarge(torch.rand(1, 1, *shape)).shape == (1, 1, *enlarged)


def test_a_slice_is_seen_as_a_volume_that_is_constant_along_depth(stand_in):
    extractor, given = make_extractor("deepbet", None), volumes(1, (1, 16, 20))
    np.testing.assert_array_equal(extractor(given), extractor(np.repeat(given, 16, axis=1)))


def test_a_volume_of_one_intensity_has_finite_features(stand_in):
    assert np.isfinite(make_extractor("deepbet", None)(np.full((1, 16, 16, 16), -1.0))).all()
    assert deepbet.normalise(torch.full((4, 4, 4), 0.3)).unique().tolist() == pytest.approx([0.449])


# ---- where it is reported ----


def test_evaluate_reports_it_beside_random3d_where_it_is_installed(stand_in, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(deepbet, "is_installed", lambda: True)
    for name, count, seed in (("real", 24, 1), ("fake", 12, 2)):
        write_phantom_dataset(tmp_path / name, count=count, shape=(8, 12, 8), seed=seed)

    def measured(*more):
        words = ["--real", tmp_path / "real", "--fake", tmp_path / "fake", "--out", tmp_path / "m.json", *more]
        assert evaluate.main([*map(str, words), "--repeats", "4", "--cache", str(tmp_path / "cache")]) == 0
        return json.loads((tmp_path / "m.json").read_text())

    both, plain, own = measured(), measured("--extractor", "random3d"), measured("--extractor", "deepbet")
    of_features = ("frechet", "kid", "precision", "recall", "density", "coverage")
    beside = {f"{name}_deepbet": own["metrics"][name] for name in of_features}
    assert both["metrics"] == plain["metrics"] | beside and "frechet_deepbet" in capsys.readouterr().out
    assert both["extractor"] == plain["extractor"] and both["beside"] == own["extractor"] and plain["beside"] is None
    assert both["extractor"]["name"] == "random3d" and own["extractor"]["name"] == "deepbet"
    assert both["protocol"] == f"{plain['protocol']}; *_deepbet: {make_extractor('deepbet', None).protocol}"


@pytest.mark.parametrize("stage", ["2d", "3d"])
def test_training_measures_it_by_name(stand_in, stage):
    real, other = volumes(24, (8, 12, 8), 1), volumes(24, (8, 12, 8), 2)
    data = type("Data", (), {"volumes": real, "info": SimpleNamespace(slice_axis="sagittal")})()
    extract = make_extractor("deepbet", None, "sagittal")
    generate = (lambda count: other[:count]) if stage == "3d" else (lambda count: other.reshape(-1, 1, 12, 8)[:count])
    found = {
        name: registry.make_measure(name, data, stage, 0)(generate)
        for name in registry.training_names()
        if name.endswith("_deepbet")
    }
    if stage == "3d":
        expected = {f"{n}_deepbet": v for n, v in compute_prdc(extract(real), extract(other), 5).items()}
        expected |= {"frechet_deepbet": distances.frechet(extract(real), extract(other))}
        expected |= {"kid_deepbet": distances.kid(extract(real), extract(other))}
        assert found == pytest.approx(expected, rel=1e-6)
    else:
        assert len(found) == 6 and all(np.isfinite(value) for value in found.values())


# ---- the file ----


def test_tensors_are_read_as_torch_reads_them(file):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = torch.jit.load(str(file)).state_dict()
    found = read_torchscript(file).tensors
    assert found.keys() == expected.keys() and all(torch.equal(found[n], t) for n, t in expected.items())


def test_what_is_no_network_is_refused(file, tmp_path, monkeypatch):
    cut = tmp_path / "cut.pt"
    cut.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=r"cut\.pt cannot be read as TorchScript"):
        read_torchscript(cut)
    evil = tmp_path / "evil.pt"
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("evil/data.pkl", b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR.")
    with pytest.raises(WeightsError, match=r"it names os\.system, which is no part of a network's weights"):
        read_torchscript(evil)
    assert not (tmp_path / "ran").exists()
    plain = tmp_path / "plain.pt"
    with zipfile.ZipFile(plain, "w") as archive:
        archive.writestr("plain/data.pkl", b"I1\n.")
    with pytest.raises(WeightsError, match="no TorchScript file of a network"):
        read_torchscript(plain)
    other = tmp_path / "other.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(str(other))
    monkeypatch.setattr(deepbet, "installed_file", lambda: other)
    with pytest.raises(WeightsError, match=r"does not fit deepbet: init\.0\.weight is missing"):
        make_extractor("deepbet", None)


# ---- the package ----


def install(folder, files):
    """Lays out a package deepbet without code, as pip does."""
    about = folder / "deepbet-1.0.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: deepbet\nVersion: 1.0.2\n")
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def test_the_file_is_found_among_those_of_the_installed_package(file, tmp_path, monkeypatch):
    install(tmp_path / "site", {"data/icon.png": b"", deepbet.FILE: file.read_bytes()})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert metadata.version("deepbet") == "1.0.2" and deepbet.is_installed()
    assert deepbet.installed_file() == tmp_path / "site" / "data" / "models" / "model.pt"
    extractor = make_extractor("deepbet", None)
    assert extractor.checksum == read_torchscript(file).sha256 and extractor.checksum in extractor.protocol
    with pytest.raises(WeightsError, match="--extractor deepbet takes none"):
        make_extractor("deepbet", Path("model.pt"))


def test_an_incomplete_package_says_so(tmp_path, monkeypatch):
    install(tmp_path / "site", {"data/icon.png": b""})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(WeightsError, match=r"lacks its file data/models/model\.pt; run `pip install --no-deps deepbet"):
        make_extractor("deepbet", None)


@pytest.mark.skipif(INSTALLED, reason="deepbet is installed")
def test_without_the_package_the_command_is_named():
    with pytest.raises(WeightsError, match="which is not installed; run `pip install --no-deps deepbet`"):
        make_extractor("deepbet", None)
    data = type("Data", (), {"volumes": volumes(8, (8, 8, 8)), "info": SimpleNamespace(slice_axis="axial")})()
    with pytest.raises(WeightsError, match="run `pip install --no-deps deepbet`"):  # before a training begins
        registry.make_measure("kid_deepbet", data, "3d", 0)


@needs_deepbet
def test_the_network_is_deepbet_s_own_layer_by_layer():
    """Each stage of the traced module on the output of the one before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.load(str(deepbet.installed_file()), map_location="cpu")
    x = torch.randn(1, 1, 72, 64, 80, generator=torch.Generator().manual_seed(2))
    relu = getattr(traced.conv, "2")  # shared: the traced parts take it as an argument
    with torch.no_grad():
        y = x
        for name, found in zip(("init", "down0", "down1", "down2"), make_extractor("deepbet", None).network(x)):
            y = getattr(traced, name).forward(relu, y)
            torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5)
