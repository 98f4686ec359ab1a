"""Makes phantoms: random heads of ellipsoids, a data set without a download.

Each has scalp, skull, fluid, grey and white matter, two lateral ventricles, deep nuclei and sometimes a lesion, in
the manner of the Shepp-Logan phantom, with random size, position, rotation, proportions and contrast. Phantom i
depends on (seed, i) alone. Its mask says of each voxel in which structure the middle of the voxel lies.
"""

from __future__ import annotations

import os

import numpy as np
from scipy.spatial.transform import Rotation

from ssgan.config.fields import Triple
from ssgan.data.dataset import BACKGROUND, VolumeDataset
from ssgan.data.writer import DatasetWriter, MaskClasses
from ssgan.utils.errors import UserError

FIELD = 180.0  # mm, the length that the field of view covers along its longest axis
RAW_HIGH = 1000.0  # the raw intensity that +1 stands for when a phantom is written as NIfTI
SEMI_AXES = np.array([68.0, 84.0, 72.0])  # mm: half width, half length, half height of an average head
GREY, WHITE, VENTRICLES = 1, 2, 3  # class numbers of the masks; a lesion counts as the tissue that it lies in
MASK_CLASSES = MaskClasses((0, GREY, WHITE, VENTRICLES), (BACKGROUND, "grey matter", "white matter", "ventricles"))


def make_phantom(shape: Triple, seed: int, index: int) -> np.ndarray:
    """Makes one head (D, H, W) = (Z, Y, X), float32 in [-1, 1]; air is -1."""
    return make_labelled_phantom(shape, seed, index)[0]


