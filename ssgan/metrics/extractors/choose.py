"""Makes the feature extractor of a given name."""

from __future__ import annotations

from pathlib import Path

from ssgan.metrics.extractors.deepbet import Deepbet
from ssgan.metrics.extractors.discriminator import DiscriminatorFeatures
from ssgan.metrics.extractors.inception import Inception
from ssgan.metrics.extractors.labels import LabelFeatures
from ssgan.metrics.extractors.medicalnet import BLOCKS, MedicalNet
from ssgan.metrics.extractors.radimagenet import RadImageNet
from ssgan.metrics.extractors.random3d import Random3d
from ssgan.metrics.extractors.weights import WeightsError
from ssgan.metrics.features import Extractor

WITHOUT_WEIGHTS = ("random3d", "deepbet")
NAMES = (*WITHOUT_WEIGHTS, *(f"medicalnet-{depth}" for depth in BLOCKS), "radimagenet", "inception", "discriminator")


def make_extractor(name: str, weights: Path | None, slice_axis: str = "axial") -> Extractor:
    """Makes an extractor. name: one of NAMES, or a file of `ssgan labelnet`. weights: the file or run that it needs.
    slice_axis: of the volumes, for deepbet.

    Raises:
        WeightsError: an unknown name; weights that are missing, superfluous or do not fit; deepbet is not installed.
    """
    needs_weights = name in NAMES and name not in WITHOUT_WEIGHTS
    if name not in NAMES and not name.endswith(".safetensors"):
        raise WeightsError(f"--extractor: expected {', '.join(NAMES)} or a .safetensors file; got {name!r}")
    if not needs_weights and weights is not None:
        raise WeightsError(f"--weights {weights}: --extractor {name} takes none; leave --weights out")
    if needs_weights and weights is None:
        run = name == "discriminator"
        expected = "the run (or a checkpoint of it)" if run else "its published file, which you have downloaded"
        raise WeightsError(f"--extractor {name} needs --weights: {expected}; nothing is downloaded for you")
    if name == "random3d":
        return Random3d()
    if name == "deepbet":
        return Deepbet(slice_axis)
    if name == "radimagenet":
        return RadImageNet(weights)
    if name == "inception":
        return Inception(weights)
    if name == "discriminator":
        return DiscriminatorFeatures(weights)
    if name in NAMES:
        return MedicalNet(int(name.removeprefix("medicalnet-")), weights)
    return LabelFeatures(Path(name))
