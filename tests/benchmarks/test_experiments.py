"""benchmarks.experiments on phantoms of 8^3: what the cells are shown, resuming, failures, pictures, the report."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image

from benchmarks.experiments import (
    averages,
    data,
    driver,
    grids,
    pictures,
    report,
    results,
    running,
    scoring,
    training,
)
from benchmarks.experiments.grids import Cell
from ssgan.data.axes import to_axial
from ssgan.data.dataset import DatasetError, VolumeDataset
from ssgan.runs import checkpoint
from ssgan.training.monitor import Monitor
from ssgan.training.optimiser import NonFiniteError
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import UserError
from tests.support.experiment_stand_ins import TINY, make_tiny, numbers, run

KEYS = ("frechet_held", "frechet_train", "kid")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    make_tiny(monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Grid A, run without interruption, and the voxels that each run's discriminator was shown."""
    root = tmp_path_factory.mktemp("grid")
    shown: dict[str, int] = {}
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        step, train_run = StageTrainer.train_step, training.train_run
        place = {}

        def counted(self, reals, *about):
            shown[place["run"]] = shown.get(place["run"], 0) + reals.numel()
            return step(self, reals, *about)

        def named(job, cfg, folder, init=None):
            place["run"] = folder.name
            return train_run(job, cfg, folder, init)

        patch.setattr(StageTrainer, "train_step", counted)
        patch.setattr(training, "train_run", named)
        assert run(root) == 0
    (root / "shown.json").write_text(json.dumps(shown))
    return root


# ---- what is shown ----


def test_every_cell_is_shown_the_same_number_of_voxels(finished):
    shown = json.loads((finished / "shown.json").read_text())
    records = {r["cell"]: r for r in results.load(finished / "tiny.jsonl")}
    assert len(records) == 6
    total = set()
    for cell in grids.cells("A", TINY, TINY.shape, [0]):
        voxels = shown[cell.folder] + (0 if cell.inflate == "none" else shown[cell.folder_2d])
        total.add(voxels)
        assert records[cell.folder]["shown"] * 8**3 == voxels
        slices = 0 if cell.inflate == "none" else 32
        assert (records[cell.folder]["slices"], records[cell.folder]["volumes"]) == (slices, 20 - slices // 8)
    assert total == {20 * 8**3}


def test_points_are_those_of_the_checkpoints_and_the_start(finished):
    for record in results.load(finished / "tiny.jsonl"):
        scratch = record["inflate"] == "none"
        assert [p["volumes"] for p in record["points"]] == ([0, 8, 16, 20] if scratch else [0, 8, 16])
        assert [p["shown"] - p["volumes"] for p in record["points"]] == [0 if scratch else 4] * (4 if scratch else 3)
        assert {k: record["points"][-1][k] for k in KEYS} == {k: record["final"][k] for k in KEYS}
        assert len({p["frechet_held"] for p in record["points"]}) == len(record["points"])
        for point in record["points"]:
            assert (point["seconds_2d"] > 0) == (not scratch) and (point["seconds_3d"] > 0) == (point["volumes"] > 0)


@pytest.mark.parametrize("start", ["average", "places"])
def test_the_first_point_of_an_inflated_cell_is_what_the_trainer_inflates(finished, start):
    """The driver inflates anew; the trainer logged the distance of what it started from."""
    cell = Cell("split_depth", start, (8, 4), 0)
    split = data.open_split("phantoms", TINY, finished / "runs" / "data")
    job = training.Job(TINY, split, finished / "runs", torch.device("cpu"), {}, log=lambda text: None)
    volumes, G = next(training.generators(job, cell))
    stand_in = StageTrainer(job.config(cell, "3d"), "3d", job.device)
    stand_in.G_ema = G
    rows = [json.loads(line) for line in (job.out / cell.folder / "log.jsonl").read_text().splitlines()]
    logged = next(r["distance"] for r in rows if r.get("event") == "inflated")
    assert volumes == 0 and Monitor(split.train, 0).measure(stand_in, ["distance"])["distance"] == pytest.approx(
        logged, rel=1e-6
    )


# ---- other averages of the weights ----


def tiny_job(root: Path) -> tuple[training.Job, scoring.Reference]:
    split = data.open_split("phantoms", TINY, root / "runs" / "data")
    job = training.Job(TINY, split, root / "runs", torch.device("cpu"), {}, log=lambda text: None)
    return job, scoring.reference(split.train.volumes, split.held.volumes)


def test_averages_are_those_of_the_checkpoints(finished):
    """By hand from the files: the raw weights of the end, and the mean of G_ema over the last third."""
    job, real = tiny_job(finished)
    cell = Cell("dense", "none", (8, 4), 0)
    record = next(r for r in results.load(finished / "tiny.jsonl") if r["cell"] == cell.folder)
    folder = job.out / cell.folder / "checkpoints"
    files = [folder / f"3d-{place}.safetensors" for place in ("000000016", "final")]  # after 8, 16, 20 volumes
    tensors = [safetensors.numpy.load_file(path) for path in files]
    wanted = {
        "G": {k.removeprefix("G."): v for k, v in tensors[-1].items() if k.startswith("G.")},
        "late": {k.removeprefix("G_ema."): (v + tensors[1][k]) / 2 for k, v in tensors[0].items() if k[:6] == "G_ema."},
    }
    for name, state in wanted.items():
        G = training.Generator(job.config(cell, "3d").network)
        G.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in state.items()})
        values = real.whole(scoring.generated(G, real.count))
        assert record["averages"][name] == pytest.approx({k: values[k] for k in averages.METRICS}, rel=1e-4), name
    kinds = {averages.under(record, name)["frechet_held"] for name in averages.KINDS}
    assert len(kinds) == 3 and record["final"]["frechet_held"] in kinds


