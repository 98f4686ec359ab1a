"""--dry-run: operations against counts by hand, memory against the process's peak, and nothing is written."""

import ctypes
import dataclasses
import gc
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ssconv import split_shuffle_conv3d
from ssgan import train as train_command
from ssgan.config.network import NetworkConfig
from ssgan.config.presets import PRESETS
from ssgan.training import dry_run
from ssgan.training.precision import Execution
from ssgan.training.step import StageTrainer
from tests.support.process_checks import CONFIG

CPU = torch.device("cpu")


def test_operations_are_those_of_pen_and_paper():
    x = torch.randn(2, 4, 5, 6, 7, requires_grad=True)
    weights = [torch.randn(3, 2, 3, 3, 3, requires_grad=True), torch.randn(3, 2, 1, 3, 3, requires_grad=True)]
    macs = 2 * 5 * 6 * 7 * 3 * 2 * (27 + 9)  # images, voxels, channels of a branch, taps of both
    call = lambda **options: split_shuffle_conv3d(x, weights, **options)  # noqa: E731
    assert dry_run.count_flops(call) == 2 * macs
    assert dry_run.count_flops(lambda: call().square().sum().backward()) == 3 * 2 * macs
    halved = 2 * 3 * 3 * 4 * 6 * 36  # positions rounded up
    assert dry_run.count_flops(lambda: call(stride=2).sum().backward()) == 3 * 2 * halved
    # The adjoint of a strided convolution works at its input's positions.
    assert dry_run.count_flops(lambda: call(stride=2, transposed=True).sum().backward()) == 3 * 2 * macs


def test_live_bytes_follow_storages_and_not_views():
    with dry_run.LiveBytes() as live:
        a = torch.ones(1000)
        b = a[:10].view(2, 5)
        assert live.live == 4000
        c = a + 1
        del a
        assert live.live == 8000
        del b
        assert live.live == 4000 and live.peak == 8000
    assert c.sum() == 2000


SCRIPT = """
import ctypes, torch
from torch.utils._python_dispatch import TorchDispatchMode
from ssgan.training.dry_run import with_batch
from ssgan.training.step import StageTrainer
from tests.ssgan.training.test_dry_run import LARGER
names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in names]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
class Allocated(TorchDispatchMode):
    peak = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        info = mallinfo()
        self.peak = max(self.peak, info.uordblks + info.hblkhd)
        return out
torch.set_num_threads(1)
def peak(batch):
    with Allocated() as allocated:
        trainer = StageTrainer(with_batch(LARGER, "3d", batch), "3d", torch.device("cpu"))
        trainer.train_step(torch.zeros(batch, 1, *LARGER.network.shape))
    return allocated.peak
peak(1)
print(-peak(1) + peak(8))
"""
LARGER = dataclasses.replace(
    CONFIG,
    network=NetworkConfig(
        shape=(16, 32, 32), base=(4, 8, 8), scales=((2, 2, 2), (2, 2, 2)), widths=(16, 16, 16), z_dim=16, w_dim=16,
        mapping_layers=1,
    ),
)  # fmt: skip


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33, whose malloc tells its bytes"
)
def test_memory_is_estimated_by_what_the_allocator_gives():
    """Against the growth of malloc's bytes in use from a step of 1 image to one of 8. Resident memory would depend on
    what else the machine does."""
    memory = dry_run.measure_memory(LARGER, "3d", CPU, Execution())
    estimate = (memory.at(8) - memory.at(1)) / dry_run.OVERHEAD["cpu"]
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True)
    measured = float(done.stdout)
    assert measured > 40e6, "too small to tell from the allocator's own"
    assert 0.9 < estimate / measured < 1.1, (measured, estimate)
    less = dry_run.measure_memory(LARGER, "3d", CPU, Execution(recompute=True))
    assert less.each < 0.95 * memory.each  # one of two blocks has most of the activations


def test_the_estimate_does_not_depend_on_when_python_collects_cycles():
    usual = dry_run.measure_memory(LARGER, "3d", CPU, Execution(recompute=True))
    gc.disable()
    try:
        assert dry_run.measure_memory(LARGER, "3d", CPU, Execution(recompute=True)) == usual
    finally:
        gc.enable()


def test_the_proposed_batch_is_the_largest_power_of_two_that_fits():
    memory = dry_run.Memory(fixed=100, each=10)
    assert dry_run.propose_batch(memory, round(260 / dry_run.MARGIN) + 1) == 16
    assert dry_run.propose_batch(memory, round(259 / dry_run.MARGIN)) == 8
    assert dry_run.propose_batch(memory, 50) == 0


def test_the_report_names_everything_and_proposes_what_fits(monkeypatch):
    said = []
    monkeypatch.setattr(dry_run, "step_seconds", lambda trainer: 0.5)
    one = dry_run.measure_memory(CONFIG, "3d", CPU, Execution())
    monkeypatch.setattr(dry_run, "free_memory", lambda device: round(one.at(4) / dry_run.MARGIN) + 1)
    dry_run.dry_run(dataclasses.replace(CONFIG, stage="3d"), CPU, Execution(), said.append)
    text = "\n".join(said)
    trainer = StageTrainer(CONFIG, "3d", CPU)
    assert f"G {sum(p.numel() for p in trainer.G.parameters()):,}" in text
    assert "does not fit: propose --batch-3d 4, or --accumulate 3 at this batch" in text
    assert "speed: 8.00 images/s at batch 4; 0.06 thousand images take 0.1 min" in text
    assert "nothing was written" in text
    assert all(word in text for word in ("FLOP", "per image at a time", "are free on cpu"))


