"""Long runs of `prepare`: processes that die or hang, a run killed at any moment, and 5,000 volumes."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import tracemalloc
from multiprocessing import connection

import numpy as np
import pytest

from ssgan import prepare
from ssgan.data import preparation
from ssgan.data import workers as workers_module
from ssgan.data.dataset import DatasetError, VolumeDataset
from ssgan.data.preprocessing import Recipe
from ssgan.data.sources import Source
from ssgan.data.volume import Failure
from ssgan.data.workers import run_in_order
from ssgan.data.writer import DatasetWriter
from tests.support import slow_reader
from tests.support.nifti_cases import ARGUMENTS, good, save, snapshot, voxels

ROOT = pathlib.Path(__file__).parents[3]


class Clock:
    """Stands in for the clock of `run_in_order`: it stands still but while the one busy worker hangs, as `hung` says.

    An item then has all the time that the machine takes for it, however busy it is.
    """

    def __init__(self, hung):
        self.hung, self.now = hung, 0.0

    def monotonic(self):
        return self.now

    def wait(self, objects, timeout):
        while True:
            if ready := connection.wait(objects, 0.01):
                return ready
            if len(objects) == 2 and self.hung.exists():  # a pipe and a process
                self.hung.unlink()
                self.now += timeout
                return []


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order_and_a_death_costs_one_item(workers, tmp_path, monkeypatch):
    """Items that crash, are killed, exit, raise, exceed their time or are slow: each has its own reason."""
    clock = Clock(tmp_path / "hung")
    monkeypatch.setattr(workers_module, "time", clock)
    monkeypatch.setattr(workers_module, "wait", clock.wait)
    items = [0, "segfault", 1, "kill", 2, "exit", "raise", 3, ("hang", str(clock.hung)), "slow", "memory", 4]
    found = list(run_in_order(slow_reader.work, items, workers, limit=1.0))
    assert clock.now == 1.0
    for item, result in zip(items, found, strict=True):
        match item:
            case "segfault":
                assert result == Failure("the reader crashed (SIGSEGV) on it")
            case "kill":
                assert result == Failure("the reader was killed (SIGKILL): out of memory?")
            case "exit":
                assert result == Failure("the reader's process ended (status 3) on it")
            case "raise":
                assert result == Failure("the reader failed: KeyError: 'broken'")
            case ("hang", _):
                assert result == Failure("not read within 1 s: damaged, or the machine is too slow")
            case "memory":
                assert result == Failure("not enough memory to read it")
            case _:
                assert result == ("done", item)


def test_few_results_wait(tmp_path):
    """A slow first item does not let the others pile up."""
    items = ["slow", *(str(tmp_path / str(i)) for i in range(40))]
    results = run_in_order(slow_reader.work, items, 2, limit=60)
    assert next(results) == ("done", "slow")
    assert len(list(tmp_path.iterdir())) <= 5
    results.close()


def test_processes_end_with_the_run():
    results = run_in_order(slow_reader.pid, range(10), 2, limit=60)
    found = {next(results) for _ in range(4)}
    results.close()
    assert 1 <= len(found) <= 2 and not any(os.path.exists(f"/proc/{p}") for p in found)


def test_a_reader_that_crashes_names_its_file(tmp_path, monkeypatch, capfd):
    """Crashes as a native reader does on a damaged file; the others are prepared."""
    for seed in range(3):
        good(tmp_path / "in" / f"{seed}.nii.gz", seed)
    save(tmp_path / "in" / "1b_segfault.nii", voxels(7))
    monkeypatch.setattr(preparation, "prepare_source", slow_reader.prepare_or_crash)
    command = ["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), *ARGUMENTS]
    assert prepare.main(command) == 0
    assert "skipped  1b_segfault.nii: the reader crashed (SIGSEGV) on it" in capfd.readouterr().out
    assert len(VolumeDataset(tmp_path / "out")) == 3
    assert prepare.main([*command, "--out", str(tmp_path / "strict"), "--strict"]) == 2
    assert "the reader crashed (SIGSEGV) on it (--strict" in capfd.readouterr().err


COMMAND = [sys.executable, "-m", "ssgan.prepare", *ARGUMENTS, "--workers", "1"]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Sixty volumes, some of them bad or duplicates, and the data set of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(60):
        path = good(folder / "in" / f"{number:02}.nii", number if number % 9 else 0)
        if number % 7 == 3:
            path.write_bytes(path.read_bytes()[:-1])
    assert prepare.main(["--input", str(folder / "in"), "--out", str(folder / "calm"), *ARGUMENTS]) == 0
    return folder


DYING = """
import os, pathlib, signal, sys
from ssgan import prepare
from ssgan.data.writer import DatasetWriter
journal, lines, *arguments = sys.argv[1:]
write = DatasetWriter._write_journal
def write_and_die(self, entry):
    write(self, entry)
    if pathlib.Path(journal).read_bytes().count(b"\\n") >= int(lines):
        os.kill(os.getpid(), signal.SIGKILL)
