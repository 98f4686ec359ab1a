"""--loss relativistic: pairs of real and generated images, and R2, against the same written out in float64."""

import argparse
import dataclasses

import pytest
import torch
from PIL import Image

from ssgan.config.augmentation import AugmentConfig, policy
from ssgan.config.training import StageConfig, TrainConfig
from ssgan.data.phantom import write_phantom_dataset
from ssgan.models.conditioning import Condition
from ssgan.runs import checkpoint
from ssgan.runs.checkpoint import CheckpointMeta
from ssgan.runs.log import JsonLog
from ssgan.training import dry_run, loop, options
from ssgan.training.accumulation import GeneratorInputs, ImageBatch
from ssgan.training.precision import Execution
from ssgan.training.run import Run
from ssgan.training.step import StageTrainer
from ssgan.utils.errors import ConfigError
from ssgan.utils.seeding import stream_seed
from tests.support.process_checks import CONFIG, SHAPE
from tests.support.steps import run_phase, stepped

CPU = torch.device("cpu")
BATCH, GAMMAS = 12, {"r1_gamma": 1.5, "r2_gamma": 0.7}
PAIRS = dataclasses.replace(
    CONFIG,
    loss="relativistic",
    augment=AugmentConfig(),
    network=dataclasses.replace(CONFIG.network, classes=3),
    stage_3d=StageConfig(kimg=0.06, batch=BATCH, **GAMMAS),
)
ADA = dataclasses.replace(PAIRS, augment=policy("brain", adapt=False, p_start=0.8))


def made(cfg=PAIRS, execution=None):
    counts = (1, 4, 2) if cfg.network.classes else None
    return StageTrainer(cfg, "3d", CPU, execution, class_counts=counts)


def real_images(seed=0, batch=BATCH):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(batch, 1, *SHAPE, generator=generator) * 2 - 1
    return images, torch.randint(3, (batch,), generator=generator)


def own(trainer, images, labels):
    """The real images and classes of this process's samples, as `train_step` takes them."""
    return images[trainer.local_samples], Condition(labels[trainer.local_samples])


# ---- the loss written out: nothing of losses.py and phases.py is used ----


def generated(G, inputs, labels):
    w = [G.mapping(z, labels) for z in (inputs.z, inputs.z_mixed)]
    ws = torch.stack([w[layer >= int(inputs.crossover)] for layer in range(G.num_ws)], 1)
    return G.synthesis(ws, inputs.noise)


def pair_loss(better, worse):
    return torch.log1p(torch.exp(worse - better)).mean()


def penalty(D, images, labels, change=lambda images: images):
    images = images.detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(D(change(images), Condition(labels)).sum(), images, create_graph=True)
    return slope.square().sum((1, 2, 3, 4)).mean()


def gradients(loss, net):
    found = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    return {n: g for (n, _), g in zip(net.named_parameters(), found, strict=True)}


def assert_gradients(net, expected):
    for name, p in net.named_parameters():
        g = torch.zeros_like(p) if expected[name] is None else expected[name]
        got = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(got, g, rtol=1e-8, atol=1e-10, msg=lambda text, n=name: f"{n}: {text}")
        p.grad = None


def assert_slope(net, loss, expected, seed):
    """Central differences of loss() along a random direction of the network's parameters."""
    generator = torch.Generator().manual_seed(seed)
    along = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in net.named_parameters()}
    values = []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for name, p in net.named_parameters():
                p += sign * 1e-8 * along[name]  # small: the slope of a leaky ReLU jumps
        values.append(float(loss().detach()))
    slope = sum(float((g * along[n]).sum()) for n, g in expected.items() if g is not None)
    assert (values[0] - values[1]) / 2e-8 == pytest.approx(slope, rel=1e-4) and abs(slope) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 3])
