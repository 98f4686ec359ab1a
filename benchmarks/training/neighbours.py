"""Times a training step where the machine is not ours alone, against the dense GAN on nn.Conv3d as PyTorch runs it.

    python -m benchmarks.training.neighbours [--preset demo] [--shape 16 16 16] [--batch 8] [--repeats 3] [--seconds 5]
                                             [--out FILE.jsonl]

Situations: one thread alone (the yardstick); alone; beside one busy process of another session (`nice -n 19`); with
one core by affinity; with a quota of one core (a control group, which takes root). Ours has the number of threads that
`ssgan train` finds by measured steps, and threads that give way while they wait; the rival has PyTorch's own, one for
each core. Every figure is of a process of its own; situations and contenders take turns, and the median of the rounds
counts. Run it on an idle machine with at least two cores (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.operator.run import environment
from benchmarks.training.step import BASELINE, OURS, SHARES, Step, append, configuration, own
from ssconv import keep_freed_memory
from ssconv.parser import Parser
from ssgan.config.presets import PRESETS
from ssgan.training.threads import REPEATS, try_numbers
from ssgan.utils.cores import usable_cores

KIND = "training step beside neighbours"
CONTENDERS = (next(iter(OURS)), BASELINE)
AIM = 0.4  # of the speed of one thread alone
BUSY = "while True: pass"
# The first import decides whether threads give way: ssgan's, before torch, lets them.
CHILD = "import {first}; import sys; from benchmarks.training import neighbours; sys.exit(neighbours.main())"


class CannotMake(Exception):
    """A situation that this machine or this user cannot make, with the reason."""


@contextlib.contextmanager
def nothing() -> Iterator[Callable[[], None]]:
    yield lambda: None


@contextlib.contextmanager
def neighbour() -> Iterator[Callable[[], None]]:
    """One busy process of low priority, in a session of its own."""
    busy = subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", BUSY], start_new_session=True)
    try:
        yield lambda: None
    finally:
        busy.kill()
        busy.wait()


@contextlib.contextmanager
def one_core() -> Iterator[Callable[[], None]]:
    core = min(os.sched_getaffinity(0))
    yield lambda: os.sched_setaffinity(0, {core})


@contextlib.contextmanager
def quota(root: Path = Path("/sys/fs/cgroup")) -> Iterator[Callable[[], None]]:
    """A control group, of version 2 or 1, whose processes have 100 ms of every 100."""
    second = (root / "cgroup.controllers").exists()
    group = (root if second else root / "cpu") / f"ssgan-benchmark-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        raise CannotMake(f"no control group: {error}") from error
    try:
        try:
            if second:
                (group / "cpu.max").write_text("100000 100000")
            else:
                (group / "cpu.cfs_period_us").write_text("100000")
                (group / "cpu.cfs_quota_us").write_text("100000")
        except OSError as error:
            raise CannotMake(f"no quota in the control group: {error}") from error
        yield lambda: _enter(group)
    finally:
        group.rmdir()


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


# Name -> (what it is made by, number of threads; None: as the contender has it)
SITUATIONS: dict[str, tuple[Callable[[], contextlib.AbstractContextManager[Callable[[], None]]], int | None]] = {
    "one thread alone": (nothing, 1),
    "alone": (nothing, None),
    "beside a busy process": (neighbour, None),
    "one core by affinity": (one_core, None),
    "a quota of one core": (quota, None),
}


def measured(step: Step, batch: int, seconds: float) -> float:
    """Images a second over steps of `seconds` in all, the lazy phases by their share."""
    times: dict[str, list[float]] = defaultdict(list)
    until = time.monotonic() + seconds
    while time.monotonic() < until or not times:
        for phase, took in step().items():
            times[phase].append(took)
    return batch / sum(float(np.mean(t)) * SHARES.get(phase, 1.0) for phase, t in times.items())


def contend(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measures one contender in this process."""
    keep_freed_memory()
    step, _ = own(name, configuration(args))
    step()  # warm-up

    def fastest_of(threads: int) -> float:
        torch.set_num_threads(threads)
        return min(sum(step().values()) for _ in range(1 + REPEATS))

    if args.threads:
        torch.set_num_threads(args.threads)
    elif name != BASELINE:
        found = try_numbers(usable_cores(), fastest_of)
        torch.set_num_threads(min(found, key=found.__getitem__))
    speed = measured(step, args.batch, args.seconds)
    return {"images_per_second": speed, "threads": torch.get_num_threads()}


