"""Runs the cells of a grid, one after the other or several at a time, and appends to the file of results.

With several jobs each cell is trained and measured in a process of its own, with threads of its own: its numbers are
those that it has alone. Cells that share a 2D stage follow each other in one process. The records come back through
pipes, and only the parent writes the file. A process whose parent is gone, or is stopping, saves and ends.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import averages, results, scoring, training
from benchmarks.experiments.data import Split
from benchmarks.experiments.grids import Cell
from benchmarks.experiments.training import Job, Stopped
from ssconv import keep_freed_memory
from ssgan.data.dataset import VolumeDataset
from ssgan.reporting.formatting import format_duration
from ssgan.utils.errors import UserError
from ssgan.utils.signals import StopSignals

POLL = 0.5  # seconds between checks for a signal
Record = dict[str, Any]


def run_cell(job: Job, cell: Cell, real: scoring.Reference, head: Record) -> Record:
    """Trains what is still missing of a cell, measures it, and gives its record; of a failed one, the error."""
    try:
        training.train_cell(job, cell)
        found = training.measure_cell(job, cell, real) | {"averages": averages.measure(job, cell, real)}
    except Stopped:
        raise
    except Exception as error:  # of any library: the other cells are still to be run
        found = {"error": f"{type(error).__name__}: {str(error).strip()[:500]}"}
    return _record(cell, head, found)


def _record(cell: Cell, head: Record, found: Record) -> Record:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"environment": {**head["environment"], "date": now}}
    return {"cell": cell.folder, "seed": cell.seed, "label": cell.label} | head | found | about


def run_grid(job: Job, cells: Sequence[Cell], path: Path, head: Record, real: scoring.Reference, jobs: int = 1) -> int:
    """Runs the cells without a result in `path`, `jobs` at a time. Gives the number that failed.

    Raises:
        Stopped: a signal came.
    """
    finished = results.latest(results.load(path), head["protocol"])
    missing = []
    for cell in cells:
        record = finished.get(cell.folder)
        if record is None or "error" in record:
            missing.append(cell)
            continue
        job.log(f"{cell.folder}: already in {path}")
        _complete(job, cell, real, record, path)
    parallel = jobs > 1 and len(missing) > 1
    stream = _in_parallel(job, missing, head, jobs) if parallel else _in_turn(job, missing, head, real)
    failed, began = 0, time.monotonic()
    for done, (cell, record) in enumerate(stream, start=1):
        results.append(path, record)
        failed += "error" in record
        if "error" in record:
            job.log(f"{cell.folder} failed: {record['error']}")
        else:
            job.log(f"{cell.folder}: " + ", ".join(f"{name} {value:.4g}" for name, value in record["final"].items()))
        if done < len(missing):
            left = (time.monotonic() - began) / done * (len(missing) - done)
            job.log(f"{done} of {len(missing)} cells done, about {format_duration(left)} left")
    return failed


def _complete(job: Job, cell: Cell, real: scoring.Reference, record: Record, path: Path) -> None:
    """Appends a fuller record of a cell that was measured in part."""
    what = "other features" if "averages" in record else "other averages"
    try:
        more = averages.complete(job, cell, real, record)
    except UserError as error:
        job.log(f"{cell.folder}: {what} not measured: {error}")
        return
    if more is not None:
        results.append(path, more)
        job.log(f"{cell.folder}: {what} of its weights added")


def _in_turn(job: Job, cells: Sequence[Cell], head: Record, real: scoring.Reference) -> Iterator[tuple[Cell, Record]]:
    for number, cell in enumerate(cells, start=1):
        job.log(f"[{number}/{len(cells)}] {cell.folder}")
        yield cell, run_cell(job, cell, real, head)


# ---- several jobs ----


@dataclasses.dataclass(frozen=True)
class Task:
    """The input of a process: a job without its open files, cells that follow each other, threads."""

    job: Job  # without split and log, which the process makes itself
    data: tuple[Path, Path]  # data sets: train, held out
    cells: tuple[Cell, ...]
    head: Record
    threads: int


def by_2d_stage(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Groups the cells, in order, by the 2D stage that they start from, so that one process trains it."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.folder if cell.inflate == "none" else cell.folder_2d, []).append(cell)
    return [tuple(group) for group in groups.values()]


def _in_parallel(job: Job, cells: Sequence[Cell], head: Record, jobs: int) -> Iterator[tuple[Cell, Record]]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads, or with CUDA, may hang
    waiting = by_2d_stage(cells)
    running: dict[Connection, tuple[Any, list[Cell]]] = {}
    data = (job.split.train.path, job.split.held.path)
    sent = dataclasses.replace(job, split=None, log=None)  # type: ignore[arg-type]
    with StopSignals() as stop:
        try:
            while waiting or running:
                if stop.received:
                    raise Stopped("stopped by a signal")
                while waiting and len(running) < jobs:
                    group = waiting.pop(0)
                    parent, child = context.Pipe()
                    task = Task(sent, data, group, head, torch.get_num_threads())
                    process = context.Process(target=work, args=(task, child))
                    process.start()
                    child.close()  # the process has its own copy, which closes when it ends
                    running[parent] = (process, list(group))
                for connection in wait(list(running), timeout=POLL):
                    process, todo = running[connection]
                    try:
                        record = connection.recv()
                    except (EOFError, ConnectionResetError):
                        process.join()
                        del running[connection]
                        connection.close()
                        if todo:  # it died in the first cell
                            lost, *others = todo
                            waiting[:0] = [tuple(others)] if others else []
                            why = f"ChildProcessError: its process ended with exit code {process.exitcode}"
                            yield lost, _record(lost, head, {"error": why})
                    else:
                        yield todo.pop(0), record
        finally:
            for connection in running:
                connection.close()
            if running:
                job.log(f"waiting for {len(running)} processes to save and end")
            for process, _ in running.values():
                process.join()


def work(task: Task, connection: Connection) -> None:
    """Runs in a process: sends the records of the task's cells until they are done or `connection` is closed."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C reaches the parent only, which closes the pipe; a second signal would kill
    threading.Thread(target=_end_with_the_parent, args=(connection,), daemon=True).start()
    if task.job.device.type == "cpu":
        keep_freed_memory()
    torch.set_num_threads(task.threads)
    split = Split(*(VolumeDataset(path) for path in task.data))
    real = scoring.reference(split.train.volumes, split.held.volumes, split.train.info.slice_axis)
    for cell in task.cells:
        job = dataclasses.replace(task.job, split=split, log=_named(cell))
        job.log("begins")
        try:
            record = run_cell(job, cell, real, task.head)
        except Stopped as stopped:
            job.log(str(stopped))
            return
        connection.send(record)


def _named(cell: Cell) -> training.Log:
    return lambda text: print(f"{cell.folder}: {text}", flush=True)


def _end_with_the_parent(connection: Connection) -> None:
    try:
        connection.recv()  # nothing is ever sent: this waits for the end of the parent
    except (EOFError, OSError):
        signal.raise_signal(signal.SIGTERM)
