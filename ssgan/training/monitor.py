"""Metrics measured during training, by name (`--metrics a,b`)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ssgan.data.dataset import VolumeDataset
from ssgan.metrics.registry import Measure, make_measure
from ssgan.metrics.sliced import DistanceToData
from ssgan.metrics.subset import forget_generated
from ssgan.models.sampling import class_shares, latents, synthesise
from ssgan.training.step import StageTrainer


class Monitor:
    """Measures the metrics of a run. Features of the real data are computed once per stage."""

    def __init__(self, data: VolumeDataset, seed: int) -> None:
        self.data, self.seed = data, seed
        self._made: dict[tuple[str, str], Measure] = {}

    def get(self, stage: str, name: str) -> Measure:
        if (stage, name) not in self._made:
            self._made[stage, name] = make_measure(name, self.data, stage, self.seed)
        return self._made[stage, name]

    def distance(self, stage: str) -> DistanceToData:
        measure = self.get(stage, "distance")
        assert isinstance(measure, DistanceToData)
        return measure

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
        forget_generated(self.data)
        return values
