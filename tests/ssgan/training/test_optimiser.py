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


def test_update_ema_is_the_weighted_mean_and_copies_buffers():
    average, model = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        average.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
        model.weight.copy_(torch.tensor([5.0, 2.0, -1.0]))
        model.running_mean.fill_(7.0)
        model.num_batches_tracked.fill_(9)
    optimiser.update_ema(average, model, 0.75)
    torch.testing.assert_close(average.weight.detach(), torch.tensor([2.0, 2.0, 2.0]))
    assert torch.equal(average.running_mean, model.running_mean) and int(average.num_batches_tracked) == 9
    assert torch.equal(model.weight.detach(), torch.tensor([5.0, 2.0, -1.0]))


def test_lazy_adam_correction():
    lr, betas = optimiser.lazy_adam(0.002, (0.5, 0.99), 16)
    assert lr == pytest.approx(0.002 * 16 / 17)
    assert betas == pytest.approx((0.5 ** (16 / 17), 0.99 ** (16 / 17)))
    assert optimiser.lazy_adam(0.002, (0.0, 0.99), None) == (0.002, (0.0, 0.99))
    assert optimiser.lazy_adam(0.002, (0.0, 0.99), 4)[1][0] == 0.0


def test_check_finite_names_weights_before_gradients_before_the_loss():
    models = {"G": nn.Linear(2, 2), "D": nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))}
    optimiser.check_finite("here", 1.0, models, "D")
    with pytest.raises(optimiser.NonFiniteError, match="here: the loss is nan; all weights and gradients are finite"):
        optimiser.check_finite("here", math.nan, models, "D")
    models["D"](torch.ones(1, 2)).sum().backward()
    models["D"][1].weight.grad[0, 2] = math.inf
    with pytest.raises(optimiser.NonFiniteError, match=r"gradient of D\.1\.weight is not finite \(1 such"):
        optimiser.check_finite("here", 0.0, models, "D")
    with torch.no_grad():
        models["G"].bias[1] = math.nan
    with pytest.raises(optimiser.NonFiniteError, match=r"weight G\.bias is not finite"):
        optimiser.check_finite("here", 0.0, models, "D")
