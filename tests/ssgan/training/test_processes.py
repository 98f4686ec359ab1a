"""Several processes, gradient accumulation and killed processes give the same run (`process_checks` runs them)."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssgan.models.layers import MinibatchStd
from ssgan.runs import checkpoint
from ssgan.training.distributed import split_batch, split_evenly, std_group
from ssgan.utils.errors import ConfigError

ROOT = Path(__file__).parents[3]


def check(name, folder):
    """Runs a function of `process_checks` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.process_checks", name, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


# ---- which process has what ----


@pytest.mark.parametrize(
    ("batch", "limit", "count"), [(12, 4, 3), (12, 4, 2), (10, 4, 3), (6, 4, 2), (5, 4, 3), (8, 8, 1)]
)
def test_micro_batches_hold_whole_minibatch_std_groups(batch, limit, count):
    split = split_batch(batch, limit, count)
    assert sorted(itertools.chain(*split)) == list(range(batch)) and all(split)
    x = torch.randn(batch, 3, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    whole = MinibatchStd(limit)(x)
    layer = MinibatchStd(std_group(batch, limit))
    for samples in split:
        torch.testing.assert_close(layer(x[samples]), whole[samples])
    if count == 1:
        assert split == [list(range(batch))]


def test_more_micro_batches_than_groups_are_refused():
    with pytest.raises(ConfigError, match=r"a batch of 8 has 2 minibatch-std groups of 4, too few for 3 micro-batches"):
        split_batch(8, 4, 3)
    assert split_evenly(2, 3) == [[], [0], [1]] and split_evenly(6, 2) == [[0, 1, 2], [3, 4, 5]]


# ---- the same step ----


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    check("same_step", folder)
    return folder


def single(name):
    return "pairs-one-0" if name.startswith("pairs-") else "one-0"


def difference(folder, name):
    """Largest difference of a state's tensors from the single process's, relative to the tensor's largest value."""
    one, other = load_file(folder / f"{single(name)}.safetensors"), load_file(folder / f"{name}.safetensors")
    assert one.keys() == other.keys()
    return max(
        float((one[n] - other[n]).abs().max() / one[n].abs().max().clamp(min=1e-3)) for n in one if one[n].numel()
    )


@pytest.mark.parametrize("prefix", ["", "pairs-"], ids=["logistic", "relativistic"])
@pytest.mark.parametrize("name", ["of2-0", "of3-0", "accumulate-0", "recompute-0"])
def test_the_step_is_that_of_one_process_to_rounding(stepped, prefix, name):
    """With the relativistic loss also because every image keeps its partner, whichever process has it."""
    name = prefix + name
    assert difference(stepped, name) < 2e-4
    one, other = (json.loads((stepped / f"{n}.json").read_text()) for n in (single(name), name))
    assert ("r2" in one[0]) == bool(prefix)
    assert {"loss_g", "loss_d", "path_length", "r1", "sign_real", "sign_fake"} <= one[0].keys()
    for a, b in zip(one, other, strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("size", [2, 3])
def test_all_processes_have_the_same_bits(stepped, size):
    for prefix in ("", "pairs-"):
        states = [load_file(stepped / f"{prefix}of{size}-{rank}.safetensors") for rank in range(size)]
        for other in states[1:]:
            assert all(torch.equal(states[0][n], other[n]) for n in states[0])


def test_too_many_micro_batches_are_refused_in_every_process(stepped):
    for rank in range(3):
        assert "a batch of 12 has 3 minibatch-std groups of 4" in (stepped / f"refused-{rank}.txt").read_text()


# ---- death ----


def test_one_process_dies_the_others_stop_and_another_number_goes_on(tmp_path):
    check("death", tmp_path)
    stopped, (survivor, killed), second, alone = json.loads((tmp_path / "statuses.json").read_text())
    assert stopped == [143, 143]  # 128 + SIGTERM, which only one of them got
    said = (tmp_path / "stopped-0.txt").read_text()
    assert "stopped by a signal to another process in stage 2d after 24 images; saved" in said
    assert (survivor, killed) == (2, -9) and second == [0, 0, 0] and alone == 0
    said = (tmp_path / "died-0.txt").read_text()
    assert "resuming" in said and "stage 2d, 24 images" in said
    assert "another process of this run has ended" in said and "start the same command again" in said
    assert "resuming" in (tmp_path / "said-0.txt").read_text()
    for stage in ("2d", "3d"):
        paths = [checkpoint.final_path(tmp_path / run / "checkpoints", stage) for run in ("run", "alone")]
        (left, a), (right, b) = (checkpoint.load(path) for path in paths)
        assert a == b and left.keys() == right.keys()
        worst = max(
            float((left[n] - right[n]).abs().max() / right[n].abs().max().clamp(min=1e-3))
            for n in left
            if left[n].numel()
        )
        assert worst < 1e-3
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    alone = [json.loads(line) for line in (tmp_path / "alone" / "log.jsonl").read_text().splitlines()]
    assert [(r["stage"], r["step"]) for r in rows] == [(r["stage"], r["step"]) for r in alone]  # one writer


@pytest.mark.slow
def test_killed_at_fifty_random_points_nothing_is_lost(tmp_path):
    check("fifty_kills", tmp_path)
    result = json.loads((tmp_path / "kills.json").read_text())
    assert result["kills"] == 50 and result["lost"] == []
    assert len(set(result["moments"])) >= 6, "the kills came at too few different steps of the run"
    for run in range(result["runs"]):
        for stage in ("2d", "3d"):
            paths = [checkpoint.final_path(tmp_path / n / "checkpoints", stage) for n in (f"run{run}", "straight")]
            (left, _), (right, _) = (checkpoint.load(path) for path in paths)
            assert left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in right)
        timing = ("seconds", "images_per_second")
        logs = [
            [{k: v for k, v in json.loads(line).items() if k not in timing} for line in path.read_text().splitlines()]
            for path in (tmp_path / f"run{run}" / "log.jsonl", tmp_path / "straight" / "log.jsonl")
        ]
        assert logs[0] == logs[1]
