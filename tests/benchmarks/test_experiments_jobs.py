"""benchmarks.experiments --jobs: several cells at a time give the same numbers, and no end of a process loses any."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.experiments import grids, results, running
from ssgan.runs import checkpoint
from tests.support.experiment_stand_ins import TINY, make_tiny, numbers, run

ROOT = Path(__file__).parents[2]
PAIR = ("--only", "dense-scratch", "split_depth-average")
BOTH = {"dense-scratch-w8x4-seed0", "split_depth-average-w8x4-seed0"}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    make_tiny(monkeypatch)


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory) -> dict[str, tuple]:
    root = tmp_path_factory.mktemp("turn")
    with pytest.MonkeyPatch.context() as patch:
        make_tiny(patch)
        assert run(root, *PAIR) == 0
    return numbers(root / "tiny.jsonl")


def soon(act: Callable[[], bool]) -> threading.Thread:
    """Tries `act` in the background until it is done, for a quarter of an hour."""

    def attempts():
        for _ in range(90000):
            if act():
                return
            time.sleep(0.01)

    thread = threading.Thread(target=attempts)
    thread.start()
    return thread


def checkpoints(root: Path, cell: str) -> list[Path]:
    folder = root / "runs" / cell / "checkpoints"
    return checkpoint.list_checkpoints(folder) if folder.is_dir() else []


@pytest.mark.slow
def test_two_at_a_time_have_the_numbers_of_one_after_the_other(in_turn, tmp_path, capfd, monkeypatch):
    clock = iter((0.0, 90.0, 0.0))  # begun, one cell done; begun with none to do
    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=clock.__next__))
    assert run(tmp_path, *PAIR, "--jobs", "2") == 0
    assert numbers(tmp_path / "tiny.jsonl") == in_turn and set(in_turn) == BOTH
    said = capfd.readouterr().out
    assert all(f"{cell}: begins" in said and f"{cell}: frechet_held" in said for cell in BOTH)
    assert "1 of 2 cells done, about 1 min 30 s left" in said and "2 of 2" not in said
    commands = {r["command"].partition("--seeds 0 ")[2] for r in results.load(tmp_path / "tiny.jsonl")}
    assert commands == {"--threads 1 --jobs 2"}
    assert run(tmp_path, *PAIR, "--jobs", "2") == 0
    assert capfd.readouterr().out.count("already") == 2


def test_cells_that_share_a_2d_stage_follow_each_other():
    b = grids.cells("B", TINY, TINY.shape, [0, 1])
    groups = running.by_2d_stage(b)
    assert [c for group in groups for c in group if c.seed == 0] == [c for c in b if c.seed == 0]
    shared = [group for group in groups if len(group) > 1]
    assert [{c.inflate for c in group} for group in shared] == [{"average", "centre", "triangle"}] * 2
    assert sorted(c.folder for group in groups for c in group) == sorted(c.folder for c in b)


@pytest.mark.slow
def test_a_process_that_dies_is_its_cells_failure(in_turn, tmp_path, capfd):
    def kill() -> bool:
        children = multiprocessing.active_children()
        if not checkpoints(tmp_path, "dense-scratch-w8x4-seed0"):
            return False
        os.kill(min(child.pid for child in children), signal.SIGKILL)
        return True

    thread = soon(kill)
    assert run(tmp_path, *PAIR, "--jobs", "2") == 1
    thread.join()
    records = {r["cell"]: r for r in results.load(tmp_path / "tiny.jsonl")}
    assert records["dense-scratch-w8x4-seed0"]["error"] == "ChildProcessError: its process ended with exit code -9"
    assert "1 cells failed" in capfd.readouterr().err
    assert run(tmp_path, *PAIR) == 0
    path = tmp_path / "tiny.jsonl"
    whole = [r for r in results.load(path) if "error" not in r]
    path.write_text("".join(json.dumps(r) + "\n" for r in whole))
    assert numbers(path) == in_turn


@pytest.mark.slow
def test_a_signal_ends_all_with_everything_saved(in_turn, tmp_path, capfd):
    def stop() -> bool:
        if not checkpoints(tmp_path, "dense-scratch-w8x4-seed0"):
            return False
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    thread = soon(stop)
    assert run(tmp_path, *PAIR, "--jobs", "2") == 130
    thread.join()
    said = capfd.readouterr().out
    assert "processes to save and end" in said and "stopped; the same command goes on from there" in said
    assert not multiprocessing.active_children()
    assert run(tmp_path, *PAIR) == 0
    assert numbers(tmp_path / "tiny.jsonl") == in_turn


@pytest.mark.slow
def test_the_processes_of_a_parent_that_was_killed_save_and_end(in_turn, tmp_path):
    """And do not go on unseen, with the folders locked."""
    script = (
        "import sys, pytest\nfrom tests.support.experiment_stand_ins import make_tiny, run\nfrom pathlib import Path\n"
        "if __name__ == '__main__':\n"
        "    make_tiny(pytest.MonkeyPatch())\n"
        f"    sys.exit(run(Path({str(tmp_path)!r}), *{PAIR!r}, '--jobs', '2'))\n"
    )
    (tmp_path / "parent.py").write_text(script)
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")], env=environment, stdout=subprocess.PIPE, text=True
    )
    while not checkpoints(tmp_path, "dense-scratch-w8x4-seed0"):
        assert parent.poll() is None
        time.sleep(0.01)
    parent.kill()
    said = parent.communicate(timeout=900)[0]  # its pipe is open as long as one of the processes lives
    assert "dense-scratch-w8x4-seed0: begins" in said
    assert run(tmp_path, *PAIR) == 0  # no folder is locked
    assert numbers(tmp_path / "tiny.jsonl") == in_turn


def test_options_that_do_not_go_together(tmp_path, capsys):
    for words, why in (
        (("--jobs", "0"), "--jobs: expected at least 1; got 0"),
        (("--jobs", "2", "--pace"), "--jobs 2: --pace needs the machine to itself; leave out one of the two"),
        (("--jobs", "2", "--progress"), "--jobs 2: --progress shows one training; leave out one of the two"),
        (("--cuda-graphs",), "--cuda-graphs: expected --device cuda; got cpu; leave --cuda-graphs out"),
    ):
        assert run(tmp_path, *words) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
