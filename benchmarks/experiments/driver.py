"""Runs a grid of trainings and measures every cell; the same command goes on where it was stopped.

    python -m benchmarks.experiments --grid A --scale cpu --data DATASET --out runs/grid-a
    python -m benchmarks.experiments --grid A --scale gpu --out runs/grid-a --jobs 6 --cuda-graphs --budget-minutes 25
    python -m benchmarks.experiments --grid A --scale cpu --results FILE.jsonl --report-only   # the tables again

Grid A: dense and split_depth, each from scratch, inflated as in the paper, and inflated from a 2D stage that is
conditioned on the slice position. B: inflation profiles on split_depth. C: architectures, at equal widths and at equal
parameters (of split_depth; and split_depth with those of dense). D: one of the two networks split and the other dense.
E: split_depth with its coarse or its fine levels dense.
Cells are ordered by seed. Each is a run of `ssgan train` in OUT/NAME. A finished one has a line in the file of results
and is not run again under the same protocol (data, sizes, settings, metrics), also for another grid. A line of an
earlier commit, which measured less, is completed where its run is still in OUT. The line of a cell that fails has its
error, and the next cell is run. With --jobs several cells are run at a time; their numbers are those of one job with
as many --threads.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.experiments import grids, pictures, report, results, running, scoring, step_times
from benchmarks.experiments.data import TRAIN, open_split
from benchmarks.experiments.grids import Cell
from benchmarks.experiments.training import Job, Stopped
from benchmarks.operator.run import environment
from ssconv import keep_freed_memory
from ssconv.parser import Parser
from ssgan.runs.config import identity
from ssgan.runs.folder import RunLock
from ssgan.runs.generator import parse_seeds
from ssgan.training.cuda_graphs import check as check_graphs
from ssgan.utils.cores import use_threads
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import UserError, run_command

RESULTS = Path("benchmarks/results/experiments")
RATES = ("lr_g", "lr_d", "r1_gamma")


def protocol_of(job: Job, real: scoring.Reference) -> tuple[str, dict[str, Any]]:
    """Gives a short name of all settings that the records of one comparison share, and the settings."""
    cell = Cell("split_depth", "average", grids.widths_of(job.scale, job.shape), 0)
    cfg = job.config(cell, "3d")
    about = {
        "settings": identity(cfg.to_json()), "slices": job.scale.slices, "volumes": job.scale.volumes,
        "every": job.scale.every, "train": job.split.hashes[0], "held": job.split.hashes[1], "metrics": real.protocol,
    }  # fmt: skip
    return scoring.digest(json.dumps(about, sort_keys=True)), about


def rates_of(job: Job) -> dict[str, float]:
    """Gives the 3D stage's learning rates and R1 weight, which a preset may change from one commit to the next."""
    stage = job.config(Cell("split_depth", "average", grids.widths_of(job.scale, job.shape), 0), "3d").stage_3d
    return {name: getattr(stage, name) for name in RATES}


def machine_and_commit() -> dict[str, Any]:
    """Gives machine, versions and commit of the loaded code; called at the start, before the tree can change."""
    about = environment()
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    if os.environ.get("COMMIT"):
        about["commit"] = os.environ["COMMIT"]
    return about


def _draw(job: Job, args: argparse.Namespace, path: Path, protocol: str) -> None:
    """Draws the volumes of the grid's cells whose runs are in OUT; not those of trials, which the report leaves out."""
    if protocol != results.main_protocol(results.load(path)):
        return
    cells = grids.cells(args.grid, job.scale, job.shape, parse_seeds(args.seeds))
    why = f"there are no finished runs of these settings in {args.out}"
    shown = None
    try:
        shown = pictures.draw(job, cells, report.picture_of_volumes(path.with_suffix(""), args.grid))
    except UserError as error:
        why = str(error)
    job.log(f"written: {shown}" if shown else f"no picture of the cells' volumes: {why}")


def select(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """Picks the cells whose folder or label begins with one of `only`; all if it is empty."""
    chosen = [c for c in cells if not only or any(c.folder.startswith(o) or c.label.startswith(o) for o in only)]
    if not chosen:
        raise UserError(f"--only {' '.join(only)}: no such cell; expected one of {', '.join(c.folder for c in cells)}")
    return chosen


def report_grid(args: argparse.Namespace, path: Path, protocol: str | None) -> None:
    """Writes tables and plots from the JSON lines alone."""
    records = results.load(path)
    if all(r["cell"] == step_times.CELL for r in records):
        raise UserError(f"{path}: the file has no results yet; run without --report-only")
    stem = path.with_suffix("")
    page, names = report.write(records, args.grid, args.scale, stem, protocol, parse_seeds(args.seeds))
    print(page)
    print(f"written: {', '.join(str(n) for n in names)}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grid", choices=tuple("ABCDE"), required=True)
    parser.add_argument("--scale", choices=tuple(grids.SCALES), required=True)
    parser.add_argument("--data", default="phantoms", help="a data set made by `ssgan prepare`, or phantoms (default)")
    parser.add_argument("--out", type=Path, help="folder of the runs; not needed for --report-only")
    parser.add_argument("--seeds", default="0-2", help="numbers and ranges (default 0-2)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CELL", help="cells by the beginning of their names")
    parser.add_argument("--train", type=int, default=TRAIN, help=f"volumes that train (default {TRAIN})")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings for all cells, such as stage_3d.lr_d=0.002"
    )
    parser.add_argument(
        "--results", type=Path, help=f"the JSON lines (default {RESULTS}/SCALE-DATA.jsonl); tables go beside it"
    )
    parser.add_argument(
        "--pace",
        action="store_true",
        help="time training steps of every kind of cell in turns, for the tables; on an idle machine",
    )
    parser.add_argument("--report-only", action="store_true", help="write tables and plots, train nothing")
    parser.add_argument("--budget-minutes", type=float, help="save everything and stop after so long")
    parser.add_argument("--threads", type=int, help="CPU threads of a job (default: the cores over the jobs)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each in its own process (default 1)")
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="record the phases of a step as CUDA graphs and replay them"
    )
    parser.add_argument("--progress", action="store_true", help="show the progress of a training on stderr")


