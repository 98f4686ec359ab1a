"""Losses and regularisers against closed forms."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssgan.models.networks import Mapping
from ssgan.training import losses

SHAPE = (2, 1, 3, 5, 4)  # N, C, D, H, W


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_logistic_losses_are_the_log_likelihoods():
    fake, real = torch.tensor([[-2.0], [0.5]]), torch.tensor([[1.5], [-0.25]])
    p_fake, p_real = (1 / (1 + np.exp(-x.numpy().astype(np.float64))) for x in (fake, real))
    assert float(losses.generator_loss(fake)) == pytest.approx(-np.log(p_fake).mean(), rel=1e-6)
    expected = -np.log(1 - p_fake).mean() - np.log(p_real).mean()
    assert float(losses.discriminator_loss(fake, real)) == pytest.approx(expected, rel=1e-6)


def test_the_relativistic_loss_is_the_log_likelihood_of_each_pair():
    own, other = (torch.randn(5, 1, generator=rng(i), dtype=torch.float64).requires_grad_() for i in (10, 11))
    expected = -np.log(1 / (1 + np.exp(-(own - other).detach().numpy()))).mean()
    assert losses.relativistic_loss(own, other).item() == pytest.approx(expected, rel=1e-12)
    assert losses.relativistic_loss(own, other.flip(0)).item() != pytest.approx(expected, rel=1e-3)
    assert torch.autograd.gradcheck(losses.relativistic_loss, (own, other))
    assert torch.autograd.gradgradcheck(losses.relativistic_loss, (own, other))
    far = torch.tensor([[1e4]])
    assert float(losses.relativistic_loss(-far, far)) == pytest.approx(2e4)


def test_losses_stay_finite_for_large_logits():
    logits = torch.tensor([[1e4], [-1e4]])
    assert float(losses.generator_loss(logits)) == pytest.approx(5e3)


def test_r1_of_a_linear_discriminator_is_its_squared_norm():
    a = torch.randn(SHAPE[1:], generator=rng(1), dtype=torch.float64, requires_grad=True)
    x = torch.randn(SHAPE, generator=rng(2), dtype=torch.float64, requires_grad=True)
    logits = (x * a).flatten(1).sum(1, keepdim=True)
    penalty = losses.gradient_penalty(logits, x)
    assert penalty.shape == (2,)
    torch.testing.assert_close(penalty, a.square().sum().expand(2))
    penalty.mean().backward()
    torch.testing.assert_close(a.grad, 2 * a.detach())  # second order: d|a|^2/da


def test_r1_of_a_quadratic_discriminator():
    x = torch.randn(SHAPE, generator=rng(3), dtype=torch.float64, requires_grad=True)
    logits = 1.5 * x.square().flatten(1).sum(1, keepdim=True)
    torch.testing.assert_close(losses.gradient_penalty(logits, x), 9 * x.detach().square().flatten(1).sum(1))


def linear_generator(num_ws=3, w_dim=6, seed=0):
    """images[n] = sum over layers of M[l] ws[n, l]."""
    M = torch.randn(num_ws, math.prod(SHAPE[1:]), w_dim, generator=rng(seed), dtype=torch.float64)
    return M.requires_grad_(True)


def test_path_length_of_a_linear_generator():
    M = linear_generator()
    ws = torch.randn(SHAPE[0], 3, 6, generator=rng(4), dtype=torch.float64, requires_grad=True)
    images = torch.einsum("lvw,nlw->nv", M, ws).reshape(SHAPE)
    y = torch.randn(SHAPE, generator=rng(5), dtype=torch.float64)
    mean = torch.tensor(0.7, dtype=torch.float64)
    out = losses.path_length_penalty(images, ws, y, mean, 0.01)

    m, v = M.detach().numpy(), y.flatten(1).numpy()
    voxels = 3 * 5 * 4
    jy = np.einsum("lvw,nv->nlw", m, v) / math.sqrt(voxels)
    lengths = np.sqrt((jy**2).sum(2).mean(1))
    moved = 0.7 + 0.01 * (lengths.mean() - 0.7)
    np.testing.assert_allclose(out.lengths.numpy(), lengths, rtol=1e-12)
    assert float(out.mean) == pytest.approx(moved, rel=1e-12)
    np.testing.assert_allclose(out.penalty.detach().numpy(), (lengths - moved) ** 2, rtol=1e-10)
    assert not out.mean.requires_grad and not out.lengths.requires_grad
    # The penalty differentiates by the generator's weights; central differences agree.
    (gradient,) = torch.autograd.grad(out.penalty.mean(), M)
    direction = torch.randn(M.shape, generator=rng(6), dtype=torch.float64)

    def at(step):
        moved_m = (M + step * direction).detach().requires_grad_(True)
        im = torch.einsum("lvw,nlw->nv", moved_m, ws).reshape(SHAPE)
        return float(losses.path_length_penalty(im, ws, y, mean, 0.01).penalty.detach().mean())

    numeric = (at(1e-5) - at(-1e-5)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=1e-6)


def test_path_length_of_a_volume_constant_along_depth_is_that_of_its_slice():
    depth, M = 4, torch.randn(2, 15, 6, generator=rng(7), dtype=torch.float64)
    ws = torch.randn(1, 2, 6, generator=rng(8), dtype=torch.float64, requires_grad=True)
    flat = torch.einsum("lvw,nlw->nv", M, ws).reshape(1, 1, 1, 5, 3)
    y3 = torch.randn(1, 1, depth, 5, 3, generator=rng(9), dtype=torch.float64)
    y2 = y3.sum(2, keepdim=True) / math.sqrt(depth)  # standard normal when y3 is
    zero = torch.tensor(0.0, dtype=torch.float64)
    full = losses.path_length_penalty(flat.expand(-1, -1, depth, -1, -1), ws, y3, zero, 0.01)
    torch.testing.assert_close(full.lengths, losses.path_length_penalty(flat, ws, y2, zero, 0.01).lengths)


def test_crossover_is_uniform_over_the_inner_layers():
    generator, n = rng(1), 4000
    drawn = np.array([losses.draw_crossover(7, 0.9, generator) for _ in range(n)])
    assert set(drawn) == set(range(1, 8))
    shares = np.bincount(drawn, minlength=8)[1:] / n
    np.testing.assert_allclose(shares[:6], 0.15, atol=0.03)
    assert shares[6] == pytest.approx(0.1, abs=0.025)
    assert {losses.draw_crossover(7, 0.0, generator) for _ in range(50)} == {7}
    assert losses.draw_crossover(1, 1.0, generator) == 1


class Doubling(nn.Module):
    def forward(self, z, labels=None):
        return 2 * z


@pytest.mark.parametrize("crossover", [1, 3, 5])
def test_mixed_styles_switch_latent_at_the_crossover(crossover):
    mapping = Doubling()
    z, other = torch.randn(2, 3, 4, generator=rng(2))
    ws = losses.mixed_styles(mapping, z, other, 5, crossover)
    assert ws.shape == (3, 5, 4)
    for layer in range(5):
        assert torch.equal(ws[:, layer], 2 * (z if layer < crossover else other))


@pytest.mark.parametrize("classes", [0, 3])
def test_mixed_styles_are_those_of_two_calls_with_all_derivatives(classes):
    """Up to rounding: values, first derivatives, and the second ones that path length needs."""
    mapping = Mapping(5, 7, 2, classes)
    drawn = rng(8)
    z, other = torch.randn(2, 3, 5, generator=drawn)
    labels = F.one_hot(torch.tensor([2, 0, 2]), 3).float() if classes else None
    upstream, direction = torch.randn(2, 3, 4, 7, generator=drawn)
    found = []
    for styles in (losses.mixed_styles, separate_styles):
        leaves = [t.clone().requires_grad_() for t in (z, other)]
        ws = styles(mapping, *leaves, 4, 3, labels)
        first = torch.autograd.grad((ws.square() * upstream).sum(), [*leaves, *mapping.parameters()], create_graph=True)
        second = torch.autograd.grad((first[1] @ direction[0, :1, :5].t()).sum(), list(mapping.parameters()))
        found.append([ws, *first, *second])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two)


def separate_styles(mapping, z, other, num_ws, crossover, labels):
    chosen = [mapping(z if layer < crossover else other, labels) for layer in range(num_ws)]
    return torch.stack(chosen, 1)
