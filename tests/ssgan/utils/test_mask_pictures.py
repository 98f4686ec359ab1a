"""Masks in pictures: the class's colour at its place, the right way up; nothing for class 0 and for no mask."""

import numpy as np
import pytest
from PIL import Image

from ssgan.utils.pictures import (
    CELL,
    GAP,
    MARGIN,
    MASK_COLOURS,
    TINT,
    ImageError,
    contact_sheet,
    save_gif,
    three_plane_grid,
)

SHAPE = (8, 16, 12)  # Z, Y, X
SCALE = CELL // 16  # pixels of a voxel


def page(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def planes(path):
    """The axial, coronal and sagittal parts of a one-cell grid of a volume of SHAPE."""
    found, left, (z, y, x) = [], MARGIN, (n * SCALE for n in SHAPE)
    for height, width in ((y, x), (z, x), (z, y)):
        top = MARGIN + (CELL - height) // 2
        found.append(page(path)[top : top + height, left : left + width])
        left += width + GAP
    return found


def at(part, right, up):
    """The colour in the middle of the voxel that is `right`th from the left and `up`th from below."""
    return part[part.shape[0] - up * SCALE - SCALE // 2 - 1, right * SCALE + SCALE // 2].tolist()


def tinted(number, grey=128):
    return [round(grey * (1 - TINT) + TINT * c) for c in MASK_COLOURS[number - 1]]


def test_each_class_has_its_colour_at_its_place(tmp_path):
    """One octant of class 2 at the right, front and head, in each plane; a single voxel of class 1 in the corner."""
    mask = np.zeros(SHAPE, np.int64)
    mask[4:, 8:, 6:] = 2
    mask[7, 15, 11] = 1
    for number, part in enumerate(
        planes(three_plane_grid(np.zeros((1, *SHAPE)), tmp_path / "a.png", masks=mask[None]))
    ):
        up, right = part.shape[0] // SCALE, part.shape[1] // SCALE
        assert at(part, right - 3, up - 3) == tinted(2)
        assert at(part, 1, 1) == at(part, 1, up - 2) == at(part, right - 2, 1) == [128] * 3
        outline = part[part.shape[0] - up // 2 * SCALE - 1, right * SCALE - 20]
        assert outline.tolist() == list(MASK_COLOURS[1])
        assert not number or at(part, right - 1, up - 1) == tinted(2)


def test_the_slices_with_most_of_the_mask_are_shown(tmp_path):
    """Not the middle ones where the mask is elsewhere; the middle ones without a mask."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    mask = np.zeros(SHAPE, np.uint8)
    mask[1, 2:6, 8:11] = 1
    mask[2, 3, 8] = 1
    middle = (4, 8, 6)
    cases = [(mask, (1, 3, 8)), (np.full(SHAPE, 255), middle), (0 * mask, middle), (None, middle)]
    for number, (values, step) in enumerate(((z, 30), (y, 15), (x, 20))):  # the plane's index in grey
        for labels, index in cases:
            masks = None if labels is None else labels[None]
            path = three_plane_grid((values * step / 127.5 - 1)[None], tmp_path / "a.png", masks=masks)
            assert at(planes(path)[number], 0, 0) == [index[number] * step] * 3, (number, index)


def test_no_mask_and_background_leave_the_picture_as_it_was(tmp_path):
    volumes = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE))
    masks = np.stack([np.full(SHAPE, 255), np.zeros(SHAPE)]).astype(np.uint8)
    for number, draw in enumerate((three_plane_grid, lambda v, p, **k: contact_sheet(v, ["a", "b"], p, **k))):
        plain, masked = (
            draw(volumes, tmp_path / f"{number}{i}.png", **k) for i, k in enumerate(({}, {"masks": masks}))
        )
        assert np.array_equal(page(plain), page(masked))


def test_a_contact_sheet_and_a_gif_have_the_colours(tmp_path):
    mask = np.zeros((2, *SHAPE), np.uint8)
    mask[1, 3:6, 4:12, 3:9] = 3
    sheet = page(contact_sheet(np.zeros((2, *SHAPE)), ["a", "b"], tmp_path / "a.png", masks=mask, columns=2))
    coloured = np.ptp(sheet, axis=2) > 40
    half = sheet.shape[1] // 2
    assert not coloured[:, :half].any() and coloured[:, half:].sum() > 3 * 18 * SCALE**2
    greys = 100 + 4 * np.arange(8)  # PIL joins frames that are the same
    volume = (greys / 127.5 - 1)[:, None, None] * np.ones(SHAPE)
    with Image.open(save_gif(volume, tmp_path / "a.gif", masks=mask[1])) as gif:
        assert gif.n_frames == 8 + 6
        for frame in range(gif.n_frames):
            gif.seek(frame)
            drawn = np.asarray(gif.convert("RGB")).astype(int)
            z = frame if frame < 8 else 14 - frame
            middle = drawn[drawn.shape[0] // 2, drawn.shape[1] // 2]
            expected = tinted(3, greys[z]) if 3 <= z < 6 else [greys[z]] * 3
            assert np.abs(middle - expected).max() <= 3, frame


def test_colours_differ(tmp_path):
    assert len(MASK_COLOURS) == 31 == len(set(MASK_COLOURS))
    assert all(max(c) > 130 for c in MASK_COLOURS)  # seen on black


@pytest.mark.parametrize(
    "masks",
    [np.zeros((2, *SHAPE), int), np.zeros((1, *SHAPE)), np.full((1, *SHAPE), -1), np.full((1, *SHAPE), 256)],
    ids=["count", "float", "negative", "large"],
)
def test_what_is_no_mask_is_refused(masks, tmp_path):
    with pytest.raises(ImageError, match="masks: expected class numbers"):
        three_plane_grid(np.zeros((1, *SHAPE)), tmp_path / "a.png", masks=masks)
    with pytest.raises(ImageError, match="masks: expected class numbers"):
        save_gif(np.zeros(SHAPE), tmp_path / "a.gif", masks=masks)
    assert not list(tmp_path.iterdir())