def test_a_record_gets_the_other_features_that_are_at_hand_now(finished):
    job, real = tiny_job(finished)
    cell = Cell("dense", "none", (8, 4), 0)
    record = next(r for r in results.load(finished / "tiny.jsonl") if r["cell"] == cell.folder)
    record = record | {"other_features": {}}
    alone = dataclasses.replace(real, beside=None)
    assert averages.complete(job, cell, alone, record) is None
    both = dataclasses.replace(real, beside=alone)
    found = averages.complete(job, cell, both, record)
    *_, (_, G) = training.generators(job, cell)
    expected = both.other_features(scoring.generated(G, real.count))
    assert found == record | {"other_features": expected}
    names = expected["random3d"]["final"]
    assert names == pytest.approx({name: record["final"][name] for name in names}, rel=1e-4)
    assert averages.complete(job, cell, both, found) is None


def test_the_mean_of_weights_keeps_types_and_takes_the_last_count():
    states = [
        {"w": torch.tensor([1.0, 5.0]), "n": torch.tensor(3)},
        {"w": torch.tensor([2.0, 1.0]), "n": torch.tensor(7)},
    ]
    mean = averages.mean(states)
    assert mean["w"].tolist() == [1.5, 3.0] and mean["w"].dtype == torch.float32 and mean["n"].item() == 7
    found = {n: Path(str(n)) for n in (0, 5, 10, 15, 20, 25, 30)}
    assert [path.name for path in averages.late(found)] == ["25", "30"] and averages.late({4: Path("4")}) == [Path("4")]


