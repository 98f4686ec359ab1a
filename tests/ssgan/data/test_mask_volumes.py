"""A mask is brought to its image's grid: against per-point interpolation, flipped and oblique affines, and refusals."""

import nibabel
import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from ssgan.data.masks import read_mask
from ssgan.data.nifti import load_nifti
from ssgan.data.preprocessing import Recipe, prepare_mask, prepare_source, prepare_volume
from ssgan.data.sources import Source
from ssgan.data.volume import Failure, VolumeError
from ssgan.data.writer import MaskClasses
from tests.support.nifti_cases import SHAPE, patch, save, voxels

VALUES = (0, 2, 5, 9)
CLASSES = MaskClasses(VALUES, ("background", "a", "b", "c"))


def labels(seed=0, shape=SHAPE):
    """Three blobs of different values, which touch each other, none of them symmetric."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(4, *shape)), (0, 2, 2, 2))
    return np.array(VALUES)[smooth.argmax(0)].astype(np.uint8)


def turned(degrees, spacing, flips=(1, 1, 1), origin=(-20.0, 13.0, 5.0)):
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() @ np.diag(
        np.multiply(spacing, flips)
    )
    affine[:3, 3] = origin
    return affine


def pair(folder, affine, seed=0, data=None):
    image = save(folder / "image.nii.gz", voxels(seed), affine)
    return image, save(folder / "mask.nii.gz", labels(seed) if data is None else data, affine)


def prepared(image, mask, recipe):
    volume = load_nifti(image)
    _, record = prepare_volume(volume, recipe)
    return prepare_mask(read_mask(mask), volume, recipe, VALUES), np.array(record["affine"])


AFFINES = {
    "axis-aligned": turned((0, 0, 0), (1, 1, 1)),
    "flipped x and z": turned((0, 0, 0), (1.2, 0.9, 1.4), (-1, 1, -1)),
    "axes exchanged": turned((90, 0, 90), (1.2, 0.9, 1.4)),
    "oblique": turned((11, -7, 23), (1.0, 1.3, 0.8)),
    "oblique and flipped": turned((11, -7, 203), (1.0, 1.3, 0.8), (1, -1, 1)),
    "45 degrees": turned((0, 0, 45), (1, 1, 1)),
}


@pytest.mark.parametrize("spacing", [(0.7, 0.8, 0.6), (2.0, 1.7, 2.3)], ids=["finer", "coarser"])
@pytest.mark.parametrize("name", AFFINES)
def test_each_voxel_has_the_class_with_the_largest_value_at_its_place(name, spacing, tmp_path):
    """By the file alone: one-hot maps in its own axes, blurred where voxels grow, and sampled at world positions."""
    affine = AFFINES[name]
    image, mask = pair(tmp_path, affine)
    recipe = Recipe("mri", (16, 24, 16), spacing)
    found, to_world = prepared(image, mask, recipe)
    assert found.shape == (16, 24, 16) and found.dtype == np.uint8
    stored = nibabel.load(mask)
    data, inverse = np.asarray(stored.dataobj), np.linalg.inv(affine)
    own = np.linalg.norm(affine[:3, :3], axis=0)
    factor = np.abs(inverse[:3, :3] @ np.diag(spacing)).sum(1)
    sigma = np.where(factor > 1.05, factor / 2, 0)
    assert (factor > 1.05).any() or spacing[0] < 1
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (16, 24, 16)), indexing="ij"), -1).reshape(-1, 3)
    points = index @ to_world[:3, :3].T + to_world[:3, 3]
    at = points @ inverse[:3, :3].T + inverse[:3, 3]
    maps = [ndimage.gaussian_filter((data == v).astype(float), sigma, mode="nearest") for v in VALUES]
    inside = ((at > 0.01) & (at < np.array(data.shape) - 1.01)).all(1)
    values = np.stack([ndimage.map_coordinates(m, at[inside].T, order=1) for m in maps])
    clear = np.diff(np.sort(values, axis=0)[-2:], axis=0)[0] > 1e-3  # the others are ties but for rounding
    ours = found.transpose(2, 1, 0).reshape(-1)[inside]
    assert inside.sum() > 300 and clear.mean() > 0.9
    assert np.array_equal(ours[clear], values.argmax(0)[clear])
    far = ((at < -1) | (at > np.array(data.shape))).any(1)
    if "oblique" in name or "45" in name:
        assert not found.transpose(2, 1, 0).reshape(-1)[far].any()
    assert len(np.unique(found)) == 4 and own.min() > 0.5


@pytest.mark.parametrize("name", ["axis-aligned", "flipped x and z", "axes exchanged"])
@pytest.mark.parametrize("slice_axis", ["axial", "coronal", "sagittal"])
def test_without_resampling_every_label_stays(name, slice_axis, tmp_path):
    """Cropped and padded, against nibabel's own canonical order and a loop over voxels; padding is background."""
    image, mask = pair(tmp_path, AFFINES[name])
    found, to_world = prepared(image, mask, Recipe("mri", (16, 24, 16), None, slice_axis))
    canonical = nibabel.as_closest_canonical(nibabel.load(mask))
    data, inverse = np.asarray(canonical.dataobj), np.linalg.inv(canonical.affine)
    order = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[slice_axis]
    padded = 0
    for index in np.ndindex(16, 24, 16):
        at = np.round((inverse @ to_world @ [*index, 1])[:3]).astype(int)
        outside = (at < 0).any() or (at >= data.shape).any()
        padded += outside
        expected = 0 if outside else VALUES.index(data[tuple(at)])
        assert found[tuple(np.array(index)[list(order)])] == expected
    assert padded > 0


