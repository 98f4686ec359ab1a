"""Feature extractors: each network against others' code or a functional oracle, its files, its errors."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssgan import evaluate, labelnet
from ssgan.data.phantom import make_phantom
from ssgan.data.writer import DatasetWriter
from ssgan.metrics import distances
from ssgan.metrics.extractors import inception, medicalnet, radimagenet, resnet
from ssgan.metrics.extractors.choose import make_extractor
from ssgan.metrics.extractors.planes import slice_positions, three_planes
from ssgan.metrics.extractors.weights import WeightsError, fit, read_weights
from ssgan.metrics.features import per_volume, views
from ssgan.metrics.registry import METRICS
from ssgan.models.networks import Discriminator
from tests.support.extractor_oracles import (
    inception_shapes,
    inception_stages,
    monai_medicalnet,
    monai_radimagenet,
    monai_stages,
    synthetic,
)  # fmt: skip
from tests.support.tiny_runs import SHAPE, make_run


def rng(seed=0):
    return np.random.default_rng(seed)


def shapes_of(module):
    return {n: tuple(t.shape) for n, t in module.state_dict().items() if not n.endswith("num_batches_tracked")}


def volumes(count=3, shape=(16, 24, 20)):
    return rng().uniform(-1, 1, (count, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of synthetic weights as they are published: names, nesting and the `module.` prefix."""
    folder = tmp_path_factory.mktemp("weights")
    for depth in (10, 18, 50):
        state = synthetic(shapes_of(monai_medicalnet(depth)), depth)
        state["conv_seg.0.weight"] = torch.zeros(2, 2)  # a head, as in a fine-tuned file
        torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, folder / f"resnet_{depth}.pth")
    torch.save(synthetic(shapes_of(monai_radimagenet())), folder / "radimagenet.pth")
    save_file(synthetic(inception_shapes(1008)), folder / "fid.safetensors")
    tv = synthetic(inception_shapes(1000)) | {"AuxLogits.fc.bias": torch.zeros(1000)}
    torch.save(tv, folder / "tv.pth")
    return folder


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
def test_medicalnet_is_monai_s_layer_by_layer(depth):
    theirs = monai_medicalnet(depth)
    state = synthetic(shapes_of(theirs), depth)
    theirs.load_state_dict(state, strict=False)
    ours = resnet.ResNet(medicalnet.spec(depth)).eval()
    assert shapes_of(ours) == shapes_of(theirs)
    ours.load_state_dict(state, strict=False)
    x = torch.from_numpy(rng(1).normal(size=(2, 1, 24, 33, 28)).astype(np.float32))
    expected, pooled = monai_stages(theirs, x)
    with torch.no_grad():
        found, features = ours.stages(x), ours(x)
    assert [tuple(y.shape[2:]) for y in found] == [(6, 9, 7)] * 2 + [(3, 5, 4)] * 3  # an eighth, and no less: dilated
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    torch.testing.assert_close(features, pooled, rtol=1e-4, atol=1e-5 * float(pooled.abs().max()))
    assert features.shape == (2, 2048 if depth == 50 else 512)


def test_radimagenet_is_monai_s_with_keras_strides_and_biases():
    theirs = monai_radimagenet()
    state = synthetic(shapes_of(theirs))
    theirs.load_state_dict(state, strict=False)
    ours = resnet.ResNet(radimagenet.SPEC).eval()
    assert shapes_of(ours) == shapes_of(theirs)
    # Keras' own ResNet50 without its top: 23,587,712 numbers, of which 53,120 are running statistics.
    trained = sum(p.numel() for p in ours.parameters())
    assert (trained, trained + 53_120) == (23_534_592, 23_587_712)
    assert sum(np.prod(s) for n, s in shapes_of(ours).items() if "running" in n) == 53_120
    ours.load_state_dict(state, strict=False)
    x = torch.from_numpy(rng(1).normal(size=(2, 3, 65, 80)).astype(np.float32))
    expected, pooled = monai_stages(theirs, x)
    with torch.no_grad():
        found = ours.stages(x)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
        torch.testing.assert_close(ours(x), pooled, rtol=1e-4, atol=1e-5 * float(pooled.abs().max()))