def test_gradients_of_every_phase_are_those_of_the_loss_written_out(accumulate):
    """In float64, to the second order for R1 and R2; the written-out loss by central differences too."""
    trainer = made(execution=Execution(accumulate=accumulate))
    G, D, phases, one = trainer.G.double(), trainer.D.double(), trainer.phases, torch.ones((), dtype=torch.float64)
    x, labels = real_images()
    x = x.double()
    c = torch.nn.functional.one_hot(labels, 3).double()
    drawn = trainer.draw("d_main", BATCH)
    noise = [[n.double() for n in block] for block in drawn.noise]
    inputs = GeneratorInputs(drawn.z.double(), drawn.z_mixed.double(), drawn.crossover, noise, drawn.condition)
    assert not torch.equal(drawn.condition.labels.double(), c)  # a generated image takes its partner's class
    reals = [ImageBatch(x[m.samples], Condition(c[m.samples])) for m in phases.micro_batches]

    def loss_g():
        return pair_loss(D(generated(G, inputs, c), Condition(c)), D(x, Condition(c)))

    D.requires_grad_(False)
    value, mean_w = run_phase(phases, G, phases.generator, inputs, reals, None, None, one)
    D.requires_grad_(True)
    expected = gradients(loss_g(), G)
    assert float(value) == pytest.approx(float(loss_g().detach()), rel=1e-6)
    assert_gradients(G, expected)
    assert_slope(G, loss_g, expected, 1)
    torch.testing.assert_close(mean_w, G.mapping(inputs.z, c).mean(0))

    fakes = generated(G, inputs, c).detach()

    def loss_d():
        return pair_loss(D(x, Condition(c)), D(fakes, Condition(c)))

    def loss_r():
        r1, r2 = (GAMMAS[f"r{i}_gamma"] / 2 * PAIRS.d_reg_interval for i in (1, 2))
        return r1 * penalty(D, x, c) + r2 * penalty(D, fakes, c)

    value, kept = run_phase(phases, D, phases.discriminator, inputs, reals, None, None, one)
    expected = gradients(loss_d(), D)
    assert float(value) == pytest.approx(float(loss_d().detach()), rel=1e-6)
    assert_gradients(D, expected)
    assert_slope(D, loss_d, expected, 2)
    value = run_phase(phases, D, phases.penalty, reals, kept, None, None, one)
    expected = gradients(loss_r(), D)
    assert float(value) == pytest.approx(float(loss_r().detach()), rel=1e-6)
    assert_gradients(D, expected)
    assert_slope(D, loss_r, expected, 3)


@pytest.mark.parametrize("cfg", [PAIRS, ADA], ids=["plain", "augmented"])
@pytest.mark.parametrize("step", [0, 1])
def test_a_step_reports_the_loss_written_out(cfg, step):
    """Real and generated images are augmented with draws of their own in each phase; step 0 has all phases."""
    net, frozen = made(cfg), made(cfg)
    net.step = step
    x, labels = real_images(1)
    c = torch.nn.functional.one_hot(labels, 3).float()

    def change(purpose):
        if not cfg.augment.active:
            return lambda images: images
        draws = net.augment.draw(BATCH, 0.8, torch.Generator().manual_seed(stream_seed(cfg.seed, "3d", step, purpose)))
        return lambda images: net.augment(images, draws)

    frozen.step = step
    stats = stepped(net, *own(net, x, labels))
    G, D = frozen.G, frozen.D
    fake, real = (
        D(change(purpose)(images), Condition(c)).detach()
        for purpose, images in (("aug_g", generated(G, frozen.draw("g_main", BATCH), c)), ("aug_g_real", x))
    )
    assert stats["loss_g"] == pytest.approx(float(pair_loss(fake, real)), rel=1e-5)
    assert stats["sign_fake"] == pytest.approx(float((fake - real).sign().mean()), abs=1e-6)
    G.load_state_dict(net.G.state_dict())  # D before the step, G after its own phases
    fakes = generated(G, frozen.draw("d_main", BATCH), c).detach()
    fake, real = D(change("aug_fake")(fakes), Condition(c)), D(change("aug_real")(x), Condition(c))
    assert stats["loss_d"] == pytest.approx(float(pair_loss(real, fake).detach()), rel=1e-5)
    assert stats["sign_real"] == pytest.approx(float((real - fake).sign().mean().detach()), abs=1e-6)
    assert ("r1" in stats, "r2" in stats) == (step == 0, step == 0)
    if step == 0:
        # D has taken a step between its loss and the penalties.
        adam = torch.optim.Adam(
            D.parameters(), lr=net.opt_d.defaults["lr"], betas=net.opt_d.defaults["betas"], eps=1e-3
        )
        pair_loss(real, fake).backward()
        adam.step()
        for name, images in (("r1", x), ("r2", fakes)):
            expected = float(penalty(D, images, c, change(f"aug_{name}")).detach())
            assert stats[name] == pytest.approx(expected, rel=1e-4)


