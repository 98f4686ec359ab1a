"""The training loop: exact resume, stops, and the files that it writes."""

import dataclasses
import errno
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from ssgan import inflate as inflate_command
from ssgan import train as train_command
from ssgan.config.network import NetworkConfig
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.data.dataset import VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.models.conditioning import UNCONDITIONAL
from ssgan.runs import checkpoint
from ssgan.runs.config import RunError
from ssgan.runs.folder import LOCK_NAME, RunLock, check_folder
from ssgan.runs.log import JsonLog
from ssgan.training import loop, run
from ssgan.training.optimiser import NonFiniteError
from ssgan.training.real_images import RealImages
from ssgan.training.run import Run
from ssgan.training.step import StageTrainer
from ssgan.utils import seeding
from ssgan.utils.errors import UserError

SHAPE = (6, 8, 12)
NETWORK = NetworkConfig(
    shape=SHAPE, base=(3, 4, 6), scales=((2, 2, 2),), widths=(4, 4), z_dim=6, w_dim=6, mapping_layers=1
)
# 5 steps of 8 slices, then 6 of 4 volumes; 5 volumes make epochs that end within batches.
CONFIG = TrainConfig(
    network=NETWORK,
    stage_2d=StageConfig(kimg=0.04, batch=8),
    stage_3d=StageConfig(kimg=0.024, batch=4),
    snapshot_kimg=0.012,
    d_reg_interval=3,
    g_reg_interval=2,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> VolumeDataset:
    return write_phantom_dataset(tmp_path_factory.mktemp("phantoms") / "data", count=5, shape=SHAPE, seed=1)


@pytest.fixture(autouse=True)
def one_thread():
    """The bits of a run depend on the number of threads, and the command sets it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """An uninterrupted run."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert go(data, folder) == 0
    return folder


def go(data, folder, cfg=CONFIG, said=None, **options):
    echo = (lambda text: None) if said is None else said.append
    return loop.train(cfg, data, folder, progress=False, echo=echo, **options)


def weights(folder, stage="3d"):
    return checkpoint.load(checkpoint.final_path(folder / "checkpoints", stage))[0]


def assert_same_run(a, b):
    for stage in ("2d", "3d"):
        left, right = weights(a, stage), weights(b, stage)
        assert left.keys() == right.keys()
        different = [name for name in left if not torch.equal(left[name], right[name])]
        assert not different, f"stage {stage}: {len(different)} tensors differ, first {different[0]}"


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses_of(folder):
    timing = ("seconds", "images_per_second")
    return [{k: v for k, v in row.items() if k not in timing} for row in rows(folder)]


class Killed(BaseException):
    """Simulates the end of the process: nothing in the code under test may catch it."""


def die_at(monkeypatch, owner, name, call):
    """Makes the function `name` of `owner` raise Killed at its call number `call`, counted from 0."""
    real, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(0)
        if len(calls) - 1 == call:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


# ---- what a run writes ----


def test_a_run_leaves_what_it_should(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()}
    assert {"config.json", "log.jsonl", "result.json", "curves.png", "inflation.txt", "snapshots/reals.png"} <= names
    assert {"checkpoints/2d-final.safetensors", "checkpoints/3d-final.safetensors"} <= names
    # Snapshots where the images pass a multiple of 12, and at a stage's end.
    snapshots = sorted(n for n in names if n.startswith("snapshots/2d") or n.startswith("snapshots/3d"))
    assert snapshots == [f"snapshots/2d-{n:09d}.png" for n in (16, 24, 40)] + [
        f"snapshots/3d-{n:09d}.png" for n in (12, 24)
    ]
    numbered = sorted(n for n in names if n.startswith("checkpoints/") and n[14:].split("-")[1][0].isdigit())
    names_kept = ("2d-000000016", "2d-000000024", "3d-000000012")  # the last three
    assert numbered == [f"checkpoints/{name}.safetensors" for name in names_kept]
    assert any(n.startswith("tensorboard/2d/events") for n in names)
    assert any(n.startswith("tensorboard/3d/events") for n in names)
    log = rows(finished)
    assert [row["event"] for row in log if "event" in row] == ["floor", "start", "inflated"]
    last = log[-1]
    assert (last["stage"], last["step"], last["images"]) == ("3d", 6, 24)
    for name in ("loss_g", "loss_d", "sign_real", "sign_fake", "images_per_second", "distance", "seconds"):
        assert np.isfinite(last[name])
    assert all("distance" in row for row in log if row["images"] in (16, 24, 40) and row["stage"] == "2d")
    result = json.loads((finished / "result.json").read_text())
    assert result["distance"]["end"] == last["distance"] and result["images"] == {"2d": 40, "3d": 24}
    assert result["distance"]["start"] == log[1]["distance"] and result["distance"]["floor"] == log[0]["distance_floor"]
    assert "profile average" in (finished / "inflation.txt").read_text()


def test_a_finished_run_says_so_and_changes_nothing(data, finished):
    before = {p: p.read_bytes() for p in (finished / "checkpoints").iterdir()}
    said = []
    assert go(data, finished, said=said) == 0
    assert "is finished" in said[0] and "sliced Wasserstein distance to the data: start" in said[-1]
    assert {p: p.read_bytes() for p in (finished / "checkpoints").iterdir()} == before


def test_another_seed_is_another_run(data, finished, tmp_path):
    assert go(data, tmp_path / "run", dataclasses.replace(CONFIG, seed=1, stage="3d")) == 0
    assert not torch.equal(weights(tmp_path / "run")["G.mapping.layers.0.weight"],
                           weights(finished)["G.mapping.layers.0.weight"])  # fmt: skip
    assert json.loads((tmp_path / "run" / "result.json").read_text())["distance"]["after_inflation"] is None


# ---- exact resume ----


@pytest.mark.parametrize("step", [0, 1, 5, 9])
def test_death_in_a_step_then_the_same_command_gives_the_same_bits(data, finished, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        die_at(patch, StageTrainer, "train_step", step)
        with pytest.raises(Killed):
            go(data, tmp_path)
    torch.manual_seed(12345)  # no global random state takes part
    np.random.seed(6)
    assert go(data, tmp_path) == 0
    assert_same_run(tmp_path, finished)
    assert losses_of(tmp_path) == losses_of(finished)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (Run, "log_start", 0),
        (Run, "measure", 0),
        (Run, "snapshot", 1),
        (checkpoint, "save", 0),
        (checkpoint, "_write", 40),
        (checkpoint, "prune", 1),
        (checkpoint, "save", 2),
        (StageTrainer, "inflate_from", 0),
        (Run, "write_result", 0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_death_between_steps(data, finished, tmp_path, monkeypatch, owner, name, call):
    with monkeypatch.context() as patch:
        die_at(patch, owner, name, call)
        with pytest.raises(Killed):
            go(data, tmp_path)
    assert go(data, tmp_path) == 0
    assert_same_run(tmp_path, finished)
    assert losses_of(tmp_path) == losses_of(finished)
    assert (tmp_path / "result.json").exists()


def test_snapshots_and_distances_take_nothing_from_training(data, finished, tmp_path):
    """A run with other snapshots (which is allowed on resume too) has the same weights."""
    cfg = dataclasses.replace(CONFIG, snapshot_kimg=1.0, keep_checkpoints=1)
    assert go(data, tmp_path, cfg) == 0
    assert_same_run(tmp_path, finished)


def test_a_longer_run_goes_on_as_if_it_had_been_so_from_the_start(data, finished, tmp_path):
    short = dataclasses.replace(CONFIG, stage_3d=dataclasses.replace(CONFIG.stage_3d, kimg=0.016))
    assert go(data, tmp_path, short) == 0
    assert go(data, tmp_path, CONFIG) == 0
    assert_same_run(tmp_path, finished)
    with pytest.raises(RunError, match=r"stage_3d\.kimg was 0\.024, now 0\.016 \(a stage can be made longer"):
        go(data, tmp_path, short)


def test_a_longer_2d_stage_is_refused_once_3d_has_begun(data, finished):
    longer = dataclasses.replace(CONFIG, stage_2d=dataclasses.replace(CONFIG.stage_2d, kimg=1.0))
    with pytest.raises(RunError, match=r"stage_2d\.kimg was 0\.04, now 1\.0 \(a stage .*\): give --kimg-2d 0\.04"):
        go(data, finished, longer)


def test_damaged_newest_checkpoint_falls_back_and_ends_the_same(data, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        die_at(patch, StageTrainer, "train_step", 10)
        with pytest.raises(Killed):
            go(data, tmp_path)
    newest = checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    said = []
    assert go(data, tmp_path, said=said) == 0
    assert newest.name in said[0] and "damaged" in said[0] and "resuming" in said[1]
    assert_same_run(tmp_path, finished)


# ---- what stops a run ----


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_signal_finishes_the_step_saves_and_resumes(data, finished, tmp_path, monkeypatch, number):
    real = StageTrainer.train_step
    handler = signal.getsignal(number)

    def step(self, reals, *about):
        if self.stage == "3d" and self.step == 4:
            os.kill(os.getpid(), number)
        return real(self, reals, *about)

    said = []
    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "train_step", step)
        assert go(data, tmp_path, said=said) == 128 + number
    assert signal.Signals(number).name in said[-1] and "3d-000000020" in said[-1]
    assert signal.getsignal(number) is handler
    assert go(data, tmp_path) == 0
    assert_same_run(tmp_path, finished)


def test_planted_nan_is_named_and_the_last_checkpoint_kept(data, tmp_path, monkeypatch):
    real = StageTrainer.train_step

    def step(self, reals, *about):
        if self.stage == "3d" and self.step == 4:
            with torch.no_grad():
                self.D.head.fc.weight[1, 1] = float("nan")
        return real(self, reals, *about)

    monkeypatch.setattr(StageTrainer, "train_step", step)
    with pytest.raises(NonFiniteError, match=r"stage 3d, step 4, generator: .*weight D\.head\.fc\.weight"):
        go(data, tmp_path)
    loaded, meta = checkpoint.load(checkpoint.list_checkpoints(tmp_path / "checkpoints")[-1])
    assert meta.images == 12 and all(torch.isfinite(t).all() for t in loaded.values())


def test_non_finite_gradient_is_named(data):
    net = StageTrainer(CONFIG, "3d", torch.device("cpu"))
    bias = net.D.head.out.bias
    bias.register_hook(lambda gradient: gradient * float("inf"))
    before = [p.detach().clone() for p in net.D.parameters()]
    net.train_step(data.volume_batch(np.arange(4)))
    with pytest.raises(NonFiniteError, match=r"discriminator: .*gradient of D\.head\.out\.bias"):
        net.check()
    assert all(torch.equal(a, b) for a, b in zip(before, net.D.parameters(), strict=True))  # no step was taken


def test_full_disk_in_a_checkpoint(data, finished, tmp_path, monkeypatch):
    real, written = checkpoint._write, []

    def full(file, piece):
        if file.name not in written and "best" not in file.name:
            written.append(file.name)
        if len(written) == 3 and file.tell() > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, piece)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", full)
        with pytest.raises(OSError, match="No space left") as caught:
            go(data, tmp_path)
    assert caught.value.filename.endswith(".safetensors")
    left = checkpoint.list_checkpoints(tmp_path / "checkpoints")
    assert len(left) == 2 and all(checkpoint.load(path) for path in left)
    assert go(data, tmp_path) == 0
    assert_same_run(tmp_path, finished)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 3}, "seed was 0, now 3: give --seed 0"),
        ({"inflate": "centre"}, "inflate was average, now centre"),
        (
            {"stage_3d": StageConfig(kimg=0.024, batch=4, r1_gamma=9.0)},
            r"stage_3d\.r1_gamma was 1\.0, now 9\.0: give --r1-gamma-3d 1\.0",
        ),
        ({"network": dataclasses.replace(NETWORK, arch="dense")}, r"network\.arch was split_depth, now dense"),
    ],
    ids=["seed", "inflate", "gamma", "arch"],
)
def test_another_configuration_is_refused_by_name(data, finished, change, match):
    before = (finished / "config.json").read_bytes()
    with pytest.raises(RunError, match=match):
        go(data, finished, dataclasses.replace(CONFIG, **change))
    assert (finished / "config.json").read_bytes() == before


