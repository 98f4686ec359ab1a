"""`ssgan report`: one page that needs no network, says what is there and missing, and draws what is embedded."""

import base64
import gzip
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy import ndimage

from ssgan import report
from ssgan.data.axes import to_axial
from ssgan.data.dataset import VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.models.sampling import latents
from ssgan.reporting import content, html, picture, viewer
from ssgan.runs.generator import load_generator
from tests.support.browser import CHROMIUM, DRIVER, REASON, Browser
from tests.support.tiny_runs import SHAPE, make_run

VOID = {"meta", "link", "img", "input", "br", "hr", "path", "use", "line", "circle"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("report"))
    row = {"value": 11.5, "interval": [10.25, 12.75], "floor": 0.5, "better": "lower"}
    check = {"median_to_training": 2.0, "median_reference": 1.0, "ratio": 2.0, "below_5_percent": 0.125, "closest": []}
    metrics = {
        "format": "ssgan-metrics", "version": 1, "protocol": "3 against 3 <volumes>", "count": 3,
        "extractor": {"name": "random3d", "sha256": "ab" * 32},
        "real": {"sha256": VolumeDataset(folder.parent / "data").info.content_hash}, "fake": {"sha256": "0"},
        "metrics": {"frechet": row, "recall": {"value": 0.0, "interval": None, "floor": 0.0, "better": "higher"}},
        "memorisation": {"features": check, "voxels": check, "reference": "held-out", "picture": "absent.png"},
    }  # fmt: skip
    (folder.parent / "metrics.json").write_text(json.dumps(metrics))
    return folder


def go(run, out, *arguments):
    return report.main(["--run", str(run), "--out", str(out), *map(str, arguments)])