def test_a_record_of_an_earlier_commit_gets_its_averages_where_the_run_is(finished, tmp_path, capsys):
    whole = results.load(finished / "tiny.jsonl")
    path = tmp_path / "tiny.jsonl"
    lacking = [{k: v for k, v in r.items() if k != "averages"} for r in whole]
    lacking[1]["final"] = lacking[1]["final"] | {"frechet_held": 2 * lacking[1]["final"]["frechet_held"]}
    path.write_text("".join(json.dumps(r) + "\n" for r in lacking))
    out = shutil.copytree(finished / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("train.lock"))
    shutil.rmtree(out / whole[2]["cell"])
    words = ["--grid", "A", "--scale", "tiny", "--results", str(path), "--report-only", "--seeds", "0"]
    assert driver.main(words) == 0 and "average of the generator" not in (tmp_path / "tiny-A.md").read_text()
    assert run(tmp_path) == 0
    said = capsys.readouterr().out
    assert said.count("other averages of its weights added") == 4
    assert f"{whole[1]['cell']}: other averages not measured" in said and "is not the run of the record" in said
    found = results.latest(results.load(path), whole[0]["protocol"])
    for number, record in enumerate(whole):
        more = found[record["cell"]]
        assert more == lacking[number] | ({} if number in (1, 2) else {"averages": record["averages"]})
    table = (tmp_path / "tiny-A.md").read_text().partition("Does it hang on the average")[2]
    assert f"| {whole[0]['label']} | 0 | {report.spread([whole[0]['averages']['G']['frechet_held']])} |" in table
    assert f"| {whole[1]['label']} |" not in table and f"| {whole[2]['label']} |" not in table


# ---- resuming ----


class Killed(BaseException):
    """What a kill is to the code: nothing catches it."""


@pytest.mark.parametrize("at", [3, pytest.param(13, marks=pytest.mark.slow), pytest.param(17, marks=pytest.mark.slow)])
def test_a_killed_grid_goes_on_to_the_same_table(finished, tmp_path, monkeypatch, at):
    step, done = StageTrainer.train_step, []

    def killed(self, reals, *about):
        done.append(1)
        if len(done) == at:
            raise Killed
        return step(self, reals, *about)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "train_step", killed)
        with pytest.raises(Killed):
            run(tmp_path)
    path = tmp_path / "tiny.jsonl"
    before = len(results.load(path))
    assert before == {3: 0, 13: 1, 17: 1}[at]
    with open(path, "a") as file:  # the kill came in the middle of a line
        file.write('{"cell": "dense-')
    assert run(tmp_path) == 0
    assert numbers(path) == numbers(finished / "tiny.jsonl")
    assert len(path.read_text().splitlines()) == 6


def test_cells_in_the_results_are_not_run_again_without_their_folders(finished, tmp_path, monkeypatch, capsys):
    def forbidden(self, reals, *about):
        raise Killed

    copy = shutil.copy(finished / "tiny.jsonl", tmp_path / "copy.jsonl")
    monkeypatch.setattr(StageTrainer, "train_step", forbidden)
    assert run(tmp_path, results_in=copy) == 0
    assert capsys.readouterr().out.count("already") == 6
    with pytest.raises(Killed):  # other settings are another protocol
        run(tmp_path, "--set", "stage_3d.r1_gamma=2.5", results_in=copy)


def test_a_budget_stops_with_everything_saved(finished, tmp_path, monkeypatch, capsys):
    step, done = StageTrainer.train_step, []

    def slow(self, reals, *about):
        done.append(1)
        if len(done) == 3:  # the timer's signal, between two points of the curve
            driver.os.kill(driver.os.getpid(), driver.signal.SIGINT)
        return step(self, reals, *about)

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "train_step", slow)
        assert run(tmp_path, "--budget-minutes", "60") == 130
    assert "stopped; the same command goes on from there" in capsys.readouterr().out
    assert not (tmp_path / "tiny.jsonl").exists()
    saved = checkpoint.list_checkpoints(tmp_path / "runs" / "dense-scratch-w8x4-seed0" / "checkpoints")
    assert [path.name for path in saved] == ["3d-000000008.safetensors", "3d-000000012.safetensors"]
    assert run(tmp_path, "--only", "dense-scratch") == 0
    cell = "dense-scratch-w8x4-seed0"
    assert numbers(tmp_path / "tiny.jsonl")[cell] == numbers(finished / "tiny.jsonl")[cell]


# ---- failures ----


