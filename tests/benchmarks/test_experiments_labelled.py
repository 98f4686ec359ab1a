"""benchmarks.experiments.labelled on phantoms of 8^3: who sees which volumes, what the arms share, resuming, table."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("monai", reason="MONAI's U-Net; it is in the extra `test`")

from benchmarks.experiments import labelled, labelled_report, results, unet
from benchmarks.experiments.data import split_indices
from benchmarks.experiments.labelled import Cell, Experiment, Gan, Scale
from ssgan.data.dataset import NO_MASK, VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from tests.support.experiment_stand_ins import make_tiny

TINY = Scale(
    (8, 8, 8), 2.0, kimg_2d=0.008, kimg_3d=0.008, steps=2, preset="demo", options=("--batch-2d", "4"), pairs=5, batch=4,
    channels=(4, 8), networks=2, train=14, few=(3, 4), search_n=4, search_held=5, shares=(0.25, 0.5),
)  # fmt: skip
WORDS = ["--scale", "small", "--n", "3", "14", "--seeds", "0"]
CELLS = ["real-3", "generated-3", "real-14", "semi-3", "real-plain-3", "generated-plain-3", "generated-14"]


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> VolumeDataset:
    path = tmp_path_factory.mktemp("phantoms") / "data"
    return write_phantom_dataset(path, 24, (8, 8, 8), 5, True)


@pytest.fixture
def experiment(phantoms, tmp_path) -> Experiment:
    return Experiment(TINY, tmp_path, phantoms)


def run(phantoms: VolumeDataset, out: Path, *more: str) -> int:
    return labelled.main(["--data", str(phantoms.path), "--out", str(out), *WORDS, *more])


@pytest.fixture(scope="module")
def finished(phantoms, tmp_path_factory):
    """A whole run: its folder, and of each U-Net the weights at the start, its batches and the arguments of its
    training."""
    out, seen, train = tmp_path_factory.mktemp("labelled"), [], unet.train

    def spied(model, batches, steps, lr, seed, spacing, classes, augmented):
        start = [p.detach().clone() for p in model.parameters()]
        seen.append((start, batches, (steps, lr, seed, tuple(spacing), classes, batches.batch), augmented))
        train(model, batches, steps, lr, seed, spacing, classes, augmented)

    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        patch.setitem(labelled.SCALES, "small", TINY)
        patch.setattr(unet, "train", spied)
        assert run(phantoms, out) == 0
    return out, seen


@pytest.fixture
def copied(finished, tmp_path, monkeypatch) -> Path:
    """A copy of the finished run's folder, for tests that change it."""
    monkeypatch.setitem(labelled.SCALES, "small", TINY)
    return Path(shutil.copytree(finished[0], tmp_path / "copied"))


def test_labelled_volumes_are_nested_and_no_volume_has_two_uses(experiment):
    train, held = split_indices([str(r["source"]) for r in experiment.whole.records], 14)
    assert experiment.held == held and len(held) == 10
    for seed in (0, 1, 2):
        three, four, all_of_them = (experiment.labelled(n, seed) for n in (3, 4, 14))
        assert three == four[:3] and four == all_of_them[:4] and sorted(all_of_them) == train
    assert experiment.labelled(4, 0) != experiment.labelled(4, 1)
    searched = experiment.searched()
    assert len(set(searched)) == 5 and set(searched) <= set(train) - set(experiment.labelled(4, 0))
    with pytest.raises(AssertionError, match="a volume that scores is labelled"):
        experiment.segment(14, 0, None, 0.0, searched)


@pytest.mark.parametrize("n", [1, 3, 4, 7])
def test_a_gan_sees_the_labelled_volumes_and_semi_supervised_the_images_of_the_others(experiment, n):
    whole, labels, train = experiment.whole, experiment.labelled(n, 2), set(experiment.train)
    own = VolumeDataset(experiment.data_set(Gan(n, 2)))
    assert np.array_equal(own.volumes, whole.volumes[labels]) and np.array_equal(own.masks, whole.masks[labels])
    semi = VolumeDataset(experiment.data_set(Gan(n, 2, semi=True)))
    unmasked = {i for i in range(24) for v in semi.volumes[~semi.has_mask] if np.array_equal(v, whole.volumes[i])}
    assert unmasked == train - set(labels) and (~semi.has_mask).sum() == 14 - n
    assert (semi.masks[~semi.has_mask] == NO_MASK).all()
    times = int(semi.has_mask.sum()) // n
    assert np.array_equal(semi.masks[semi.has_mask], np.tile(whole.masks[labels], (times, 1, 1, 1)))
    share = semi.has_mask.mean()
    fewer = n * (times - 1) / (n * (times - 1) + 14 - n)
    assert share >= 0.25 and (times == 1 or fewer < 0.25)
    assert experiment.data_set(Gan(n, 2, semi=True)) == semi.path  # a second time nothing is written


