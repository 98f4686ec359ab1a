"""Lack of memory: one line that says where and what needs less, and a run that goes on."""

import argparse

import numpy as np
import pytest
import torch

from ssgan.data.phantom import write_phantom_dataset
from ssgan.runs.checkpoint import list_checkpoints
from ssgan.training import loop
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import OutOfMemory, out_of_memory, run_command
from tests.support.tiny_runs import CONFIG, SHAPE


def allocate_on_a_cpu():
    return torch.empty(1 << 50)


def allocate_on_a_gpu():
    """As the allocator of CUDA words it; there is none here."""
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.00 GiB"
    )


def allocate_in_numpy():
    return np.ones((1 << 20, 1 << 20, 1 << 10), np.float32)


def allocate_in_python():
    raise MemoryError


def allocate_in_c():
    raise RuntimeError("std::bad_alloc")


ALLOCATE = {
    allocate_on_a_cpu: ": 4194304.00 GiB more were asked for",
    allocate_on_a_gpu: ": 2.50 GiB more were asked for",
    allocate_in_numpy: ": 4.00 PiB more were asked for",
    allocate_in_python: "",
    allocate_in_c: "",
}


@pytest.mark.parametrize("allocate", ALLOCATE, ids=lambda f: f.__name__)
def test_what_was_asked_for(allocate):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    assert out_of_memory(caught.value) == ALLOCATE[allocate]


def test_other_errors_are_no_lack_of_memory():
    for error in (RuntimeError("shape mismatch"), ValueError("no"), KeyError("memory")):
        assert out_of_memory(error) is None


def train(root, echo=print):
    data = write_phantom_dataset(root / "data", count=6, shape=SHAPE, seed=1) if not (root / "data").exists() else None
    data = data or loop.VolumeDataset(root / "data")
    (root / "run").mkdir(exist_ok=True)
    return loop.train(CONFIG, data, root / "run", data_path=str(root / "data"), progress=False, echo=echo)


@pytest.mark.parametrize("allocate", ALLOCATE, ids=lambda f: f.__name__)
def test_training_names_stage_batch_and_options_and_goes_on(allocate, tmp_path, monkeypatch):
    own, said = StageTrainer.train_step, []

    def step(self, *inputs):
        if self.step == 1:
            allocate()
        return own(self, *inputs)

    monkeypatch.setattr(loop, "due_after", lambda trainer: loop.Due(trainer.step == trainer.steps, True, False))
    monkeypatch.setattr(StageTrainer, "train_step", step)
    with pytest.raises(OutOfMemory) as caught:
        train(tmp_path)
    words = str(caught.value)
    assert words.startswith(f"out of memory in stage 3d at batch 4{ALLOCATE[allocate]}. ") and "\n" not in words
    assert all(o in words for o in ("--batch-3d", "--accumulate", "--checkpoint-activations", "--precision"))
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1
    monkeypatch.setattr(StageTrainer, "train_step", own)
    assert train(tmp_path, said.append) == 0 and "stage 3d, 4 images" in said[0]


@pytest.mark.parametrize("allocate", [allocate_on_a_cpu, allocate_in_python], ids=lambda f: f.__name__)
def test_every_command_ends_with_one_line(allocate, capsys):
    assert run_command("ssgan generate", lambda args: allocate(), argparse.Namespace(batch=4)) == 2
    err = capsys.readouterr().err
    assert err.startswith("ssgan generate: error: out of memory") and err.count("\n") == 1 and "smaller --batch" in err


def test_other_errors_of_a_command_are_raised():
    def fail(args):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_command("ssgan generate", fail, argparse.Namespace())
