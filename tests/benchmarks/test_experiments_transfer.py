"""benchmarks.experiments.transfer on volumes of 8^3: what the arms share, what differs, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiments import grids, results, transfer
from ssgan import prepare
from ssgan.models.networks import Discriminator
from ssgan.runs import checkpoint
from tests.support.experiment_stand_ins import TINY, make_tiny, run


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> tuple[Path, Path]:
    """14 labelled volumes, and a run on the 6 of them that train."""
    from tests.benchmarks.test_segmentation import a_volume, write  # skips where there is no MONAI

    root = tmp_path_factory.mktemp("task")
    for seed in range(14):
        write(root / "task", f"v{seed:02d}.nii.gz", *a_volume(seed))
    words = ["--input", str(root / "task" / "images"), "--out", str(root / "data"), "--shape", "8", "8", "8"]
    assert prepare.main([*words, "--spacing", "4", "4", "4"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        more = ["--data", str(root / "data"), "--train", "6", "--only", "split_depth-average"]
        assert run(root, *more) == 0
    return root / "task", root / "runs" / "split_depth-average-w8x4-seed0"


def few(task: tuple[Path, Path], path: Path, *more: str) -> int:
    words = [
        "--task",
        str(task[0]),
        "--run",
        str(task[1]),
        "--results",
        str(path),
        "--train",
        "6",
        "--counts",
        "2",
        "4",
    ]
    words += ["--seeds", "0-1", "--steps", "2", "--pretrain-steps", "2", "--generated", "4", "--batch", "2"]
    return transfer.main([*words, *more])


def test_arms_differ_in_their_start_and_in_nothing_else(task, tmp_path, monkeypatch, capsys):
    seen = []
    tune = transfer.fine_tune

    def spied(model, images, labels, steps, batch, lr, seed):
        seen.append((seed, len(images), float(images.sum()), {k: v.clone() for k, v in model.state_dict().items()}))
        tune(model, images, labels, steps, batch, lr, seed)

    monkeypatch.setattr(transfer, "fine_tune", spied)
    path = tmp_path / "few.jsonl"
    assert few(task, path) == 0
    records = results.load(path)
    assert [r["cell"] for r in records[:4]] == [f"{arm}-2-seed0" for arm in transfer.ARMS] and len(records) == 16
    assert all(r["held_out"] == 8 and 0 <= r["dice"] <= 1 for r in records)
    for first in range(0, 16, 4):
        assert len({row[:3] for row in seen[first : first + 4]}) == 1  # the same seed and labelled volumes
    fresh, trained, made, unlabelled = (row[3] for row in seen[:4])
    D, _ = checkpoint.load(checkpoint.final_path(task[1] / "checkpoints", "3d"))
    trunk = [n for n in fresh if n.startswith("trunk.")]
    assert all(np.array_equal(trained[n], D[n.replace("trunk.", "D.", 1)]) for n in trunk)
    assert not all(np.array_equal(fresh[n], trained[n]) for n in trunk)
    decoder = [n for n in fresh if n not in trunk]
    assert decoder and all(np.array_equal(fresh[n], trained[n]) for n in decoder)
    assert not np.array_equal(made["decoder.0.0.weight"], unlabelled["decoder.0.0.weight"])
    assert not np.array_equal(made["decoder.0.0.weight"], fresh["decoder.0.0.weight"])
    page = (tmp_path / "few.md").read_text()
    assert page in capsys.readouterr().out
    mean = np.mean([r["dice"] for r in records if (r["arm"], r["count"]) == ("gan", 4)])
    assert f"| {mean:.4f} (" in page and "2 seeds)" in page and (tmp_path / "few.png").exists()
    count = len(seen)
    kept = path.read_text().splitlines()
    path.write_text("\n".join(kept[:-1]) + "\n")  # one was not reached
    assert few(task, path) == 0 and len(seen) == count + 1
    again = results.load(path)[-1]
    assert (again["cell"], again["dice"]) == (records[-1]["cell"], records[-1]["dice"])


def test_a_trunk_that_knows_places_has_them_from_the_middle_outwards():
    cfg = grids.network(TINY, (8, 8, 8), "split_depth", (8, 4)).depth_aware()
    D = Discriminator(cfg)
    torch.nn.init.normal_(D.depth_embedding)
    model = transfer.TrunkUNet(cfg, 0)
    model.load_trunk({f"D.{n}": t for n, t in D.state_dict().items()}, "here")
    x = torch.rand(2, 1, 8, 8, 8)
    assert torch.equal(model._first(x), D.first(x))
    deep, shallow = torch.rand(2, 1, 11, 10, 6), torch.rand(2, 1, 5, 8, 8)
    added = (model._first(deep) - D.from_image(deep))[0, :, :, 0, 0]
    e = D.depth_embedding
    assert torch.allclose(added, torch.cat([e[:, :1], e, e[:, -1:], e[:, -1:]], 1), atol=1e-5)
    added = (model._first(shallow) - D.from_image(shallow))[0, :, :, 0, 0]
    assert torch.allclose(added, e[:, 2:7], atol=1e-5)
    assert model(deep).shape == (2, 3, 11, 10, 6) and not hasattr(model.trunk, "head")


def test_a_run_that_has_seen_held_out_volumes_is_refused(task, tmp_path, capsys):
    assert few(task, tmp_path / "few.jsonl", "--train", "5") == 2
    assert "which is held out; train on the split's volumes" in capsys.readouterr().err
    assert few(task, tmp_path / "few.jsonl", "--counts", "1") == 2
    assert "--counts: expected 2 (--batch) to 6 (--train); got [1]" in capsys.readouterr().err
    assert not (tmp_path / "few.jsonl").exists()


def test_damage_hides_half_of_the_blocks():
    x = torch.ones(40, 1, 8, 8, 12)
    y = transfer.damaged(x, torch.Generator().manual_seed(0))
    hidden = (y == 0).float()
    assert hidden.mean().item() == pytest.approx(0.5, abs=0.05)
    blocks = hidden.unfold(2, 4, 4).unfold(3, 4, 4).unfold(4, 4, 4).flatten(5).mean(-1)
    assert set(blocks.unique().tolist()) == {0.0, 1.0}
    assert y[y != 0].std().item() == pytest.approx(0.3, rel=0.05)
