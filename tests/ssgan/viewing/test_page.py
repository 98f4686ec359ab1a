"""What all pages of the viewer share, looked at in a real Chromium without a network."""

import nibabel
import numpy as np
import pytest

from ssgan import view
from ssgan.data.phantom import write_phantom_dataset
from ssgan.viewing.browsing import DatasetBrowser, FileBrowser
from ssgan.viewing.exploring import RunExplorer
from tests.support.browser import CHROMIUM, DRIVER, REASON
from tests.support.tiny_runs import SHAPE
from tests.support.viewer_pages import CANVAS, DATA, PHONE, SECOND, WIDE, different, orange

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=REASON),
    pytest.mark.slow,
]


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
