"""The report and the model card of a run with masks: overlays, legend and figures."""

import base64
import gzip
import io
import json
import re
import time
from html import unescape

import numpy as np
import pytest
from PIL import Image

from ssgan import report
from ssgan.data.axes import to_axial
from ssgan.data.dataset import VolumeDataset
from ssgan.reporting import content, elements, viewer
from ssgan.runs.generator import load_generator
from ssgan.runs.pretrained import load_networks
from ssgan.utils.pictures import MASK_COLOURS, TINT
from tests.ssgan.reporting import test_report
from tests.support.browser import CHROMIUM, DRIVER, REASON, Browser
from tests.support.tiny_runs import make_mask_run

PAIR = {"generated": 0.61234, "reference": 0.66}
FIGURES = {
    "volume_ml": {"real_mean": 1.5, "real_sd": 0.1, "generated_mean": 1.625, "generated_sd": 0.2},
    "volume_distance": {"value": 0.031, "floor": 0.022}, "absent": {"real": 0.0, "generated": 0.25},
    "components": {"real": 1.0, "generated": 1.02}, "surface_mm": PAIR, "dice_to_closest": PAIR,
    "segmenter_dice": {"generated": None, "real": 0.86},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_mask_run(tmp_path_factory.mktemp("report"))
    check = {"median_to_training": 2.0, "median_reference": 1.0, "ratio": 2.0, "below_5_percent": 0.1, "closest": []}
    metrics = {
        "format": "ssgan-metrics", "version": 1, "protocol": "3 against 3", "count": 3,
        "extractor": {"name": "random3d", "sha256": "ab" * 32},
        "real": {"sha256": VolumeDataset(run.parent / "data").info.content_hash},
        "fake": {"sha256": "0", "checkpoint_sha256": load_generator(run).sha256},
        "metrics": {"frechet": {"value": 1.0, "interval": None, "floor": 0.5, "better": "lower"}},
        "masks": {
            "count": 12, "training": 24, "reference": "held-out masks", "classes": {"grey <matter>": FIGURES},
        },
        "memorisation": {"features": check, "voxels": check, "reference": "held-out", "picture": "absent.png"},
    }  # fmt: skip
    (run / "metrics.json").write_text(json.dumps(metrics))
    return run


@pytest.fixture(scope="module")
def page(run):
    assert report.main(["--run", str(run), "--count", "3"]) == 0
    return (run / "report.html").read_text()


def about(page):
    return json.loads(re.search(r'id="volumes">(.*?)</script>', page, re.DOTALL)[1])


def unpacked(found, key):
    raw = gzip.decompress(base64.b64decode(found[key]))
    return np.frombuffer(raw, np.uint8).reshape(-1, *found["shape"])


def test_the_masks_are_embedded_beside_the_volumes(run, page):
    found = about(page)
    masks, data = unpacked(found, "masks"), VolumeDataset(run.parent / "data")
    volumes, made = load_networks(run)[0].pairs(range(3))
    near = content.TrainingVolumes(data.volumes).nearest(np.clip(volumes, -1, 1)).index
    expected = np.concatenate([data.masks[:3], made, data.masks[near]])
    np.testing.assert_array_equal(masks, to_axial(expected, "axial"))
    assert masks.shape == unpacked(found, "data").shape
    assert [c["name"] for c in found["classes"]] == ["grey matter", "white matter", "ventricles"]
    assert [tuple(c["colour"]) for c in found["classes"]] == list(MASK_COLOURS[:3])


def test_the_legend_and_the_box_that_hides_them(page):
    found = test_report.Elements(page).found
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids)) and "show-masks" in ids
    assert any(tag == "label" and a["for"] == "show-masks" for tag, a in found)
    for name, colour in zip(("grey matter", "white matter", "ventricles"), MASK_COLOURS):
        assert f'background:rgb({",".join(map(str, colour))})"></span>{name}</li>' in page


def test_the_figures_of_the_masks_are_on_the_page_and_in_the_card(run, page):
    text = unescape(re.sub(r"<[^>]+>", " ", page))
    assert "grey <matter>" in text and "Masks: 12 generated / 12 real" in text and "<matter>" not in page
    for cell in ("1.62 / 1.5", "0.031 / 0.022", "0.25 / 0", "0.612 / 0.66", "1.02 / 1", "none / 0.86"):
        assert cell in text, cell
    card = (run / "MODEL_CARD.md").read_text()
    assert "each with a mask of grey matter, white matter, ventricles" in card
    row = "1.62 / 1.5 | 0.031 / 0.022 | 0.25 / 0 | 0.612 / 0.66 | 0.612 / 0.66 | 1.02 / 1 | none / 0.86"
    assert f"| grey <matter> | {row} |" in card
    assert "not (only) the training set" not in text  # the content hash covers the masks


