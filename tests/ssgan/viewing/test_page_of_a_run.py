"""The page of a run in a real Chromium without a network: each control is moved, and what changes is looked at."""

import re
import shlex
import shutil
import time

import nibabel
import numpy as np
import pytest

from ssgan import view
from ssgan.viewing.exploring import RunExplorer
from tests.support.browser import CHROMIUM, DRIVER, REASON
from tests.support.tiny_runs import add_checkpoint, make_class_run
from tests.support.viewer_pages import CANVAS, DATA, SECOND, change, different, orange

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=REASON),
    pytest.mark.slow,
]


def test_it_shows_the_generated_volume(browser, of_a_run):
    assert browser.run("return document.title") == "3d"
    assert re.fullmatch(
        "checkpoint 3d-0+12, after 12 volumes", browser.run("return document.getElementById('status').textContent")
    )
    browser.set("#crosshair", False)
    browser.set("#view", "0")
    volume = np.asarray(nibabel.Nifti1Image.from_bytes(of_a_run.volume({}, save=False).body).dataobj)
    # The middle, of colours, so of intensities within the window; the front is up, the patient's right is on the right.
    expected = volume[:, ::-1, 2:4].clip(0, 1000).mean(2).T
    grey = browser.pixels(CANVAS).sum(2)
    size = min(n / m for n, m in zip(grey.shape, expected.shape))  # of a voxel in pixels
    at = [(n / 2 + (np.arange(m) + 0.5 - m / 2) * size).astype(int) for n, m in zip(grey.shape, expected.shape)]
    seen, inside = grey[np.ix_(*at)], (expected > 50) & (expected < 950)
    match = [np.corrcoef(seen[::u, ::v][inside], expected[inside])[0, 1] for u, v in ((1, 1), (-1, 1), (1, -1))]
    assert match[0] > 0.95 and max(match[1:]) < 0.5, match


VOLUME_CONTROLS = [
    ("#seed", "7", "seed=7&"),
    ("#truncation", "0.2", "truncation=0.2"),
    ("#noise", False, "noise=none"),
    ("#at", "0.5", "to=1&at=0.5"),
    ("#level-1", True, "mix=1&levels=1"),
    ("#direction-1", "4", "moves=1%3A4"),
    ("#direction-6", "-4", "moves=6%3A-4"),
]


def test_controls_of_the_volume_change_the_picture_and_back(browser, of_a_run):
    before, shown = browser.pixels(CANVAS), browser.run(f"return {DATA}.shown")
    for selector, value, words in VOLUME_CONTROLS:
        old = browser.run(
            "const e = document.querySelector(arguments[0]); return e.type === 'checkbox' ? e.checked : e.value",
            selector,
        )
        change(browser, selector, value, words)
        assert different(browser.pixels(CANVAS), before) > 0.01, selector
        browser.set(selector, old)
        browser.wait(f"{DATA}.shown === '{shown}'")
        assert different(browser.pixels(CANVAS), before) == 0, selector


def test_seeds_of_the_film_and_of_the_styles_count_where_they_are_used(browser, of_a_run):
    change(browser, "#at", "1", "to=1&at=1")
    change(browser, "#to", "5", "to=5&at=1")
    film = browser.pixels(CANVAS)
    change(browser, "#at", "0", "noise=const")
    change(browser, "#seed", "5", "seed=5")
    assert different(browser.pixels(CANVAS), film) < 0.002
    change(browser, "#level-0", True, "mix=1&levels=0")
    change(browser, "#level-1", True, "mix=1&levels=0%2C1")
    mixed = browser.pixels(CANVAS)
    change(browser, "#mix", "2", "mix=2&levels=0%2C1")
    assert different(browser.pixels(CANVAS), mixed) > 0.01