def test_a_set_of_other_volumes_is_refused(experiment):
    other = Experiment(dataclasses.replace(TINY, train=15), experiment.out, experiment.whole)
    other.data_set(Gan(3, 0))
    with pytest.raises(labelled.LabelledError, match="3-seed0 holds other volumes"):
        experiment.data_set(Gan(3, 0))


def test_few_labelled_volumes_come_first_at_all_seeds():
    cells = labelled.plan(labelled.SCALES["small"], (10, 20, 40, 160), (0, 1, 2), labelled.ARMS)
    names = [c.name for c in cells]
    assert len(set(names)) == len(names) == 12 + 3 + 6 + 12 + 6 + 3 + 3
    assert names[:4] == ["real-10-seed0", "generated-10-seed0", "real-20-seed0", "generated-20-seed0"]
    assert {(c.arm, c.n) for c in cells[:12]} == {(a, n) for a in ("real", "generated") for n in (10, 20)}
    assert names[12:15] == [f"real-160-seed{s}" for s in (0, 1, 2)]
    semi = {c.n for c in cells if c.arm == "semi"}
    assert {c.n for c in cells if not c.augmented} == {10, 20} and semi == {10, 20, 40}
    assert len({c.gan for c in cells if c.gan}) == 21
    only = labelled.plan(labelled.SCALES["small"], (20,), (1,), ("generated",))
    assert only == [Cell("generated", 20, 1)] and only[0].gan == Gan(20, 1)
    assert Cell("generated-plain", 20, 1).gan == Gan(20, 1) != Cell("semi", 20, 1).gan
    assert Cell("real-plain", 20, 1).gan is None and not Cell("real-plain", 20, 1).augmented


def test_a_run_measures_every_cell_and_the_arms_differ_in_the_generated_pairs_alone(finished, phantoms):
    out, seen = finished
    records = results.load(out / "results.jsonl")
    assert [r["cell"] for r in records] == [
        *(f"search-4-seed0-share{s}" for s in ("0", "0.25", "0.5")), *(f"{c}-seed0" for c in CELLS)
    ]  # fmt: skip
    assert sorted(p.name for p in (out / "runs").iterdir()) == ["14-seed0", "3-seed0", "4-seed0", "semi-3-seed0"]
    shares = {r["share"]: r["dice"] for r in records[1:3]}
    best = max((0.25, 0.5), key=shares.get)
    whole, held = VolumeDataset(phantoms.path), split_indices([str(r["source"]) for r in phantoms.records], 14)[1]
    for i, record in enumerate(records):
        nets = seen[2 * i : 2 * i + 2]
        made = record["arm"] not in ("real", "real-plain") and (record["arm"] != "search" or record["share"] > 0)
        assert record["share"] == (0 if not made else record["share"] if record["arm"] == "search" else best)
        for k, (start, batches, arguments, augmented) in enumerate(nets):
            assert arguments == (2, TINY.lr, k, phantoms.info.spacing, 4, 4)
            assert all(torch.equal(a, b) for a, b in zip(start, seen[k][0], strict=True))
            assert augmented == (not record["arm"].endswith("plain"))
            order = np.random.default_rng(0).permutation(split_indices(
                [str(r["source"]) for r in whole.records], 14)[0])[: record["n"]]  # fmt: skip
            assert np.array_equal(batches.real.images[:, 0], whole.volumes[order])
            assert batches.made == round(record["share"] * 4) and (batches.generated is not None) == made
        assert not torch.equal(nets[0][0][0], nets[1][0][0])  # the U-Nets of a cell start differently
        assert record["scored"] == (5 if record["arm"] == "search" else len(held))
        assert record["dice"] == pytest.approx(np.mean(record["dice_networks"]), abs=1e-6)
        assert record["dice"] == pytest.approx(np.mean(record["dice_classes"]), abs=1e-6)
        assert record["dice"] == pytest.approx(np.mean(record["dice_volumes"]), abs=1e-4)
        assert len(record["dice_classes"]) == 3 and 0 <= record["dice"] <= 1 <= record["hd95"] <= 400
    generated = {r["cell"]: seen[2 * i][1].generated for i, r in enumerate(records)}
    assert torch.equal(generated["generated-3-seed0"].masks, generated["generated-plain-3-seed0"].masks)
    assert not torch.equal(generated["generated-3-seed0"].images, generated["semi-3-seed0"].images)
    for pairs in generated.values():
        assert pairs is None or (pairs.masks.max() < 4 and pairs.images.abs().max() <= 1 and len(pairs.images) == 5)


