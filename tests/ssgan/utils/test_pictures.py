"""Pictures: the right plane the right way up, sizes, names, GIF frames, and errors."""

import numpy as np
import pytest
from PIL import Image

from ssgan.utils.pictures import (
    CELL,
    GAP,
    MARGIN,
    TITLE,
    ImageError,
    contact_sheet,
    plot_curves,
    save_gif,
    slice_grid,
    slices_gif,
    three_plane_grid,
)


def pixels(path):
    return np.asarray(Image.open(path).convert("L")).astype(float)


def brightest_corner(part):
    """Which corner of a picture holds the light: (top or bottom, left or right)."""
    h, w = part.shape[0] // 2, part.shape[1] // 2
    corners = {
        ("top", "left"): part[:h, :w],
        ("top", "right"): part[:h, w:],
        ("bottom", "left"): part[h:, :w],
        ("bottom", "right"): part[h:, w:],
    }
    return max(corners, key=lambda name: corners[name].mean())


def planes(path, shape, spacing=(1.0, 1.0, 1.0)):
    """The axial, coronal and sagittal parts of a one-cell grid of a volume of `shape` (Z, Y, X)."""
    page = pixels(path)
    z, y, x = (n * s for n, s in zip(shape, spacing[::-1]))
    scale = CELL / max(x, y, z)
    sizes = [
        (round(y * scale), round(x * scale)),
        (round(z * scale), round(x * scale)),
        (round(z * scale), round(y * scale)),
    ]
    tallest = max(h for h, _ in sizes)
    parts, left = [], MARGIN
    for h, w in sizes:
        top = MARGIN + (tallest - h) // 2
        parts.append(page[top : top + h, left : left + w])
        left += w + GAP
    return parts


def test_planes_are_shown_head_up_front_up_and_right_on_the_right(tmp_path):
    """One bright octant: right (+X), front (+Y), head (+Z). It must be seen where each plane shows it."""
    volume = np.full((8, 12, 10), -1.0)
    volume[4:, 6:, 5:] = 1.0
    path = three_plane_grid(volume[None], tmp_path / "a.png")
    axial, coronal, sagittal = planes(path, volume.shape)
    assert brightest_corner(axial) == ("top", "right")  # front up, right on the right
    assert brightest_corner(coronal) == ("top", "right")  # head up, right on the right
    assert brightest_corner(sagittal) == ("top", "right")  # head up, front on the right
    flipped = three_plane_grid(volume[None, ::-1], tmp_path / "b.png")
    assert brightest_corner(planes(flipped, volume.shape)[1]) == ("bottom", "right")


def test_spacing_gives_the_planes_their_proportions(tmp_path):
    volume = np.ones((10, 10, 10))
    path = three_plane_grid(volume[None], tmp_path / "a.png", spacing=(1.0, 1.0, 3.0))
    for part, ratio in zip(planes(path, volume.shape, (1.0, 1.0, 3.0)), (1, 3, 3)):
        assert part.min() > 250
        assert part.shape[0] == pytest.approx(ratio * part.shape[1], abs=2)


