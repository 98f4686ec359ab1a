"""The cells of a grid, one after the other or several at a time, into the file of results.

Several at a time, each is trained and measured in a process of its own, with threads of its own: its numbers are those
that it has alone. Cells that share a 2D stage follow each other in one process. The records come back through pipes and
only the parent writes the file. A process whose parent is gone, or wants to stop, saves and ends.
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
from ssgan.data.dataset import VolumeDataset
from ssgan.reporting.formatting import format_duration
from ssgan.utils.environment import keep_freed_memory
from ssgan.utils.errors import UserError
from ssgan.utils.signals import StopSignals

POLL = 0.5  # seconds between looks at whether a signal came
Record = dict[str, Any]


def run_cell(job: Job, cell: Cell, real: scoring.Reference, head: Record) -> Record:
    """The record of a cell, trained as far as that is still to be done; of a failed one, its error."""
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


def run_grid(
    job: Job, cells: Sequence[Cell], path: Path, head: Record, real: scoring.Reference, at_a_time: int = 1
) -> int:
    """Runs the cells that `path` has no result of, `at_a_time`; how many failed. Raises Stopped after a signal."""
    known = results.latest(results.load(path), head["protocol"])
    missing = []
    for cell in cells:
        record = known.get(cell.folder)
        if record is None or "error" in record:
            missing.append(cell)
            continue
        job.say(f"{cell.folder}: in {path} already")
        _complete(job, cell, real, record, path)
    several = at_a_time > 1 and len(missing) > 1
    stream = _at_once(job, missing, head, at_a_time) if several else _in_turn(job, missing, head, real)
    failed, began = 0, time.monotonic()
    for done, (cell, record) in enumerate(stream, start=1):
        results.append(path, record)
        failed += "error" in record
        if "error" in record:
            job.say(f"{cell.folder} failed: {record['error']}")
        else:
            job.say(f"{cell.folder}: " + ", ".join(f"{name} {value:.4g}" for name, value in record["final"].items()))
        if done < len(missing):
            left = (time.monotonic() - began) / done * (len(missing) - done)
            job.say(f"{done} of {len(missing)} cells done, about {format_duration(left)} left")
    return failed


def _complete(job: Job, cell: Cell, real: scoring.Reference, known: Record, path: Path) -> None:
    """A line more for a cell whose record lacks what is measured by now."""
    try:
        more = averages.complete(job, cell, real, known)
    except UserError as error:  # the record stands as it is
        job.say(f"{cell.folder}: other averages not measured: {error}")
        return
    if more is not None:
        results.append(path, more)
        job.say(f"{cell.folder}: other averages of its weights added")


def _in_turn(job: Job, cells: Sequence[Cell], head: Record, real: scoring.Reference) -> Iterator[tuple[Cell, Record]]:
    for number, cell in enumerate(cells, start=1):
        job.say(f"[{number}/{len(cells)}] {cell.folder}")
        yield cell, run_cell(job, cell, real, head)


# ---- several at a time ----


@dataclasses.dataclass(frozen=True)
class Order:
    """What a process is told: a job without what cannot be sent, cells that follow each other, threads."""

    job: Job  # its split and say are the process's own
    parts: tuple[Path, Path]  # data sets: train, held out
    cells: tuple[Cell, ...]
    head: Record
    threads: int


def sharing(cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """The cells in groups, in order: those that start from the same 2D stage are one, so that one process trains it."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.folder if cell.inflate == "none" else cell.folder_2d, []).append(cell)
    return [tuple(group) for group in groups.values()]


def _at_once(job: Job, cells: Sequence[Cell], head: Record, most: int) -> Iterator[tuple[Cell, Record]]:
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads, or with CUDA, may hang
    waiting = sharing(cells)
    running: dict[Connection, tuple[Any, list[Cell]]] = {}
    parts = (job.split.train.path, job.split.held.path)
    sent = dataclasses.replace(job, split=None, say=None)  # type: ignore[arg-type]
    with StopSignals() as stop:
        try:
            while waiting or running:
                if stop.received:
                    raise Stopped("stopped by a signal")
                while waiting and len(running) < most:
                    group = waiting.pop(0)
                    ours, its = context.Pipe()
                    order = Order(sent, parts, group, head, torch.get_num_threads())
                    process = context.Process(target=work, args=(order, its))
                    process.start()
                    its.close()  # the process has it: its end of the pipe closes with it
                    running[ours] = (process, list(group))
                for connection in wait(list(running), timeout=POLL):
                    process, todo = running[connection]
                    try:
                        record = connection.recv()
                    except (EOFError, ConnectionResetError):
                        process.join()
                        del running[connection]
                        connection.close()
                        if todo:  # it died in the first of them
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
                job.say(f"waiting for {len(running)} processes to save and end")
            for process, _ in running.values():
                process.join()


def work(order: Order, connection: Connection) -> None:
    """A process: the records of the order's cells go through `connection`, until they are done or it is closed."""
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the parent's, which closes the pipe: of two signals the second would kill
    threading.Thread(target=_end_with_the_parent, args=(connection,), daemon=True).start()
    if order.job.device.type == "cpu":
        keep_freed_memory()
    torch.set_num_threads(order.threads)
    split = Split(*(VolumeDataset(path) for path in order.parts))
    real = scoring.reference(split.train.volumes, split.held.volumes)
    for cell in order.cells:
        job = dataclasses.replace(order.job, split=split, say=_named(cell))
        job.say("begins")
        try:
            record = run_cell(job, cell, real, order.head)
        except Stopped as stopped:
            job.say(str(stopped))
            return
        connection.send(record)


def _named(cell: Cell) -> training.Say:
    return lambda text: print(f"{cell.folder}: {text}", flush=True)


def _end_with_the_parent(connection: Connection) -> None:
    try:
        connection.recv()  # nothing is ever sent: it waits for the end
    except (EOFError, OSError):
        signal.raise_signal(signal.SIGTERM)