DatasetWriter._write_journal = write_and_die
if __name__ == "__main__":
    prepare.main(arguments)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(many, tmp_path):
    """SIGKILL as soon as the journal has grown to so many lines, twice in a row; then the run may finish."""
    out, journal = tmp_path / "out", tmp_path / ".out.partial" / "journal.jsonl"
    arguments = ["--input", str(many / "in"), "--out", str(out)]
    for lines in (7, 31):
        command = [sys.executable, "-c", DYING, str(journal), str(lines), *COMMAND[3:], *arguments]
        killed = subprocess.run(command, cwd=ROOT, capture_output=True)
        assert killed.returncode == -signal.SIGKILL and not out.exists(), killed.stderr
        assert journal.read_bytes().count(b"\n") == lines
    command = [*COMMAND, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "going on after" in done.stdout, done.stdout + done.stderr
    assert snapshot(out) == snapshot(many / "calm")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def record(i):
    return {"source": f"{i}", "intensity_low": 0.0, "intensity_high": 1.0, "content_hash": str(i)}


def volume(i):
    return np.random.default_rng(i).uniform(-1, 1, (3, 4, 5)).astype(np.float32)


def write(path, plan, stop=None, **more):
    """Ten volumes and skipped files in turn; `stop`: Ctrl-C before that one. Returns how many were settled before."""
    with DatasetWriter(path, (3, 4, 5), plan=plan, **more) as writer:
        begun = writer.done
        for i in range(begun, 10):
            if i == stop:
                raise KeyboardInterrupt
            if i % 3 == 2:
                writer.skip({"file": f"{i}", "reason": "no"})
            else:
                writer.add(volume(i), record(i))
        writer.finish(spacing=(1, 1, 1), affine=np.eye(4), slice_axis="axial", recipe="mri")
    return begun


PARTIAL_DAMAGE = {
    "none": (lambda f: None, 7),
    "half a line": (lambda f: (f / "journal.jsonl").open("a").write('{"crc": 12, "rec') and None, 7),
    "no newline": (lambda f: os.truncate(f / "journal.jsonl", (f / "journal.jsonl").stat().st_size - 1), 6),
    "voxels beyond": (lambda f: (f / "volumes.npy").open("ab").write(b"\0" * 100) and None, 7),
    "voxels lost": (lambda f: os.truncate(f / "volumes.npy", 128 + 3 * 240 + 10), 4),
    "voxels damaged": (lambda f: flip(f / "volumes.npy", 128 + 240 + 3), 1),
    "journal lost": (lambda f: (f / "journal.jsonl").unlink(), 0),
    "plan lost": (lambda f: (f / "plan.json").unlink(), 0),
}


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize("case", PARTIAL_DAMAGE)
def test_what_was_begun_is_checked_before_it_is_gone_on_with(case, tmp_path):
    write(tmp_path / "calm", {"a": 1})
    damage, left = PARTIAL_DAMAGE[case]
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", {"a": 1}, stop=7)
    damage(tmp_path / ".out.partial")
    assert write(tmp_path / "out", {"a": 1}) == left
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "calm")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["calm", "out"]


def test_killed_at_the_rename(tmp_path):
    """Work files that are left after the rename are no part of the data set and do no harm."""
    write(tmp_path / "out", {"a": 1})
    (tmp_path / "out" / "journal.jsonl").write_text("")
    assert len(VolumeDataset(tmp_path / "out")) == 7
    assert write(tmp_path / "out", {"a": 1}, overwrite=True) == 0


def test_other_arguments_are_refused(many, tmp_path, capfd):
    """The message names exactly what differs; --restart begins anew; a second process at the same time is refused."""
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", {"recipe": "mri", "shape": [3, 4, 5]}, stop=7)
    before = snapshot(tmp_path)
    words = r"other arguments is there \(recipe mri; now recipe ct\)\. Repeat its command .* or --restart"
    with pytest.raises(DatasetError, match=words):
        write(tmp_path / "out", {"recipe": "ct", "shape": [3, 4, 5]})
    assert snapshot(tmp_path) == before
    command = ["--input", str(many / "in"), "--out", str(tmp_path / "out"), *ARGUMENTS]
    assert prepare.main(command) == 2
    assert "an unfinished run with other arguments" in capfd.readouterr().err
    assert write(tmp_path / "out", {"recipe": "ct", "shape": [3, 4, 5]}, restart=True) == 0
    with DatasetWriter(tmp_path / "two", (3, 4, 5), plan={}) as writer:
        writer.add(volume(0), record(0))
        with pytest.raises(DatasetError, match="another process prepares it"):
            write(tmp_path / "two", {})
        writer.add(volume(1), record(1))


