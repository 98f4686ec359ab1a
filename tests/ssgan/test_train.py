"""`ssgan train` as a user meets it: kills at any moment, bad arguments, progress without a terminal."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssgan import train as train_command
from ssgan.data.phantom import write_phantom_dataset
from ssgan.runs import checkpoint
from ssgan.runs.config import load_config
from ssgan.runs.progress import Progress
from ssgan.training import loop
from tests.ssgan.training.test_loop import assert_same_run, losses_of

COMMAND = ["--preset", "demo", "--no-progress", "--threads", "1", "--device", "cpu", "--snapshot-kimg", "0.016"]
COMMAND += ["--kimg-2d", "0.048", "--batch-2d", "8", "--kimg-3d", "0.032", "--batch-3d", "4"]


def command(data_path, out):
    arguments = ["--data", str(data_path), "--out", str(out), *COMMAND]
    return [sys.executable, "-m", "ssgan.train", *arguments]


def environment():
    root = str(Path(loop.__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}


def kill_and_resume(tmp_path, moments):
    """Kills the command where each function of `moments` says so (it sees the run's folder), then lets it finish."""
    data_path, out = tmp_path / "data", tmp_path / "run"
    if not data_path.exists():
        write_phantom_dataset(data_path, count=5, shape=(4, 8, 6), seed=1)
    for moment in moments:
        process = subprocess.Popen(command(data_path, out), env=environment(), stdout=subprocess.DEVNULL)
        while process.poll() is None and not moment(out):
            time.sleep(0.002)
        process.kill()
        process.wait()
    done = subprocess.run(command(data_path, out), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    straight = tmp_path / "straight"
    assert train_command.main(command(data_path, straight)[3:]) == 0
    assert_same_run(out, straight)
    assert losses_of(out) == losses_of(straight)
    assert not [p for p in out.rglob(".*") if ".tmp" in p.name]
    return done


DYING = """
import os, signal, sys
from ssgan import train
from ssgan.runs.log import JsonLog
append = JsonLog.append
def append_and_die(self, row):
    append(self, row)
    if sum("event" not in row for row in self.rows) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
JsonLog.append = append_and_die
train.main(sys.argv[1:])
"""


def test_kill_9_then_the_same_command(tmp_path):
    """After the second row of training, before its checkpoint."""
    write_phantom_dataset(tmp_path / "data", count=5, shape=(4, 8, 6), seed=1)
    arguments = command(tmp_path / "data", tmp_path / "run")[3:]
    killed = subprocess.run([sys.executable, "-c", DYING, *arguments], env=environment(), capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = kill_and_resume(tmp_path, [])
    assert "resuming" in done.stdout and "sliced Wasserstein distance to the data: start" in done.stdout


def begun(out, process, meanwhile=lambda: None):
    """Waits until the run has a row of training."""
    log = out / "log.jsonl"
    while process.poll() is None and not (log.exists() and b'"loss_g"' in log.read_bytes()):
        meanwhile()
        time.sleep(0.01)
    assert process.poll() is None, "the run ended"


def drain(terminal):
    """Reads what there is, so that the program does not wait for its terminal."""
    with contextlib.suppress(BlockingIOError):
        os.read(terminal, 65536)


def endless(tmp_path):
    """A command that does not end by itself; it shows progress."""
    write_phantom_dataset(tmp_path / "data", count=5, shape=(4, 8, 6), seed=1)
    words = [w for w in command(tmp_path / "data", tmp_path / "run") if w != "--no-progress"]
    return [*words, "--kimg-2d", "1000"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_terminal_that_is_closed_costs_no_image(tmp_path):
    """The kernel sends SIGHUP to the terminal's session, and writing to the terminal fails from then on."""
    terminal, theirs = os.openpty()
    script = (
        "import fcntl, os, signal, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); "  # the tests themselves may run under nohup
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *endless(tmp_path)],
        env=environment(), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    os.set_blocking(terminal, False)
    begun(tmp_path / "run", process, lambda: drain(terminal))
    os.close(terminal)
    assert process.wait() == 128 + signal.SIGHUP
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    newest = checkpoint.list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert checkpoint.read_meta(newest).images == rows[-1]["images"] > 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_under_nohup_a_closed_terminal_stops_nothing(tmp_path):
    words = endless(tmp_path)
    process = subprocess.Popen(
        ["nohup", *words], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    log = tmp_path / "run" / "log.jsonl"
    begun(tmp_path / "run", process)
    process.send_signal(signal.SIGHUP)
    count = log.read_bytes().count(b"\n")
    while process.poll() is None and log.read_bytes().count(b"\n") < count + 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM


def test_a_data_set_by_a_relative_path_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    """Also one that is named "data", as the phantoms of a run without --data are."""
    write_phantom_dataset(tmp_path / "data", count=5, shape=(4, 8, 6), seed=1)
    monkeypatch.chdir(tmp_path)
    short = [*command("data", "run")[3:], "--stage", "3d", "--kimg-3d", "0.004"]
    assert train_command.main(short) == 0
    config = load_config(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert config.data_folder == tmp_path / "data"
    longer = [*command("../data", "../run")[3:], "--stage", "3d", "--kimg-3d", "0.008"]
    assert train_command.main(longer) == 0
    without = [w for w in longer if w not in ("--data", "../data")]
    assert train_command.main(without) == 2
    assert f"was trained on --data {tmp_path / 'data'}; give it again" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_many_random_moments(tmp_path, seed):
    draw = random.Random(seed)

    def moment():
        rows_seen, delay = draw.randrange(0, 8), draw.uniform(0, 0.5)
        begun = []

        def reached(out):
            log = out / "log.jsonl"
            if log.exists() and log.read_text(errors="replace").count("\n") >= rows_seen:
                begun.append(time.monotonic())
            return bool(begun) and time.monotonic() - begun[0] > delay

        return reached

    kill_and_resume(tmp_path, [moment() for _ in range(5)])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--preset", "giant"], "preset: expected one of demo"),
        (["--init", "x.safetensors"], "--init"),
        (["--stage", "3d", "--init", "absent.safetensors"], "no such file"),
        (["--seed", "-1"], "--seed: expected 0"),
        (["--data", "absent"], "absent"),
    ],
    ids=["preset", "init-both", "init-absent", "seed", "data"],
)
def test_bad_arguments_are_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, match):
    monkeypatch.chdir(tmp_path)
    assert train_command.main(["--out", "run", *arguments]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("ssgan train: error: ") and match in error and "\n" not in error
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    "arguments", [["--kimg-2d", "0"], ["--batch-3d", "1.5"], ["--lr", "nan"], ["--r1-gamma-2d", "-1"]]
)
def test_numbers_out_of_range_are_refused(tmp_path, arguments):
    with pytest.raises(SystemExit) as caught:
        train_command.main(["--out", str(tmp_path / "run"), *arguments])
    assert caught.value.code == 2


def test_progress_without_a_terminal_is_a_line_now_and_then(capsys):
    bar = Progress("2d", total=40, done=8, every=1e9)
    bar.update(16, [("loss_g", 1.25)])
    assert capsys.readouterr().err == ""
    bar.update(40, [("loss_g", 1.25)])
    bar.close()
    line = capsys.readouterr().err
    assert line.startswith("stage 2d: 40/40 images (100 %)") and "loss_g 1.25" in line and "\r" not in line
    silent = Progress("2d", total=40, done=8, enabled=False)
    silent.update(40, [])
    assert capsys.readouterr().err == ""