def test_grids_hold_every_volume(tmp_path):
    volumes = np.stack([np.full((8, 8, 8), v) for v in np.linspace(-0.9, 0.9, 7)])
    page = pixels(three_plane_grid(volumes, tmp_path / "a.png", columns=3))
    cell = 3 * CELL + 2 * GAP
    assert page.shape == (MARGIN + 3 * (CELL + MARGIN), MARGIN + 3 * (cell + MARGIN))
    for i, v in enumerate(np.linspace(-0.9, 0.9, 7)):
        middle = page[MARGIN + i // 3 * (CELL + MARGIN) + CELL // 2, MARGIN + i % 3 * (cell + MARGIN) + CELL // 2]
        assert middle == pytest.approx((v + 1) * 127.5, abs=1)
    titled = pixels(three_plane_grid(volumes, tmp_path / "b.png", columns=3, title="seven"))
    assert titled.shape[0] > page.shape[0]


def test_values_beyond_the_range_are_clipped(tmp_path):
    slices = np.stack([np.full((6, 6), -5.0), np.full((6, 6), 5.0)])
    page = pixels(slice_grid(slices, tmp_path / "a.png", columns=2))
    assert page[MARGIN + 50, MARGIN + 50] == 0
    assert page[MARGIN + 50, 2 * MARGIN + CELL + 50] == 255


def test_a_contact_sheet_names_its_cells(tmp_path):
    volumes = np.full((2, 6, 6, 6), -1.0)
    unnamed = pixels(contact_sheet(volumes, ["", ""], tmp_path / "a.png"))
    named = pixels(contact_sheet(volumes, ["first", "second"], tmp_path / "b.png"))
    assert named.shape == unnamed.shape
    assert (named > 120).sum() > (unnamed > 120).sum() + 50
    with pytest.raises(ImageError, match="names: expected 2, one per volume; got 1"):
        contact_sheet(volumes, ["only"], tmp_path / "c.png")


def test_a_contact_sheet_marks_left_and_right(tmp_path):
    """The letters stand in the lower corners of the axial and coronal planes, and R is the wider one on +X."""
    volume = np.full((40, 40, 40), -1.0)
    plain = planes(three_plane_grid(volume[None], tmp_path / "a.png"), volume.shape)
    marked = planes(contact_sheet(volume[None], [""], tmp_path / "b.png"), volume.shape)
    for number, (before, after) in enumerate(zip(plain, marked, strict=True)):
        changed = np.argwhere(before != after)
        if number == 2:
            assert not len(changed)
            continue
        assert changed[:, 0].min() > 0.85 * CELL and (abs(changed[:, 1] - CELL / 2) > 0.4 * CELL).all()
        ink = after[-12:] > 128
        assert 0 < ink[:, : CELL // 2].sum() < ink[:, CELL // 2 :].sum()  # L has less ink than R


def test_a_gif_runs_through_the_slices_and_back(tmp_path):
    ramp = np.linspace(-1, 1, 9)[:, None, None] * np.ones((9, 6, 4))
    with Image.open(save_gif(ramp, tmp_path / "a.gif")) as gif:
        assert gif.n_frames == 9 + 7
        assert gif.info["loop"] == 0
        seen = []
        for frame in range(gif.n_frames):
            gif.seek(frame)
            seen.append(np.asarray(gif.convert("L")).mean())
    assert seen[:9] == sorted(seen[:9])
    assert seen[8:] == sorted(seen[8:], reverse=True)


def test_a_gif_shows_volumes_side_by_side_under_their_names(tmp_path):
    ramp = np.linspace(-1, 1, 9)[:, None, None] * np.ones((9, 6, 4))
    with Image.open(slices_gif(np.stack([ramp, ramp[::-1]]), ["up", "down"], tmp_path / "a.gif")) as gif:
        assert gif.n_frames == 9 + 7 and gif.size[1] == MARGIN + TITLE + 2 * CELL
        page = np.asarray(gif.convert("L"))
        half = page.shape[1] // 2
        assert page[TITLE + CELL, MARGIN + 20] < 5 and page[TITLE + CELL, half + 20] > 250
        assert all((page[:TITLE, part] > 150).any() for part in (slice(0, half), slice(half, None)))
    with pytest.raises(ImageError, match="names: expected 1, one per volume; got 2"):
        slices_gif(ramp[None], ["a", "b"], tmp_path / "b.gif")


def test_curves_are_drawn_for_what_was_logged(tmp_path):
    rows = [{"stage": "2d", "images": i, "loss_g": 1.0, "loss_d": 0.5} for i in range(0, 100, 10)]
    rows += [{"stage": "3d", "images": i, "loss_g": 1.0, "distance": 0.4} for i in range(0, 50, 10)]
    with Image.open(plot_curves(rows, tmp_path / "a.png")) as both:
        wide = both.size
    with Image.open(plot_curves(rows[:10], tmp_path / "b.png")) as one:
        assert wide[0] > one.size[0]
        assert wide[1] > one.size[1]
    with pytest.raises(ImageError, match="expected log rows"):
        plot_curves([{"event": "floor"}], tmp_path / "c.png")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5)), "expected a non-empty array"),
        (np.zeros((0, 4, 5, 6)), "expected a non-empty array"),
        (np.full((1, 4, 5, 6), np.nan), "120 values to draw are NaN or infinite"),
    ],
    ids=["3D", "none", "NaN"],
)
def test_what_cannot_be_drawn_is_refused_and_leaves_nothing(tmp_path, array, message):
    with pytest.raises(ImageError, match=message):
        three_plane_grid(array, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