@pytest.mark.parametrize("change", ["a file more", "a file changed", "spacing", "labels"])
def test_a_run_is_not_gone_on_with_after_a_change(change, many, tmp_path, capfd):
    source, table = tmp_path / "in", tmp_path / "l.csv"
    for seed in range(4):
        good(source / f"{seed}.nii", seed)
    table.write_text("file,class\n" + "".join(f"{i}.nii,a\n" for i in range(4)))
    command = ["--input", str(source), "--out", str(tmp_path / "out"), *ARGUMENTS, "--labels", str(table)]
    with pytest.MonkeyPatch.context() as patch:
        add, calls = DatasetWriter.add, itertools.count()

        def stop(writer, *a):
            if next(calls) == 2:
                raise KeyboardInterrupt
            add(writer, *a)

        patch.setattr(DatasetWriter, "add", stop)
        assert prepare.main(command) == 130
    assert "2 of 4 volumes are kept in" in capfd.readouterr().out
    if change == "a file more":
        good(source / "9.nii", 9)
        table.write_text(table.read_text() + "9.nii,a\n")
    elif change == "a file changed":
        good(source / "0.nii", 10)
    elif change == "spacing":
        command += ["--spacing", "2", "1", "1"]
    else:
        table.write_text(table.read_text().replace("3.nii,a", "3.nii,b"))
    assert prepare.main(command) == 2
    key = {"spacing": "spacing", "labels": "labels"}.get(change, "files")
    err = capfd.readouterr().err
    assert "an unfinished run with other arguments is there" in err and f"{key} " in err.partition("; now ")[0]
    assert prepare.main([*command, "--restart"]) == 0


@contextlib.contextmanager
def counted_calls():
    """Yields a list that holds, at the end, how many functions of Python and of C were called."""
    calls = [0]

    def count(frame, event, argument):
        calls[0] += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def test_the_work_grows_as_the_number_of_volumes(tmp_path):
    """Counted in calls: seconds would be the machine's. Reading is stubbed."""
    found = []
    for count in (100, 200, 300):
        with counted_calls() as calls:
            prepare_many(tmp_path / str(count), count)
        found.append(calls[0])
    assert 0.85 < (found[2] - found[1]) / (found[1] - found[0]) < 1.2, found  # 1.67 if it grew as the square


def test_five_thousand_volumes(tmp_path):
    """No volume stays in memory. Reading is stubbed; it is measured elsewhere."""
    count = 5000
    tracemalloc.start()
    dataset = prepare_many(tmp_path, count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(dataset) == count
    voxels_held = count * 8**3 * 4
    assert peak < 6000 * count + 0.5 * voxels_held + 3e7, peak  # records, not volumes
    expected = np.random.default_rng(4321).uniform(-1, 1, (8, 8, 8)).astype(np.float32)
    assert np.array_equal(dataset.volumes[4321], expected)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["volumes"][-1]["source"] == "49/4999.nii"


def prepare_many(folder, count):
    shape = (8, 8, 8)
    sources = [Source(f"{i // 100}/{i}.nii", ()) for i in range(count)]
    affine = np.eye(4).tolist()

    def imap(function, items):
        for number, source in enumerate(items):
            array = np.random.default_rng(number).uniform(-1, 1, shape).astype(np.float32)
            yield array, {**record(number), "source": source.name, "affine": affine, "warnings": []}

    folder.mkdir(exist_ok=True)
    return preparation.prepare(sources, folder, folder / "out", Recipe("mri", shape, (1.0, 1.0, 1.0)), imap=imap)


def test_stopped_by_a_signal_it_leaves_no_process(many, tmp_path):
    """SIGTERM to the parent alone: its workers see the pipe close."""
    command = [*COMMAND, "--input", str(many / "in"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / ".out.partial" / "journal.jsonl"
    while process.poll() is None and not journal.exists():
        time.sleep(0.005)
    children = descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait(600)
    deadline = time.monotonic() + 600
    while any(os.path.exists(f"/proc/{p}/exe") for p in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [p for p in children if os.path.exists(f"/proc/{p}/exe")]


def descendants(parent):
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found += [int(entry.name), *descendants(int(entry.name))]
    return found


def test_arguments_of_the_processes(many, tmp_path, capfd):
    command = ["--input", str(many / "in"), "--out", str(tmp_path / "out"), *ARGUMENTS]
    for more, words in (
        (["--workers", "0"], "--workers: expected at least 1; got 0"),
        (["--time-limit", "0"], "--time-limit: expected seconds above 0; got 0"),
        (["--time-limit", "nan"], "--time-limit: expected seconds above 0; got nan"),
    ):
        assert prepare.main([*command, *more]) == 2
        assert words in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
