"""A small 3D classifier of a data set's own classes, whose features see what the classes differ in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ssgan.metrics.extractors.weights import WeightsError, fit, read_weights
from ssgan.metrics.own_networks import read_record

WIDTHS = (16, 32, 64)
PUBLISHED = "; published weights go with their extractor's name: --extractor medicalnet-50 --weights FILE"


@dataclass(frozen=True)
class LabelRecord:
    """The record in the file beside the weights. shape: (D, H, W). accuracy: on held-out volumes. chance: the accuracy
    of always naming their most frequent class."""

    classes: tuple[str, ...]
    shape: tuple[int, ...]
    accuracy: float
    chance: float
    seed: int
    format: str = "ssgan-label-network"
    version: int = 1


class LabelNetwork(nn.Module):
    """volume (N, 1, D, H, W) in [-1, 1] -> logits (N, classes); three convolutions of stride 2, group norm, mean."""

    def __init__(self, classes: int):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for cin, cout in zip((1, *WIDTHS), WIDTHS):
            self.convs.append(nn.Conv3d(cin, cout, 3, stride=2, padding=1))
            self.norms.append(nn.GroupNorm(8, cout))
        self.out = nn.Linear(2 * WIDTHS[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        """(N, 128): mean and maximum of the last channels over space."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.leaky_relu(norm(conv(x)), 0.2)
        return torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.features(x))


def train_label_network(
    volumes: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], steps: int, seed: int,
    report: Callable[[str], None] = print,
) -> tuple[LabelNetwork, LabelRecord]:  # fmt: skip
    """Trains the classifier by Adam on batches balanced over the classes; a fifth of each class is held out.

    volumes: (N, D, H, W). The same arguments give the same weights on the same machine.

    Raises:
        WeightsError: fewer than two classes, or a class of fewer than 5 volumes.
    """
    counts = np.bincount(labels, minlength=len(classes))
    few = [f"{name} has {n}" for name, n in zip(classes, counts) if n < 5]
    if len(classes) < 2 or few:
        raise WeightsError(f"classes: expected at least 2, each of 5 volumes or more; got {len(classes)}, {few}")
    rng = np.random.Generator(np.random.PCG64(seed))
    parts = [rng.permutation(np.flatnonzero(labels == i)) for i in range(len(classes))]
    held = np.concatenate([p[: max(1, len(p) // 5)] for p in parts])
    kept = [p[max(1, len(p) // 5) :] for p in parts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LabelNetwork(len(classes))
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-4)
    each = max(1, 16 // len(classes))
    bar = tqdm(range(steps), desc="labels", disable=None)
    for _ in bar:
        chosen = np.concatenate([rng.choice(p, each) for p in kept])
        x = torch.from_numpy(np.stack([volumes[i] for i in chosen]))[:, None]
        loss = F.cross_entropy(network(x), torch.from_numpy(labels[chosen]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    network.eval()
    with torch.no_grad():
        guessed = np.array([int(network(torch.from_numpy(np.array(volumes[i]))[None, None]).argmax()) for i in held])
    accuracy = float((guessed == labels[held]).mean())
    chance = float(np.bincount(labels[held]).max() / len(held))
    report(f"{len(held)} held-out volumes: {accuracy:.0%} classified correctly; always the same class: {chance:.0%}")
    return network, LabelRecord(tuple(classes), tuple(volumes.shape[1:]), accuracy, chance, seed)


class LabelFeatures:
    """Features (N, 128) of a network trained on the user's own labels."""

    name = "labels"

    def __init__(self, file: Path) -> None:
        record = read_record(file, LabelRecord, "--extractor", "ssgan labelnet", PUBLISHED)
        weights = read_weights(file)
        with torch.device("meta"):
            network = LabelNetwork(len(record.classes))
        self.network, self.checksum = fit(network, weights, "the label network"), weights.sha256
        self.protocol = (
            f"{self.name} v1, classes {', '.join(record.classes)}, accuracy {record.accuracy:.3g} (chance "
            f"{record.chance:.3g}), weights sha256 {self.checksum}: 128 features before the last layer"
        )

    @torch.no_grad()
    def __call__(self, volumes: np.ndarray) -> np.ndarray:
        rows = []
        for first in tqdm(range(0, len(volumes), 8), desc=self.name, leave=False, disable=None):
            x = torch.from_numpy(np.array(volumes[first : first + 8], np.float32))[:, None]
            rows.append(self.network.features(x).double().numpy())
        return np.concatenate(rows)