def test_image_and_mask_stay_together(tmp_path):
    """An image that is the mask's values, with any geometry: where the image is dark or bright the class says so."""
    data = (labels() == 9) | (labels() == 5)
    for name, affine in AFFINES.items():
        folder = tmp_path / name
        image = save(folder / "image.nii", data.astype(np.float32) * 100 + voxels() * 1e-3, affine)
        mask = save(folder / "mask.nii", data.astype(np.uint8) * 9, affine)
        volume = load_nifti(image)
        recipe = Recipe("mri", (16, 16, 16), (1.3, 1.2, 1.1))
        array, _ = prepare_volume(volume, recipe)
        found = prepare_mask(read_mask(mask), volume, recipe, (0, 9))
        inside, outside = array[found == 1], array[found == 0]
        assert inside.min() > -0.1 and outside.max() < 0.1 and len(inside) > 200, name


def test_a_full_mask_and_a_tie(tmp_path):
    """No background inside a mask that fills its image; of equal classes the first, here between two voxels."""
    image, mask = pair(tmp_path, np.eye(4), data=np.full(SHAPE, 5, np.uint8))
    found, _ = prepared(image, mask, Recipe("mri", (16, 24, 16), (1.3, 1.3, 1.3)))
    assert (found == 2).sum() == 15 * 15 * 16  # 20, 19 and 22 mm; cropped in Z
    halves = np.full((8, 8, 8), 2, np.uint8)
    halves[4:] = 9
    image = save(tmp_path / "b.nii", voxels(1, (8, 8, 8)))
    found, _ = prepared(image, save(tmp_path / "c.nii", halves), Recipe("mri", (16, 16, 16), (1 / 3, 1, 1)))
    line = found[8, 8]
    assert set(line.tolist()) == {1, 3}
    halves[:4] = 0
    found, _ = prepared(image, save(tmp_path / "d.nii", halves), Recipe("mri", (3, 8, 8), (8 / 3, 1, 1)))
    assert found[4, 4].tolist() in ([0, 0, 3], [0, 3, 3]) and found[4, 4, 1] == 0  # the middle one lies on the border


def moved(affine, i, j, by):
    affine = affine.copy()
    affine[i, j] += by
    return affine


