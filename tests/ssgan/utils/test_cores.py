"""Threads are as many as the process may use cores, and give way to other processes while they wait."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from ssgan.utils import cores


def tree(root, cgroup: str, files: dict[str, str]):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


QUOTAS = {
    "none": ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    "of the group": ("0::/job/step\n", {"job/step/cpu.max": "300000 100000\n"}, 3),
    "of a group above": ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "200000 100000\n"}, 2),
    "the least": ("0::/job/step\n", {"job/step/cpu.max": "400000 100000\n", "job/cpu.max": "250000 50000\n"}, 4),
    "half a core": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "more than there are": ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
    "version 1": (
        "5:cpu,cpuacct:/box\n1:name=systemd:/box\n",
        {"cpu/box/cpu.cfs_quota_us": "150000", "cpu/box/cpu.cfs_period_us": "50000"},
        3,
    ),
    "version 1, none": ("5:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    "of another controller": ("5:memory:/\n", {"cpu/cpu.cfs_quota_us": "1", "cpu/cpu.cfs_period_us": "1"}, 8),
    "nothing mounted": ("0::/job\n", {}, 8),
}


@pytest.mark.parametrize(("cgroup", "files", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_a_quota_bounds_the_cores(cgroup, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cores.usable_cores(tree(tmp_path, cgroup, files)) == expected


def test_the_affinity_bounds_the_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5})
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert cores.usable_cores(tmp_path) == 2, "without control groups"
    assert cores.usable_cores(tree(tmp_path, "0::/\n", {"cpu.max": "100000 100000"})) == 1


def test_threads_are_the_share_of_a_process(monkeypatch):
    monkeypatch.setattr(cores, "usable_cores", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        for asked, processes, expected in ((None, 1, 9), (None, 4, 2), (None, 16, 1), (3, 4, 3)):
            assert cores.use_threads(asked, processes) == expected == torch.get_num_threads()
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert cores.use_threads() == 2 and cores.use_threads(3) == 3 and cores.use_threads(None, 2) == 4
        monkeypatch.setenv("OMP_NUM_THREADS", "4,2")  # OpenMP's list for nested regions
        assert cores.use_threads() == 9
    finally:
        torch.set_num_threads(before)


PROGRAM = "import {first}, ssgan, os; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"


@pytest.mark.parametrize(
    ("first", "own", "expected"),
    [
        ("sys", {}, "1000 1"),
        ("sys", {"GOMP_SPINCOUNT": "7"}, "7 1"),
        ("sys", {"OMP_WAIT_POLICY": "active"}, "None None"),
        ("torch", {}, "None None"),
    ],
)
def test_waiting_threads_give_way_unless_the_user_says_otherwise(first, own, expected):
    clean = {n: v for n, v in os.environ.items() if n not in ("GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", PROGRAM.format(first=first)]
    done = subprocess.run(command, env=clean | own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
