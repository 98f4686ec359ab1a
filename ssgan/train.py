"""`ssgan train`: one command trains both stages, and the same command resumes.

python -m ssgan.train --data DATASET --out RUN --preset hippocampus
python -m ssgan.train --out RUN                       # the demo, on phantoms
torchrun --nproc-per-node 8 -m ssgan.train --data DATASET --out RUN    # the same run in 8 processes
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence

import torch

from ssconv import keep_freed_memory
from ssconv.parser import Parser
from ssgan.config.presets import preset
from ssgan.config.training import TrainConfig
from ssgan.data.dataset import DatasetInfo, VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.runs.config import RunError, is_run, load_config
from ssgan.runs.folder import RunLock, check_folder
from ssgan.training import cuda_graphs
from ssgan.training.distributed import Group, join, leave
from ssgan.training.dry_run import dry_run
from ssgan.training.loop import train
from ssgan.training.options import add_arguments, check_arguments, config_from
from ssgan.training.precision import Execution
from ssgan.training.schedule import check_metrics
from ssgan.training.threads import Threads
from ssgan.utils.cores import use_threads
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import run_command

PHANTOMS = 256  # in the data set that a run without --data makes


def run(args: argparse.Namespace) -> int:
    check_arguments(args)
    device = pick_device(args.device)
    if device.type == "cpu":
        keep_freed_memory()
    if args.cuda_graphs:
        cuda_graphs.check(device, int(os.environ.get("WORLD_SIZE", "1")))
    if not args.dry_run:
        check_folder(args.out)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun on this machine
    usable = use_threads(processes=processes)
    use_threads(args.threads, processes)
    compiler = "inductor" if args.compile else ""
    execution = Execution(args.accumulate, args.checkpoint_activations, compiler, args.cuda_graphs)
    if args.dry_run:
        info = None if args.data is None else VolumeDataset(args.data).info
        cfg = _config(args, info) if info else config_from(args, preset(args.preset).shape)
        check_metrics(cfg)
        dry_run(cfg, device, execution)
        return 0
    try:
        group = join(device, args.timeout)
        choice = device.type == "cpu" and group.size == 1 and not args.compile  # compiled code is made for a number
        threads = Threads(usable, args.threads) if choice else None
        return _train(args, device, execution, group, threads)
    finally:
        leave()


def _train(
    args: argparse.Namespace, device: torch.device, execution: Execution, group: Group, threads: Threads | None
) -> int:
    """Trains in this process; the main one holds the run's lock, makes the data set and prints."""
    with contextlib.ExitStack() as held:
        if group.main:
            args.out.mkdir(parents=True, exist_ok=True)
            held.enter_context(RunLock(args.out))
            data, path = _open_data(args)
        group.barrier(device)  # the other processes wait until the data set is there
        if not group.main:
            data, path = VolumeDataset(args.data or args.out / "data"), str(args.data or "data")
        cfg = _config(args, data.info)
        if group.main and data.info.classes and not args.conditional:
            print(f"the data set has {len(data.info.classes)} classes, not used: --conditional trains on them")
        return train(
            cfg, data, args.out, init=args.init, data_path=path, device=device, progress=not args.no_progress,
            echo=print if group.main else _print_nothing, execution=execution, group=group, on_nan=args.on_nan,
            threads=threads,
        )  # fmt: skip


def _config(args: argparse.Namespace, info: DatasetInfo) -> TrainConfig:
    return config_from(args, info.shape, info.classes, info.slice_axis, info.mask_classes)


def _open_data(args: argparse.Namespace) -> tuple[VolumeDataset, str]:
    """The data set and its path as config.json records it; a new run without --data makes phantoms.

    The recorded path is absolute, since commands that read it run in any folder; that of the phantoms is "data".
    """
    if args.data is not None:
        return VolumeDataset(args.data), os.path.abspath(args.data)
    phantoms = args.out / "data"
    if is_run(args.out):
        recorded = load_config(args.out).data_path
        if recorded != "data":
            raise RunError(f"{args.out} was trained on --data {recorded}; give it again to resume, or another --out")
        return VolumeDataset(phantoms), "data"
    if phantoms.exists():  # a process stopped before it had written config.json; check_folder accepts such a folder
        shutil.rmtree(phantoms)
    print(f"no --data: making {PHANTOMS} phantoms in {phantoms}")
    return write_phantom_dataset(phantoms, count=PHANTOMS, shape=preset(args.preset).shape, seed=args.seed), "data"


def _print_nothing(text: str) -> None:
    """Stands in for print in all processes but the main one."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan train", description=__doc__.split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