def test_a_failed_cell_is_named_and_tried_again(finished, tmp_path, monkeypatch, capsys):
    train_run = training.train_run

    def fails(job, cfg, folder, init=None):
        if folder.name.startswith("dense-2d-w"):
            raise NonFiniteError("stage 2d, step 2, generator: the loss is nan")
        return train_run(job, cfg, folder, init)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_run", fails)
        assert run(tmp_path) == 1
    captured = capsys.readouterr()
    assert "1 cells failed" in captured.err
    page = (tmp_path / "tiny-A.md").read_text()
    error = "NonFiniteError: stage 2d, step 2, generator: the loss is nan"
    assert f"- failed: dense, inflated average, seed 0 (`dense-average-w8x4-seed0`): {error}" in page
    assert "| dense, inflated average | 0 |" in page and page.count("(100.0%)") == 1
    assert [r["cell"] for r in results.load(tmp_path / "tiny.jsonl") if "error" in r] == ["dense-average-w8x4-seed0"]
    assert run(tmp_path) == 0
    page = (tmp_path / "tiny-A.md").read_text()
    assert "failed" not in page and "not run" not in page
    cell = "dense-average-w8x4-seed0"
    assert numbers_of_last(tmp_path / "tiny.jsonl", cell) == numbers_of_last(finished / "tiny.jsonl", cell)


def test_values_that_are_not_finite_are_the_cells_failure(finished, tmp_path, monkeypatch):
    """An infinity too, which clipping to [-1, 1] would hide."""

    def infinite(G, z, **more):
        return np.full((len(z), *G.cfg.shape), np.inf)

    monkeypatch.setattr(scoring, "synthesise", infinite)
    shutil.copytree(finished / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("train.lock"))
    assert run(tmp_path, "--only", "dense-scratch") == 1
    (record,) = results.load(tmp_path / "tiny.jsonl")
    assert record["error"] == (
        "UserError: dense-scratch-w8x4-seed0 after 0 volumes: the generator gives values that are not finite"
    )
    job, real = tiny_job(finished)
    why = r"dense-scratch-w8x4-seed0, average of the weights: none, the weights of the last step: .* not finite"
    with pytest.raises(UserError, match=why):
        averages.measure(job, grids.cells("A", TINY, TINY.shape, [0])[0], real)


def numbers_of_last(path: Path, cell: str):
    return [r for r in results.load(path) if r["cell"] == cell][-1]["final"]


def test_a_report_names_the_commits_and_the_command_of_its_own_cells(finished, tmp_path):
    path = Path(shutil.copy(finished / "tiny.jsonl", tmp_path / "tiny.jsonl"))
    shutil.copy(finished / "tiny-A-volumes.png", tmp_path)
    record = results.load(path)[-1]
    about = record["environment"] | {"commit": "of-another-grid", "date": "2999-01-01T00:00:00Z"}
    results.append(path, record | {"cell": "acs4-elsewhere", "command": "another command", "environment": about})
    assert driver.main(["--grid", "A", "--scale", "tiny", "--results", str(path), "--report-only", "--seeds", "0"]) == 0
    assert (tmp_path / "tiny-A.md").read_text() == (finished / "tiny-A.md").read_text()


def test_unknown_cells_and_missing_options_are_named(tmp_path, capsys):
    assert run(tmp_path, "--only", "sparse") == 2
    assert "--only sparse: no such cell; expected one of dense-scratch-w8x4-seed0" in capsys.readouterr().err
    assert driver.main(["--grid", "A", "--scale", "tiny", "--results", str(tmp_path / "x.jsonl"), "--report-only"]) == 2
    assert "the file has no results yet" in capsys.readouterr().err
    assert driver.main(["--grid", "A", "--scale", "tiny"]) == 2
    assert "--out: expected a folder for the runs" in capsys.readouterr().err


# ---- the split ----


def test_phantoms_that_are_held_out_are_a_draw_of_their_own(finished):
    train, held = (VolumeDataset(finished / "runs" / "data" / name) for name in ("train", "held"))
    assert (len(train), len(held)) == (12, 8)
    assert not {v.tobytes() for v in train.volumes} & {v.tobytes() for v in held.volumes}
    with pytest.raises(DatasetError, match="choose another --out"):
        data.open_split("phantoms", grids.SCALES["cpu"], finished / "runs" / "data")


