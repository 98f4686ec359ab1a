"""Figures of masks: each against a number worked out by hand, or against code that shares nothing with it."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from ssgan.data.phantom import make_labelled_phantom
from ssgan.metrics import masks

SPACING = (3.0, 0.5, 2.0)  # mm along D, H, W


def blobs(count, shape=(6, 9, 7), classes=3, seed=0):
    """Masks of overlapping random boxes, some without a class."""
    rng = np.random.default_rng(seed)
    made = np.zeros((count, *shape), np.uint8)
    for mask in made:
        for k in rng.permutation(np.arange(1, classes))[: rng.integers(1, classes)]:
            low = [rng.integers(0, n - 2) for n in shape]
            high = [rng.integers(a + 1, n + 1) for a, n in zip(low, shape)]
            mask[tuple(slice(a, b) for a, b in zip(low, high))] = k
    return made


def surface_by_hand(structure):
    """Indices of voxels with a neighbour outside, by looking at every neighbour."""
    inside = {tuple(v) for v in np.argwhere(structure)}
    steps = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    return np.array([v for v in inside if any(tuple(np.add(v, s)) not in inside for s in steps)])


def test_volumes_in_ml():
    made = np.zeros((2, 4, 5, 3), np.uint8)
    made[0, :2, :2, :2] = 1  # 8 voxels of 3 mm^3
    made[1, 3, :, 0] = 2  # 5
    np.testing.assert_allclose(masks.class_volumes(made, 3, SPACING), [[0.024, 0], [0, 0.015]])


def test_the_distance_of_volumes_is_relative_to_the_real_mean():
    real, other = np.array([1.0, 2.0, 3.0]), np.array([3.5, 1.5, 2.5])  # sorted, each is moved by 0.5
    assert masks.volume_distance(real, other) == pytest.approx(0.5 / 2)
    assert masks.volume_distance(real, real[::-1]) == 0
    assert masks.volume_distance(np.zeros(3), other) is None


@pytest.mark.parametrize("block", [2, 3, 32])
def test_dice_of_every_pair(block):
    a, b = blobs(5), blobs(4, seed=1)
    found = masks.dice_table(a, b, 3, block)
    for i in range(5):
        for j in range(4):
            for k in (1, 2):
                p, q = ({tuple(v) for v in np.argwhere(m == k)} for m in (a[i], b[j]))
                expected = 2 * len(p & q) / (len(p) + len(q)) if p or q else 1
                assert found[i, j, k - 1] == pytest.approx(expected, rel=1e-12)


def test_dice_of_pairs_leaves_out_what_both_lack():
    a = np.zeros((2, 2, 2, 2), np.uint8)
    b = a.copy()
    a[0, 0], b[0, :, 0] = 1, 1
    np.testing.assert_array_equal(masks.pair_dice(a, b, 3), [[0.5, np.nan], [np.nan, np.nan]])


@pytest.mark.parametrize("seed", range(6))
def test_surface_distances_are_those_of_all_pairs_of_surface_voxels(seed):
    a, b = (blobs(1, classes=2, seed=s)[0] == 1 for s in (seed, seed + 100))
    points = [surface_by_hand(x) * np.array(SPACING) for x in (a, b)]
    table = cdist(*points)
    expected = (table.min(1).sum() + table.min(0).sum()) / sum(table.shape)
    assert masks.surface_distance(a, b, SPACING) == pytest.approx(expected, rel=1e-9)
    assert masks.surface_distance(b, a, SPACING) == pytest.approx(expected, rel=1e-9)


def test_surface_distance_of_two_planes_and_of_nothing():
    a, b = np.zeros((2, 8, 8, 8), bool)
    a[1], b[5] = True, True  # four slices of 3 mm apart
    assert masks.surface_distance(a, b, SPACING) == pytest.approx(12)
    assert masks.surface_distance(a, a, SPACING) == 0
    assert masks.surface_distance(a, np.zeros_like(a), SPACING) is None


def test_surface_distances_are_monai_s():
    monai = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    a, b = blobs(1, (11, 14, 9), 2, 3), blobs(1, (11, 14, 9), 2, 8)
    hot = [torch.from_numpy(np.stack([m == 0, m == 1], 1)) for m in (a, b)]
    found = monai.compute_average_surface_distance(
        *hot, include_background=False, symmetric=True, spacing=list(SPACING)
    )
    assert masks.surface_distance(a[0] == 1, b[0] == 1, SPACING) == pytest.approx(float(found), rel=1e-5)


def test_components_touch_at_corners():
    structure = np.zeros((3, 5, 4), bool)
    structure[0, 0, 0] = structure[1, 1, 1] = structure[2, 4, 3] = True
    assert masks.component_count(structure) == 2
    assert masks.component_count(structure[:, :, :0]) == 0


def test_the_closest_mask_has_the_largest_mean_dice():
    training = blobs(7, seed=4)
    moved = np.roll(training[[5, 2]], 1, axis=2)
    found = masks.closest_masks(moved, training, 3, SPACING)
    mean = masks.dice_table(moved, training, 3).mean(2)
    for i, j in enumerate(mean.argmax(1)):
        np.testing.assert_array_equal(found.dice[i], masks.dice_table(moved, training, 3)[i, j])
        for k in (1, 2):
            expected = masks.surface_distance(moved[i] == k, training[j] == k, SPACING)
            np.testing.assert_equal(found.surface[i, k - 1], np.nan if expected is None else expected)
    copies = masks.closest_masks(training[[1, 6]], training, 3, SPACING)
    assert (copies.dice == 1).all() and np.nanmax(copies.surface) == 0
    others = masks.closest_masks(training, training, 3, SPACING, own=range(7))
    assert (others.dice.mean(1) < 1).all()


def boxes(extents):
    """One mask per (extent of class 1, extent of class 2): boxes from two corners."""
    made = np.zeros((len(extents), 8, 8, 8), np.uint8)
    for mask, (one, two) in zip(made, extents):
        mask[:one, :4, :4] = 1
        mask[4:, 5 : 5 + two, 5:] = 2
    return made


def test_the_figures_of_generated_masks():
    real, spare = boxes([(1, 1), (2, 2), (3, 0)]), boxes([(2, 2), (3, 1), (4, 0)])
    fake = boxes([(2, 2), (2, 2), (2, 0)])
    fake[2, 7, 0, 0] = 1  # a speck far away
    training = np.concatenate([real, spare])
    found = masks.compare_masks(real, fake, spare, training, None, ("background", "one", "two"), (1, 1, 1))
    assert list(found) == ["one", "two"]
    one = found["one"]
    assert one["volume_ml"]["real_mean"] == pytest.approx(0.032) and one["volume_ml"]["real_sd"] == pytest.approx(0.016)
    assert one["volume_ml"]["generated_mean"] == pytest.approx((32 + 32 + 33) / 3000, rel=1e-4)
    # Sorted, 16, 32, 48 against 32, 32, 33: 16 + 0 + 15 over three and over a mean of 32.
    assert one["volume_distance"]["value"] == pytest.approx(31 / 3 / 32, rel=1e-4)
    assert one["volume_distance"]["floor"] == pytest.approx(0.5)  # each is one slice, 16 of 32, larger
    assert one["components"] == {"real": 1.0, "generated": pytest.approx(4 / 3, rel=1e-4)}
    assert one["absent"] == {"real": 0.0, "generated": 0.0}
    assert found["two"]["absent"] == {"real": pytest.approx(1 / 3, rel=1e-4)} | {
        "generated": pytest.approx(1 / 3, rel=1e-4)
    }
    assert found["two"]["dice_to_closest"]["generated"] == 1 and found["two"]["surface_mm"]["generated"] == 0
    assert one["surface_mm"]["generated"] > 0 and one["surface_mm"]["reference"] > 0
    again = masks.compare_masks(real, fake, spare, training, spare[:1], ("background", "one", "two"), (1, 1, 1))
    assert again["one"]["surface_mm"] == {"generated": one["surface_mm"]["generated"], "reference": 0.0}


def test_a_class_that_nobody_has():
    empty = np.zeros((3, 4, 5, 6), np.uint8)
    found = masks.compare_masks(empty, empty, empty, empty, empty, ("background", "gone"), (1, 1, 1))["gone"]
    assert found["absent"] == {"real": 1.0, "generated": 1.0}
    assert found["volume_distance"] == {"value": None, "floor": None}
    assert found["components"] == {"real": None, "generated": None}
    assert found["surface_mm"] == {"generated": None, "reference": None}


@pytest.fixture(scope="module")
def heads():
    """Masks of phantom heads: to train on, to compare with, for the floor, generated, held out; and their spacing."""
    made = np.stack([make_labelled_phantom((12, 16, 14), 0, i)[1] for i in range(60)])
    return np.split(made, [20, 30, 40, 50]), (11.25, 11.25, 11.25)


def figures(heads, fake):
    (training, real, spare, _, held), spacing = heads
    names = ("background", "grey", "white", "ventricles")
    everything = np.concatenate([training, real, spare])
    return masks.compare_masks(real, fake, spare, everything, held, names, spacing)["white"]


def test_each_fault_is_seen_by_its_figure(heads):
    """Generated masks that are other real ones are near every reference; each fault moves its own figure away."""
    (training, _, _, honest, _), _ = heads
    good = figures(heads, honest)
    assert good["volume_distance"]["value"] < 2 * good["volume_distance"]["floor"]
    for figure in ("surface_mm", "dice_to_closest"):
        assert good[figure]["generated"] == pytest.approx(good[figure]["reference"], rel=0.2)

    swollen = np.stack([np.where(ndimage.binary_dilation(m == 2), np.uint8(2), m) for m in honest])
    found = figures(heads, swollen)
    assert found["volume_distance"]["value"] > 3 * good["volume_distance"]["value"]
    assert found["surface_mm"]["generated"] > 1.3 * good["surface_mm"]["generated"]

    specks = honest.copy()
    specks[:, 0, 0, 0] = specks[:, -1, -1, -1] = specks[:, 0, -1, 0] = 2
    assert figures(heads, specks)["components"]["generated"] >= good["components"]["generated"] + 2.5

    turned = honest[:, ::-1]  # upside down: volumes and components stay, no real head looks like it
    found = figures(heads, turned)
    assert found["volume_ml"] == good["volume_ml"] and found["components"] == good["components"]
    assert found["dice_to_closest"]["generated"] < good["dice_to_closest"]["generated"] - 0.02

    copies = figures(heads, training[:10])
    assert copies["dice_to_closest"]["generated"] == 1 > copies["dice_to_closest"]["reference"]
    assert copies["surface_mm"]["generated"] == 0 < copies["surface_mm"]["reference"]

    lacking = np.where(honest == 2, 1, honest).astype(np.uint8)
    lacking[:5] = honest[:5]
    assert figures(heads, lacking)["absent"] == {"real": 0.0, "generated": 0.5}