def in_situation(name: str, situation: str, words: Sequence[str]) -> dict[str, Any]:
    """Measures a contender in a process of its own, in the situation."""
    make, threads = SITUATIONS[situation]
    first = "torch" if name == BASELINE else "ssgan, torch"
    command = [sys.executable, "-c", CHILD.format(first=first), *words, "--contender", name]
    command += ["--threads", str(threads)] if threads else []
    unset = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    own_environment = {n: v for n, v in os.environ.items() if n not in unset}
    with make() as enter:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=own_environment, preexec_fn=enter
        )
    return json.loads(done.stdout.splitlines()[-1])


def table(records: Sequence[dict[str, Any]], skipped: dict[str, str]) -> str:
    """Writes Markdown: images a second, of one thread alone, and the threads of the rounds."""
    alone = {r["contender"]: r["images_per_second"] for r in records if r["situation"] == "one thread alone"}
    lines = ["| situation | | images/s | of one thread alone | threads |", "|" + "---|" * 5]
    for r in records:
        share = r["images_per_second"] / alone[r["contender"]]
        under = "" if share >= AIM else f", under the aim of {AIM:.0%}"
        threads = ", ".join(map(str, sorted(set(r["threads"]))))
        lines.append(
            f"| {r['situation']} | {r['contender']} | {r['images_per_second']:.3g} | {share:.0%}{under} | {threads} |"
        )
    return "\n".join([*lines, *(f"\nNot measured: {name} ({why})." for name, why in skipped.items())])


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.training.neighbours", description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", default="demo", choices=list(PRESETS), help="the preset whose widths count")
    parser.add_argument("--shape", type=int, nargs=3, default=(16, 16, 16), metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of steps, for each figure")
    parser.add_argument("--note", default="", help="a sentence for the results, such as what else the machine did")
    parser.add_argument("--out", type=Path, help="JSON lines to append to; a table in Markdown beside it")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.contender:
        print(json.dumps(contend(args.contender, args)))
        return 0
    words = list(sys.argv[1:] if argv is None else argv)
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    skipped: dict[str, str] = {}
    turns = [*itertools.product(range(args.repeats), SITUATIONS, CONTENDERS)]
    for _, situation, name in tqdm(turns, desc="turns", disable=None):
        if situation not in skipped:
            try:
                found[situation, name].append(in_situation(name, situation, words))
            except CannotMake as error:
                skipped[situation] = str(error)
    shape = "x".join(map(str, args.shape))
    about = {"kind": KIND, **environment(), "preset": args.preset, "shape": list(args.shape), "batch": args.batch}
    named = [args.out.name if args.out and w == str(args.out) else w for w in words]
    about |= {"command": " ".join(["python -m benchmarks.training.neighbours", *named]), "note": args.note}
    del about["threads"]
    records = []
    for (situation, name), rounds in found.items():
        speeds = [r["images_per_second"] for r in rounds]
        record = {"situation": situation, "contender": name, "images_per_second": float(np.median(speeds))}
        records.append(about | record | {"rounds": speeds, "threads": [r["threads"] for r in rounds]})
    text = table(records, skipped)
    print(text)
    if args.out:
        title = f"Training step of {args.preset} at {shape}, batch {args.batch}, where the machine is not ours alone"
        versions = f"`{about['device']}`, torch {torch.__version__}, commit {about['commit']}, `{about['command']}`"
        append(args.out, records, title, versions, args.note, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
