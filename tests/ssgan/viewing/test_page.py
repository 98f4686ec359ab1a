"""The viewer's page in a real Chromium without a network: each control is moved, and what changes is looked at."""

import re
import shlex
import shutil
import threading
import time

import nibabel
import numpy as np
import pytest

from ssgan import view
from ssgan.data.phantom import write_phantom_dataset
from ssgan.viewing.browsing import DatasetBrowser, FileBrowser
from ssgan.viewing.exploring import RunExplorer
from ssgan.viewing.server import Server
from tests.support.browser import CHROMIUM, DRIVER, REASON, Browser
from tests.support.tiny_runs import SHAPE, add_checkpoint, make_class_run, make_run

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=REASON),
    pytest.mark.slow,
]
DATA = "document.documentElement.dataset"
CANVAS, SECOND = "#first canvas", "#second canvas"
SMALL, WIDE, PHONE = (900, 560), (1280, 720), (390, 844)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


class Pages:
    """Servers of sources, opened in the browser."""

    def __init__(self, browser):
        self.browser, self.servers = browser, []

    def open(self, source, size=SMALL):
        server = Server(source)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.servers.append(server)
        self.browser.resize(*size)
        self.browser.console()
        self.browser.open(server.address)
        self.browser.wait(f"{DATA}.ready || {DATA}.errors !== '0'")
        return server

    def close(self):
        for server in self.servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def pages(browser):
    pages = Pages(browser)
    yield pages
    pages.close()


@pytest.fixture
def quiet(browser):
    """After the test: the page has seen no error, and the console has no word of one."""
    yield
    assert browser.run(f"return {DATA}.errors") == "0", browser.run(
        "return document.getElementById('status').textContent"
    )
    assert browser.console() == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("page"))
    add_checkpoint(run, 3)
    return run


