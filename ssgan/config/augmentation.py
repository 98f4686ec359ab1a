"""The augmentations of the discriminator's images: their configuration, and sets of strengths by name (policies).

A left-right flip turns a left hippocampus into a right one and situs solitus into situs inversus. So only the policy
"isotropic" flips images or turns them by 90 degrees; other policies flip what is asked for by name. Axes and planes are
the patient's, whatever the slice axis.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from ssgan.utils.errors import ConfigError

# Patient axis or plane -> which of X, Y, Z (towards right, front, head) it is, or which two it spans.
FLIPS: dict[str, int] = {"left-right": 0, "front-back": 1, "head-foot": 2}
PLANES: dict[str, tuple[int, int]] = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}

# In degrees and octaves; `ssgan.augmentation.resampling` is not accurate beyond these.
MAX_ROTATION, MAX_LOG_SCALE = 30.0, 1.0


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the augmentations (0 or () switches one off), and how their probability p adapts (ADA).

    The table in `ssgan.augmentation.ada` gives the distributions. Each augmentation is applied to each sample with
    probability p.

    target: p rises while E[sign D(real)] is above it and falls while it is below.
    kimg: thousands of images in which p can go from 0 to 1; None: a tenth of the stage's budget, at most the paper's
        500.
    interval: steps between changes of p.
    p_start, p_max: p of the first step, and its upper bound; the bound is below 1, where every augmentation can be
        inverted.
    adapt: False keeps p at p_start.
    """

    flips: tuple[str, ...] = ()  # of FLIPS
    quarter_turns: tuple[str, ...] = ()  # of PLANES; both extents and spacings of the plane must be equal
    rotation: float = 0.0  # degrees in each plane, at most
    scale: float = 0.0  # octaves, at most; the same for all axes
    stretch: float = 0.0  # octaves, at most; another for each axis
    shift: float = 0.0  # share of each extent, at most; whole voxels
    drift: float = 0.0  # share of each extent, at most; fractions of voxels
    brightness: float = 0.0  # standard deviation, on the scale of [-1, 1]
    contrast: float = 0.0  # standard deviation in octaves
    midtones: float = 0.0  # standard deviation of the shift of mid grey
    bands: float = 0.0  # standard deviation in octaves, of the gains of the two finest octaves
    noise: float = 0.0  # standard deviation of the noise's standard deviation
    cutout: float = 0.0  # share of each extent
    target: float = 0.6
    kimg: float | None = None
    interval: int = 4
    p_start: float = 0.0
    p_max: float = 0.8
    adapt: bool = True

    def __post_init__(self) -> None:
        for name, allowed in (("flips", FLIPS), ("quarter_turns", PLANES)):
            given = getattr(self, name)
            if not isinstance(given, (tuple, list)) or any(g not in allowed for g in given):
                raise ConfigError(f"augment.{name}: expected a list of {', '.join(allowed)}; got {given!r}")
            object.__setattr__(self, name, tuple(k for k in allowed if k in given))  # in a fixed order, each once
        half = 0.5  # a larger shift leaves less than half of the image
        limits = {"rotation": MAX_ROTATION, "scale": MAX_LOG_SCALE, "stretch": MAX_LOG_SCALE, "shift": half,
                  "drift": half, "brightness": 1.0, "contrast": 2.0, "midtones": 0.5, "bands": 2.0, "noise": 1.0,
                  "cutout": 0.9}  # fmt: skip
        for name, limit in limits.items():
            self._number(name, 0.0, limit)
        self._number("target", 0.0, 1.0)
        self._number("p_max", 0.0, 0.99)
        self._number("p_start", 0.0, self.p_max)
        if self.kimg is not None:
            self._number("kimg", 1e-3, 1e6)
        if not isinstance(self.interval, int) or isinstance(self.interval, bool) or self.interval < 1:
            raise ConfigError(f"augment.interval: expected a whole number of steps, at least 1; got {self.interval!r}")
        if not isinstance(self.adapt, bool):
            raise ConfigError(f"augment.adapt: expected true or false; got {self.adapt!r}")

    def _number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"augment.{name}: expected a number from {low:g} to {high:g}; got {value!r}")
        object.__setattr__(self, name, float(value))

    @property
    def active(self) -> bool:
        """Whether any augmentation can ever be applied: one is switched on, and p can leave 0."""
        off = not any(getattr(self, f.name) for f in dataclasses.fields(self)[:13])
        return not off and self.p_max > 0 and (self.adapt or self.p_start > 0)

    def images_to_one(self, budget_kimg: float) -> float:
        """Images in which p can go from 0 to 1, in a stage of `budget_kimg` thousand images."""
        if self.kimg is not None:
            return self.kimg * 1000
        if not (math.isfinite(budget_kimg) and budget_kimg > 0):
            raise ConfigError(f"budget_kimg: expected a number above 0; got {budget_kimg!r}")
        return min(500.0, budget_kimg / 10) * 1000

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> AugmentConfig:
        """Inverse of `to_json`; raises ConfigError naming an unknown field. Absent fields have their defaults."""
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(data, dict) or set(data) - names:
            found = sorted(set(data) - names) if isinstance(data, dict) else type(data).__name__
            raise ConfigError(f"augment: unknown fields {found}; expected some of {sorted(names)}")
        return cls(**data)


_GEOMETRY = {"scale": 0.3, "stretch": 0.15, "shift": 0.125, "drift": 0.125, "rotation": 12.0}

POLICIES: dict[str, AugmentConfig] = {
    "none": AugmentConfig(),
    # Geometry and intensities: the paper's best set ("bgc"), with shifts as its only pixel blitting.
    "default": AugmentConfig(**_GEOMETRY, brightness=0.15, contrast=0.35, midtones=0.1),
    # MR: arbitrary intensity units, heads turned in the coil, only noise outside the head.
    "brain": AugmentConfig(**{**_GEOMETRY, "rotation": 15.0}, brightness=0.1, contrast=0.35, midtones=0.1),
    # CT: Hounsfield units are calibrated, contrast agent varies; patients lie straight, hearts differ in size.
    "heart": AugmentConfig(**{**_GEOMETRY, "scale": 0.4}, brightness=0.05, contrast=0.15, midtones=0.05),
    # MR of a small crop: smaller shifts, because anatomy that leaves the crop is lost.
    "hippocampus": AugmentConfig(
        **{**_GEOMETRY, "shift": 0.08, "drift": 0.08}, brightness=0.1, contrast=0.35, midtones=0.1
    ),
    # All augmentations that keep the orientation.
    "full": AugmentConfig(
        **_GEOMETRY, brightness=0.15, contrast=0.35, midtones=0.1, bands=0.5, noise=0.1, cutout=0.5
    ),
    # For images without an orientation (microscopy, materials): all flips, and quarter turns; planes must be square.
    "isotropic": AugmentConfig(
        tuple(FLIPS), tuple(PLANES), **_GEOMETRY, brightness=0.15, contrast=0.35, midtones=0.1
    ),
}  # fmt: skip


def policy(name: str, flips: tuple[str, ...] = (), **changes: Any) -> AugmentConfig:
    """The policy called `name`, with more flips allowed and other fields replaced.

    Raises:
        ConfigError: there is no policy or field of that name, or a value is out of range.
    """
    if name not in POLICIES:
        raise ConfigError(f"augment: expected one of {', '.join(POLICIES)}; got {name!r}")
    chosen = POLICIES[name]
    return AugmentConfig.from_json({**chosen.to_json(), "flips": (*chosen.flips, *flips), **changes})