def test_real_logits_cost_the_generator_one_forward_pass_without_a_gradient():
    cfg = dataclasses.replace(PAIRS, network=CONFIG.network)
    calls, flops = {}, {}
    for loss in ("logistic", "relativistic"):
        trainer = made(dataclasses.replace(cfg, loss=loss))
        trainer.step = 1  # without path length and penalties
        seen = []
        trainer.D.register_forward_hook(lambda module, inputs, y, seen=seen: seen.append(y.requires_grad))
        trainer.train_step(real_images()[0])
        calls[loss] = list(seen)
        flops[loss] = dry_run.count_flops(lambda t=trainer: t.train_step(real_images()[0]))
    assert calls["logistic"] == [True, True, True] and calls["relativistic"] == [False, True, True, True]
    D = made(cfg).D.requires_grad_(False)
    forward = dry_run.count_flops(lambda: D(real_images()[0]))
    assert flops["relativistic"] - flops["logistic"] == forward > 0


def test_a_constant_added_to_all_logits_changes_nothing():
    """So p of adaptive augmentation follows the difference in a pair, not the sign of one logit."""
    cfg = dataclasses.replace(ADA, network=CONFIG.network, augment=policy("brain", p_start=0.3, interval=1, kimg=0.1))
    found = []
    for bias in (0.0, 3.0):
        trainer = made(cfg)
        with torch.no_grad():
            trainer.D.head.out.bias.fill_(bias)
        found.append([stepped(trainer, real_images(i)[0]) for i in range(3)])
        assert float(trainer.D.head.out.bias.detach()) == bias  # its gradient is exactly 0
    assert len({stats["augment_p"] for stats in found[0]}) > 1
    for one, other in zip(*found, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("loss", "gammas", "expected"),
    [
        ("logistic", {"r1_gamma": 1.0}, {"r1"}),
        ("logistic", {"r1_gamma": 0.0, "r2_gamma": 2.0}, {"r2"}),
        ("relativistic", {"r1_gamma": 1.0}, {"r1", "r2"}),
        ("relativistic", {"r1_gamma": 1.0, "r2_gamma": 0.0}, {"r1"}),
        ("relativistic", {"r1_gamma": 0.0}, set()),
    ],
    ids=["logistic", "r2-alone", "relativistic", "without-r2", "no-penalty"],
)
def test_penalties_by_loss_and_weight_at_their_interval(loss, gammas, expected):
    hyper = StageConfig(kimg=0.06, batch=4, **gammas)
    cfg = dataclasses.replace(PAIRS, loss=loss, network=CONFIG.network, stage_3d=hyper, d_reg_interval=3)
    trainer = made(cfg)
    lr = hyper.lr_d * (3 / 4 if expected else 1)  # a step of the optimiser every 3 for both penalties together
    assert trainer.opt_d.defaults["lr"] == pytest.approx(lr)
    found = [{"r1", "r2"} & trainer.train_step(real_images(i, 4)[0]).keys() for i in range(4)]
    assert found == [expected, set(), set(), expected]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_change_the_losses_by_rounding(precision):
    trainers = [made(dataclasses.replace(ADA, precision=name, seed=1)) for name in ("fp32", precision)]
    plain, half = (stepped(trainer, *own(trainer, *real_images())) for trainer in trainers)
    assert plain.keys() == half.keys()
    for name in ("loss_g", "loss_d", "r1", "r2"):
        assert half[name] == pytest.approx(plain[name], rel=0.05) and half[name] != plain[name], name


@pytest.mark.slow
def test_compiled_networks_are_the_same_step():
    plain, compiled = made(), made(execution=Execution(compile="aot_eager"))
    expected = stepped(plain, *own(plain, *real_images()))
    assert stepped(compiled, *own(compiled, *real_images())) == pytest.approx(expected, rel=1e-4)


def test_the_state_of_fp16_and_augmentation_goes_on_exactly():
    cfg = dataclasses.replace(ADA, precision="fp16", augment=policy("brain", p_start=0.3, interval=2, kimg=0.1))
    trainer, again = made(cfg), made(cfg)
    for i in range(3):
        trainer.train_step(*own(trainer, *real_images(i)))
    again.load({n: t.clone() for n, t in trainer.state().items()}, CheckpointMeta("3d", 3, 3 * BATCH, ""), "memory")
    for i in (3, 4):
        batch = own(trainer, *real_images(i))
        assert stepped(trainer, *batch) == stepped(again, *batch)


