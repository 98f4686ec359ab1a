"""How many cores this process may use, and the threads that compute on them. All of the project asks here."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Counts the cores that this process may use: those of its affinity, and no more than its container's quota.

    A SLURM job's affinity has the job's cores, not the node's; a container with a quota sees all cores of its host.
    root: where /proc and /sys lie.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(min(_quotas(root), default=cores))))


def _quotas(root: Path) -> list[float]:
    """The quotas, in cores, of the control groups that the process is in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        mounted = root / "sys/fs/cgroup"
        if number != "0":  # version 1
            if "cpu" not in controllers.split(","):
                continue
            mounted = mounted / "cpu"
        group = mounted / path.lstrip("/")
        for folder in (group, *group.parents):
            found += _quota(folder)
            if folder == mounted:
                break
    return found


def _quota(folder: Path) -> list[float]:
    """A control group's own quota in cores; empty if it has none."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return [int(quota) / int(period)] if int(quota) > 0 else []
    except (OSError, ValueError):  # no such group here, or "max"
        return []


def use_threads(threads: int | None = None, processes: int = 1) -> int:
    """Sets PyTorch's threads: as many as asked for, else the usable cores' share of one of `processes` processes.

    OMP_NUM_THREADS in the environment bounds a single process; of several, torchrun sets it to 1 without being asked.
    """
    import torch  # here, since commands that only count cores do without

    if threads is None:
        threads = max(usable_cores() // processes, 1)
        bound = os.environ.get("OMP_NUM_THREADS", "")
        if processes == 1 and bound.isdigit() and int(bound) > 0:
            threads = min(threads, int(bound))
    torch.set_num_threads(threads)
    return threads
