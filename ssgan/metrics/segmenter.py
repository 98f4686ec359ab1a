"""A small 3D U-Net trained on real pairs of image and mask: where it segments generated images as well as real ones,
the generated masks belong to their images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor, nn
from tqdm import tqdm

from ssgan.metrics.extractors.weights import WeightsError, fit, read_weights
from ssgan.metrics.masks import mean_of, pair_dice
from ssgan.metrics.own_networks import read_record

WIDTHS = (16, 32, 64)
LEAST = 5  # pairs to train on and to hold aside
BATCH, RATE = 2, 2e-3


@dataclass(frozen=True)
class SegmenterRecord:
    """The record in the file beside the weights.

    classes: their names, background first. shape: (D, H, W). spacing: mm along D, H, W. dice: of every class but the
    background on the volumes that training held aside; None where none of them has the class. trained_on: the hashes
    (`volume_key`) of the volumes that it has seen. data: the data set's content hash.
    """

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    dice: tuple[float | None, ...]
    trained_on: tuple[str, ...]
    data: str
    steps: int
    seed: int
    format: str = "ssgan-segmenter"
    version: int = 1


def volume_key(volume: np.ndarray) -> str:
    """The first half of the SHA-256 of a volume's voxels."""
    return hashlib.sha256(np.ascontiguousarray(volume, dtype="<f4").tobytes()).hexdigest()[:32]


def convolutions(cin: int, cout: int, stride: int = 1) -> nn.Sequential:
    """Two 3x3x3 convolutions, each with instance norm and leaky ReLU; the first has the stride."""
    layers: list[nn.Module] = []
    for channels, step in ((cin, stride), (cout, 1)):
        layers += [nn.Conv3d(channels, cout, 3, step, 1, bias=False), nn.InstanceNorm3d(cout, affine=True)]
        layers.append(nn.LeakyReLU(0.01))
    return nn.Sequential(*layers)


class SegmentationNetwork(nn.Module):
    """image (N, 1, D, H, W) in [-1, 1] -> logits (N, classes, D, H, W); a U-Net of three levels, any extents."""

    def __init__(self, classes: int):
        super().__init__()
        self.down = nn.ModuleList(
            convolutions(cin, cout, 1 if cin == 1 else 2) for cin, cout in zip((1, *WIDTHS), WIDTHS)
        )
        self.up = nn.ModuleList(convolutions(low + high, high) for low, high in zip(WIDTHS[:0:-1], WIDTHS[-2::-1]))
        self.out = nn.Conv3d(WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1]):
            x = block(torch.cat([F.interpolate(x, skip.shape[2:], mode="trilinear"), skip], 1))
        return self.out(x)