# ---- a run ----

RUN = dataclasses.replace(
    PAIRS, network=CONFIG.network.depth_aware(), stage_2d=StageConfig(kimg=0.048, batch=12),
    stage_3d=StageConfig(kimg=0.048, batch=12), snapshot_kimg=0.024, metrics=("distance",),
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_phantom_dataset(tmp_path_factory.mktemp("pairs") / "data", count=7, shape=SHAPE, seed=1)


def test_a_run_of_both_stages_resumes_and_rewinds_exactly(data, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    Image.new("RGB", (4, 4)).save(tmp_path / "blank.png")
    for name in ("snapshot", "draw", "plot_curves"):
        monkeypatch.setattr(Run, name, lambda self, *rest: tmp_path / "blank.png")
    silent = {"progress": False, "echo": lambda text: None}
    assert loop.train(RUN, data, tmp_path / "straight", **silent) == 0
    short = dataclasses.replace(RUN, stage_3d=dataclasses.replace(RUN.stage_3d, kimg=0.024))
    assert loop.train(short, data, tmp_path / "halted", **silent) == 0
    assert loop.train(RUN, data, tmp_path / "halted", **silent) == 0

    def final(folder):
        return checkpoint.load(checkpoint.final_path(tmp_path / folder / "checkpoints", "3d"))[0]

    straight, halted = final("straight"), final("halted")
    assert straight.keys() == halted.keys() and all(torch.equal(straight[n], halted[n]) for n in straight)
    rows = JsonLog(tmp_path / "straight" / "log.jsonl", write=False).rows
    assert all("r2" in row for row in rows if "loss_d" in row and "r1" in row)
    assert sum("r2" in row for row in rows) >= 4

    step, planted = StageTrainer.train_step, []

    def train_step(self, *batch):
        if self.stage == "3d" and self.step == 3 and not planted:
            planted.append(self.D.head.out.bias.register_hook(lambda g: g * float("nan")))
        return step(self, *batch)

    monkeypatch.setattr(StageTrainer, "train_step", train_step)
    assert loop.train(RUN, data, tmp_path / "rewound", on_nan="rewind", **silent) == 0
    tensors = final("rewound")
    assert int(tensors["rewinds"]) == 1 and all(bool(torch.isfinite(t).all()) for t in tensors.values())
    torch.set_num_threads(threads)


def test_a_dry_run_counts_the_penalties(monkeypatch):
    said = []
    monkeypatch.setattr(dry_run, "step_seconds", lambda trainer, repeats=2: 0.5)
    dry_run.dry_run(dataclasses.replace(RUN, stage="both"), CPU, Execution(), said.append)
    assert "stage 2d" in "\n".join(said) and "nothing was written" in said[-1]
    memory = [
        dry_run.measure_memory(dataclasses.replace(PAIRS, loss=loss), "3d", CPU, Execution()).at(12)
        for loss in ("logistic", "relativistic")
    ]
    assert memory[0] * 0.9 < memory[1] < memory[0] * 1.3  # generated images are kept for R2, activations are not


# ---- options ----


def parsed(line):
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return options.config_from(parser.parse_args(["--out", "run", *line.split()]), (16, 24, 16))


def test_options_become_the_configuration():
    demo, heart, plain = parsed(""), parsed("--preset heart"), parsed("--loss logistic")
    assert demo.loss == "relativistic" and demo.stage_3d.gammas(demo.loss) == (0.5, 0.5)
    assert heart.loss == "logistic" and heart.stage_3d.gammas(heart.loss) == (2.0, 0.0)
    assert plain.loss == "logistic" and plain.stage_3d.gammas(plain.loss) == (0.5, 0.0)
    cfg = parsed("--loss relativistic --r1-gamma-2d 0.3 --r2-gamma-3d 2")
    assert cfg.stage_2d.gammas(cfg.loss) == (0.3, 0.3) and cfg.stage_3d.gammas(cfg.loss) == (0.5, 2.0)
    assert parsed("--loss relativistic --r2-gamma-3d 0").stage_3d.gammas("relativistic") == (0.5, 0.0)
    assert TrainConfig.from_json(cfg.to_json()) == cfg
    with pytest.raises(ConfigError, match=r"loss: expected logistic or relativistic; got 'hinge'"):
        dataclasses.replace(cfg, loss="hinge")
    with pytest.raises(SystemExit):
        parsed("--loss hinge")
