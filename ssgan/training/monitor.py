"""Metrics measured during training, by name (`--metrics a,b`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from weakref import WeakKeyDictionary

import numpy as np

from ssgan.data.dataset import VolumeDataset
from ssgan.metrics.sliced import DistanceToData
from ssgan.metrics.training import BETTER, Subset, TrainingMetrics
from ssgan.models.sampling import class_shares, latents, synthesise
from ssgan.training.schedule import METRICS, Generate, Measure, Metric, register_metric
from ssgan.training.step import StageTrainer

# Images and features of an open data set, by stage and seed, that its metrics have in common.
_SUBSETS: WeakKeyDictionary[VolumeDataset, dict[tuple[str, int], Subset]] = WeakKeyDictionary()


class Distance:
    """The metric "distance": sliced Wasserstein distance of G_ema's images to the data, cheap at any size."""

    def __init__(self, data: VolumeDataset, stage: str, seed: int) -> None:
        self.to_data = DistanceToData(data.volumes, slices=stage == "2d", seed=seed)

    def __call__(self, generate: Generate) -> float:
        return self.to_data.measure(generate)


def _field(name: str) -> Callable[[VolumeDataset, str, int], Measure]:
    """Makes the metric `name` of `ssgan.metrics.training`: of slices in stage 2d, of volumes in stage 3d."""

    def make(data: VolumeDataset, stage: str, seed: int) -> Measure:
        kept = _SUBSETS.setdefault(data, {})
        if (stage, seed) not in kept:
            kept[stage, seed] = Subset(data.volumes, seed, slices=stage == "2d")
        metrics = TrainingMetrics(kept[stage, seed], (name,))
        return lambda generate: metrics.measure(generate)[name]

    return make


register_metric("distance", Metric(Distance))
for _name, _better in BETTER.items():
    register_metric(_name, Metric(_field(_name), lower_is_better=_better == "lower"))


class Monitor:
    """Measures the metrics of a run. Features of the real data are computed once per stage."""

    def __init__(self, data: VolumeDataset, seed: int) -> None:
        self.data, self.seed = data, seed
        self._made: dict[tuple[str, str], Measure] = {}

    def get(self, stage: str, name: str) -> Measure:
        if (stage, name) not in self._made:
            self._made[stage, name] = METRICS[name].make(self.data, stage, self.seed)
        return self._made[stage, name]

    def distance(self, stage: str) -> DistanceToData:
        measure = self.get(stage, "distance")
        assert isinstance(measure, Distance)
        return measure.to_data

    def measure(self, trainer: StageTrainer, names: Iterable[str]) -> dict[str, float]:
        """Measures the metrics `names` of G_ema; draws nothing from the training's random streams."""
        made: dict[int, np.ndarray] = {}

        def generate(count: int) -> np.ndarray:
            if count not in made:  # several metrics look at the same images
                z = latents(range(count), trainer.cfg.network.z_dim)
                c = class_shares(trainer.class_counts, count)
                made[count] = synthesise(trainer.G_ema, z, batch=trainer.hyper.batch, noise="random", c=c)
            return made[count]

        values = {name: float(self.get(trainer.stage, name)(generate)) for name in names}
        for subset in _SUBSETS.get(self.data, {}).values():
            subset.forget()
        return values