def test_what_is_finished_is_not_run_again(copied, phantoms, monkeypatch, capsys):
    path = copied / "results.jsonl"
    monkeypatch.setattr(labelled.train, "main", lambda words: pytest.fail("a GAN is trained again"))
    lines = path.read_text().splitlines(keepends=True)
    (lost,) = (line for line in lines if '"real-plain-3-seed0"' in line)
    path.write_text("".join(line for line in lines if line != lost))
    assert run(phantoms, copied) == 0
    assert capsys.readouterr().out.count("already in") == 6
    # The missing cell alone is run again, with the same figures.
    again, before = results.load(path), json.loads(lost)
    assert len(again) == len(lines) and again[-1]["cell"] == "real-plain-3-seed0"
    figures = ("dice", "dice_volumes", "hd95_classes", "empty", "dice_networks", "protocol")
    assert {k: again[-1][k] for k in figures} == {k: before[k] for k in figures}


def test_the_share_is_the_best_of_the_search(finished):
    out, _ = finished
    records = {r["cell"]: dict(r) for r in results.load(out / "results.jsonl")}
    assert labelled.best_share(TINY, records) in (0.25, 0.5)
    for share, other in ((0.25, 0.5), (0.5, 0.25)):
        records[f"search-4-seed0-share{share:g}"]["dice"], records[f"search-4-seed0-share{other:g}"]["dice"] = 0.9, 0.8
        records["search-4-seed0-share0"]["dice"] = 0.95  # no share is no choice
        assert labelled.best_share(TINY, records) == share
    del records["search-4-seed0-share0.5"]
    assert labelled.best_share(TINY, records) is None


def test_another_share_asks_for_the_generated_cells_again(copied, phantoms, monkeypatch):
    """The GANs go on as they are: `ssgan train` finds them finished."""
    path = copied / "results.jsonl"
    records = results.load(path)
    best = labelled.best_share(TINY, {r["cell"]: r for r in records})
    for r in records:
        if r["arm"] == "search" and r["share"] not in (0, best):
            r["dice"] = 1.0
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    trained = []
    monkeypatch.setattr(labelled.train, "main", lambda words: trained.append(words[3]) or 0)
    assert run(phantoms, copied, "--arms", "real", "generated", "--n", "3") == 0
    (record,) = results.load(path)[len(records) :]
    assert record["cell"] == "generated-3-seed0" and record["share"] == 0.75 - best
    assert trained == [str(copied / "runs" / "3-seed0")]