def test_other_data_are_refused(finished, tmp_path):
    other = write_phantom_dataset(tmp_path / "data", count=5, shape=SHAPE, seed=2)
    with pytest.raises(RunError, match=r"the data set .*the contents differ"):
        go(other, finished)


def test_foreign_folder_and_file_are_refused(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert train_command.main(["--out", str(tmp_path)]) == 2
    assert "not empty and not a run (it holds thesis.txt" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]
    assert train_command.main(["--out", str(tmp_path / "thesis.txt")]) == 2
    assert "is a file" in capsys.readouterr().err


def test_phantoms_are_made_once_and_again_after_a_stop_before_the_configuration(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_command, "PHANTOMS", 3)
    arguments = ["--out", str(tmp_path / "run"), "--no-progress", "--threads", "1", "--device", "cpu"]
    arguments += ["--preset", "demo", "--kimg-2d", "0.004", "--batch-2d", "4", "--kimg-3d", "0.002", "--batch-3d", "2"]
    with monkeypatch.context() as patch:
        die_at(patch, run, "record_config", 0)
        with pytest.raises(Killed):
            train_command.main(arguments)
    assert train_command.main(arguments) == 0
    assert capsys.readouterr().out.count("making 3 phantoms") == 2
    assert train_command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "making" not in out and "is finished" in out
    assert VolumeDataset(tmp_path / "run" / "data").info.shape == (16, 24, 16)
    assert train_command.main([*arguments, "--data", str(tmp_path / "absent")]) == 2