def test_pictures_keep_their_colour_where_they_have_any(page):
    def spread(image):
        data = base64.b64decode(re.search(r"base64,([^\"]+)\"", elements.picture(image, "x"))[1])
        with Image.open(io.BytesIO(data)) as read:
            pixels = np.asarray(read.convert("RGB")).astype(int)
        return (pixels.max(-1) - pixels.min(-1)).max()

    grey = np.full((64, 64, 3), 90, np.uint8)
    grey[:8] = 16, 17, 20  # paper
    tinted = grey.copy()
    tinted[16:48, 16:48] = MASK_COLOURS[0]
    assert spread(Image.fromarray(grey)) == 0 and spread(Image.fromarray(tinted)) > 100
    assert "slices with most of the mask, masks in colour" in page


def test_masks_of_reduced_volumes_lie_on_their_grid(run, monkeypatch):
    monkeypatch.setattr(viewer, "MAX_VOXELS", 200)
    found = viewer.embedded_volumes(content.collect(run, None, None, None, 2))
    masks, factor = unpacked(found, "masks"), found["factor"]
    assert factor > 1 and masks.shape == unpacked(found, "data").shape
    whole = to_axial(np.asarray(VolumeDataset(run.parent / "data").masks[0]), "axial")
    assert masks[0, 1, 1, 1] == whole[tuple(factor + factor // 2 for _ in range(3))]


def test_chromium_draws_the_masks_and_hides_them(page, tmp_path, monkeypatch):
    def canvases(text, name):
        (tmp_path / name).mkdir()
        head, seen = test_report.in_browser(text, tmp_path / name, "#axial=1&coronal=1&sagittal=1")
        assert 'data-errors="0"' in head
        return seen["drawn"]

    colours = test_report.PROBE.replace("grey.push(data[i])", "grey.push([data[i], data[i + 1], data[i + 2]])")
    monkeypatch.setattr(test_report, "PROBE", colours)
    greys, masks = (unpacked(about(page), key) for key in ("data", "masks"))
    tints = np.array([(0, 0, 0), *MASK_COLOURS[:3]])
    for canvas in canvases(page, "shown"):
        grey, mask = (
            np.take(a[canvas["volume"]], 1, axis={"axial": 0, "coronal": 1, "sagittal": 2}[canvas["plane"]])[::-1]
            for a in (greys, masks)
        )
        expected = grey[..., None] + TINT * (mask > 0)[..., None] * (tints[mask] - grey[..., None].astype(float))
        drawn = np.array(canvas["grey"]).reshape(canvas["height"], canvas["width"], 3)
        np.testing.assert_allclose(drawn, expected, atol=0.6)
    hidden = page.replace('id="show-masks" checked', 'id="show-masks"')
    for canvas in canvases(hidden, "hidden"):
        drawn = np.array(canvas["grey"])
        assert (drawn.max(-1) == drawn.min(-1)).all()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=REASON)
def test_the_viewer_lays_the_masks_over_its_volumes(page, run, tmp_path):
    """In the colours of the legend, over the volume that is chosen, until the box hides them."""
    browser, data = Browser(tmp_path), "document.documentElement.dataset"
    masks = unpacked(about(page), "masks")
    try:
        browser.resize(1280, 900)
        browser.open((run / "report.html").as_uri())
        browser.wait(f"{data}.viewer")
        browser.set("#view", "0")  # axial alone: no light and shade
        browser.run("document.getElementById('viewer').scrollIntoView()")

        def hues():
            """The shares of the left picture's pixels that have each class's hue."""
            pixels = browser.pixels("#viewer-left canvas").astype(float)[40:]
            spread = pixels - pixels.min(-1, keepdims=True)
            tinted = spread.max(-1) > 40
            shares = []
            for colour in np.array(MASK_COLOURS[:3], float):
                wanted = (colour - colour.min()) / (colour - colour.min()).max()
                near = np.abs(spread / np.maximum(spread.max(-1, keepdims=True), 1) - wanted).max(-1) < 0.12
                shares.append((near & tinted).mean())
            return np.array(shares)

        def wait_for(right):
            end = time.monotonic() + 60
            while not right(hues()) and time.monotonic() < end:
                time.sleep(0.2)
            return hues()

        for number in (0, len(masks) // 3):  # a real volume, a generated one
            browser.set("#viewer-left select", str(number))
            middle = masks[number][masks.shape[1] // 2]
            share = np.array([(middle == label).mean() for label in (1, 2, 3)])
            large, absent = share > 0.05, share == 0
            seen = wait_for(lambda h: (h[large] > 0.005).all() and (h[absent] < 0.002).all())  # noqa: B023
            assert large.any() and (seen[large] > 0.005).all(), (number, share, seen)
            assert (seen[absent] < 0.002).all(), (number, share, seen)
        browser.click("#show-masks")
        assert (wait_for(lambda h: (h < 0.005).all()) < 0.005).all()
        assert browser.run(f"return {data}.errors") == "0" and browser.console() == []
    finally:
        browser.close()


def test_the_picture_shows_the_masks_of_real_and_generated_volumes(run, tmp_path):
    assert report.main(["--run", str(run), "--picture", str(tmp_path / "p.png"), "--count", "4"]) == 0
    with Image.open(tmp_path / "p.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    found = [np.abs(pixels - colour).sum(-1) < 30 for colour in MASK_COLOURS[:2]]  # their outlines
    middle = pixels.shape[1] // 2
    for here in found:
        assert here[:, :middle].sum() > 20 and here[:, middle:].sum() > 20