def test_a_stopped_gan_ends_the_run_with_its_status(phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(labelled.SCALES, "small", TINY)
    monkeypatch.setattr(labelled.train, "main", lambda words: 130)
    assert run(phantoms, tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert [r["cell"] for r in results.load(tmp_path / "results.jsonl")] == ["search-4-seed0-share0"]


def test_a_cell_that_fails_does_not_keep_the_others_from_running(copied, phantoms, monkeypatch, capsys):
    path, segment = copied / "results.jsonl", Experiment.segment

    def failing(self, n, *args):
        if n == 3:
            raise labelled.UserError("the loss is nan")
        return segment(self, n, *args)

    monkeypatch.setattr(Experiment, "segment", failing)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"real-3-' not in line and '"real-14-' not in line))
    assert run(phantoms, copied, "--arms", "real") == 1
    assert "real-3-seed0 failed: the loss is nan" in capsys.readouterr().err
    assert results.load(path)[-1]["cell"] == "real-14-seed0"


def made_up(arm: str, n: int, seed: int, dice: float, **more) -> dict:
    about = {
        "spacing": 2.0, "preset": "demo", "kimg_2d": 1, "kimg_3d": 2, "gamma": 2.0, "pairs": 9, "channels": [4, 8],
        "steps": 7, "batch": 4, "lr": 0.003, "networks": 2,
    }  # fmt: skip
    env = {"device": "a CPU", "threads": 1, "torch": "2", "commit": "abc", "date": "2026-12-01T00:00:00Z"}
    record = {"cell": f"{arm}-{n}-seed{seed}", "protocol": "p", "seed": seed, "arm": arm, "n": n, "share": 0.5}
    record |= {"dice": dice, "dice_classes": [dice + 0.1, dice - 0.1], "hd95": 2.0 + seed, "empty": seed}
    return record | {"about": about, "environment": env, "classes": ["anterior", "posterior"], "scored": 39,
                     "shape": [8, 8, 8], "spacing": [2, 2, 2]} | more  # fmt: skip


def test_the_table_has_each_seeds_difference_to_its_own_base(tmp_path):
    records = [
        made_up("generated", 10, 0, 0.72), made_up("generated", 10, 1, 0.734), made_up("real", 10, 1, 0.74),
        made_up("real", 10, 0, 0.70), made_up("generated-plain", 10, 0, 0.66), made_up("real-plain", 10, 0, 0.65),
        made_up("real", 160, 0, 0.80), made_up("generated", 20, 0, 0.77),
        made_up("search", 20, 0, 0.7111, share=0.0, scored=40), made_up("search", 20, 0, 0.7222, scored=40),
    ]  # fmt: skip
    page = labelled_report.markdown(records)
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [(r[0].strip("| "), r[1]) for r in rows] == [
        ("10", "real pairs"), ("10", "real and generated"), ("10", "real, no augmentation"),
        ("10", "real and generated, no augmentation"), ("20", "real and generated"), ("160", "real pairs"),
    ]  # fmt: skip
    assert rows[1][2:] == [
        "0.727 (0.720 to 0.734)", "0.827", "0.627", "2.50 (2.00 to 3.00)", "1", "0: +2.0, 1: -0.6 |"
    ]  # fmt: skip
    assert rows[0][-1] == rows[4][-1] == "– |" and rows[3][-1] == "0: +1.0 |"
    assert "Dice 0 %: 0.7111, 50 %: 0.7222." in page and "39 held-out volumes" in page
    assert "Not every seed" not in page
    begun = labelled_report.markdown([*records, made_up("semi", 10, 1, 0.7)])
    assert "only the differences compare: 10 labelled, real and generated, semi-supervised GAN." in begun
    labelled_report.draw(records, tmp_path / "dice.png")
    assert (tmp_path / "dice.png").stat().st_size > 5000


def test_the_report_needs_the_results_alone(finished, tmp_path, capsys):
    out, _ = finished
    for name in ("results.md", "dice.png", "pairs.png"):
        assert (out / name).exists()
    (tmp_path / "results.jsonl").write_text((out / "results.jsonl").read_text())
    assert labelled.main(["--out", str(tmp_path), "--scale", "small", "--report"]) == 0
    assert (tmp_path / "results.md").read_text() == (out / "results.md").read_text()
    assert "no picture of pairs" in capsys.readouterr().out and not (tmp_path / "pairs.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "kimg=3"], "--set kimg: expected one of shape, spacing"),
        (["--n", "15"], "--n: expected numbers from 1 to 14; got [15]"),
        (
            ["--set", "search_held=11", "--n", "3"],
            "search_n, search_held: expected no more than the volumes that train",
        ),
        (["--report"], "results.jsonl has no results yet"),
    ],
    ids=["unknown", "count", "search", "report"],
)
def test_wrong_options_are_named(words, message, phantoms, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(labelled.SCALES, "small", TINY)
    assert run(phantoms, tmp_path, *words) == 2
    assert message in capsys.readouterr().err


def test_every_volume_needs_a_mask(tmp_path):
    plain = write_phantom_dataset(tmp_path / "data", 24, (8, 8, 8), 5)
    with pytest.raises(labelled.LabelledError, match="every volume needs a mask"):
        Experiment(TINY, tmp_path, plain)