def augment(images: Tensor, masks: Tensor, spacing: Sequence[float], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Turns, scales and shifts images (N, 1, D, H, W) and masks (N, D, H, W) together, a little; changes brightness and
    contrast of the images and adds noise. No flips: left and right are different classes at times."""
    n, size = len(images), images.shape[2:]
    half = np.array([s * mm for s, mm in zip(size, spacing, strict=True)])[::-1] / 2  # mm, x, y, z of grid_sample
    theta = np.empty((n, 3, 4))
    for t in theta:
        turn = Rotation.from_rotvec(rng.normal(0, 0.12, 3)).as_matrix()  # radians
        t[:, :3] = turn * np.exp(rng.normal(0, 0.08, 3)) * half / half[:, None]
        t[:, 3] = rng.normal(0, 0.04, 3)
    grid = F.affine_grid(torch.from_numpy(theta).float(), [n, 1, *size], align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    moved = F.grid_sample(masks[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0].long()
    contrast, brightness = (torch.from_numpy(rng.normal(0, s, (n, 1, 1, 1, 1))).float() for s in (0.15, 0.1))
    noise = rng.uniform(0, 0.1, (n, 1, 1, 1, 1)) * rng.standard_normal(images.shape, np.float32)
    return images * (1 + contrast) + brightness + torch.from_numpy(noise).float(), moved


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus one minus the mean soft Dice of the classes but the background, over the batch."""
    truth = F.one_hot(masks, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    guess = logits.softmax(1)[:, 1:]
    over = (0, 2, 3, 4)
    dice = (2 * (truth * guess).sum(over) + 1) / (truth.sum(over) + guess.sum(over) + 1)
    return F.cross_entropy(logits, masks) + 1 - dice.mean()


def train_segmenter(
    volumes: np.ndarray, masks: np.ndarray, names: Sequence[str], spacing: Sequence[float], data: str, steps: int,
    seed: int, report: Callable[[str], None] = print,
) -> tuple[SegmentationNetwork, SegmenterRecord]:  # fmt: skip
    """Trains the U-Net by Adam (learning rate falling to 0 by a half cosine) on batches of two; a fifth of the pairs is
    held aside, and its Dice recorded.

    volumes: (N, D, H, W) in [-1, 1]. masks: (N, D, H, W) uint8. names, spacing, data: as in `SegmenterRecord`. The same
    arguments give the same weights on the same machine with the same number of threads.

    Raises:
        WeightsError: fewer than five pairs, or volumes too small.
    """
    if len(volumes) < LEAST or max(volumes.shape[1:]) < LEAST:
        raise WeightsError(
            f"expected at least {LEAST} volumes with masks, of more than 4 voxels along an axis; got {len(volumes)} of "
            f"shape {volumes.shape[1:]}"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    order = rng.permutation(len(volumes))
    held, kept = np.sort(order[: len(order) // 5]), order[len(order) // 5 :]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SegmentationNetwork(len(names))
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    bar = tqdm(range(steps), desc="segmenter", disable=None)
    for _ in bar:
        chosen = rng.choice(kept, BATCH, replace=False)
        x = torch.from_numpy(np.stack([volumes[i] for i in chosen]).astype(np.float32))[:, None]
        y = torch.from_numpy(np.stack([masks[i] for i in chosen])).long()
        x, y = augment(x, y, spacing, rng)
        loss = segmentation_loss(network(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    network.eval()
    dice = pair_dice(segment(network, volumes[held]), masks[held], len(names))
    found = tuple(mean_of(dice[:, k]) for k in range(len(names) - 1))
    shown = ", ".join(f"{name} {'none' if d is None else f'{d:.3f}'}" for name, d in zip(names[1:], found))
    report(f"Dice on {len(held)} volumes held aside: {shown}")
    seen = tuple(volume_key(volumes[i]) for i in np.sort(kept))
    record = SegmenterRecord(
        tuple(names), tuple(volumes.shape[1:]), tuple(float(s) for s in spacing), found, seen, data, steps, seed
    )
    return network, record


@torch.no_grad()
def segment(network: SegmentationNetwork, volumes: np.ndarray) -> np.ndarray:
    """Segments volumes (N, D, H, W) in [-1, 1]: (N, D, H, W) uint8."""
    bar = tqdm(volumes, desc="segmenting", leave=False, disable=None)
    made = [network(torch.from_numpy(np.array(v, np.float32))[None, None])[0].argmax(0) for v in bar]
    return torch.stack(made).to(torch.uint8).numpy()


class Segmenter:
    """A segmenter of `ssgan segmenter`, read from its file. checksum: SHA-256 of the file.

    Raises:
        WeightsError: `ssgan segmenter` did not write the file, or another version of it did.
    """

    def __init__(self, file: Path) -> None:
        record = read_record(file, SegmenterRecord, "--segmenter", "ssgan segmenter")
        weights = read_weights(file)
        with torch.device("meta"):
            network = SegmentationNetwork(len(record.classes))
        self.network, self.record = fit(network, weights, "the segmenter"), record
        self.file, self.checksum = file, weights.sha256

    def check(self, names: Sequence[str], shape: Sequence[int]) -> None:
        """Raises WeightsError unless it was trained on masks of these classes and volumes of this shape."""
        for what, own, wanted in (("classes", self.record.classes, names), ("shape", self.record.shape, shape)):
            if tuple(own) != tuple(wanted):
                raise WeightsError(
                    f"--segmenter {self.file} was trained on other {what}: expected {tuple(wanted)}; got {tuple(own)}; "
                    "train one on these data with `ssgan segmenter`"
                )

    def seen(self, volumes: np.ndarray) -> list[int]:
        """The indices of the volumes that it was trained on."""
        known = set(self.record.trained_on)
        return [i for i, volume in enumerate(volumes) if volume_key(volume) in known]

    def dice(self, volumes: np.ndarray, masks: np.ndarray) -> tuple[list[float | None], list[float | None]]:
        """The mean Dice of its masks of `volumes` with `masks`, of every class but the background; and the same with
        the mask of the next volume in place of a volume's own."""
        classes, made = len(self.record.classes), segment(self.network, volumes)
        both = [pair_dice(made, other, classes) for other in (masks, np.roll(masks, -1, axis=0))]
        own, exchanged = ([mean_of(found[:, k]) for k in range(classes - 1)] for found in both)
        return own, exchanged