def _check_jobs(args: argparse.Namespace) -> None:
    if args.jobs < 1:
        raise UserError(f"--jobs: expected at least 1; got {args.jobs}")
    if args.jobs > 1 and (args.pace or args.progress):
        why = "--pace needs the machine to itself" if args.pace else "--progress shows one training"
        raise UserError(f"--jobs {args.jobs}: {why}; leave out one of the two")


def run(args: argparse.Namespace) -> int:
    path = args.results or RESULTS / f"{args.scale}-{Path(args.data).name}.jsonl"
    if args.report_only:
        report_grid(args, path, None)
        return 0
    if args.out is None:
        raise UserError("--out: expected a folder for the runs")
    if args.budget_minutes is not None and not args.budget_minutes > 0:
        raise UserError(f"--budget-minutes: expected a number above 0; got {args.budget_minutes}")
    _check_jobs(args)
    device = pick_device(args.device)
    if args.cuda_graphs:
        check_graphs(device, 1)
    if device.type == "cpu":
        keep_freed_memory()
    args.threads = use_threads(args.threads, args.jobs)
    scale = grids.SCALES[args.scale]
    args.out.mkdir(parents=True, exist_ok=True)
    timer, protocol = None, None
    if args.budget_minutes is not None:
        timer = threading.Timer(args.budget_minutes * 60, os.kill, (os.getpid(), signal.SIGINT))
        timer.daemon = True
        timer.start()
    try:
        with RunLock(args.out):
            split = open_split(args.data, scale, args.out / "data", args.train)
            job = Job(
                scale, split, args.out, device, grids.parse_changes(args.set), _log, args.progress, args.cuda_graphs
            )
            real = scoring.reference(split.train.volumes, split.held.volumes, split.train.info.slice_axis)
            protocol, about = protocol_of(job, real)
            counts = [len(split.train), len(split.held)]
            head = {
                "protocol": protocol, "scale": scale.name, "data": Path(args.data).name, "shape": list(job.shape),
                "floors": real.floors(),
                "about": about | {"changes": job.changes, "counts": counts, "rates": rates_of(job)},
                "command": " ".join(_command(args)), "environment": machine_and_commit(),
            }  # fmt: skip
            cells = select(grids.cells(args.grid, scale, job.shape, parse_seeds(args.seeds)), args.only)
            if args.pace:
                about = {"cell": step_times.CELL, "seed": -1, "protocol": protocol, "environment": head["environment"]}
                results.append(
                    path, about | {"command": head["command"] + " --pace", "pace": step_times.measure(job, cells)}
                )
                failed = 0
            else:
                failed = running.run_grid(job, cells, path, head, real, args.jobs)
                _draw(job, args, path, protocol)
    except (Stopped, KeyboardInterrupt):
        _log("stopped; the same command goes on from there")
        done = {r["protocol"] for r in results.load(path) if r["cell"] != step_times.CELL}
        if done:
            report_grid(args, path, protocol if protocol in done else None)
        return 130
    finally:
        if timer is not None:
            timer.cancel()
    if args.pace and all(r["cell"] == step_times.CELL for r in results.load(path)):
        _log(f"{path} has the times of the steps and no cells yet")
        return 0
    report_grid(args, path, protocol)
    if failed:
        print(f"experiments: {failed} cells failed; {path} says why", file=sys.stderr)
    return 1 if failed else 0


def _log(text: str) -> None:
    print(text, flush=True)


def _command(args: argparse.Namespace) -> list[str]:
    """Gives the command of this record, with the last names of the folders only."""
    words = ["python", "-m", "benchmarks.experiments", "--grid", args.grid, "--scale", args.scale]
    words += ["--data", Path(args.data).name, "--out", args.out.name, "--seeds", args.seeds]
    words += ["--train", str(args.train)] if args.train != TRAIN else []
    words += (
        ["--threads", str(args.threads)] if args.threads else []
    )  # the order of additions, and so a run, depends on it
    words += ["--jobs", str(args.jobs)] if args.jobs > 1 else []
    words += ["--cuda-graphs"] if args.cuda_graphs else []
    return words + (["--set", *args.set] if args.set else [])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m benchmarks.experiments", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
