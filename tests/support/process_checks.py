"""Runs of several processes, and processes that are killed, for test_processes.py.

    python -m tests.support.process_checks NAME FOLDER

Everything is imported once and the processes are forked from here: this one never calls backward(), after which
PyTorch refuses to fork. Results are files in FOLDER.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # Adam imports it: once, here
import torch.utils.tensorboard
from safetensors.torch import save_file

from ssgan.config.augmentation import policy
from ssgan.config.network import NetworkConfig
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.data.dataset import VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.models.conditioning import Condition
from ssgan.runs import checkpoint
from ssgan.training import loop
from ssgan.training.distributed import SINGLE, Group, join, leave
from ssgan.training.precision import Execution
from ssgan.training.run import Run
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import UserError
from tests.support.steps import stepped

SHAPE = (6, 8, 12)
NETWORK = NetworkConfig(
    shape=SHAPE, base=(3, 4, 6), scales=((2, 2, 2),), widths=(4, 4), z_dim=6, w_dim=6, mapping_layers=1, mbstd_group=4
)
# Every gradient large enough against epsilon: Adam divides by it, and rounding is to stay rounding.
CONFIG = TrainConfig(
    network=NETWORK,
    stage_2d=StageConfig(kimg=0.048, batch=12),
    stage_3d=StageConfig(kimg=0.06, batch=12),
    snapshot_kimg=0.024,
    d_reg_interval=2,
    g_reg_interval=2,
    adam_eps=1e-3,
    augment=policy("brain", p_start=0.3, interval=2, kimg=0.1),
)
STEPS = 3
LOSSES = {"": "logistic", "pairs-": "relativistic"}  # by the beginning of the names of `same_step`
ACCUMULATED = {"accumulate": Execution(accumulate=3), "recompute": Execution(accumulate=2, recompute=True)}


def fork(task: Callable[[], int]) -> int:
    """Runs `task` in a child process; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        os._exit(task())
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def together(size: int, task: Callable[[Group], int], timeout: float = 600.0) -> list[int]:
    """Runs `task` in `size` processes joined as torchrun joins them; returns their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def member(rank: int) -> int:
        variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ.update({k: str(v) for k, v in variables.items()} | {"MASTER_ADDR": "127.0.0.1"})
        group = join(torch.device("cpu"), timeout)
        status = task(group)
        leave()
        return status

    children = [fork(lambda rank=rank: member(rank)) for rank in range(size)]
    return [ended(child) for child in children]


def steps(folder: Path, name: str, execution: Execution, group: Group, loss: str = "logistic") -> int:
    """Does a few steps on the same images of three classes; writes state and losses to FOLDER."""
    cfg = dataclasses.replace(CONFIG, network=dataclasses.replace(CONFIG.network, classes=3), loss=loss)
    trainer = StageTrainer(cfg, "3d", torch.device("cpu"), execution, group, class_counts=(1, 4, 2))
    images = torch.rand(STEPS, 12, 1, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1
    labels = torch.randint(3, (STEPS, 12), generator=torch.Generator().manual_seed(2))
    own = trainer.local_samples
    stats = [stepped(trainer, images[i][own], Condition(labels[i][own])) for i in range(STEPS)]
    save_file({k: v.contiguous() for k, v in trainer.state().items()}, folder / f"{name}-{group.rank}.safetensors")
    (folder / f"{name}-{group.rank}.json").write_text(json.dumps(stats))
    return 0


def same_step(folder: Path) -> None:
    """Runs the same steps in one process, in two, in three, and in one with micro-batches."""
    for prefix, loss in LOSSES.items():
        for name, execution in {"one": Execution(), **ACCUMULATED}.items():
            assert ended(fork(lambda n=prefix + name, e=execution, k=loss: steps(folder, n, e, SINGLE, k))) == 0
        for size in (2, 3):
            task = lambda group, n=f"{prefix}of{size}", k=loss: steps(folder, n, Execution(), group, k)  # noqa: E731
            assert together(size, task) == [0] * size
    both = Execution(accumulate=2)
    config_batch = CONFIG.stage_3d.batch
    assert config_batch % 4 == 0
    statuses = together(3, lambda group: expect_too_many(folder, both, group))
    assert statuses == [0, 0, 0]


def expect_too_many(folder: Path, execution: Execution, group: Group) -> int:
    try:
        StageTrainer(CONFIG, "3d", torch.device("cpu"), execution, group)
    except UserError as error:
        (folder / f"refused-{group.rank}.txt").write_text(str(error))
        return 0
    return 1


def train(folder: Path, data: VolumeDataset, group: Group = SINGLE, cfg: TrainConfig = CONFIG) -> int:
    """Calls `loop.train` as the command does, but without pictures; its messages go to FOLDER/said-RANK.txt."""
    torch.set_num_threads(1)
    for name in ("snapshot", "draw", "plot_curves"):
        setattr(Run, name, lambda self, *rest: BLANK)
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    status = 0
    try:
        with redirect_stdout(text), redirect_stderr(text):
            status = loop.train(cfg, data, folder, progress=False, group=group)
    except UserError as error:
        text.write(str(error))
        status = 2
    with open(folder.parent / f"said-{group.rank}.txt", "a") as file:
        file.write(text.getvalue())
    return status


BLANK = Path()


def blank_picture(folder: Path) -> None:
    from PIL import Image

    global BLANK
    BLANK = folder / "blank.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(BLANK)


def death(folder: Path) -> None:
    """Process 1 of 2 gets SIGTERM in the 2D stage and, in the next attempt, SIGKILL in the 3D stage; three processes
    finish the run. One process alone does the same run."""
    data = write_phantom_dataset(folder / "data", count=7, shape=SHAPE, seed=1)
    blank_picture(folder)

    def dying(group: Group) -> int:
        real = StageTrainer._optimiser_step

        def kill(self: StageTrainer, phase: str, loss: torch.Tensor) -> torch.Tensor:
            if group.rank == 1 and self.stage == "3d" and self.step == 2 and phase == "R1":
                os.kill(os.getpid(), signal.SIGKILL)
            return real(self, phase, loss)

        StageTrainer._optimiser_step = kill  # type: ignore[method-assign]
        return train(folder / "run", data, group)

    def stopping(group: Group) -> int:
        real = StageTrainer.train_step

        def stop(self: StageTrainer, *arguments: Any) -> dict[str, Any]:
            if group.rank == 1 and self.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, *arguments)

        StageTrainer.train_step = stop  # type: ignore[method-assign]
        return train(folder / "run", data, group)

    stopped = together(2, stopping)
    (folder / "said-0.txt").rename(folder / "stopped-0.txt")
    first = together(2, dying)
    (folder / "said-0.txt").rename(folder / "died-0.txt")
    second = together(3, lambda group: train(folder / "run", data, group))
    alone = ended(fork(lambda: train(folder / "alone", data)))
    (folder / "statuses.json").write_text(json.dumps([stopped, first, second, alone]))


def has_ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def rows(run: Path) -> int:
    """Complete lines of the run's log."""
    log = run / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def fifty_kills(folder: Path, kills: int = 50) -> None:
    """Kills runs at `kills` random moments; after each, the checkpoints are still there and intact."""
    data = write_phantom_dataset(folder / "data", count=5, shape=SHAPE, seed=1)
    blank_picture(folder)
    cfg = dataclasses.replace(CONFIG, stage_2d=StageConfig(kimg=0.048, batch=4), stage_3d=StageConfig(0.048, 4))
    cfg = dataclasses.replace(cfg, snapshot_kimg=0.012, adam_eps=1e-8)
    began = time.monotonic()
    assert ended(fork(lambda: train(folder / "straight", data, cfg=cfg))) == 0
    whole = time.monotonic() - began
    draw = random.Random(0)
    done, runs, lost = 0, 0, []
    moments: list[str] = []
    while done < kills:
        run = folder / f"run{runs}"
        before = newest(run)
        # So many rows further, however fast the machine is, and then a moment anywhere in the work on the next.
        until, delay = rows(run) + draw.randrange(4), draw.uniform(0, 0.1) * whole
        child = fork(lambda run=run: train(run, data, cfg=cfg))
        while rows(run) < until and not has_ended(child):
            time.sleep(0.001)
        deadline = time.monotonic() + delay
        while time.monotonic() < deadline and not has_ended(child):
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        status = ended(child)
        if status == 0:  # the run was finished before
            runs += 1
            continue
        assert status == -signal.SIGKILL, status
        done += 1
        after = newest(run)
        moments.append(str(after))
        if after < before:
            lost.append(f"kill {done}: {before} before, {after} after")
    last = folder / f"run{runs}"
    assert ended(fork(lambda: train(last, data, cfg=cfg))) == 0
    result = {"kills": done, "runs": runs + 1, "lost": lost, "moments": moments, "seconds": whole}
    (folder / "kills.json").write_text(json.dumps(result))


def newest(run: Path) -> tuple[int, int]:
    """Stage and images of the newest checkpoint, after each one was verified; (-1, 0) before the first."""
    orders = [checkpoint.load(path)[1].order for path in checkpoint.list_checkpoints(run / "checkpoints")]
    return max(orders, default=(-1, 0))


CHECKS = {"same_step": same_step, "death": death, "fifty_kills": fifty_kills}

if __name__ == "__main__":
    torch.set_num_threads(1)
    CHECKS[sys.argv[1]](Path(sys.argv[2]))