@pytest.mark.parametrize("classes", [1008, 1000])
def test_inception_is_the_published_table_layer_by_layer(classes):
    ours = inception.InceptionV3(classes).eval()
    shapes = inception_shapes(classes)
    assert shapes_of(ours) == shapes
    # torchvision states 27,161,264 parameters with 1000 outputs and an auxiliary head of 3,326,696.
    assert sum(p.numel() for p in ours.parameters()) == 27_161_264 - 3_326_696 + (classes - 1000) * 2049
    state = synthetic(shapes)
    ours.load_state_dict(state, strict=False)
    x = torch.from_numpy(rng(2).uniform(-1, 1, (1, 3, 299, 299)).astype(np.float32))
    with torch.no_grad():
        found, features = ours.stages(x), ours(x)
        expected = inception_stages(state, x, fid=classes == 1008)
        other = inception_stages(state, x, fid=classes != 1008)
    sides = [149, 147, 73, 73, 35, 35, 35, 35, 17, 17, 17, 17, 17, 8, 8, 8]
    widths = [32, 32, 64, 80, 192, 256, 288, 288, 768, 768, 768, 768, 768, 1280, 2048, 2048]
    assert [tuple(y.shape) for y in found] == [(1, c, s, s) for c, s in zip(widths, sides)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    torch.testing.assert_close(features, expected[-1].mean((2, 3)))
    assert (features - other[-1].mean((2, 3))).abs().max() > 0.01 * features.abs().max()  # the two poolings do differ


def test_files_as_published_load_and_are_named(files):
    x = volumes(2)
    for depth in (10, 18):
        extractor = make_extractor(f"medicalnet-{depth}", files / f"resnet_{depth}.pth")
        found = extractor(x)
        assert found.shape == (2, 512) and found.dtype == np.float64 and np.ptp(found) > 0
        np.testing.assert_allclose(extractor(x[1:])[0], found[1], rtol=1e-5)  # one volume knows nothing of the others
        assert extractor.checksum in extractor.protocol and len(extractor.checksum) == 64
    assert make_extractor("medicalnet-50", files / "resnet_50.pth")(x[:1]).shape == (1, 2048)
    found = make_extractor("radimagenet", files / "radimagenet.pth")(x[:1])
    assert found.shape == (1, 3, 5, 2048)
    for file, kind in (("fid.safetensors", "FID pooling"), ("tv.pth", "torchvision pooling")):
        extractor = make_extractor("inception", files / file)
        assert extractor(x[:1]).shape == (1, 3, 1, 2048)
        assert kind in extractor.protocol and "not the published file" in extractor.protocol


def test_medicalnet_normalises_the_foreground():
    x = torch.full((2, 1, 4, 4, 4), -1.0)
    x[0, 0, :2] = torch.from_numpy(rng().uniform(-0.5, 1, (2, 4, 4)).astype(np.float32))
    y = medicalnet.normalise(x)
    inside = y[0, 0, :2].double()
    assert float(inside.mean()) == pytest.approx(0, abs=1e-5) and float(inside.std(correction=0)) == pytest.approx(1)
    assert (y[0, 0, 2:] < inside.min()).all() and (y[1] == 0).all()


def test_slices_of_three_planes():
    assert (
        slice_positions(16, 1) == [8]
        and slice_positions(20, 5) == [2, 6, 10, 14, 18]
        and slice_positions(3, 5) == [0, 0, 1, 2, 2]
    )
    volume = volumes(1)[0]
    planes = three_planes(volume, 1, 299)
    assert planes.shape == (3, 1, 299, 299)
    # Bilinear with half-pixel centres, by hand: the middle of the image is the mean of the pixels around it.
    square = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert three_planes(np.stack([square] * 4), 1, 1)[0, 0, 0, 0] == pytest.approx(square[1:3, 1:3].mean())
    axis = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None], (16, 24, 20))
    assert three_planes(axis, 1, 8)[1].unique().tolist() == [12]  # the slice across H is the middle one


def test_preparations():
    grey = torch.tensor([[[-1.0, 0.0, 1.5]]])
    found = radimagenet.prepare(grey)[0, :, 0]
    expected = np.array([0, 0.5, 1])[None] - np.array([0.406, 0.456, 0.485])[:, None]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert inception.prepare(grey)[0, 2, 0].tolist() == [-1, 0, 1]


def test_views_and_rows_of_volumes():
    features = rng().normal(size=(4, 3, 2, 5))
    rows = views(features)
    assert len(rows) == 3 and rows[1].shape == (8, 5)
    np.testing.assert_array_equal(rows[1][3], features[1, 1, 1])
    np.testing.assert_allclose(per_volume(features)[2, 5:10], features[2, 1].mean(0))
    flat = rng().normal(size=(4, 7))
    assert views(flat)[0] is flat and per_volume(flat) is flat
    other = rng(1).normal(size=(4, 3, 2, 5))
    expected = np.mean([distances.kid(features[:, v].reshape(8, 5), other[:, v].reshape(8, 5)) for v in range(3)])
    assert METRICS["kid"].compare(features, other)["kid"] == pytest.approx(expected)


