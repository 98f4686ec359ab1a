"""The one list of metrics: names, which way is better, and how `ssgan evaluate` and `ssgan train` compute them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from ssgan.data.dataset import VolumeDataset
from ssgan.metrics import distances, prdc, voxels
from ssgan.metrics.features import per_volume, views
from ssgan.metrics.sliced import DistanceToData
from ssgan.metrics.subset import subset_of
from ssgan.utils.errors import ConfigError

Compare = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # (real, generated) -> value by name
Generate = Callable[[int], np.ndarray]  # count -> generated images (count, D, H, W), D = 1 in stage 2d
Measure = Callable[[Generate], float]
MakeMeasure = Callable[[VolumeDataset, str, int], Measure]  # (data set, stage, seed) -> measure


@dataclass(frozen=True)
class Metric:
    """One metric, by the name that it has in metrics.json, log.jsonl and --metrics.

    better: "lower", "higher", or "as floor": near what real volumes score; while training, lower counts as better then.
    bounds: the values that it can take; an interval ends there.
    compare: how `ssgan evaluate` computes it, from features where `on_features`, else from volumes (N, D, H, W).
        Metrics with the same function are computed in one call. None: not in `ssgan evaluate`.
    interval: "any" way that --interval asks for, "half" only, or "pairs" (of MS-SSIM).
    in_training: makes the measure of a stage, once, so that what it needs of the real data is computed once. None: not
        in `ssgan train`.
    """

    name: str
    better: str = "lower"
    bounds: tuple[float, float] = (0.0, float("inf"))
    compare: Compare | None = None
    on_features: bool = True
    interval: str = "any"
    in_training: MakeMeasure | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.better != "higher"


METRICS: dict[str, Metric] = {}


def register(metric: Metric) -> None:
    """Adds a metric to the list. Raises ConfigError where its name is taken."""
    if metric.name in METRICS:
        raise ConfigError(f"metric {metric.name!r} is registered already")
    METRICS[metric.name] = metric


def training_names() -> list[str]:
    """Lists the metrics of --metrics, --best-metric and --early-stop, sorted, those of deepbet at the end."""
    names = (name for name, metric in METRICS.items() if metric.in_training is not None)
    return sorted(names, key=lambda name: (name.endswith("_deepbet"), name))


def check_names(names: Iterable[str]) -> None:
    """Raises ConfigError for a name that is not a metric of `ssgan train`."""
    for name in names:
        if name not in training_names():
            raise ConfigError(f"metrics: expected of {', '.join(training_names())}; got {name!r}")


def make_measure(name: str, data: VolumeDataset, stage: str, seed: int) -> Measure:
    """Makes the measure of a metric of `training_names` for a stage."""
    make = METRICS[name].in_training
    assert make is not None
    return make(data, stage, seed)


def comparisons() -> list[tuple[Compare, list[Metric]]]:
    """Lists the functions of `ssgan evaluate`, each with the metrics that it computes."""
    found: dict[Compare, list[Metric]] = {}
    for metric in METRICS.values():
        if metric.compare is not None:
            found.setdefault(metric.compare, []).append(metric)
    return list(found.items())


# ---- the functions; they look others up in their modules, so that tests and stopwatches can replace those ----


def _mean_over_views(distance: Callable[[np.ndarray, np.ndarray], float], a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([distance(x, y) for x, y in zip(views(a), views(b), strict=True)]))


def _frechet(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {"frechet": _mean_over_views(distances.frechet, real, fake)}


def _kid(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {"kid": _mean_over_views(distances.kid, real, fake)}


def _prdc(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return prdc.compute_prdc(per_volume(real), per_volume(fake))


def _mmd(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {"mmd": distances.mmd_linear(real.reshape(len(real), -1), fake.reshape(len(fake), -1))}


def _msssim(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Of pairs within `fake`; `real` has no part in it."""
    return {"msssim": float(voxels.pairwise_msssim(fake).mean())}


def _histogram(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {"histogram": voxels.histogram_distance(real, fake)}


def _spectrum(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {"spectrum": voxels.spectrum_distance(real, fake)}


def _profiles(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    return {f"profile_{axis}": value for axis, value in voxels.profile_distances(real, fake).items()}


def _on_subset(name: str, least: int = 2, extractor: str = "random3d") -> MakeMeasure:
    """`compare` on the features of generated images and of a fixed subset of the data, at least `least` images."""

    def make(data: VolumeDataset, stage: str, seed: int) -> Measure:
        subset, compare = subset_of(data, stage, seed, extractor), METRICS[name].compare
        subset.check_size(name, least)
        return lambda generate: compare(subset.real, subset.features(generate(subset.count)))[name]

    return make


def _training_msssim(data: VolumeDataset, stage: str, seed: int) -> Measure:
    subset = subset_of(data, stage, seed)
    subset.check_size("msssim", 2)
    return lambda generate: float(voxels.pairwise_msssim(generate(subset.count)).mean())


def _sliced_wasserstein(data: VolumeDataset, stage: str, seed: int) -> DistanceToData:
    return DistanceToData(data.volumes, slices=stage == "2d", seed=seed)


def _neighbour_metric(name: str, bounds: tuple[float, float]) -> Metric:
    """Bootstrap copies of a volume would be its nearest neighbours, so the intervals are by halves only."""
    least = prdc.NEIGHBOURS + 1
    return Metric(name, "higher", bounds, _prdc, interval="half", in_training=_on_subset(name, least))


FRACTION, REAL = (0.0, 1.0), (float("-inf"), float("inf"))
for _metric in (
    Metric("distance", in_training=_sliced_wasserstein),
    Metric("frechet", compare=_frechet, in_training=_on_subset("frechet")),
    Metric("kid", bounds=REAL, compare=_kid, in_training=_on_subset("kid")),  # unbiased, so below 0 at times
    _neighbour_metric("precision", FRACTION),
    _neighbour_metric("recall", FRACTION),
    _neighbour_metric("density", (0.0, float("inf"))),
    _neighbour_metric("coverage", FRACTION),
    Metric("mmd", compare=_mmd, on_features=False),
    Metric("msssim", "as floor", FRACTION, _msssim, on_features=False, interval="pairs", in_training=_training_msssim),
    Metric("histogram", compare=_histogram, on_features=False),
    Metric("spectrum", compare=_spectrum, on_features=False),
    Metric("profile_D", compare=_profiles, on_features=False),
    Metric("profile_H", compare=_profiles, on_features=False),
    Metric("profile_W", compare=_profiles, on_features=False),
):
    register(_metric)
    if _metric.compare and _metric.on_features:  # in training also from a network that has seen anatomy
        _least = prdc.NEIGHBOURS + 1 if _metric.compare is _prdc else 2
        _other = _on_subset(_metric.name, _least, "deepbet")
        register(Metric(f"{_metric.name}_deepbet", _metric.better, _metric.bounds, in_training=_other))