@pytest.fixture(scope="module")
def made(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert go(run, out, "--metrics", run.parent / "metrics.json", "--count", 3) == 0
    shutil.copy(run / "MODEL_CARD.md", out.parent)  # later tests write it anew
    return out


class Elements(HTMLParser):
    """All tags with their attributes, with a check that they nest (tags that HTML lets stay open aside)."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID and tag not in ("th",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag != "th":
            assert self.open.pop() == tag


def embedded(text):
    """The volumes on the page (N, Z, Y, X) uint8 and what is said of them."""
    about = json.loads(re.search(r'id="volumes">(.*?)</script>', text, re.DOTALL)[1])
    raw = gzip.decompress(base64.b64decode(about["data"]))
    return np.frombuffer(raw, np.uint8).reshape(-1, *about["shape"]), about


def test_it_needs_nothing_from_outside(made):
    text = made.read_text()
    elements = Elements(text).found
    sources = [a[k] for _, a in elements for k in ("src", "href", "xlink:href", "data", "action", "srcset") if k in a]
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert not re.search(r"@import|url\((?!#)", text)
    assert "default-src 'none'" in text
    assert len(made.read_bytes()) < html.MAX_PAGE


def test_pictures_have_alternatives_and_ids_are_unique(made):
    elements = Elements(made.read_text()).found
    assert all(a.get("alt") for tag, a in elements if tag == "img")
    assert all(a.get("aria-label") for tag, a in elements if tag == "canvas")
    ids = [a["id"] for _, a in elements if "id" in a]
    assert len(ids) == len(set(ids))
    labels = {a["for"] for tag, a in elements if tag == "label"}
    ranges = [a for tag, a in elements if tag == "input"]
    assert len(ranges) == 4 and all(a["id"] in labels and a["type"] == "range" for a in ranges)
    links = [a["href"][1:] for tag, a in elements if tag == "a"]
    assert set(links) <= set(ids)
    assert any(tag == "html" and a["lang"] == "en" for tag, a in elements)


def test_the_embedded_volumes_are_those_of_the_run(run, made):
    greys, about = embedded(made.read_text())
    data = VolumeDataset(run.parent / "data")
    G = load_generator(run).G
    with torch.no_grad():
        fake = G(latents(range(3), 6), noise="const")[:, 0].numpy()
    everything = np.array(data.volumes[:]).reshape(6, -1)
    near = [int(np.abs(everything - f).__pow__(2).sum(1).argmin()) for f in np.clip(fake, -1, 1).reshape(3, -1)]
    expected = np.concatenate([data.volumes[:3], np.clip(fake, -1, 1), data.volumes[near]])
    # No axis has more than 16 voxels, so the neighbours by block means are those by voxels.
    assert [len(s["names"]) for s in about["sets"]] == [3, 3, 3] and about["factor"] == 1
    np.testing.assert_allclose(greys / 127.5 - 1, to_axial(expected, "axial"), atol=0.51 / 127.5 + 1e-5)


def test_it_says_what_was_measured(run, made):
    text = unescape(re.sub(r"<[^>]+>", " ", made.read_text()))
    for part in ("frechet", "11.5", "10.25 to 12.75", "3 against 3 <volumes>", "held-out", "0.125"):
        assert part in text, part
    assert "absent.png, is not beside metrics.json" in text
    assert "3 generated against 3 real volumes" in text
    assert "did not record where it was trained" not in text and text.count(torch.__version__) >= 2
    counts = next(row for row in content.count_parameters(load_content(run).cfg) if row[0] == "split_depth")
    assert f"{counts[1] + counts[2]:,}" in text
    card = (made.parent / "MODEL_CARD.md").read_text()
    for part in ("Not intended", "| frechet | 11.5 | 10.25 to 12.75 | 0.5 | lower |", "12.5% nearer", "no patients",
                 "loss `logistic`; weights of the gradient penalties in stage 3d: R1 1, R2 0"):  # fmt: skip
        assert part in card, part


def load_content(run, **given):
    return content.collect(run, given.get("data"), given.get("metrics"), None, 2)


def test_what_is_missing_is_named(run, tmp_path):
    copy = tmp_path / "moved"
    shutil.copytree(run, copy)
    record = json.loads((copy / "config.json").read_text())
    record["data"]["path"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(record))
    shutil.rmtree(copy / "snapshots")
    assert go(copy, copy / "report.html") == 0
    text = unescape((copy / "report.html").read_text())
    for part in (f"data set is not at {tmp_path / 'gone'}", "Not evaluated yet", "no snapshots", "No neighbours"):
        assert part in text, part
    assert embedded(text)[0].shape[0] == 8  # generated alone
    card = (copy / "MODEL_CARD.md").read_text()
    assert "not evaluated yet" in card and "not checked" in card and "unknown, the data set was not at hand" in card
    assert go(copy, copy / "report.html", "--data", run.parent / "data", "--count", 1) == 0
    assert "No neighbours" not in (copy / "report.html").read_text()


def test_a_2d_run_has_a_page_too(tmp_path):
    flat = make_run(tmp_path, "2d")
    assert go(flat, tmp_path / "report.html") == 0
    text = (tmp_path / "report.html").read_text()
    assert "stage, which makes slices" in text and "stage 2d, 8 images" in text
    assert "MODEL_CARD" in text and (flat / "MODEL_CARD.md").is_file()


def test_hostile_names_stay_text(run, tmp_path):
    bad = json.loads((run.parent / "metrics.json").read_text())
    bad["metrics"] = {"<script>alert(1)</script>": bad["metrics"]["frechet"]}
    bad["protocol"] = "</section><img src=http://x.example/>"
    bad["real"]["sha256"] = "another"
    (tmp_path / "m.json").write_text(json.dumps(bad))
    assert go(run, tmp_path / "report.html", "--metrics", tmp_path / "m.json", "--count", 1) == 0
    text = (tmp_path / "report.html").read_text()
    assert "of another checkpoint" not in text and "<script>alert" not in text and "<img src=http" not in text
    assert "are not (only) the training set" in text


# ---- the picture ----


def evaluated(run, folder, closest, **fake):
    """The content of a run with an evaluation whose closest pairs are `closest`."""
    found = json.loads((run.parent / "metrics.json").read_text())
    found["fake"] |= fake
    found["memorisation"]["voxels"]["closest"] = closest
    (folder / "m.json").write_text(json.dumps(found))
    return load_content(run, data=run.parent / "data", metrics=folder / "m.json")


def test_the_picture_shows_the_closest_pairs_of_the_evaluation(run, tmp_path):
    """Where its volumes are this checkpoint's own; else those of the page, in order of their distances."""
    G, data = load_generator(run).G, VolumeDataset(run.parent / "data")
    with torch.no_grad():
        fake = np.clip(G(latents([4], 6), noise="const")[0, 0].numpy(), -1, 1)
    distance = float(np.linalg.norm(fake - data.volumes[3]))
    own = evaluated(run, tmp_path, [[4, 3, distance]], kind="run", volumes=9)
    ((generated, name, training, other),), what = picture.closest_pairs(own)
    np.testing.assert_allclose(generated, fake, atol=1e-5)
    np.testing.assert_array_equal(training, data.volumes[3])
    assert name == "seed 4" and other == f"training 3, distance {distance:.3g}" and "1 closest of 9" in what
    for closest, kind in (([[4, 3, 1.01 * distance]], "run"), ([[4, 3, distance]], "folder"), ([[4, 99, 1.0]], "run")):
        pairs, what = picture.closest_pairs(evaluated(run, tmp_path, closest, kind=kind, volumes=9))
        assert "2 first seeds" in what and sorted(p[1] for p in pairs) == ["seed 0", "seed 1"]
        distances = [float(p[3].split()[-1]) for p in pairs]
        assert distances == sorted(distances)


def test_the_picture_of_a_run_with_its_evaluation(run, tmp_path):
    arguments = ["--metrics", run.parent / "metrics.json", "--count", 2, "--picture", tmp_path / "a.png"]
    assert go(run, tmp_path / "report.html", *arguments) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == picture.WIDTH * picture.DPI
        pixels = np.asarray(image.convert("RGB")).astype(int)
    orange = np.abs(pixels - (0xC2, 0x7A, 0x1D)).sum(2) < 20  # the floors' ticks
    assert orange.sum() > 50 and (pixels.sum(2) > 750).mean() > 0.3 and (pixels.sum(2) < 120).mean() > 0.02


def test_an_evaluation_of_another_checkpoint_is_said(run, tmp_path):
    """Such as one made before the training went on; on the page, the card and the picture."""
    old = evaluated(
        run, tmp_path, [], kind="run", volumes=9, checkpoint="3d-000000004.safetensors", checkpoint_sha256="0"
    )
    assert "of another checkpoint (3d-000000004.safetensors)" in old.metrics_note
    assert go(run, tmp_path / "report.html", "--metrics", tmp_path / "m.json", "--count", 1) == 0
    for text in ((tmp_path / "report.html").read_text(), (run / "MODEL_CARD.md").read_text()):
        assert "of another checkpoint" in text
    own = evaluated(run, tmp_path, [], kind="run", volumes=9, checkpoint="x", checkpoint_sha256=old.sha256)
    assert own.metrics_note == ""
    for shown, drawn in ((old, True), (own, False)):
        with Image.open(picture.draw_picture(shown, tmp_path / "a.png")) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)[:80]
        assert (np.abs(pixels - (0xC2, 0x7A, 0x1D)).sum(2) < 20).any() == drawn


