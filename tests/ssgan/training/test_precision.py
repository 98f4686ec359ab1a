"""16-bit convolutions, loss scaling, activation checkpointing and compilation change a step only by rounding."""

import dataclasses

import pytest
import torch

from ssgan.models.layers import Conv, FullyConnected, MinibatchStd, ModulatedConv
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.training.optimiser import NonFiniteError
from ssgan.training.precision import Execution, LossScale
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError
from tests.support.process_checks import CONFIG, SHAPE
from tests.support.steps import stepped

CPU = torch.device("cpu")


def config(precision, **changes):
    hyper = dataclasses.replace(CONFIG.stage_3d, batch=4)
    return dataclasses.replace(CONFIG, precision=precision, stage_3d=hyper, **changes)


def reals(count=3):
    return torch.rand(count, 4, 1, *SHAPE, generator=torch.Generator().manual_seed(5)) * 2 - 1


def run(cfg, execution=None, count=3):
    trainer = StageTrainer(cfg, "3d", CPU, execution)
    return trainer, [stepped(trainer, images) for images in reals(count)]


@pytest.fixture(scope="module")
def plain():
    return run(config("fp32"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_in_the_convolutions_and_float32_elsewhere(plain, precision):
    cfg = config(precision)
    trainer = StageTrainer(cfg, "3d", CPU)
    seen = {}

    def note(module, inputs, output):
        seen.setdefault(type(module), set()).add(output.dtype)

    for net in (trainer.G, trainer.D):
        for module in net.modules():
            if isinstance(module, (Conv, ModulatedConv, FullyConnected, MinibatchStd)):
                module.register_forward_hook(note)
    stats = [stepped(trainer, images) for images in reals()]
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen[Conv] == seen[ModulatedConv] == {half}
    assert seen[FullyConnected] == seen[MinibatchStd] == {torch.float32}
    assert all(t.dtype == torch.float32 for t in (*trainer.G.state_dict().values(), *trainer.D.state_dict().values()))
    assert trainer.phases.generate(trainer.draw("g_main", 4))[0].dtype == torch.float32
    for found, expected in zip(stats, plain[1], strict=True):
        assert found.keys() == expected.keys()
        for name in ("loss_g", "loss_d", "path_length", "r1"):
            if name in expected:
                assert found[name] == pytest.approx(expected[name], rel=0.05), name
                assert found[name] != expected[name]


def test_fp16_resumes_its_loss_scale_exactly():
    cfg = config("fp16")
    trainer, _ = run(cfg)
    trainer.scale_d.load(torch.tensor([512.0, 17.0]))
    again = StageTrainer(cfg, "3d", CPU)
    again.load({n: t.clone() for n, t in trainer.state().items()}, CheckpointMeta("3d", 3, 12, ""), "memory")
    assert (again.scale_d.scale, again.scale_d.good, again.scale_g.good) == (512.0, 17, trainer.scale_g.good)
    images = reals(4)[3]
    assert stepped(trainer, images) == stepped(again, images)
    assert all(torch.equal(a, b) for a, b in zip(trainer.state().values(), again.state().values(), strict=True))


def test_overflowing_gradients_skip_the_step_and_halve_the_scale():
    trainer = StageTrainer(config("fp16"), "3d", CPU)
    before = {n: p.detach().clone() for n, p in trainer.D.named_parameters()}
    trainer.scale_d.load(torch.tensor([2.0**40, 0.0]))  # no half-precision gradient survives that
    stepped(trainer, reals(1)[0])
    assert trainer.scale_d.scale == 2.0**38  # two phases of D in this step
    assert all(torch.equal(before[n], p) for n, p in trainer.D.named_parameters())


def test_loss_scale_grows_halves_and_gives_up_at_one():
    scale, finite, alive = LossScale(True, scale=4.0, interval=2), torch.tensor(True), torch.tensor(True)

    def updated(finite, alive=alive):
        goes_on = bool(scale.excuses(finite))
        scale.update(finite, alive & goes_on)
        return goes_on

    assert updated(finite) and updated(finite) and scale.scale == 8.0
    assert [updated(~finite) for _ in range(4)] == [True, True, True, False] and scale.scale == 1.0
    assert updated(finite) and scale.good == 1.0
    assert updated(finite, ~alive) and (scale.scale, scale.good) == (1.0, 1.0)  # training has ended
    scale.load(torch.tensor([2.0**24, 1.0]))
    assert updated(finite) and (scale.scale, scale.good) == (2.0**24, 0.0)
    off = LossScale(False)
    assert off.excuses(finite) and not off.excuses(~finite) and off.scale == 1.0


def test_a_nan_weight_stops_fp16_too():
    trainer = StageTrainer(config("fp16"), "3d", CPU)
    with torch.no_grad():
        trainer.D.head.fc.weight[0, 0] = float("nan")
    trainer.train_step(reals(1)[0])
    with pytest.raises(NonFiniteError, match=r"weight D\.head\.fc\.weight"):
        trainer.check()


def test_recomputed_activations_are_the_same_step_to_the_second_order_with_less_memory(plain):
    """Between the passes no activation within a block is kept."""
    trainer, stats = run(config("fp32"), Execution(recompute=True))
    assert stats == plain[1]
    assert all(torch.equal(a, b) for a, b in zip(trainer.state().values(), plain[0].state().values(), strict=True))

    def kept(execution):
        net, sizes = StageTrainer(config("fp32"), "3d", CPU, execution), []
        own = {p.data_ptr() for p in net.D.parameters()}
        pack = lambda t: (sizes.append(t.numel()) if t.data_ptr() not in own else None, t)[1]  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            net.D(reals(1)[0])
        return sum(sizes)

    assert kept(Execution(recompute=True)) < 0.6 * kept(Execution())


def test_compiled_networks_are_the_same_step(plain):
    _, stats = run(config("fp32"), Execution(compile="aot_eager"), count=1)
    assert stats[0] == pytest.approx(plain[1][0], rel=1e-4)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="precision: expected fp32, bf16 or fp16; got 'fp8'"):
        config("fp8")
