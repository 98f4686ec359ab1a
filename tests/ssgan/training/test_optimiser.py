"""Average of the weights, lazy regularisation and the check for NaN and infinities."""

import math

import pytest
import torch
from torch import nn

from ssgan.training import optimiser


def test_ema_half_life_and_rampup():
    steps = 50  # of 20 images: one half-life of 1000
    assert optimiser.ema_beta(20, 1e9, 1000, None) ** steps == pytest.approx(0.5)
    assert optimiser.ema_beta(20, 4000, 1000, 0.05) == pytest.approx(0.5 ** (20 / 200))
    assert optimiser.ema_beta(20, 1e6, 1000, 0.05) == pytest.approx(0.5 ** (20 / 1000))
    assert optimiser.ema_beta(20, 0, 1000, 0.05) == 0.0


def test_the_average_is_the_weighted_mean_and_lies_in_one_tensor():
    average, model = nn.Linear(3, 5), nn.Linear(3, 5)  # rows that do not fill the alignment
    before = [[p.detach().clone() for p in net.parameters()] for net in (average, model)]
    both = optimiser.Average(average, model)
    for net, old in zip((average, model), before, strict=True):  # moved as they were
        assert all(map(torch.equal, net.parameters(), old))
        assert len({p.untyped_storage().data_ptr() for p in net.parameters()}) == 1
        assert all(p.data_ptr() % 256 == both.average.data_ptr() % 256 for p in average.parameters())
    for beta in (0.75, 0.25):
        both.update(torch.tensor(beta))
        before[0] = [beta * a + (1 - beta) * m for a, m in zip(*before, strict=True)]
        for found, expected in zip(average.parameters(), before[0], strict=True):
            torch.testing.assert_close(found.detach(), expected)
        assert all(map(torch.equal, model.parameters(), before[1]))
    before[0] = [p.detach().clone() for p in average.parameters()]
    both.update(torch.tensor(1.0))
    assert all(map(torch.equal, average.parameters(), before[0]))


def test_lazy_adam_correction():
    lr, betas = optimiser.lazy_adam(0.002, (0.5, 0.99), 16)
    assert lr == pytest.approx(0.002 * 16 / 17)
    assert betas == pytest.approx((0.5 ** (16 / 17), 0.99 ** (16 / 17)))
    assert optimiser.lazy_adam(0.002, (0.0, 0.99), None) == (0.002, (0.0, 0.99))
    assert optimiser.lazy_adam(0.002, (0.0, 0.99), 4)[1][0] == 0.0


def phase(loss=1.0, largest=1.0, position=0, sound=True):
    """A phase of D below, with the gradients of all but its first bias."""
    sizes = [("D.0.weight", 6), ("D.1.weight", 3), ("D.1.bias", 1)]
    found = (torch.tensor(value) for value in (sound, loss, largest, position))
    return optimiser.PhaseRecord("there", *found, sizes)


def test_check_finite_names_weights_before_gradients_before_the_loss():
    models = {"G": nn.Linear(2, 2), "D": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))}
    optimiser.check_finite("here", models)
    with pytest.raises(optimiser.NonFiniteError, match="here: the loss is nan; all weights and gradients are finite"):
        optimiser.check_finite("here", models, phase(loss=math.nan))
    for position, name in ((0, r"D\.0\.weight"), (5, r"D\.0\.weight"), (6, r"D\.1\.weight"), (9, r"D\.1\.bias")):
        for largest in (math.inf, math.nan):
            with pytest.raises(optimiser.NonFiniteError, match=f"here: the loss is 1; gradient of {name} is not fin"):
                optimiser.check_finite("here", models, phase(largest=largest, position=position))
    with torch.no_grad():
        models["G"].bias[1] = math.nan
    for given in (None, phase(loss=math.nan, largest=math.inf)):
        with pytest.raises(optimiser.NonFiniteError, match=r"weight G\.bias is not finite \(1 such"):
            optimiser.check_finite("here", models, given)


def test_the_watch_tells_the_first_phase_that_was_not_sound():
    watch = optimiser.Watch(torch.device("cpu"))
    assert watch.read() is None
    for sound, alive in ((True, True), (True, True), (False, False), (True, False), (False, False)):
        if sound and alive:
            assert watch.read() is None and not watch.unread
        watch.add(phase(loss=float(len(watch.unread)), sound=sound))
        assert bool(watch.alive) == alive
    assert watch.read().loss == watch.read().loss == 1.0  # the first of those since the last call, again and again