def test_lazy_phases_count_by_their_share(monkeypatch):
    trainer = StageTrainer(dataclasses.replace(CONFIG, d_reg_interval=4, g_reg_interval=2), "3d", CPU)
    clock = [0.0]

    def step(*inputs):
        clock[0] += 1 + (trainer.step % 2 == 0) * 0.5 + (trainer.step % 4 == 0) * 2

    monkeypatch.setattr(trainer, "train_step", step)
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: clock[0])
    assert dry_run.step_seconds(trainer) == pytest.approx(1 + 0.5 / 2 + 2 / 4)


def test_the_command_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_command, "dry_run", lambda cfg, device, execution: print(cfg.stage_3d.batch, execution))
    arguments = ["--out", "run", "--dry-run", "--batch-3d", "6", "--accumulate", "2", "--threads", "1"]
    assert train_command.main(arguments) == 0
    assert "6 Execution(accumulate=2" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision, recompute", [("fp32", False), ("fp32", True), ("fp16", False)])
@pytest.mark.parametrize("stage", ["2d", "3d"])
def test_the_meta_device_counts_what_a_real_step_does(stage, recompute, precision):
    """The same operations, and the same peak of bytes to 1 %, without the memory."""
    cfg = dataclasses.replace(dry_run.with_batch(CONFIG, stage, 4), precision=precision)
    execution = Execution(recompute=recompute)
    counted = []
    for make in (dry_run.MetaTrainer, lambda cfg, stage, execution: StageTrainer(cfg, stage, CPU, execution)):
        live = dry_run.LiveBytes()
        with live:
            trainer = make(cfg, stage, execution)
            batch = dry_run.empty_batch(trainer)
            trainer.train_step(*batch)
        counted.append((live.peak, dry_run.count_flops(lambda t=trainer, b=batch: t.train_step(*b))))
        del trainer, batch
    (ours, operations), (real, real_operations) = counted
    assert operations == real_operations and ours == pytest.approx(real, rel=0.01)


def test_smaller_volumes_keep_the_widths_of_the_finer_levels():
    network = dataclasses.replace(PRESETS["brain"].network(), dense_levels=(0, 2)).depth_aware()
    half = dry_run.smaller(dataclasses.replace(CONFIG, network=network)).network
    assert half.shape == (64, 64, 64) and half.widths == network.widths[1:] and half.base == network.base
    assert half.dense_levels == (1,) and half.depth_places == (half.base[0], 64)


def test_extrapolated_speed_goes_by_operations(monkeypatch):
    """With steps that take a second for each 1e6 operations, small and full volumes give the same speed."""

    def seconds(trainer):
        one = dry_run.with_batch(trainer.cfg, "3d", 1)
        return trainer.hyper.batch * dry_run.count_operations(dry_run.MetaTrainer(one, "3d", Execution())).step / 1e6

    monkeypatch.setattr(dry_run, "step_seconds", seconds)
    monkeypatch.setattr(dry_run, "free_memory", lambda device: 2**60)
    lines = []
    cfg = dataclasses.replace(LARGER, stage="3d")
    for limit in (2**60, dry_run.measure_memory(dry_run.smaller(cfg), "3d", CPU, Execution()).at(12)):
        said = []
        monkeypatch.setattr(dry_run, "TIMED_BYTES", limit)
        dry_run.dry_run(cfg, CPU, Execution(), said.append)
        lines.append(next(line for line in said if "speed" in line))
    assert "from steps of 12 images of 8x16x16 by operations" in lines[1] and "from steps" not in lines[0]
    assert lines[1].replace(", from steps of 12 images of 8x16x16 by operations", "") == lines[0]


LARGE_SCRIPT = """
import dataclasses, torch
from ssgan.config.presets import preset
from ssgan.training import dry_run
from ssgan.training.precision import Execution
torch.set_num_threads(1)
once = lambda trainer: trainer.train_step(*dry_run.empty_batch(trainer)) and 1.0
dry_run.step_seconds, dry_run.free_memory = once, lambda device: 2**45
cfg = preset("brain").train_config("brain", shape=(512, 512, 512), stage="3d")
dry_run.dry_run(cfg, torch.device("cpu"), Execution())
line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(line.split()[1]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_a_dry_run_takes_less_than_two_gigabytes_whatever_the_shape():
    """512^3 voxels in batches of 8, which would take terabytes."""
    done = subprocess.run(
        [sys.executable, "-c", LARGE_SCRIPT], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    *said, peak = done.stdout.splitlines()
    assert "stage 3d: 512x512x512 voxels" in said[0] and "by operations" in "".join(said)
    need = float(said[3].split("about ")[1].split(" GiB")[0])
    assert need > 1000 and int(peak) < 2e9, said