def test_an_older_checkpoint_of_the_same_name_is_told_by_what_it_had_seen(run, tmp_path):
    """A run that was made longer: its 3d-final is another file than the evaluated one."""
    about = {"checkpoint": "3d-final.safetensors", "checkpoint_sha256": "0", "checkpoint_images": 1004}
    note = evaluated(run, tmp_path, [], kind="run", volumes=9, **about).metrics_note
    assert "another checkpoint (3d-final.safetensors, after 1,004 volumes) than the one reported here (after 8 " in note


@pytest.mark.parametrize("images", [(60_000, 1000), (1000, 60_000), (500, 0), (0, 500)], ids=str)
def test_the_curve_names_its_stages_inside_the_plot(images):
    """However short one of them is, and apart from each other."""
    stages = [(stage, n) for stage, n in zip(("2d", "3d"), images, strict=True) if n]
    rows = [{"stage": s, "images": n * i // 4, "distance": 1.0 + i} for s, n in stages for i in range(5)]
    figure = Figure(figsize=(picture.WIDTH, 6))
    FigureCanvasAgg(figure)
    picture._curve(figure, (0.615, 0.2, 0.36, 0.3), SimpleNamespace(rows=rows, floor=0.5))
    figure.canvas.draw()
    (axes,) = figure.axes
    outer = axes.get_window_extent()
    boxes = {t.get_text(): t.get_window_extent() for t in axes.texts if "stage" in t.get_text()}
    names = {"2d": "2D stage, slices", "3d": "3D stage, volumes"}
    assert set(boxes) == {names[stage] for stage, _ in stages}
    for box in boxes.values():
        assert outer.x0 <= box.x0 and box.x1 <= outer.x1 and outer.y0 <= box.y0 and box.y1 <= outer.y1
    assert len(boxes) == 1 or boxes[names["2d"]].x1 < boxes[names["3d"]].x0


def test_the_picture_needs_an_evaluation_and_volumes(run, tmp_path, capsys):
    assert go(run, tmp_path / "report.html", "--count", 1, "--picture", tmp_path / "a.png") == 2
    assert "has no evaluation; `ssgan evaluate` first" in capsys.readouterr().err
    assert go(run, tmp_path / "report.html", "--picture", "a.pdf") == 2
    assert "--picture a.pdf: expected a file name that ends in .png" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--count", 0], "--count: expected 1 to 64; got 0"),
        (["--out", "x.pdf"], "--out x.pdf: expected a file name that ends in .html"),
        (["--run", "nowhere"], "--run nowhere is not a run's folder"),
        (["--metrics", "nowhere.json"], "nowhere.json does not exist"),
        (["--data", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_arguments(run, tmp_path, capsys, arguments, match):
    assert go(run, tmp_path / "report.html", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ssgan report: error: ") and match in error
    assert not list(tmp_path.iterdir())


def test_another_data_set_or_other_json_is_refused(run, tmp_path, capsys):
    write_phantom_dataset(tmp_path / "other", count=2, shape=SHAPE, seed=9)
    assert go(run, tmp_path / "report.html", "--data", tmp_path / "other") == 2
    assert "is not the data set that" in capsys.readouterr().err
    for text, match in (
        ({"format": "other"}, "was not written by `ssgan evaluate`"),
        ({"format": "ssgan-metrics", "version": 9}, "has version 9; expected 1"),
        ({"format": "ssgan-metrics", "version": 1}, "lacks protocol, count"),
    ):
        (tmp_path / "m.json").write_text(json.dumps(text))
        assert go(run, tmp_path / "report.html", "--metrics", tmp_path / "m.json") == 2
        assert match in capsys.readouterr().err


@pytest.mark.parametrize("aware", [False, True])
@pytest.mark.parametrize("classes", [0, 3])
def test_the_command_it_states_gives_the_same_configuration(run, tmp_path, aware, classes):
    """Parsed by train's own parser, the stated command stands for a configuration with the same identity."""
    import argparse
    import dataclasses
    import shlex

    from ssgan import train
    from ssgan.config.presets import preset

    cfg = preset("hippocampus").train_config("hippocampus", (16, 24, 16), "acs4", seed=5, stage="3d", inflate="none")
    cfg = dataclasses.replace(cfg, stage_3d=dataclasses.replace(cfg.stage_3d, kimg=1.5, batch=2, r1_gamma=0.25))
    network = dataclasses.replace(cfg.network.depth_aware(aware), classes=classes)
    cfg = dataclasses.replace(cfg, network=network)
    if aware:  # what the preset has no say in
        rates = {"lr_g": 0.0015, "pl_weight": 0.5, "style_mixing": 0.9, "ema_kimg": 3.0}
        cfg = dataclasses.replace(
            cfg, network=network.with_arch("acs4", "dense"), cooldown_kimg=0.5, ema_carries_over=True,
            stage_3d=dataclasses.replace(cfg.stage_3d, **rates, r2_gamma=0.0), loss="relativistic",
        )  # fmt: skip
    words = shlex.split(content.train_command(cfg, tmp_path, "some where"))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    args = parser.parse_args(words[3:])
    assert str(args.data) == "some where" and args.out == tmp_path
    names = ["a", "b", "c"] if classes else None
    assert train.config_from(args, (16, 24, 16), names).to_json() == cfg.to_json()


def test_large_volumes_are_reduced_until_they_fit(monkeypatch):
    volumes = np.random.default_rng(0).uniform(-1, 1, (2, 7, 8, 6)).astype(np.float32)
    small = viewer.reduce_volumes(volumes, 2)
    assert small.shape == (2, 3, 4, 3)
    expected = ndimage.uniform_filter(volumes.astype(float), (0, 2, 2, 2), origin=(0, -1, -1, -1))[:, :6:2, ::2, ::2]
    np.testing.assert_allclose(small, expected, atol=1e-5)


def test_volumes_beyond_the_bound_are_embedded_reduced(run, monkeypatch):
    monkeypatch.setattr(viewer, "MAX_VOXELS", 6 * int(np.prod(SHAPE)) // 8)
    found = viewer.embedded_volumes(load_content(run, data=run.parent / "data"))
    assert found["factor"] == 2 and found["shape"] == [3, 4, 6]
    np.testing.assert_allclose(found["spacing"], [2 * s for s in load_content(run).info.spacing[::-1]])
    monkeypatch.setattr(html, "MAX_PAGE", 1000)
    with pytest.raises(content.ReportError, match="smaller --count"):
        html.render_page(load_content(run, data=run.parent / "data"))


# ---- in a browser ----

PROBE = """<pre id="probe"></pre><script>(async () => {
  const root = document.documentElement;
  for (let i = 0; i < 200 && root.dataset.ready !== "true"; i++) await new Promise((done) => setTimeout(done, 10));
  const drawn = [...document.querySelectorAll("canvas[data-plane]")].map((canvas) => {
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    const grey = []; for (let i = 0; i < data.length; i += 4) grey.push(data[i]);
    return { plane: canvas.dataset.plane, volume: Number(canvas.dataset.volume), width, height, grey };
  });
  const frames = [...document.querySelectorAll("#snapshot-strip figure")];
  const shown = frames.map((frame) => getComputedStyle(frame).display !== "none");
  document.getElementById("probe").textContent = JSON.stringify({ drawn, shown,
    outputs: [...document.querySelectorAll("output")].map((o) => o.textContent), hash: location.hash,
    wide: root.scrollWidth > root.clientWidth });
})();</script></body>"""


def in_browser(page, tmp_path, address=""):
    """The DOM of a page in headless Chromium, with what the probe read from its canvases."""
    if CHROMIUM is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium); the page itself is checked without it")
    copy = tmp_path / "probed.html"
    copy.write_text(page.replace("</body>", PROBE))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--window-size=1200,900", "--virtual-time-budget=8000", "--dump-dom", f"{copy.as_uri()}{address}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    head = re.search(r"<html[^>]*>", done.stdout)[0]
    probe = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    return head, json.loads(unescape(probe))


def test_chromium_draws_the_slices_that_the_sliders_ask_for(made, tmp_path):
    text = made.read_text()
    head, seen = in_browser(text, tmp_path, "#axial=1&coronal=6&sagittal=0&snapshot=0")
    assert 'data-errors="0"' in head and 'data-ready="true"' in head, head
    greys = embedded(text)[0]
    chosen = {"axial": greys[:, 1], "coronal": greys[:, :, 6], "sagittal": greys[:, :, :, 0]}
    assert len(seen["drawn"]) == 27
    for canvas in seen["drawn"]:
        picture = np.array(canvas["grey"]).reshape(canvas["height"], canvas["width"])
        np.testing.assert_array_equal(picture, chosen[canvas["plane"]][canvas["volume"]][::-1])
    assert "slice 2 of 6" in seen["outputs"][0] and "slice 7 of 8" in seen["outputs"][1]
    assert seen["shown"][0] and sum(seen["shown"]) == 1
    assert not seen["wide"]  # nothing sticks out to the side


def test_the_viewer_is_left_out_where_the_page_has_no_room_for_it(run, monkeypatch):
    content = load_content(run, data=run.parent / "data")
    whole = len(html.render_page(content).encode())
    monkeypatch.setattr(html, "MAX_PAGE", whole - 1)
    text = html.render_page(content)
    assert len(text) < whole - 800_000 and "niivue" not in text.lower() and 'id="slider-axial"' in text


def test_the_header_of_the_embedded_volumes_places_them_where_the_data_set_does(run, monkeypatch):
    content = load_content(run, data=run.parent / "data")
    for factor, bound in ((1, viewer.MAX_VOXELS), (2, 6 * int(np.prod(SHAPE)) // 8)):
        monkeypatch.setattr(viewer, "MAX_VOXELS", bound)
        found = viewer.embedded_volumes(content)
        voxels = gzip.decompress(base64.b64decode(found["data"]))
        head, size = base64.b64decode(found["nifti"]), int(np.prod(found["shape"]))
        image = nibabel.Nifti1Image.from_bytes(head + voxels[size : 2 * size])  # the second volume
        assert found["factor"] == factor and image.shape == tuple(found["shape"][::-1])
        raw = to_axial(np.asarray(content.real[1]), "axial")
        raw = viewer.reduce_volumes(raw[None], factor)[0] if factor > 1 else raw
        low, high = content.info.intensity_low, content.info.intensity_high
        expected = low + (raw.T + 1) / 2 * (high - low)
        np.testing.assert_allclose(np.asarray(image.dataobj), expected, atol=0.51 * (high - low) / 255)
        first = (factor - 1) / 2  # the middle of the first block, in voxels of the data set
        middle = np.asarray(content.info.affine) @ (first, first, first, 1)
        np.testing.assert_allclose(image.affine @ (0, 0, 0, 1), middle, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason=REASON)
def test_two_volumes_side_by_side(made, tmp_path):
    """Generated and nearest, in the viewer; where a browser has no WebGL 2, the panel is not there."""
    browser, data = Browser(tmp_path), "document.documentElement.dataset"
    try:
        browser.resize(1280, 900)
        browser.open(made.as_uri())
        browser.wait(f"{data}.viewer")
        browser.run("document.getElementById('viewer').scrollIntoView()")

        def pixels(side):
            return browser.pixels(f"#viewer-{side} canvas")[:, :540]

        left, right = pixels("left"), pixels("right")
        assert (left.max(2) > 60).mean() > 0.05 and (np.abs(left - right).max(2) > 30).mean() > 0.02
        chosen = browser.run(
            "return [...document.querySelectorAll('#viewer figure select')].map((s) => s.selectedOptions[0].text)"
        )
        assert chosen[0] == "Generated, seed 0" and chosen[1].startswith("Nearest training volume, volume ")
        browser.set("#viewer-right select", browser.run("return document.querySelector('#viewer-left select').value"))
        browser.wait("document.querySelector('#viewer-right canvas').ariaLabel === 'Generated, seed 0'")
        assert (np.abs(left - pixels("right")).max(2) > 30).mean() < 0.002
        browser.set("#view", "1")
        assert (np.abs(left - pixels("left")).max(2) > 30).mean() > 0.02
        assert browser.run(f"return {data}.errors") == "0" and browser.console() == []
        browser.resize(390, 844)
        assert browser.run("return document.documentElement.scrollWidth <= innerWidth")
        script = """const of = HTMLCanvasElement.prototype, get = of.getContext;
            of.getContext = function (kind) { return kind === "webgl2" ? null : get.apply(this, arguments); };"""
        browser.devtools("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        browser.open(made.as_uri())
        browser.wait(f"{data}.ready")
        assert browser.run(f"return document.getElementById('viewer').hidden && {data}.errors === '0'")
    finally:
        browser.close()


@pytest.mark.faults
def test_a_fault_in_the_script_is_seen(made, tmp_path):
    """Planted: the check above would notice a script that fails, and the still pictures stay."""
    broken = made.read_text().replace('new DecompressionStream("gzip")', 'new DecompressionStream("none")')
    head, seen = in_browser(broken, tmp_path)
    assert 'data-errors="1"' in head and 'class="js"' not in head
    assert all(seen["shown"])