def test_a_class_has_pictures_of_its_own(browser, pages, quiet, tmp_path):
    pages.open(RunExplorer(make_class_run(tmp_path), None, None, view.pick_device("cpu")))
    browser.wait(f"{DATA}.near")
    assert browser.run("return [...document.getElementById('class').options].map((o) => o.textContent)") == [
        "AD",
        "a class",
    ]
    before = browser.pixels(CANVAS)
    change(browser, "#class", "1", "class=1")
    browser.wait(f"{DATA}.near.includes('class=1')")
    assert different(browser.pixels(CANVAS), before) > 0.01
    assert "--class 'a class'" in browser.run("return document.getElementById('command').value")


def test_any_seed_and_back_to_0(browser, of_a_run):
    browser.click("#seed-random")
    browser.wait(f"!{DATA}.shown.startsWith('seed=0&')")
    seed = browser.run("return document.getElementById('seed').value")
    assert 0 < int(seed) < 2**32 and f"seed={seed}&" in browser.run(f"return {DATA}.shown")
    change(browser, "#direction-2", "3", "moves=2%3A3")
    browser.click("#directions-reset")
    browser.wait(f"!{DATA}.shown.includes('moves')")
    assert browser.run("return document.getElementById('direction-2').value") == "0"


def test_a_bad_seed_is_told(browser, pages, run):
    pages.open(RunExplorer(run, None, None, view.pick_device("cpu")))
    browser.set("#seed", "-3")
    browser.wait("document.getElementById('status').textContent.includes('--seed: expected 0 to 4294967295; got -3')")
    change(browser, "#seed", "3", "seed=3")


def test_the_film_goes_to_the_other_seed(browser, of_a_run):
    browser.run(f"""window.frames_ = new Set();
        const seen = new MutationObserver(() => window.frames_.add({DATA}.shown));
        seen.observe(document.documentElement, {{attributes: true}})""")
    first = browser.pixels(CANVAS)
    browser.click("#play")
    assert browser.run("return document.getElementById('play').textContent") == "Stop"
    browser.wait(f"{DATA}.shown.includes('at=1') && {DATA}.near.endsWith('at=1')")
    frames = [f for f in browser.run("return [...window.frames_]") if "&at=" in f]
    at = [float(f.partition("&at=")[2]) for f in frames]
    assert (
        len(at) == 24
        and at == sorted(at)
        and browser.run("return document.getElementById('play').textContent") == "Play"
    )
    last = browser.pixels(CANVAS)
    change(browser, "#at", "0", "noise=const")
    browser.wait(f"!{DATA}.shown.includes('&at=')")
    change(browser, "#seed", "1", "seed=1&")
    assert different(browser.pixels(CANVAS), last) < 0.002 and different(first, last) > 0.01
    browser.click("#play")
    browser.click("#play")
    browser.wait("document.getElementById('play').textContent === 'Play'")
    assert float(browser.run("return document.getElementById('at').value")) < 1


def test_save_writes_the_volume_that_is_shown(browser, of_a_run):
    change(browser, "#seed", "11", "seed=11")
    browser.click("#save")
    file = browser.downloads / "seed0011.nii.gz"
    end = time.monotonic() + 30
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.05)
    saved, shown = nibabel.load(file), nibabel.Nifti1Image.from_bytes(of_a_run.volume({"seed": "11"}, save=False).body)
    np.testing.assert_array_equal(np.asarray(saved.dataobj), np.asarray(shown.dataobj))
    np.testing.assert_array_equal(saved.affine, shown.affine)


