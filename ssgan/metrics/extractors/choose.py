"""The extractor of a name."""

from __future__ import annotations

from pathlib import Path

from ssgan.metrics.extractors.discriminator import DiscriminatorFeatures
from ssgan.metrics.extractors.inception import Inception
from ssgan.metrics.extractors.labels import LabelFeatures
from ssgan.metrics.extractors.medicalnet import BLOCKS, MedicalNet
from ssgan.metrics.extractors.radimagenet import RadImageNet
from ssgan.metrics.extractors.weights import WeightsError
from ssgan.metrics.features import Extractor, Random3d

NAMES = ("random3d", *(f"medicalnet-{depth}" for depth in BLOCKS), "radimagenet", "inception", "discriminator")


def make_extractor(name: str, weights: Path | None) -> Extractor:
    """name: one of NAMES, or a file of `ssgan labelnet`. weights: the file (or run) that a name of NAMES needs.

    Raises:
        WeightsError: an unknown name, a file missing or superfluous, or one that does not fit.
    """
    own = name == "random3d" or name not in NAMES
    if name not in NAMES and not name.endswith(".safetensors"):
        raise WeightsError(f"--extractor: expected {', '.join(NAMES)} or a .safetensors file; got {name!r}")
    if own and weights is not None:
        raise WeightsError(f"--weights {weights}: --extractor {name} takes none; leave --weights out")
    if not own and weights is None:
        what = "the run (or a checkpoint of it)" if name == "discriminator" else "its published file, got yourself"
        raise WeightsError(f"--extractor {name} needs --weights: {what}; nothing is downloaded")
    if name == "random3d":
        return Random3d()
    if name == "radimagenet":
        return RadImageNet(weights)
    if name == "inception":
        return Inception(weights)
    if name == "discriminator":
        return DiscriminatorFeatures(weights)
    if name in NAMES:
        return MedicalNet(int(name.removeprefix("medicalnet-")), weights)
    return LabelFeatures(Path(name))