def make_labelled_phantom(shape: Triple, seed: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes the head of `make_phantom` and its mask, both (D, H, W); the mask is uint8, classes of MASK_CLASSES."""
    rng = np.random.default_rng([seed, index])
    world, voxel = _grid(shape)
    fit = np.min(np.array(shape[::-1]) * voxel / 2 / SEMI_AXES * 0.98)  # the average head fills the tightest axis
    size = fit * rng.uniform(0.80, 0.96) * SEMI_AXES * rng.uniform(0.94, 1.06, 3)
    turn = Rotation.from_euler("xyz", rng.normal(0, [5, 3, 7]), degrees=True).as_matrix()
    centre = rng.normal(0, 0.025, 3) * SEMI_AXES * fit
    local = (world - centre) @ turn  # (D, H, W, 3) mm, the head's own axes
    soft = 0.6 * voxel / size.mean()  # edges as wide as a voxel, in units of the ellipsoids

    image, mask = np.zeros(shape), np.zeros(shape, np.uint8)

    def paint(
        value: float, middle: np.ndarray, axes: np.ndarray, strength: float = 1.0, tissue: int | None = None
    ) -> None:
        """Draws an ellipsoid over the image, and over the mask if it is a tissue; middle and semi-axes are in units of
        the head's semi-axes."""
        q = (local / size - middle) / axes
        radius = np.sqrt((q**2).sum(-1))
        edge = soft / np.min(axes)
        inside = strength / (1 + np.exp(np.clip((radius - 1) / edge * 2, -40, 40)))
        image[...] = image * (1 - inside) + value * inside
        if tissue is not None:
            mask[radius < 1] = tissue

    level = rng.normal(1, 0.05)
    grey, white, fluid = 0.52 * level, 0.80 * level, rng.uniform(0.10, 0.18)
    zero = np.zeros(3)
    skull = rng.uniform(0.90, 0.93)
    brain = rng.uniform(0.80, 0.85)
    paint(rng.uniform(0.75, 0.95), zero, np.ones(3))  # scalp
    paint(rng.uniform(0.06, 0.12), zero, np.full(3, skull))  # skull
    paint(fluid, zero, np.full(3, brain + 0.03))
    paint(grey, zero, np.full(3, brain), tissue=GREY)
    inner = brain * rng.uniform(0.76, 0.84)
    for side in (-1, 1):  # white matter of each hemisphere, with the midline between
        paint(white, np.array([side * 0.33, 0.0, 0.04]), inner * np.array([0.50, 0.92, 0.80]), tissue=WHITE)
    paint(white, np.array([0.0, -0.02, 0.22]), np.array([0.16, 0.44, 0.09]), tissue=WHITE)  # corpus callosum
    paint(white * 0.95, np.array([0.0, -0.12, -0.52]), np.array([0.13, 0.14, 0.32]), tissue=WHITE)  # brain stem
    wide = rng.uniform(0.07, 0.14)
    for side in (-1, 1):  # lateral ventricles, nearly mirrored
        at = np.array([side * rng.uniform(0.13, 0.17), rng.uniform(-0.06, 0.06), rng.uniform(0.06, 0.14)])
        paint(fluid, at, np.array([wide, rng.uniform(0.30, 0.42), rng.uniform(0.13, 0.19)]), tissue=VENTRICLES)
    for side in (-1, 1):  # deep nuclei
        paint(grey * 1.1, np.array([side * 0.26, 0.06, -0.16]), np.array([0.11, 0.20, 0.13]), tissue=GREY)
    paint(grey, np.array([0.0, -0.52, -0.48]), np.array([0.42, 0.26, 0.22]), tissue=GREY)  # cerebellum
    if rng.random() < 0.3:
        at = rng.normal(0, 1, 3)
        at *= rng.uniform(0.25, 0.55) / np.linalg.norm(at)
        paint(rng.choice([0.25, 1.05]), at, rng.uniform(0.08, 0.16, 3), strength=0.9)
    bias = 1 + ((world / FIELD) * rng.normal(0, 0.10, 3)).sum(-1)  # coil sensitivity
    image = image * bias + rng.normal(0, 0.012, shape)
    return np.clip(2 * image - 1, -1, 1).astype(np.float32), mask


def make_phantoms(count: int, shape: Triple, seed: int = 0) -> np.ndarray:
    """Makes `count` heads, (N, D, H, W) float32 in [-1, 1]."""
    _check(count, shape)
    return np.stack([make_phantom(shape, seed, i) for i in range(count)])


def write_phantom_dataset(
    path: str | os.PathLike[str], count: int, shape: Triple, seed: int = 0, masks: bool = False
) -> VolumeDataset:
    """Writes `count` phantoms as a data set, with `masks` if asked, and opens it.

    Raises:
        DatasetError: `path` holds something else.
    """
    _check(count, shape)
    _, voxel = _grid(shape)
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = -voxel * (np.array(shape[::-1]) - 1) / 2
    with DatasetWriter(path, shape, masks=MASK_CLASSES if masks else None) as writer:
        for i in range(count):
            record = {
                "source": f"phantom {i} of seed {seed}",
                "intensity_low": 0.0,
                "intensity_high": RAW_HIGH,
                "affine": affine.tolist(),
                "warnings": [],
            }
            volume, mask = make_labelled_phantom(shape, seed, i)
            writer.add(volume, record, mask if masks else None)
        return writer.finish(spacing=[voxel] * 3, affine=affine, slice_axis="axial", recipe="phantom")


def _grid(shape: Triple) -> tuple[np.ndarray, float]:
    """World coordinates x, y, z around the centre, (D, H, W, 3) in mm, and the voxel size in mm."""
    voxel = FIELD / max(shape)
    axes = [(np.arange(n) - (n - 1) / 2) * voxel for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    return np.stack([x, y, z], -1), voxel


def _check(count: int, shape: Triple) -> None:
    if count < 1:
        raise UserError(f"count: expected at least one phantom; got {count}")
    if len(shape) != 3 or min(shape) < 4:
        raise UserError(f"shape: expected three extents (D, H, W) of at least 4 voxels; got {tuple(shape)}")