def test_a_locked_run_is_refused_and_a_stale_lock_is_not(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(RunError, match=f"trained by another process \\(pid {os.getpid()}\\)"):
            RunLock(tmp_path).__enter__()
    assert (tmp_path / LOCK_NAME).exists()  # the file stays; only a living process holds it
    with RunLock(tmp_path):
        pass
    check_folder(tmp_path)  # a folder with nothing but our lock is ours


def test_stray_temporary_files_go_and_others_stay(data, finished, tmp_path):
    stray = finished / "checkpoints" / ".3d-000000012.safetensors.4711.0a1b2c3d.tmp.safetensors"
    other = finished / "checkpoints" / "notes.tmp"
    for path in (stray, other):
        path.write_bytes(b"half")
    go(data, finished)
    assert not stray.exists() and other.exists()
    other.unlink()


def test_half_a_log_line_is_dropped_and_a_broken_middle_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    good = json.dumps({"stage": "2d", "step": 1, "images": 8, "seconds": 1.5})
    path.write_text(good + "\n" + good[:20])
    log = JsonLog(path)
    assert len(log.rows) == 1 and log.seconds == 1.5
    log.rewind(checkpoint.CheckpointMeta("2d", 1, 8, ""))
    log.append({"stage": "2d", "step": 2, "images": 16})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    path.write_text("{broken\n" + good + "\n")
    with pytest.raises(RunError, match="line 1 is not a row"):
        JsonLog(path)


# ---- randomness and order ----


@pytest.mark.parametrize(("stage", "count"), [("2d", 30), ("3d", 5)])
def test_each_item_once_per_epoch_in_an_order_of_its_own(data, stage, count):
    reals = RealImages(data, stage, seed=7)
    assert reals.count == count
    items = np.concatenate([reals.items(first, 4) for first in range(0, 4 * count, 4)])
    epochs = items.reshape(4, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    fresh = RealImages(data, stage, seed=7)  # the order at an image does not depend on what came before
    assert np.array_equal(fresh.items(2 * count - 3, 7), items[2 * count - 3 : 2 * count + 4])
    assert not np.array_equal(RealImages(data, stage, seed=8).items(0, 4 * count), items)


def test_batches_are_the_items(data):
    volumes, slices = (RealImages(data, stage, seed=0) for stage in ("3d", "2d"))
    (batch, _), items = volumes.batch(3, 4), volumes.items(3, 4)
    assert batch.shape == (4, 1, *SHAPE)
    assert all(np.array_equal(batch[i, 0].numpy(), data.volumes[item]) for i, item in enumerate(items))
    (batch, condition), items = slices.batch(28, 4), slices.items(28, 4)
    assert batch.shape == (4, 1, 1, *SHAPE[1:])
    for i, item in enumerate(items):
        assert np.array_equal(batch[i, 0, 0].numpy(), data.volumes[item // SHAPE[0], item % SHAPE[0]])
    assert np.array_equal(condition.slice_index.numpy(), items % SHAPE[0]) and condition.labels is None
    assert RealImages(data, "2d", 0, NETWORK).batch(28, 4)[1] == UNCONDITIONAL  # networks that take no slice index


def test_stream_seeds_differ_in_every_argument_and_stay():
    seeds = {
        seeding.stream_seed(seed, stage, step, purpose)
        for seed in (0, 1, 2)
        for stage in ("2d", "3d")
        for step in range(50)
        for purpose in seeding.PURPOSES
    }
    assert len(seeds) == 3 * 2 * 50 * len(seeding.PURPOSES)
    assert all(0 <= seed < 2**64 for seed in seeds)


def test_splitmix64_matches_its_published_sequence():
    # Vigna's splitmix64.c, seeded with 1234567, whose state grows by the golden gamma.
    gamma = 0x9E3779B97F4A7C15
    outputs = [seeding.splitmix64((1234567 + i * gamma) % 2**64) for i in range(5)]
    assert outputs == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


# ---- stages and the command ----


def test_3d_from_a_2d_checkpoint_equals_both_in_one_run(data, finished, tmp_path):
    first = dataclasses.replace(CONFIG, stage="2d")
    assert go(data, tmp_path / "a", first) == 0
    init = checkpoint.final_path(tmp_path / "a" / "checkpoints", "2d")
    assert go(data, tmp_path / "b", dataclasses.replace(CONFIG, stage="3d"), init=init) == 0
    left, right = weights(tmp_path / "b"), weights(finished)
    assert all(torch.equal(left[name], right[name]) for name in right)
    start = tmp_path / "start.safetensors"
    assert inflate_command.main(["--source", str(init), "--out", str(start)]) == 0
    said = []
    assert go(data, tmp_path / "c", dataclasses.replace(CONFIG, stage="3d"), init=start, said=said) == 0
    assert any("starting from the inflated" in text for text in said)
    left = weights(tmp_path / "c")
    assert all(torch.equal(left[name], right[name]) for name in right)
    with pytest.raises(UserError, match=r"--init .* is a checkpoint within stage 3d"):
        final = checkpoint.final_path(finished / "checkpoints", "3d")
        go(data, tmp_path / "d", dataclasses.replace(CONFIG, stage="3d"), init=final)


def test_a_2d_checkpoint_of_another_network_is_refused_by_what_differs(finished, tmp_path):
    """Preset, architecture and shape are known where the checkpoint lies in its run; elsewhere tensors are named."""
    init = checkpoint.final_path(finished / "checkpoints", "2d")
    data = write_phantom_dataset(tmp_path / "other", count=4, shape=(6, 16, 12), seed=1)
    network = dataclasses.replace(NETWORK, shape=(6, 16, 12), base=(3, 8, 6))
    cfg = dataclasses.replace(CONFIG, stage="3d", network=network)
    with pytest.raises(RunError, match=r"does not fit: its run had shape \(D, H, W\) \(6, 8, 12\), .* \(6, 16, 12\)$"):
        go(data, tmp_path / "a", cfg, init=init)
    cfg = dataclasses.replace(cfg, network=dataclasses.replace(network, arch="dense"), preset="heart")
    match = "its run had preset demo, this one has heart; its run had architecture split_depth, this one has dense; its"
    with pytest.raises(RunError, match=match):
        go(data, tmp_path / "b", cfg, init=init)
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(init.read_bytes())
    with pytest.raises(checkpoint.CheckpointError, match=r"moved.* does not fit the network G: .* another preset"):
        go(data, tmp_path / "c", cfg, init=moved)


def test_inflation_starts_3d_from_the_2d_weights(data, finished):
    flat = StageTrainer(CONFIG, "2d", torch.device("cpu"))
    flat.load(*checkpoint.load(checkpoint.final_path(finished / "checkpoints", "2d")), "file")
    deep = StageTrainer(CONFIG, "3d", torch.device("cpu"))
    deep.inflate_from(flat, "average", images=40)
    for name in ("G", "D", "G_ema"):
        before, after = getattr(flat, name).state_dict(), getattr(deep, name).state_dict()
        copied = [n for n in after if n.endswith("bias") or n.startswith("mapping")]
        assert copied and all(torch.equal(before[n], after[n]) for n in copied)
    assert float(deep.pl_mean) == float(flat.pl_mean) > 0
    assert deep.images == 0 and deep.images_before == 40