# ---- the report ----


def test_the_report_is_made_of_the_json_lines_alone(finished, tmp_path):
    path = Path(shutil.copy(finished / "tiny.jsonl", tmp_path / "tiny.jsonl"))
    words = ["--grid", "A", "--scale", "tiny", "--results", str(path), "--report-only", "--seeds", "0"]
    assert driver.main(words) == 0  # the picture of volumes needs the runs: it is shown where it is
    volumes = "![volumes](tiny-A-volumes.png)\n"
    assert (tmp_path / "tiny-A.md").read_text() == (finished / "tiny-A.md").read_text().replace(volumes, "")
    shutil.copy(finished / "tiny-A-volumes.png", tmp_path)
    assert driver.main(words) == 0
    assert (tmp_path / "tiny-A.md").read_text() == (finished / "tiny-A.md").read_text()
    assert (tmp_path / "tiny-A.png").read_bytes()[:4] == b"\x89PNG"
    text = (tmp_path / "tiny-A.md").read_text()
    assert "--grid A --scale tiny --data phantoms --out runs --seeds 0 --threads 1`" in text and "100.0%" in text
    assert str(finished) not in text and str(finished) not in path.read_text()
    assert driver.main([*words[:-1], "0,4"]) == 0  # a seed that nobody ran is named
    assert "- not run: split_depth, inflated average, seed 4" in (tmp_path / "tiny-A.md").read_text()
    assert driver.main(["--grid", "B", *words[2:]]) == 0
    text = (tmp_path / "tiny-B.md").read_text()
    assert (
        "Against dense, scratch of the same seed" in text
        and "| dense, scratch | " in text.partition("At equal time")[2]
    )
    assert "| split_depth, inflated centre | 0 |" in text and "- not run: split_depth, inflated centre, seed 0" in text


def test_the_picture_shows_the_cells_of_one_seed_and_no_trials(finished, tmp_path, monkeypatch, capsys):
    assert "![volumes](tiny-A-volumes.png)" in (finished / "tiny-A.md").read_text()
    with Image.open(finished / "tiny-A-volumes.png") as image:
        assert image.height > 7 * image.width / 16  # seven rows of four cells of three planes
    job, _ = tiny_job(finished)
    drawn = {}

    def sheet(volumes, names, path, **more):
        drawn.update(volumes=volumes, names=names, **more)
        return path

    monkeypatch.setattr(pictures, "contact_sheet", sheet)
    cells = grids.cells("A", TINY, TINY.shape, [3, 0])
    assert pictures.draw(job, cells, tmp_path / "a.png") == tmp_path / "a.png"
    assert [n for n in drawn["names"] if n] == ["real, held out", *(c.label for c in cells if c.seed == 0)]
    assert drawn["volumes"].shape == (28, 8, 8, 8) and drawn["title"].startswith("seed 0;")
    last = checkpoint.load(job.final(cells[-1]))[0]
    G = training.Generator(job.config(cells[-1], "3d").network)
    checkpoint.load_module(G, "G_ema", last, "")
    axial = to_axial(scoring.generated(G, 4), job.split.held.info.slice_axis)
    np.testing.assert_array_equal(drawn["volumes"][-4:], axial)
    other = dataclasses.replace(job, changes={"stage_3d.r1_gamma": 2.5})  # the runs are of other settings
    assert pictures.draw(other, cells, tmp_path / "b.png") is None
    drawn.clear()
    path = Path(shutil.copy(finished / "tiny.jsonl", tmp_path / "tiny.jsonl"))
    known = results.load(path)[0]
    monkeypatch.setattr(running, "run_cell", lambda job, cell, real, head: known | {"protocol": head["protocol"]})
    assert run(tmp_path, "--set", "stage_3d.r1_gamma=2.5", "--only", "dense-scratch") == 0 and not drawn
    assert run(tmp_path) == 0 and not drawn  # there are results and no runs, which is said
    assert "no picture of the cells' volumes: there are no finished runs" in capsys.readouterr().out