def test_copy_puts_the_command_on_the_clipboard(browser, of_a_run, run):
    browser.devtools("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
    change(browser, "#truncation", "0.5", "truncation=0.5")
    browser.wait(f"{DATA}.near.includes('truncation=0.5')")
    browser.click("#copy")
    browser.wait("document.getElementById('copy').textContent === 'Copied'")
    copied = browser.run("return navigator.clipboard.readText()")
    words = shlex.split(copied)
    assert words[:6] == ["ssgan", "generate", "--run", str(run), "--out", "samples"] and "0.5" in words
    assert copied == browser.run("return document.getElementById('command').value")


def test_nearest_training_volumes_beside_it(browser, of_a_run):
    found = of_a_run.nearest({})["nearest"]
    texts = browser.run("return [...document.querySelectorAll('#near button')].map((b) => b.textContent)")
    assert texts == [f"{n['distance']:.3f}: volume {n['index']}, {n['source']}" for n in found]
    assert "Among themselves" in browser.run("return document.getElementById('near-note').textContent")
    assert browser.run("return document.getElementById('second').hidden")
    browser.click("#near li:nth-child(2) button")
    browser.wait(f"{DATA}.beside === {texts[1]!r}")
    caption = browser.run("return document.querySelector('#second figcaption').textContent")
    assert (
        caption == f"training volume, {texts[1]}" and different(browser.pixels(SECOND), browser.pixels(CANVAS)) > 0.02
    )
    browser.set("#beside", "nearest")
    browser.wait(f"{DATA}.beside === {texts[0]!r}")
    change(browser, "#seed", "3", "seed=3")
    browser.wait(f"{DATA}.near.includes('seed=3')")
    new = browser.run("return document.querySelector('#near button').textContent")
    assert browser.run(f"return {DATA}.beside") == new
    browser.set("#beside", "")
    browser.wait("document.getElementById('second').hidden")


def test_a_volume_is_kept_beside_and_the_two_are_linked(browser, of_a_run):
    browser.set("#view", "0")
    browser.click("#pin")
    browser.wait(f"{DATA}.beside === 'kept: seed 0'")
    assert different(browser.pixels(SECOND), browser.pixels(CANVAS)) < 0.002
    change(browser, "#seed", "4", "seed=4")
    assert different(browser.pixels(SECOND), browser.pixels(CANVAS)) > 0.01
    before = orange(browser.pixels(SECOND))
    x, y = browser.run("const b = document.querySelector('#first canvas').getBoundingClientRect();"
                       "return [b.left + 0.7 * b.width, b.top + 0.45 * b.height].map(Math.round)")  # fmt: skip
    browser.click_at(x, y)
    after = orange(browser.pixels(SECOND))
    assert (before != after).sum() > 100
    assert abs(int(after.sum(0).argmax()) - int(orange(browser.pixels(CANVAS)).sum(0).argmax())) <= 2
    for selector, value in (("#view", "2"), ("#colours", "hot"), ("#level", "300")):
        second = browser.pixels(SECOND)
        browser.set(selector, value)
        assert different(browser.pixels(SECOND), second) > 0.01, selector


def test_it_follows_the_newest_checkpoint(browser, pages, run, tmp_path, quiet):
    shutil.copytree(run, tmp_path / "run")
    pages.open(RunExplorer(tmp_path / "run", None, None, view.pick_device("cpu")))
    browser.wait(f"{DATA}.near")
    before = browser.pixels(CANVAS)
    add_checkpoint(tmp_path / "run", 8)
    browser.wait("document.getElementById('status').textContent.includes('after 16 volumes')", 20)
    browser.wait("document.querySelectorAll('.direction').length === 6")
    end = time.monotonic() + 20
    while different(browser.pixels(CANVAS), before) < 0.01 and time.monotonic() < end:
        pass
    assert different(browser.pixels(CANVAS), before) > 0.01


def test_a_run_without_a_checkpoint_waits_for_the_first(browser, pages, run, tmp_path, quiet):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "away")
    (tmp_path / "run" / "checkpoints").mkdir()
    pages.open(RunExplorer(tmp_path / "run", None, None, view.pick_device("cpu")))
    assert "no checkpoint yet" in browser.run("return document.getElementById('status').textContent")
    for file in (tmp_path / "away").iterdir():
        shutil.copy(file, tmp_path / "run" / "checkpoints")
    browser.wait(f"{DATA}.near && document.querySelectorAll('.level').length === 2", 30)
