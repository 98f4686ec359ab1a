"""Masks as image channels: their encoding, the generator's softmax, hidden masks, and channels added by inflation."""

import numpy as np
import pytest
import torch

from ssgan.config.network import ARCHITECTURES, NetworkConfig
from ssgan.models import masks
from ssgan.models.conditioning import Condition
from ssgan.models.inflation import inflate_network
from ssgan.models.mask_channels import add_mask_channels
from ssgan.models.networks import Discriminator, Generator
from ssgan.models.sampling import synthesise, synthesise_pairs
from ssgan.utils.errors import ConfigError, UserError
from tests.ssgan.models.test_networks import randomised, small

K = 3
SHAPE = (8, 12, 20)


def pairs(shape=SHAPE, arch="split_depth", **fields):
    return small(shape, arch, **fields).with_masks(K)


def drawn(seed, *shape):
    return torch.randint(K, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.mark.parametrize("shape", [(2, 5, 7, 4), (3, 1, 6, 5), (1, 2, 1, 9)], ids=str)
def test_masks_are_encoded_as_half_one_hot_and_half_its_low_pass(shape):
    labels = drawn(0, *shape)
    smooth = one_hot = np.stack([labels.numpy() == k for k in range(K)], 1).astype(np.float64)
    for axis in (2, 3, 4):
        if shape[axis - 1] > 1:
            rows = [
                np.take(smooth, np.clip(np.arange(shape[axis - 1]) + d, 0, shape[axis - 1] - 1), axis)
                for d in (-1, 0, 1)
            ]
            smooth = 0.25 * rows[0] + 0.5 * rows[1] + 0.25 * rows[2]
    expected = 2 * (0.98 * (one_hot + smooth) / 2 + 0.02 / K) - 1
    encoded = masks.encode_masks(labels, K)
    assert encoded.dtype == torch.float32 and encoded.abs().max() < 1
    np.testing.assert_allclose(encoded.numpy(), expected, atol=1e-6)


def test_the_most_probable_class_of_an_encoded_mask_is_the_mask():
    """Whatever it is: single voxels of a class too, which a low-pass alone would lose."""
    labels = drawn(1, 4, 6, 7, 8)
    labels[0] = 0
    labels[0, 3, 3, 3] = 2
    images = torch.cat([torch.full((4, 1, 6, 7, 8), 9.0), masks.encode_masks(labels, K)], 1)
    assert torch.equal(masks.decode_masks(images), labels)


def test_a_volume_without_a_mask_is_encoded_as_no_knowledge():
    labels = drawn(2, 2, 4, 5, 6)
    labels[1] = masks.NO_MASK
    encoded = masks.encode_masks(labels, K)
    assert torch.equal(encoded[0], masks.encode_masks(labels[:1], K)[0]) and not encoded[1].any() and encoded[0].any()


@pytest.mark.parametrize("flat", [True, False], ids=["2d", "3d"])
def test_a_generator_gives_probabilities_of_the_classes_beside_the_intensity(flat):
    cfg = pairs().flat() if flat else pairs()
    G = randomised(Generator(cfg), 3)
    images = G(torch.randn(2, cfg.z_dim, dtype=torch.float64), noise="none")
    assert images.shape == (2, 1 + K, *cfg.shape)
    p = (images[:, 1:] + 1) / 2
    torch.testing.assert_close(p.sum(1), torch.ones_like(p[:, 0]))
    assert p.min() >= 0 and 0.05 < p.std()
    # The intensity and the odds are those of the same network without the softmax.
    plain = Generator(small(cfg.shape, image_channels=1 + K) if not flat else small(SHAPE, image_channels=1 + K).flat())
    plain.double().load_state_dict(G.state_dict())
    raw = plain(
        torch.randn(2, cfg.z_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), noise="none"
    )
    own = G(torch.randn(2, cfg.z_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), noise="none")
    torch.testing.assert_close(own[:, 0], raw[:, 0])
    odds = ((own[:, 1:] + 1) / 2).log()
    torch.testing.assert_close(odds[:, 1] - odds[:, 0], raw[:, 2] - raw[:, 1], rtol=1e-6, atol=1e-6)


def test_a_hidden_mask_changes_nothing():
    D = randomised(Discriminator(pairs()), 4)
    x = torch.randn(4, 1 + K, *SHAPE, dtype=torch.float64, requires_grad=True)
    other = torch.cat([x[:, :1].detach(), torch.randn(4, K, *SHAPE, dtype=torch.float64)], 1)
    shown = torch.tensor([1.0, 0.0, 0.0, 1.0])
    hidden = Condition(mask_shown=torch.zeros(4))
    torch.testing.assert_close(D(x, hidden), D(other, hidden), rtol=0, atol=0)
    torch.testing.assert_close(D(x, hidden), D(masks.with_unknown_masks(x, K)), rtol=0, atol=0)
    assert (D(x) - D(other)).abs().min() > 1e-6
    (slope,) = torch.autograd.grad(D(x, Condition(mask_shown=shown)).square().sum(), x)
    seen = slope.abs().sum((2, 3, 4)) > 0
    assert torch.equal(seen[:, 0], torch.ones(4, dtype=torch.bool))
    assert torch.equal(seen[:, 1:], (shown > 0)[:, None].expand(-1, K))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_after_centre_every_slice_of_a_generated_pair_is_the_2d_pair(arch):
    cfg = pairs(arch=arch)
    flat, full = randomised(Generator(cfg.flat()), 5), randomised(Generator(cfg), 6)
    inflate_network(flat, full, "centre")
    z = torch.randn(2, cfg.z_dim, dtype=torch.float64)
    torch.testing.assert_close(
        full(z, noise="none"), flat(z, noise="none").expand(-1, -1, SHAPE[0], -1, -1), rtol=1e-6, atol=1e-7
    )


def test_added_channels_leave_intensities_and_judgement_as_they_were():
    small_cfg, cfg = small(SHAPE), pairs()
    z, x = torch.randn(3, cfg.z_dim, dtype=torch.float64), torch.randn(4, 1 + K, *SHAPE, dtype=torch.float64)
    G, D = randomised(Generator(small_cfg), 7), randomised(Discriminator(small_cfg), 8)
    wide_g, wide_d = randomised(Generator(cfg), 9), randomised(Discriminator(cfg), 10)
    fresh = wide_g.synthesis.blocks[1].to_image.weight[1:].clone()
    actions = add_mask_channels(G, wide_g)
    assert set(actions) == {
        f"synthesis.blocks.{i}.to_image.{n}" for i in range(len(cfg.widths)) for n in ("weight", "bias")
    }
    assert set(add_mask_channels(D, wide_d)) == {"from_image.stages.0.weights.0"}
    torch.testing.assert_close(wide_g(z, noise="const")[:, :1], G(z, noise="const"))
    assert torch.equal(wide_g.synthesis.blocks[1].to_image.weight[1:], fresh) and fresh.abs().min() > 0
    torch.testing.assert_close(wide_d(x), D(x[:, :1]))
    (slope,) = torch.autograd.grad(wide_d(x).sum(), wide_d.from_image.stages[0].weights[0])
    assert slope[:, 1:].abs().max() > 0  # the new weights learn, although they are 0
    with pytest.raises(UserError, match=r"mapping\.layers\.0\.weight: expected"):
        add_mask_channels(Generator(small(SHAPE, z_dim=7)).double(), wide_g)


def test_pairs_are_the_intensities_and_the_most_probable_classes():
    cfg = pairs()
    G = randomised(Generator(cfg), 11)
    z = torch.randn(3, cfg.z_dim, dtype=torch.float64)
    volumes, labels = synthesise_pairs(G, z, batch=2)
    images = G(z, noise="const")
    np.testing.assert_allclose(volumes, images[:, 0].detach().numpy(), atol=1e-6)
    assert labels.dtype == np.uint8 and np.array_equal(labels, images[:, 1:].detach().numpy().argmax(1))
    assert np.array_equal(synthesise(G, z, batch=2), volumes) and len(np.unique(labels)) == K
    plain = randomised(Generator(small(SHAPE)), 12)
    assert synthesise_pairs(plain, z, batch=2).masks is None


def test_wrong_numbers_of_classes_and_channels_are_refused():
    cfg = small(SHAPE)
    for classes, channels in ((1, 2), (3, 3), (3, 1), (-1, 0)):
        with pytest.raises(ConfigError, match=r"mask_classes|image_channels"):
            NetworkConfig(**{**vars(cfg), "mask_classes": classes, "image_channels": channels})
    assert pairs().with_masks(0) == cfg and pairs().flat().mask_classes == K