@pytest.fixture
def of_a_run(pages, run, quiet):
    source = RunExplorer(run, None, None, view.pick_device("cpu"))
    pages.open(source)
    pages.browser.wait(f"{DATA}.near")
    yield source


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A scan of 2 x 2 x 3 mm whose right, front, upper eighth is bright; labels of it; a damaged file; an odd name."""
    root = tmp_path_factory.mktemp("scans") / "scans"
    root.mkdir()
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-11, -13, -15)
    data = np.linspace(0, 30, 12 * 14 * 10, dtype=np.float32).reshape(12, 14, 10)
    data[6:, 7:, 5:] += 100
    labels = np.zeros(data.shape, np.uint8)
    labels[:6, :7] = 1
    labels[6:, :7] = 4
    nibabel.save(nibabel.Nifti1Image(data, affine), root / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), root / "labels.nii.gz")
    nibabel.save(nibabel.Nifti1Image(data[::-1].copy(), affine), root / "50% of #2, mirrored.nii")
    (root / "cut.nii.gz").write_bytes((root / "scan.nii.gz").read_bytes()[:200])
    return root


def change(browser, selector, value, *words):
    """Sets a control of a run, and waits for the volume whose query has all words."""
    browser.set(selector, value)
    for word in words:
        browser.wait(f"{DATA}.shown.includes('{word}')")


def different(a, b):
    """The share of pixels that differ visibly."""
    return float((np.abs(a - b).max(2) > 12).mean())


def orange(pixels):
    """Where the crosshair is drawn."""
    return (pixels[:, :, 0] > 180) & (pixels[:, :, 2] < 90) & (pixels[:, :, 0] - pixels[:, :, 1] > 80)


# ---- a run ----


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


# ---- what all pages share ----


@pytest.fixture
def of_scans(pages, scans, quiet):
    pages.open(FileBrowser([scans / "scan.nii.gz", scans / "labels.nii.gz", scans / "50% of #2, mirrored.nii"]))
    return pages


def test_planes_have_the_patients_right_front_and_head_where_the_text_says(browser, of_scans):
    """The bright eighth is right, front and up: on the right and up in the axial and coronal plane; in the sagittal
    one, the front is on the right."""
    browser.set("#crosshair", False)
    for i, mm in enumerate((3, 5, 6)):  # in the bright eighth
        browser.set(f"#mm-{i}", str(mm))
    for plane in ("0", "1", "2"):
        browser.set("#view", plane)
        grey = browser.pixels(CANVAS).sum(2)
        y, x = np.nonzero(grey > 500)
        height, width = grey.shape
        assert len(x) > 1000 and x.mean() > width / 2 and y.mean() < height / 2, plane


def test_millimetres_and_intensity_are_those_of_the_file(browser, of_scans, scans):
    image = nibabel.load(scans / "scan.nii.gz")
    data = np.asarray(image.dataobj)
    for voxel in ((1, 2, 3), (10, 11, 8)):
        mm = image.affine @ (*voxel, 1)
        for i in range(3):
            browser.set(f"#mm-{i}", str(mm[i]))
        shown = float(browser.run("return document.getElementById('intensity').textContent"))
        assert shown == pytest.approx(float(data[voxel]), rel=1e-3)
    browser.set("#view", "0")
    box = browser.run("const b = document.querySelector('#first canvas').getBoundingClientRect();"
                      "return [b.left, b.top, b.width, b.height]")  # fmt: skip
    browser.click_at(round(box[0] + box[2] / 2), round(box[1] + box[3] / 2))
    at = [float(browser.run(f"return document.getElementById('mm-{i}').value")) for i in range(3)]
    assert at[0] == pytest.approx(0, abs=0.3) and at[1] == pytest.approx(0, abs=0.3)  # the middle of the field of view
    assert at[2] == pytest.approx(mm[2], abs=0.05)


def test_the_crosshair_moves_with_its_fields(browser, of_scans):
    browser.set("#view", "0")
    for control, sign in ((0, 1), (1, -1)):  # to the right, and up
        places = []
        for mm in ("-6", "0", "6"):
            browser.set(f"#mm-{control}", mm)
            places.append(sign * int(orange(browser.pixels(CANVAS)).sum(control).argmax()))
        assert places[0] < places[1] < places[2]
        assert places[2] - places[1] == pytest.approx(places[1] - places[0], abs=3)
    browser.set("#crosshair", False)
    assert not orange(browser.pixels(CANVAS)).any()


def test_level_window_and_colours(browser, of_scans):
    browser.set("#crosshair", False)
    browser.set("#view", "0")
    first = browser.pixels(CANVAS)
    assert np.abs(np.diff(first, axis=2)).max() < 40  # grey, but for the letters
    browser.set("#level", "120")
    assert browser.pixels(CANVAS).mean() < first.mean() - 2
    browser.set("#level", "5")
    assert browser.pixels(CANVAS).mean() > first.mean() + 2
    browser.click("#window-reset")
    assert different(browser.pixels(CANVAS), first) == 0
    browser.set("#width", "5")
    assert different(browser.pixels(CANVAS), first) > 0.01
    browser.click("#window-reset")
    browser.set("#colours", "viridis")
    coloured = browser.pixels(CANVAS)
    assert (np.ptp(coloured, axis=2) > 40).mean() > 0.05


def test_turn_and_tilt_move_the_3d_picture_alone(browser, of_scans):
    browser.set("#view", "4")
    for selector, value in (("#azimuth", "200"), ("#elevation", "70")):
        before = browser.pixels(CANVAS)
        browser.set(selector, value)
        assert different(browser.pixels(CANVAS), before) > 0.01, selector
    browser.set("#view", "0")
    before = browser.pixels(CANVAS)
    browser.set("#azimuth", "20")
    assert different(browser.pixels(CANVAS), before) == 0


def test_a_label_map_over_its_scan(browser, of_scans):
    browser.set("#crosshair", False)
    browser.set("#view", "0")
    plain = browser.pixels(CANVAS)
    browser.set("#opacity", "0.8")
    browser.set("#overlay", "1")
    browser.wait(f"{DATA}.over === 'labels.nii.gz'")
    over = browser.pixels(CANVAS)
    height, width = over.shape[:2]
    changed = np.abs(over - plain).max(2) > 40
    assert changed[height // 2 + 20 :].sum() > 5000 and changed[: height // 2 - 20].sum() == 0  # labels are at the back
    left, right = over[height * 2 // 3, width // 2 - 60], over[height * 2 // 3, width // 2 + 60]
    assert np.ptp(left) > 60 and np.ptp(right) > 60 and np.abs(left - right).max() > 60  # a colour for each
    browser.set("#opacity", "0")
    assert different(browser.pixels(CANVAS), plain) < 0.002
    browser.set("#opacity", "0.5")
    browser.set("#overlay", "")
    browser.wait(f"{DATA}.over === ''")
    assert different(browser.pixels(CANVAS), plain) == 0


def test_files_one_after_another_and_beside_each_other(browser, of_scans):
    assert browser.run("return document.getElementById('previous').disabled")
    first = browser.pixels(CANVAS)
    lines = browser.run("return [...document.querySelectorAll('#about li')].map((e) => e.textContent)")
    assert lines[0] == "verdict: `ssgan prepare` would use it" and "12 x 14 x 10 of 2 x 2 x 3 mm" in lines[1]
    browser.click("#next")
    browser.wait(f"{DATA}.shown === 'labels.nii.gz'")
    browser.click("#next")
    browser.wait(f"{DATA}.shown === '50% of #2, mirrored.nii'")
    assert different(browser.pixels(CANVAS), first) > 0.01
    assert browser.run("return document.getElementById('position').textContent") == "3 of 3"
    browser.set("#beside", "0")
    browser.wait(f"{DATA}.beside === 'scan.nii.gz'")
    browser.set("#view", "0")
    browser.set("#crosshair", False)
    left, right = browser.pixels(CANVAS), browser.pixels(SECOND)
    width = min(left.shape[1], right.shape[1])
    mirrored = np.abs(left[:, :width] - right[:, :width][:, ::-1]).max(2) > 60
    assert different(left[:, :width], right[:, :width]) > 0.05 > mirrored.mean()
    browser.set("#item", "0")
    browser.wait(f"{DATA}.shown === 'scan.nii.gz'")


def test_a_damaged_file_is_named_and_the_next_is_shown(browser, pages, scans):
    pages.open(FileBrowser([scans]))
    titles = browser.run("return [...document.getElementById('item').options].map((o) => o.textContent)")
    assert titles == ["50% of #2, mirrored.nii", "cut.nii.gz", "labels.nii.gz", "scan.nii.gz"]
    browser.click("#next")
    browser.wait("document.getElementById('status').textContent.startsWith('cut.nii.gz cannot be shown')")
    browser.wait("document.getElementById('about').textContent.includes('would leave it out')")
    browser.click("#next")
    browser.wait(f"{DATA}.shown === 'labels.nii.gz'")
    assert browser.run("return document.getElementById('status').textContent") == ""


def test_a_data_set(browser, pages, quiet, tmp_path):
    write_phantom_dataset(tmp_path / "data", count=3, shape=SHAPE, seed=1)
    pages.open(DatasetBrowser(tmp_path / "data"))
    first = browser.pixels(CANVAS)
    text = browser.run("return document.getElementById('about').textContent")
    assert "verdict: used" in text and "window: " in text and "became -1 to 1" in text
    browser.click("#next")
    browser.wait(f"{DATA}.shown === '1'")
    assert different(browser.pixels(CANVAS), first) > 0.01
    browser.click("#previous")
    browser.wait(f"{DATA}.shown === '0'")
    assert different(browser.pixels(CANVAS), first) < 0.002
    browser.set("#beside", "2")
    browser.wait(f"{DATA}.beside === '2'")
    assert not browser.run("return document.getElementById('second').hidden || document.getElementById('overlay')")


def test_nothing_comes_from_elsewhere(browser, of_a_run, pages):
    sources = browser.run("return performance.getEntries().map((e) => e.name).filter((n) => n.includes(':'))")
    own = [s for s in sources if s.startswith(pages.servers[-1].address)]
    assert len(own) > 8 and [s for s in sources if s not in own and not s.startswith(("data:", "blob:"))] == []


def test_the_end_of_the_server_is_told(browser, pages, run):
    server = pages.open(RunExplorer(run, None, None, view.pick_device("cpu")))
    browser.wait(f"{DATA}.near")
    server.shutdown()
    server.server_close()
    pages.servers.clear()
    # The connections that are open still answer: a browser's next one does not.
    browser.devtools("Network.enable", {})
    browser.devtools(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )
    browser.wait("document.getElementById('status').textContent.includes('The server has ended')", 20)
    browser.devtools(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1},
    )


def test_a_browser_without_webgl_2_is_told(browser, pages, scans):
    script = {"source": "HTMLCanvasElement.prototype.getContext = () => null"}
    number = browser.devtools("Page.addScriptToEvaluateOnNewDocument", script)
    pages.open(FileBrowser([scans / "scan.nii.gz"]))
    browser.devtools("Page.removeScriptToEvaluateOnNewDocument", number)
    assert "This browser has no WebGL 2" in browser.run("return document.getElementById('status').textContent")


# ---- keyboard, screen reader, sizes ----


def focusable(browser):
    """The ids or texts of everything that can be used on the page."""
    return set(
        browser.run("""return [...document.querySelectorAll('a, input, select, button, canvas, summary')]
        .filter((e) => e.checkVisibility() && !e.disabled).map((e) => e.id || e.textContent || e.parentElement.id)""")
    )


@pytest.mark.parametrize("kind", ["run", "files"])
def test_every_control_is_reached_by_the_keyboard_and_has_a_name(browser, pages, run, scans, quiet, kind):
    files = FileBrowser([scans / "scan.nii.gz", scans / "labels.nii.gz"])
    pages.open(RunExplorer(run, None, None, view.pick_device("cpu")) if kind == "run" else files)
    browser.wait(f"{DATA}.near || document.getElementById('item')")
    browser.run("document.body.tabIndex = -1; document.body.focus()")
    reached = set()
    for _ in range(80):
        browser.press("Tab")
        reached.add(browser.run("const e = document.activeElement; return e.id || e.textContent || e.parentElement.id"))
    assert focusable(browser) - reached == set()
    nodes = browser.devtools("Accessibility.getFullAXTree", {})["nodes"]
    used = [n for n in nodes if any(p["name"] == "focusable" and p["value"]["value"] for p in n.get("properties", []))]
    used = [n for n in used if n["role"]["value"] not in ("RootWebArea", "generic") and not n.get("ignored")]
    assert len(used) > 15 and [n["role"]["value"] for n in used if not n.get("name", {}).get("value")] == []
    names = [n["name"]["value"] for n in used]
    for name in ["View", "Level", "Window", "Right, mm", "Turn", "Show the crosshair"]:
        assert name in names, (name, names)


def test_arrow_keys_move_a_slider(browser, of_a_run):
    browser.run("document.getElementById('truncation').focus()")
    browser.press("Left", "Left")
    browser.wait(f"{DATA}.shown.includes('truncation=0.9&')")
    browser.run("document.getElementById('level').focus()")
    before, value = browser.pixels(CANVAS), browser.run("return Number(document.getElementById('level').value)")
    browser.press(*["Right"] * 20)
    assert browser.run("return Number(document.getElementById('level').value)") > value + 100
    assert browser.pixels(CANVAS).mean() < before.mean() - 1


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1280x720", "phone"])
@pytest.mark.parametrize("kind", ["run", "files"])
def test_it_fits(browser, pages, run, scans, quiet, size, kind):
    files = FileBrowser([scans / "scan.nii.gz", scans / "labels.nii.gz"])
    pages.open(RunExplorer(run, None, None, view.pick_device("cpu")) if kind == "run" else files, size)
    browser.wait(f"{DATA}.near || document.getElementById('item')")
    browser.set("#beside", "nearest" if kind == "run" else "1")
    browser.wait(f"{DATA}.beside")
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
    outside = browser.run("""const all = 'a:not(.skip), input, select, button, label, output, figure';
        return [...document.querySelectorAll(all)]
        .filter((e) => e.checkVisibility()).filter((e) => { const b = e.getBoundingClientRect();
            return b.left < 0 || b.right > innerWidth; }).map((e) => e.outerHTML.slice(0, 80))""")
    assert outside == []
    for selector in (CANVAS, SECOND):
        height, width, _ = browser.pixels(selector).shape
        assert height >= 250 and width >= 150
        assert (browser.pixels(selector).max(2) > 60).mean() > 0.05