def test_other_settings_in_the_file_are_shown_with_what_came_out(finished, tmp_path):
    path = Path(shutil.copy(finished / "tiny.jsonl", tmp_path / "tiny.jsonl"))
    first, *rest = results.load(path)
    assert report.tried([first, *rest], first["protocol"]) == ""
    assert set(first["about"]["rates"]) == {"lr_g", "lr_d", "r1_gamma"}
    about = first["about"] | {"changes": {"stage_3d.r1_gamma": 7, "warmup_kimg": 0.5}}
    for seed, value in ((3, 5.25), (4, 6.75)):  # earlier in the file, under another protocol
        points = [{"frechet_held": 4.5}, {"frechet_held": value}]
        final = dict.fromkeys(("precision", "recall"), 0.25) | {"frechet_held": value}
        rest.insert(0, first | {"protocol": "other", "seed": seed, "cell": f"c{seed}", "about": about,
                                "points": points, "final": final})  # fmt: skip
    failed = {k: v for k, v in first.items() if k not in ("points", "final")}
    rest.insert(0, failed | {"protocol": "third", "error": "ValueError: no"})
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rest, first]))
    text, _ = report.write(results.load(path), "A", "tiny", tmp_path / "tiny", first["protocol"], [0])
    rows = [line for line in text.splitlines() if "| r1_gamma" in line or "lr_g" in line]
    rates = first["about"]["rates"]
    want = f"| lr_g {rates['lr_g']}, lr_d {rates['lr_d']}, r1_gamma 7, warmup_kimg 0.5, 16 volumes | {first['label']} "
    assert want + "| 3, 4 | 6 (5.25 to 6.75) | 4.5 (4.5 to 4.5) | 0.25 (0.25 to 0.25) | 0.25 (0.25 to 0.25) |" in rows
    assert f"| {report.settings_of(first)} | {first['label']} | failed | – | – | – | – |" in rows and len(rows) == 2


def test_the_pace_of_every_kind_of_cell_takes_the_place_of_the_logs_seconds(finished, tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.jsonl"
    assert run(tmp_path, "--pace", results_in=path) == 0
    assert "has the times of the steps and no cells yet" in capsys.readouterr().out
    (timed,) = results.load(path)
    kinds = {f"{arch}-w8x4{places}-2d" for arch in ("dense", "split_depth") for places in ("", "-places")}
    kinds |= {k.replace("2d", "3d") for k in kinds}
    assert set(timed["pace"]) == kinds and all(v > 0 for v in timed["pace"].values())
    assert run(tmp_path, "--report-only", results_in=path) == 2
    assert "the file has no results yet" in capsys.readouterr().err
    timed["pace"] = {k: 7.0 if "2d" in k else 500.0 for k in kinds}
    timed["pace"]["dense-w8x4-places-3d"] = 250.0
    lines = (finished / "tiny.jsonl").read_text() + json.dumps(timed) + "\n"
    path.write_text(lines)
    assert run(tmp_path, "--report-only", results_in=path) == 0
    rows = [line.split(" | ") for line in (tmp_path / "tiny-A.md").read_text().splitlines() if line.startswith("| ")]
    last = {row[0].removeprefix("| "): [x.removesuffix(" |") for x in row[-2:]] for row in rows if len(row) > 9}
    assert last["dense, scratch"] == ["500", f"{0.02 * 500:.3g}"]
    assert last["dense, inflated centre, depth-aware"] == ["250", f"{0.032 * 7 + 0.016 * 250:.3g}"]
    assert "by steps timed in turns" in (tmp_path / "tiny-A.md").read_text()
    assert run(tmp_path, results_in=path) == 0  # no cell is run again, the pace stays
    assert results.load(path)[-1]["cell"] == "pace"