def test_wrong_files_are_named(files, tmp_path):
    def fails(name, weights, match):
        with pytest.raises(WeightsError, match=match):
            make_extractor(name, weights)

    fails("medicalnet-50", files / "resnet_18.pth", r"layer1.0.conv3.weight is missing.*ResNet-18.*medicalnet-18")
    fails("medicalnet-34", files / "resnet_18.pth", r"medicalnet-18")
    fails("medicalnet-10", files / "fid.safetensors", r"conv1.weight is missing.*Inception-v3")
    fails("radimagenet", files / "resnet_50.pth", r"medicalnet-50")
    fails("inception", files / "radimagenet.pth", r"RadImageNet's")
    fails("medicalnet-10", None, r"needs --weights")
    fails("medicalnet-10", tmp_path / "absent.pth", r"absent.pth is not a file")
    fails("random3d", files / "tv.pth", r"takes none")
    fails("resnet", None, r"expected random3d, deepbet, medicalnet-10")
    fails(str(files / "fid.safetensors"), None, r"labelnet.*--weights FILE")
    (tmp_path / "cut.pth").write_bytes((files / "resnet_10.pth").read_bytes()[:1000])
    fails("medicalnet-10", tmp_path / "cut.pth", r"cut.pth cannot be read")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")  # a pickled object, which weights_only refuses
    fails("medicalnet-10", tmp_path / "whole.pth", r"whole pickled model")
    (tmp_path / "w.bin").write_bytes(b"")
    fails("medicalnet-10", tmp_path / "w.bin", r"expected .pth")
    state = synthetic(shapes_of(resnet.build(medicalnet.spec(10))))
    state["bn1.bias"][0] = torch.nan
    torch.save(state, tmp_path / "nan.pth")
    fails("medicalnet-10", tmp_path / "nan.pth", r"bn1.bias holds NaN")
    state["bn1.bias"] = torch.zeros(3)
    torch.save(state | {"more": torch.zeros(1)}, tmp_path / "shape.pth")
    fails("medicalnet-10", tmp_path / "shape.pth", r"more is unknown; bn1.bias is \(3,\), expected \(64,\)")


def test_the_checksum_is_the_file_s(files):
    import hashlib

    file = files / "resnet_10.pth"
    assert read_weights(file).sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert fit(resnet.build(medicalnet.spec(10)), read_weights(file), "x", ("conv_seg.",)).training is False


def test_discriminator_features_are_what_its_head_sees(tmp_path):
    run = make_run(tmp_path)
    extractor = make_extractor("discriminator", run)
    x = volumes(3, SHAPE)
    seen = []
    D = extractor.network
    assert isinstance(D, Discriminator)
    D.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    D(torch.from_numpy(x)[:, None])
    np.testing.assert_allclose(extractor(x), seen[0].mean((2, 3, 4)).double(), rtol=1e-5)
    newest = sorted((run / "checkpoints").glob("3d-final*"))[0]
    assert make_extractor("discriminator", newest).checksum == extractor.checksum
    with pytest.raises(WeightsError, match="its run has volumes"):
        extractor(volumes(1))
    with pytest.raises(WeightsError, match=r"beside RUN/config\.json"):
        make_extractor("discriminator", tmp_path / "data" / "volumes.npy")
    with pytest.raises(WeightsError, match="stage 2d"):
        make_extractor("discriminator", make_run(tmp_path / "flat", "2d"))


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory):
    """Phantoms, half of them with a bright ball in one corner."""
    path = tmp_path_factory.mktemp("classes") / "data"
    with DatasetWriter(path, (8, 12, 8)) as writer:
        for i in range(48):
            volume = make_phantom((8, 12, 8), 0, i)
            if i % 2:
                volume[1:4, 2:6, 1:4] = 0.9
            label = ("plain", "ball")[i % 2]
            writer.add(volume, {"intensity_low": 0.0, "intensity_high": 1.0, "class_label": label})
        writer.finish(spacing=(1, 1, 1), affine=np.eye(4), slice_axis="axial", recipe="phantom")
    return path


def test_label_network_learns_and_serves(two_classes, tmp_path, capsys):
    for name in "ab":
        assert (
            labelnet.main(["--data", str(two_classes), "--out", str(tmp_path / f"{name}.safetensors"), "--steps", "60"])
            == 0
        )
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert "classified correctly" in capsys.readouterr().out
    out = tmp_path / "m.json"
    arguments = ["--real", str(two_classes), "--fake", str(two_classes), "--out", str(out), "--repeats", "3"]
    assert evaluate.main([*arguments, "--extractor", str(tmp_path / "a.safetensors")]) == 0
    record = json.loads(out.read_text())
    assert record["extractor"]["name"] == "labels" and "classes ball, plain" in record["protocol"]
    extractor = make_extractor(str(tmp_path / "a.safetensors"), None)
    features = extractor(np.stack([make_phantom((8, 12, 8), 1, i) for i in range(12)]))
    assert features.shape == (12, 128)
    accuracy = float(record["protocol"].split("accuracy ")[1].split()[0])
    assert accuracy >= 0.8


def test_label_network_errors(two_classes, tmp_path, capsys):
    def fails(arguments, match):
        assert labelnet.main(arguments) == 2
        assert match in capsys.readouterr().err

    fails(["--data", str(two_classes), "--out", str(tmp_path / "a.pth")], "ends in .safetensors")
    fails(["--data", str(two_classes), "--out", str(tmp_path / "a.safetensors"), "--steps", "0"], "--steps")
    (tmp_path / "kept.safetensors").write_bytes(b"trained before")
    fails(["--data", str(two_classes), "--out", str(tmp_path / "kept.safetensors")], "exists already; give a new name")
    assert (tmp_path / "kept.safetensors").read_bytes() == b"trained before"
    make_run(tmp_path)
    fails(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "a.safetensors")], "no classes")
