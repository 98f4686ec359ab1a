"""Geometry and intensities: a landmark stays where it is in the patient, a ramp stays a ramp, units are honoured."""

import gzip
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ssgan import prepare
from ssgan.data.axes import axis_names, shape_option
from ssgan.data.dataset import VolumeDataset, to_nifti
from ssgan.data.nifti import header_spacing, load_nifti
from ssgan.data.preprocessing import MAX_VOXELS, Recipe, fit_shape, intensity_bounds, prepare_volume, resample
from ssgan.data.volume import Volume, VolumeError
from tests.support.nifti_cases import good, patch, save, voxels

CENTRE = np.array([11.3, -23.8, 37.1])  # mm, of the volumes' middle in the world
LANDMARKS = np.array([[8.0, 0, 0], [0, 4.5, 0], [0, 0, 9], [-6.0, 4, -8]])  # mm from there; one per volume
WORLD_SHAPE = np.array([25, 31, 19])  # voxels along (nearly) X, Y, Z
WORLD_SPACING = np.array([1.2, 0.9, 2.1])
AXES = {
    "RAS": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],  # columns: where the voxel axes i, j, k point
    "LAS": [[-1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "PIR": [[0, 0, 1], [-1, 0, 0], [0, -1, 0]],
    "RSA": [[1, 0, 0], [0, 0, 1], [0, 1, 0]],
    "LSP": [[-1, 0, 0], [0, 0, -1], [0, 1, 0]],
}
TURN = Rotation.from_euler("xz", [20, 20], degrees=True).as_matrix()
# asked spacing or None for the volumes' own, asked shape: what that crops and pads
GRIDS = {
    "own": (None, (24, 32, 16)),  # X cropped by 1, Y padded by 1, Z cropped by 3
    "resampled": ((1.5, 1.2, 1.4), (24, 16, 24)),  # 20 x 23 x 28: X padded by 4, Y cropped by 7, Z cropped by 4
}


def grid(axes, turn=None):
    """Shape and affine of a volume with its middle at CENTRE whose axes point as `axes` says, then turned."""
    directions = np.array(axes, dtype=float)
    world = np.abs(directions).argmax(0)
    shape, spacing = WORLD_SHAPE[world], WORLD_SPACING[world]
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ directions * spacing
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((shape - 1) / 2)
    return tuple(shape), affine


def positions(shape, affine):
    """World coordinates (..., 3) of every voxel."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def write_landmarks(folder, axes, turn=None, mirrored=False):
    shape, affine = grid(axes, turn)
    rng = np.random.default_rng(3)
    for number, landmark in enumerate(LANDMARKS):
        distance = np.linalg.norm(positions(shape, affine) - CENTRE - landmark, axis=-1)
        data = (1000 * np.exp(-((distance / 3.0) ** 2)) + rng.uniform(0, 20, shape)).astype(np.float32)
        if mirrored:
            data = data[tuple(slice(None, None, -1) if abs(axes[0][a]) else slice(None) for a in range(3))]
        save(folder / f"{number}.nii.gz", data, affine)
    return folder


def errors(dataset):
    """Distance of every landmark from where it belongs, in mm along X, Y, Z: (volumes, 3)."""
    found = []
    for number, record in enumerate(dataset.records):
        image = to_nifti(dataset.volumes[number], dataset.info)
        data = image.get_fdata()
        assert np.allclose(image.affine, record["affine"])  # these volumes share one grid
        weight = np.clip(data - data.min() - 0.5 * np.ptp(data), 0, None)
        centroid = (positions(data.shape, image.affine) * weight[..., None]).sum((0, 1, 2)) / weight.sum()
        found.append(centroid - CENTRE - LANDMARKS[number])
    return np.array(found)


def run(source, out, shape, spacing=None, *more):
    arguments = ["--input", source, "--out", out, "--shape", *shape, *more]
    arguments += ["--spacing", *spacing] if spacing else []
    assert prepare.main([str(a) for a in arguments]) == 0
    return VolumeDataset(out)


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("grid_name", GRIDS)
@pytest.mark.parametrize("axes", [*AXES, "oblique RAS", "oblique PIR"])
def test_landmarks_stay(axes, grid_name, slice_axis, tmp_path):
    """Within a quarter of a voxel along every axis, from the file to NIfTI written from the data set."""
    spacing, shape = GRIDS[grid_name]
    source = write_landmarks(tmp_path / "in", AXES[axes.split()[-1]], TURN if "oblique" in axes else None)
    dataset = run(source, tmp_path / "out", shape, spacing, "--slice-axis", slice_axis)
    assert len(dataset) == len(LANDMARKS)
    by_axis = dict(zip("XYZ", shape, strict=True))
    order = {"axial": "ZYX", "coronal": "YZX", "sagittal": "XZY"}[slice_axis]
    assert dataset.volumes.shape[1:] == tuple(by_axis[a] for a in order)
    assert np.allclose(dataset.info.spacing, spacing or WORLD_SPACING, rtol=1e-5)
    assert (np.abs(errors(dataset)) < 0.25 * np.array(dataset.info.spacing)).all()


@pytest.mark.faults
def test_a_left_right_flip_would_be_seen(tmp_path, monkeypatch):
    """The check above fails on a mirrored file, and with a reader that does not reorient the axes."""
    source = write_landmarks(tmp_path / "mirrored", AXES["LAS"], mirrored=True)
    wrong = errors(run(source, tmp_path / "a", (24, 32, 16)))
    assert wrong[0, 0] < -10 and wrong[3, 0] > 8 and np.abs(wrong[:, 1:]).max() < 0.5
    source = write_landmarks(tmp_path / "in", AXES["LAS"])
    monkeypatch.setattr(nibabel, "apply_orientation", lambda data, ornt: data)
    in_this_process = lambda function, items, workers, limit: (function(item) for item in items)  # noqa: E731
    monkeypatch.setattr(prepare, "run_in_order", in_this_process)
    wrong = errors(run(source, tmp_path / "b", (24, 32, 16)))
    assert wrong[0, 0] < -10 and wrong[3, 0] > 8


def test_orientations_of_one_head_give_one_volume(tmp_path):
    """The same head stored in five orders of its axes: the same array to the bit, with the same affine."""
    data = np.random.default_rng(0).uniform(0, 100, WORLD_SHAPE).astype(np.float32)
    image = nibabel.Nifti1Image(data, grid(AXES["RAS"])[1])
    volumes = []
    for number, codes in enumerate(AXES):
        turn = nibabel.orientations.ornt_transform(
            nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes)
        )
        path = tmp_path / f"{number}.nii"
        nibabel.save(image.as_reoriented(turn), path)
        volumes.append(load_nifti(path))
        assert np.array_equal(volumes[-1].data, data)
        assert np.allclose(volumes[-1].affine, image.affine, atol=1e-4)


def ramp(points):
    return points @ np.array([3.0, -5.0, 2.0]) + 40


@pytest.mark.parametrize("spacing", [(0.7, 1.1, 1.3), (1.5, 1.2, 3.0)], ids=["finer and coarser", "coarser"])
@pytest.mark.parametrize("turn", [None, TURN], ids=["aligned", "oblique"])
def test_ramp_stays_the_same_in_the_world(spacing, turn):
    """Linear interpolation and a symmetric filter both keep a ramp, away from the borders."""
    shape, affine = grid(AXES["LSP"], turn)
    volume = in_ras(ramp(positions(shape, affine)), affine)
    data, grid_affine = resample(volume, spacing, background=0)
    offset = positions(data.shape, grid_affine) - CENTRE
    inside = (np.abs(offset) < [5, 5, 8]).all(-1)
    assert inside.sum() > 100
    assert np.allclose(data[inside], ramp(offset[inside] + CENTRE), atol=2e-3)


def in_ras(data, affine):
    """A Volume from an array and its affine, without a file."""
    ornt = nibabel.io_orientation(affine)
    turned = affine @ nibabel.orientations.inv_ornt_aff(ornt, data.shape)
    return Volume(nibabel.apply_orientation(data, ornt).astype(np.float32), turned, "", data.shape, affine)


@pytest.mark.parametrize("spacing", [(1.2, 0.9, 2.1), (0.5, 0.7, 0.9), (2.9, 3.1, 4.2)])
def test_constant_stays_constant(spacing):
    _, affine = grid(AXES["RAS"])
    data, _ = resample(in_ras(np.full(WORLD_SHAPE, 123.5), affine), spacing, background=-7)
    assert np.allclose(data, 123.5, atol=1e-4)
    _, affine = grid(AXES["RAS"], TURN)
    data, _ = resample(in_ras(np.full(WORLD_SHAPE, 123.5), affine), spacing, background=123.5)
    assert np.allclose(data, 123.5, atol=1e-4)


def test_field_of_view_is_kept():
    """An aligned volume covers the same box; an oblique one is put into a larger one, filled with background."""
    _, affine = grid(AXES["RAS"])
    data, new = resample(in_ras(np.ones(WORLD_SHAPE), affine), (0.6, 0.45, 0.7), background=0)
    assert data.shape == (50, 62, 57) and (data == 1).all()
    assert np.allclose(new[:3, 3] - 0.5 * np.diag(new)[:3], affine[:3, 3] - 0.5 * WORLD_SPACING, atol=1e-6)
    _, affine = grid(AXES["RAS"], TURN)
    data, _ = resample(in_ras(np.ones(WORLD_SHAPE), affine), tuple(WORLD_SPACING), background=0)
    assert all(n > have for n, have in zip(data.shape, WORLD_SHAPE, strict=True))
    assert data[0, 0, 0] == 0 and data[tuple(n // 2 for n in data.shape)] == 1


@pytest.mark.parametrize("axis", range(3))
def test_halving_does_not_alias(axis):
    """A wave of 3 voxels, above the new Nyquist frequency, vanishes; one of 16 voxels stays."""
    wave = np.arange(48).reshape([48 if a == axis else 1 for a in range(3)]) * np.ones((48, 48, 48))
    target = tuple(2.0 if a == axis else 1.0 for a in range(3))
    amplitude = {}
    for period in (3, 16):
        data, _ = resample(in_ras(np.cos(2 * np.pi * wave / period), np.eye(4)), target, background=0)
        middle = data.take(range(6, 18), axis)
        assert data.shape[axis] == 24
        amplitude[period] = np.abs(middle).max()
    assert amplitude[3] < 0.1 and amplitude[16] > 0.85  # plain linear interpolation leaves 0.5 of the first


def test_resampling_that_fills_the_memory_is_refused():
    volume = in_ras(voxels(), np.eye(4))
    with pytest.raises(VolumeError, match="voxels after resampling from 1 x 1 x 1 to"):
        resample(volume, (0.001, 0.001, 1e-9), background=0)
    assert MAX_VOXELS * 4 <= 2**32


def test_a_volume_smaller_than_a_voxel_is_refused():
    with pytest.raises(VolumeError, match=r"all of it is .* mm, less than a voxel of 1 x 1 x 1 mm"):
        resample(in_ras(voxels(), np.diag([1e-3, 1e-3, 1e-3, 1])), (1, 1, 1), background=0)


@pytest.mark.parametrize("turn", [None, TURN], ids=["aligned", "oblique"])
@pytest.mark.parametrize("shape", [(8, 17, 60), (30, 4, 6)], ids=str)
def test_only_the_middle_is_resampled(shape, turn):
    """The same voxels as of the whole grid, where each voxel is in the world too."""
    world_shape, affine = grid(AXES["LSP"], turn)
    volume = in_ras(np.random.default_rng(4).normal(0, 1, world_shape), affine)
    whole, whole_affine = resample(volume, (1.5, 0.7, 1.4), background=-3)
    part, part_affine = resample(volume, (1.5, 0.7, 1.4), background=-3, shape=shape)
    assert part.shape == tuple(np.minimum(shape, whole.shape)) and part.shape != whole.shape
    first = np.linalg.inv(whole_affine) @ part_affine[:, 3]
    assert np.allclose(first[:3], [(n - m) // 2 for n, m in zip(whole.shape, part.shape, strict=True)], atol=1e-6)
    i, j, k = first[:3].round().astype(int)
    assert np.allclose(part, whole[i : i + part.shape[0], j : j + part.shape[1], k : k + part.shape[2]], atol=1e-4)


def test_memory_follows_the_shape_not_the_field_of_view():
    """64 million voxels would be resampled for the 6144 that are kept."""
    volume = in_ras(voxels(), np.diag([20.0, 20.0, 20.0, 1]))
    tracemalloc.start()
    array, _ = prepare_volume(volume, Recipe("mri", (16, 24, 16), (1.0, 1.0, 1.0)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.shape == (16, 24, 16) and peak < 5e6


UNITS = {"metres": (1, 1e3), "mm": (2, 1), "micrometres": (3, 1e-3), "unknown": (0, 1), "damaged": (5, 1)}


@pytest.mark.parametrize("name", UNITS)
@pytest.mark.parametrize("time_unit", [0, 8, 16], ids=["no time", "s", "ms"])
@pytest.mark.parametrize("codes", [(0, 1), (1, 0), (0, 0)], ids=["sform", "qform", "neither"])
def test_units_of_the_header(name, time_unit, codes, tmp_path):
    """The same head in any unit has its voxels and its place in mm."""
    code, scale = UNITS[name]
    _, affine = grid(AXES["LSP"])
    image = nibabel.Nifti1Image(voxels(), np.diag([1 / scale, 1 / scale, 1 / scale, 1]) @ affine)
    image.set_qform(image.affine, 1)
    image.header["xyzt_units"] = code + time_unit
    image.header["qform_code"], image.header["sform_code"] = codes
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(image.to_bytes()))
    volume = load_nifti(path)
    assert np.allclose(volume.spacing, WORLD_SPACING, rtol=1e-5) and np.allclose(header_spacing(path), WORLD_SPACING)
    if codes != (0, 0):
        assert np.allclose(volume.original_affine, affine, atol=1e-3)
    said = [w for w in volume.warnings if "unit" in w]
    expected = {"metres": "in metres", "micrometres": "in micrometres", "damaged": "code 5"}
    assert len(said) == (name in expected) and all(expected[name] in w for w in said)


def test_a_folder_of_mixed_units(tmp_path, capfd):
    """One data set in mm, without a median over units."""
    for number, (code, scale) in enumerate(((2, 1), (3, 1e-3), (1, 1e3), (0, 1))):
        affine = np.diag([0.8 / scale, 0.9 / scale, 1.1 / scale, 1])
        save(tmp_path / "in" / f"{number}.nii", voxels(number), affine, xyzt_units=code)
    dataset = run(tmp_path / "in", tmp_path / "out", (16, 16, 16), None)
    assert np.allclose(dataset.info.spacing, (0.8, 0.9, 1.1)) and len(dataset) == 4
    for number, volume in enumerate(dataset.volumes):
        low, high = (dataset.records[number][f"intensity_{side}"] for side in ("low", "high"))
        expected = np.clip((voxels(number)[2:18, 1:17, 3:19] - low) / (high - low) * 2 - 1, -1, 1)
        assert np.allclose(volume, expected.transpose(2, 1, 0), atol=1e-5)
    assert "spacing differs" not in capfd.readouterr().out


@pytest.mark.parametrize("have", [3, 4, 7, 8])
@pytest.mark.parametrize("want", [4, 5, 8])
def test_crop_and_pad_keep_the_middle(have, want):
    """Within half a voxel, with -1 outside, and every source voxel where `start` says."""
    source = np.random.default_rng(0).uniform(0, 1, (have, 6, 5)).astype(np.float32)
    fitted, start = fit_shape(source, (want, 5, 6))
    assert fitted.shape == (want, 5, 6) and fitted.dtype == np.float32
    for index in np.ndindex(fitted.shape):
        at = np.array(index) + start
        inside = (at >= 0).all() and (at < source.shape).all()
        assert fitted[index] == (source[tuple(at)] if inside else -1)
    middle_off = start + (np.array(fitted.shape) - 1) / 2 - (np.array(source.shape) - 1) / 2
    assert np.abs(middle_off).max() <= 0.5


def test_padding_is_a_warning_with_numbers(tmp_path):
    _, record = prepare_volume(load_nifti(good(tmp_path / "a.nii")), Recipe("mri", (16, 24, 32), (1, 1, 1)))
    assert record["warnings"] == [
        "smaller than the shape, padded with background: Y by 5 of 24, Z by 10 of 32 voxels",
    ]
    assert record["first_voxel"] == [2, -3, -5] and record["original_shape"] == [20, 19, 22]


def test_scale_of_intensities_does_not_matter(tmp_path):
    """uint8 as acquired and float32 * 6000, as both are in the hippocampus data: the same to 1e-5."""
    data = np.random.default_rng(1).integers(0, 256, (20, 19, 22)).astype(np.uint8)
    save(tmp_path / "in" / "a.nii.gz", data)
    save(tmp_path / "in" / "b.nii.gz", data.astype(np.float32) * 6000)
    dataset = run(tmp_path / "in", tmp_path / "out", (16, 24, 16), (1.3, 1, 1))
    assert np.abs(dataset.volumes[0] - dataset.volumes[1]).max() < 1e-5
    a, b = dataset.records
    assert np.isclose(b["intensity_high"], 6000 * a["intensity_high"]) and a["content_hash"] != b["content_hash"]
    assert dataset.info.intensity_high == (a["intensity_high"] + b["intensity_high"]) / 2


def test_slope_and_intercept_are_honoured(tmp_path):
    stored = voxels()
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(0.25, -50)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert np.allclose(load_nifti(tmp_path / "a.nii.gz").data, stored * 0.25 - 50)


def percentile(values, q):
    """Linear between order statistics, from the definition."""
    ordered = np.sort(np.asarray(values, dtype=np.float64).ravel())
    place = q / 100 * (len(ordered) - 1)
    below = int(np.floor(place))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


@pytest.mark.parametrize("background", [0.0, 0.4, 0.9])
def test_mri_percentiles(background, tmp_path):
    """The upper one is that of the foreground: a head in much air is as bright as one in little."""
    rng = np.random.default_rng(5)
    data = rng.uniform(100, 900, (20, 19, 22)).astype(np.float32)
    data[rng.random(data.shape) < background] = 3
    foreground = data[data != 3]
    want = percentile(data, 0.5), percentile(foreground if background else data, 99.5)
    recipe = Recipe("mri", (16, 16, 16), None)
    assert np.allclose(intensity_bounds(data, recipe), want, rtol=1e-6)
    array, record = prepare_volume(load_nifti(save(tmp_path / "a.nii", data)), recipe)
    assert np.allclose((record["intensity_low"], record["intensity_high"]), want, rtol=1e-6)
    expected = np.clip((data[2:18, 1:17, 3:19] - want[0]) / (want[1] - want[0]) * 2 - 1, -1, 1)
    assert np.allclose(array, expected.transpose(2, 1, 0), atol=1e-5)


@pytest.mark.parametrize("window", [(-160.0, 240.0), (-1000.0, 500.0)])
def test_ct_window_is_exact(window, tmp_path):
    low, high = window
    data = np.full((16, 16, 16), -1024, np.int16)
    values = [low, high, (low + high) / 2, low - 1, high + 1, 3071]
    data[3, 4, : len(values)] = values
    array, record = prepare_volume(
        load_nifti(save(tmp_path / "a.nii", data)), Recipe("ct", (16, 16, 16), None, "axial", window)
    )
    assert array[: len(values), 4, 3].tolist() == [-1, 1, 0, -1, 1, 1] and array[10, 10, 10] == -1
    assert (record["intensity_low"], record["intensity_high"]) == window


def test_ct_window_on_something_else_is_refused(tmp_path):
    volume = load_nifti(save(tmp_path / "a.nii", voxels() + 5000))
    with pytest.raises(VolumeError, match="one intensity is left after windowing"):
        prepare_volume(volume, Recipe("ct", (16, 16, 16), None))


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
def test_to_nifti_gives_back_the_raw_volume(slice_axis, tmp_path):
    """Intensities on the raw scale, axes X, Y, Z, millimetres: where nothing was clipped, the voxels of the file."""
    data = voxels()
    save(tmp_path / "in" / "a.nii", data)
    dataset = run(tmp_path / "in", tmp_path / "out", (16, 24, 16), None, "--slice-axis", slice_axis)
    image = to_nifti(dataset.volumes[0], dataset.info)
    low, high = dataset.info.intensity_low, dataset.info.intensity_high
    expected = np.full((16, 24, 16), low)
    expected[:, 3:22] = np.clip(data[2:18, :, 3:19], low, high)  # padded by 3 before and 2 behind
    assert np.allclose(image.get_fdata(), expected, atol=1e-3)
    assert image.header.get_xyzt_units()[0] == "mm" and nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
    nibabel.save(image, tmp_path / "back.nii.gz")
    assert np.allclose(nibabel.load(tmp_path / "back.nii.gz").get_fdata(), expected, atol=1e-3)


def two_forms(path, sform, qform, codes=(1, 1), seed=0):
    """A file with both; qform and sform are 4x4, in mm."""
    image = nibabel.Nifti1Image(voxels(seed), None)
    image.header.set_sform(sform, codes[0])
    image.header.set_qform(qform, codes[1])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image.to_bytes())
    return path


OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = TURN
FORMS = {
    "equal": (np.eye(4), np.eye(4), (1, 1), None),
    "turned by 28 degrees": (np.eye(4), OBLIQUE, (4, 1), None),
    "only a qform": (np.eye(4), np.diag([-1, 1, 1, 1]), (0, 1), None),
    "left-right": (np.eye(4), np.diag([-1.0, 1, 1, 1]), (1, 1), "RAS by the sform, to LAS by the qform, one a mirror"),
    "left-right, other codes": (np.diag([-1.0, 1, 1, 1]), np.eye(4), (4, 1), "LAS by the sform, to RAS by the qform"),
    "half a turn": (np.eye(4), np.diag([-1.0, -1, 1, 1]), (2, 1), "to LPS by the qform; the sform is taken"),
}


@pytest.mark.parametrize("name", FORMS)
def test_sform_and_qform_that_disagree(name, tmp_path, capfd):
    """A warning by file; --strict refuses it. The sform is taken, as nibabel does."""
    sform, qform, codes, words = FORMS[name]
    good(tmp_path / "in" / "b.nii", 1)
    path = two_forms(tmp_path / "in" / "a.nii", sform, qform, codes)
    taken = sform if codes[0] else qform
    assert np.allclose(load_nifti(path).original_affine, taken)
    dataset = run(tmp_path / "in", tmp_path / "out", (16, 16, 16))
    said = [line for line in capfd.readouterr().out.splitlines() if "sform and qform" in line]
    assert len(dataset) == 2 and len(said) == (words is not None)
    strict = ["--input", tmp_path / "in", "--out", tmp_path / "strict", "--shape", 16, 16, 16, "--strict"]
    assert prepare.main([str(a) for a in strict]) == (2 if words else 0)
    if words:
        assert said[0].startswith("warning  a.nii: sform and qform disagree") and words in said[0]
        err = capfd.readouterr().err
        assert "a.nii: sform and qform disagree" in err and "--strict stops" in err and err.count("\n") == 1


def test_a_damaged_qform_beside_an_sform_is_a_warning(tmp_path):
    path = two_forms(tmp_path / "a.nii", np.eye(4), np.eye(4))
    patch(path, 256, struct.pack("<3f", 0.9, 0.9, 0.9))  # a quaternion longer than 1
    volume = load_nifti(path)
    assert np.allclose(volume.affine, np.eye(4)) and "the qform is damaged" in volume.contradiction


@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
def test_shapes_in_messages_are_in_the_order_of_the_option(slice_axis):
    recipe = Recipe("mri", (16, 24, 40), None, slice_axis)
    assert shape_option(recipe.array_shape, slice_axis) == "16 24 40"
    sizes = dict(zip(axis_names(slice_axis), recipe.array_shape, strict=True))
    assert sizes == {"X": 16, "Y": 24, "Z": 40}