GRIDS = {  # -> what differs, and words of the message
    "shape": (lambda a: (labels(shape=(20, 19, 21)), a), "20 x 19 x 21 voxels, .*image has 20 x 19 x 22 voxels"),
    "transposed": (lambda a: (labels().transpose(1, 0, 2), a), "19 x 20 x 22 voxels"),
    "origin": (lambda a: (labels(), moved(a, 1, 3, 0.2)), r" 13.2\] .*image has .* 13\]"),
    "spacing": (lambda a: (labels(), moved(a, 2, 2, 0.02)), r" 0.91658 5\]; the image has .* 0.89658 5\]"),
    "identity": (lambda a: (labels(), np.eye(4)), r"affine \[1 0 0 0\] \[0 1 0 0\] \[0 0 1 0\]; the image has"),
    "voxel order": (
        lambda a: (labels()[::-1], a @ np.array([[-1, 0, 0, 19], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        r"voxel order LAS against RAS\); resample the mask to the image's grid",
    ),
}


@pytest.mark.parametrize("case", GRIDS)
def test_another_grid_is_refused_with_both_shown(case, tmp_path):
    affine = turned((4, 3, -5), (1.0, 1.1, 0.9))
    change, words = GRIDS[case]
    data, other = change(affine)
    image, mask = save(tmp_path / "i.nii", voxels(), affine), save(tmp_path / "mask.nii", data, other)
    with pytest.raises(VolumeError, match=f"lies on another grid: .*{words}"):
        prepared(image, mask, Recipe("mri", (16, 16, 16), None))
    found = prepare_source(Source("i.nii", (image,), mask=mask), Recipe("mri", (16, 16, 16), None), False, CLASSES)
    assert isinstance(found, Failure) and found.reason.startswith("its mask mask.nii: it lies on another grid")


def test_rounding_of_the_header_is_no_other_grid(tmp_path):
    """A qform's quaternion and a float32 sform differ by little; half a percent of a voxel at a corner is none."""
    affine = turned((4, 3, -5), (1.0, 1.1, 0.9), origin=(-123.4567, 88.7654, 1e2 / 3))
    image, mask = save(tmp_path / "i.nii", voxels(), affine), tmp_path / "m.nii"
    stored = nibabel.Nifti1Image(labels(), affine)
    stored.set_sform(None, 0)
    stored.set_qform(affine, 1)
    nibabel.save(stored, mask)
    assert not np.array_equal(nibabel.load(image).affine, nibabel.load(mask).affine)
    assert prepared(image, mask, Recipe("mri", (16, 16, 16), None))[0].any()
    near = save(tmp_path / "n.nii", labels(), moved(affine, 0, 3, 0.005))
    assert prepared(image, near, Recipe("mri", (16, 16, 16), None))[0].any()


@pytest.mark.parametrize(
    "data, words",
    [
        (labels() * 0.5, r"values that are not whole numbers, such as (1|2\.5|4\.5); expected labels from 0 to 255"),
        (labels().astype(np.int16) - 1, "values from -1 to 8; expected labels from 0 to 255"),
        (labels().astype(np.int16) * 100, "values from 0 to 900; expected labels from 0 to 255"),
        (np.where(labels() == 2, np.nan, 1), "voxels are NaN or infinite; expected whole numbers"),
        (np.arange(20 * 19 * 22).reshape(SHAPE) % 33, "33 different values; expected at most 32 classes: is it an"),
        (np.arange(20 * 19 * 22).reshape(SHAPE) % 32 + 1, "33 different values; .*"),
        (np.zeros((*SHAPE, 3)), r"4D image of shape \(20, 19, 22, 3\); expected one volume"),
    ],
    ids=["fractions", "negative", "large", "NaN", "33 values", "32 and the background", "4D"],
)
def test_values_that_are_no_labels_are_refused(data, words, tmp_path):
    dtype = np.float32 if np.asarray(data).dtype.kind == "f" else np.int16
    with pytest.raises(VolumeError, match=words):
        read_mask(save(tmp_path / "m.nii", np.asarray(data).astype(dtype)))


def test_labels_of_any_type_are_read(tmp_path):
    """Floats of whole numbers, 16 bits, a scale of 1, an empty map, one value alone, 32 classes."""
    for i, (data, dtype) in enumerate(
        [
            (labels(), np.float32),
            (labels(), np.float64),
            (labels(), np.int16),
            (labels() * 28, np.uint8),
            (np.zeros(SHAPE), np.uint8),
            (np.full(SHAPE, 255), np.uint8),
            (np.arange(20 * 19 * 22).reshape(SHAPE) % 32, np.uint16),
        ]
    ):
        found = read_mask(save(tmp_path / f"{i}.nii.gz", np.asarray(data).astype(dtype)))
        assert found.data.dtype == np.uint8 and np.array_equal(found.data, data)


def test_formats_that_are_not_read_are_named(tmp_path):
    (tmp_path / "seg.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "seg").write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 99)
    (tmp_path / "m.mgz").write_bytes(b"no volume" * 99)
    for name in ("seg.dcm", "seg"):
        with pytest.raises(VolumeError, match=r"DICOM \(a DICOM-SEG is not read\); convert it to NIfTI"):
            read_mask(tmp_path / name)
    with pytest.raises(VolumeError, match="no volume; convert it to NIfTI"):
        read_mask(tmp_path / "m.mgz")


def test_nrrd_and_metaimage(tmp_path):
    """Written by SimpleITK, in LPS; the same mask as from NIfTI."""
    sitk = pytest.importorskip("SimpleITK")
    affine = turned((11, -7, 23), (1.0, 1.3, 0.8))
    image, mask = pair(tmp_path, affine)
    recipe = Recipe("mri", (16, 24, 16), (1.5, 1.1, 0.9))
    expected, _ = prepared(image, mask, recipe)
    for suffix in ("nrrd", "mha", "mhd"):
        sitk.WriteImage(sitk.ReadImage(str(mask)), str(tmp_path / f"mask.{suffix}"))
        assert np.array_equal(prepared(image, tmp_path / f"mask.{suffix}", recipe)[0], expected)


def source(folder, data, **more):
    image, mask = pair(folder, np.eye(4), data=data)
    return Source("image.nii.gz", (image,), mask=mask)


def test_what_is_lost_is_a_warning(tmp_path):
    """A class of one voxel in the corner is cropped away, one in the middle by voxels of 3 mm; an empty mask."""
    data = labels() // 9 * 9
    data[0, 0, 0], data[10, 10, 10] = 2, 5
    fine, coarse = Recipe("mri", (16, 16, 16), None), Recipe("mri", (4, 4, 4), (4.0, 4.0, 4.0))
    array, record, mask = prepare_source(source(tmp_path / "a", data), fine, False, CLASSES)
    assert array.shape == mask.shape and set(np.unique(mask)) == {0, 2, 3}
    assert record["warnings"] == ["a class of the mask vanishes by resampling and cropping: a"]
    _, record, _ = prepare_source(source(tmp_path / "a", data), coarse, False, CLASSES)
    assert "a class of the mask vanishes by resampling and cropping: a, b" in record["warnings"]
    empty = source(tmp_path / "b", np.zeros(SHAPE, np.uint8))
    _, record, mask = prepare_source(empty, fine, False, CLASSES)
    assert record["warnings"] == ["the mask is empty (every voxel is 0)"] and not mask.any()
    refused = prepare_source(empty, fine, True, CLASSES)
    assert refused == Failure("its mask mask.nii.gz: the mask is empty (every voxel is 0)")


def test_warnings_of_the_header_are_the_masks(tmp_path):
    image = save(tmp_path / "image.nii", voxels(), np.eye(4))
    mask = save(tmp_path / "m.nii", labels(), np.eye(4), xyzt_units=1)  # metres
    found = prepare_source(Source("image.nii", (image,), mask=mask), Recipe("mri", (16, 16, 16), None), False, CLASSES)
    assert isinstance(found, Failure) and "m.nii" in found.reason  # voxels of a metre are no scan's
    mask = patch(save(tmp_path / "m.nii", labels()), 252, bytes(4))  # qform_code, sform_code
    image = save(tmp_path / "image.nii", voxels(), nibabel.load(mask).affine)
    found = prepare_source(Source("image.nii", (image,), mask=mask), Recipe("mri", (16, 16, 16), None), False, CLASSES)
    assert [w for w in found[1]["warnings"] if w.startswith("mask: no orientation in the header")]


def test_a_mask_of_a_contradicting_header_is_refused_with_strict(tmp_path):
    image = save(tmp_path / "image.nii", voxels(), np.eye(4))
    stored = nibabel.Nifti1Image(labels(), np.eye(4))
    stored.set_sform(np.eye(4), 1)
    stored.set_qform(np.diag([-1.0, 1, 1, 1]), 1)
    nibabel.save(stored, tmp_path / "m.nii")
    one = Source("image.nii", (image,), mask=tmp_path / "m.nii")
    recipe = Recipe("mri", (16, 16, 16), None)
    _, record, mask = prepare_source(one, recipe, False, CLASSES)
    assert mask.any() and any(w.startswith("mask: sform and qform disagree") for w in record["warnings"])
    assert "sform and qform disagree" in prepare_source(one, recipe, True, CLASSES).reason
