"""What `ssgan view` shows of a run: volumes of its newest generator, and the training volumes nearest to them."""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ssgan.data.dataset import to_nifti
from ssgan.latent_space.directions import Directions
from ssgan.latent_space.generator import LatentSpace
from ssgan.latent_space.point import Point, find_directions, parse_move, point_ws
from ssgan.latent_space.styles import level_size, level_slices
from ssgan.metrics.neighbours import TrainingVolumes
from ssgan.runs.checkpoint import list_checkpoints
from ssgan.runs.config import load_config, open_data
from ssgan.runs.generator import MAX_SEED, LoadedGenerator, load_generator
from ssgan.utils.errors import UserError
from ssgan.viewing.browsing import dataset_volume
from ssgan.viewing.replies import NotFound, Reply, nifti_reply

SLIDERS = 6  # principal directions with a slider
NEAREST = 5  # training volumes that are named
KEPT = 4  # volumes in memory: the one that is shown is also searched for and saved

T = TypeVar("T")


class RunExplorer:
    """Generates volumes of a run, and follows its newest checkpoint while it trains.

    One thread computes: requests wait for each other, and PyTorch keeps one team of threads.

    checkpoint: of the run, by name or path; then no other is followed. data: the run's data set; default the recorded.
    """

    def __init__(self, run: Path, checkpoint: Path | None, data: Path | None, device: torch.device) -> None:
        self._run, self._checkpoint, self._device = run, checkpoint, device
        self._config = load_config(run)
        self._data, self._no_data = open_data(self._config, data)
        self._worker = ThreadPoolExecutor(1, "generator")
        self._source: LoadedGenerator | None = None
        self._stamp: tuple[Any, ...] | None = None
        self._trouble = ""
        self._sha256 = ""
        self._directions: dict[tuple[str, int | None], Directions] = {}
        self._volumes: OrderedDict[tuple[str, int | None, Point], np.ndarray] = OrderedDict()
        self._training: TrainingVolumes | None = None
        self._training_lock = threading.Lock()
        self._computed(self._follow)

    def _computed(self, function: Callable[..., T], *arguments: Any) -> T:
        """Runs a function on the thread that computes, and waits for it."""
        return self._worker.submit(function, *arguments).result()

    # ---- the checkpoint ----

    def _follow(self) -> None:
        """Loads the newest checkpoint if it is another than the one in memory.

        Raises:
            UserError: --checkpoint names none that can be loaded.
        """
        if self._checkpoint is not None:
            if self._source is None:
                self._take(load_generator(self._run, self._checkpoint))
            return
        try:
            found = list_checkpoints(self._run / "checkpoints")
            if not found:
                self._trouble = "The run has no checkpoint yet; this page shows the first one as soon as it is there."
                return
            status = found[-1].stat()
            stamp = (found[-1], status.st_mtime_ns, status.st_size)
            if stamp != self._stamp:
                self._stamp = stamp  # a damaged one is tried once
                self._take(load_generator(self._run, found[-1]))
                self._trouble = ""
        except (UserError, OSError) as error:  # deleted by the training in between, or damaged
            self._trouble = f"The newest checkpoint cannot be loaded: {error}"

    def _take(self, source: LoadedGenerator) -> None:
        source.G.to(self._device)
        self._source, self._sha256 = source, source.sha256
        self._directions.clear()
        self._volumes.clear()

    def state(self) -> dict[str, Any]:
        """Which checkpoint the volumes are made by, after a look for a newer one."""
        self._computed(self._follow)
        state: dict[str, Any] = {"trouble": self._trouble, "checkpoint": None}
        if (source := self._source) is not None:
            unit = "slices" if source.meta.stage == "2d" else "volumes"
            state |= {"checkpoint": self._sha256, "name": source.path.stem, "stage": source.meta.stage}
            state["seen"] = f"{source.meta.images:,} {unit}"
        return state

    def about(self) -> dict[str, Any]:
        """Everything that the page's controls need, but for the directions, which take a moment."""
        state = self.state()
        G = None if self._source is None else self._source.G
        return {
            "kind": "run",
            "title": self._run.resolve().name,
            "state": state,
            "classes": self._config.class_names,
            "levels": []
            if G is None
            else [" x ".join(map(str, level_size(G, k))) for k in range(len(level_slices(G)))],
            "max_seed": MAX_SEED,
            "window": [self._config.info.intensity_low, self._config.info.intensity_high],
            "no_training": self._no_data,
            "training": 0 if self._data is None else len(self._data),
        }

    # ---- volumes ----

    def _space(self, label: int | None) -> LatentSpace:
        if self._source is None:
            raise NotFound(self._trouble)
        return LatentSpace(self._source, label)

    def _find_directions(self, label: int | None) -> Directions:
        key = (self._sha256, label)
        if key not in self._directions:
            self._directions[key] = find_directions(self._space(label))
        return self._directions[key]

    def directions(self, query: Mapping[str, str]) -> list[float]:
        """The share of the variance of w that each direction with a slider explains."""
        label = self._label(query)
        return self._computed(lambda: self._find_directions(label).share[:SLIDERS].tolist())

    def _label(self, query: Mapping[str, str]) -> int | None:
        names = self._config.class_names
        if not names:
            return None
        number = _number(int, query, "class", 0)
        if not 0 <= number < len(names):
            raise UserError(f"class: expected 0 to {len(names) - 1}; got {number}")
        return number

    @torch.no_grad()
    def _make(self, point: Point, label: int | None) -> np.ndarray:
        """Makes the volume (D, H, W) of a point. A 2D network makes every slice of the same w; one that is not told the
        slice index makes one slice, which is repeated."""
        space = self._space(label)
        key = (self._sha256, label, point)
        if key in self._volumes:
            self._volumes.move_to_end(key)
            return self._volumes[key]
        G, ws = space.G, point_ws(space, point, lambda: self._find_directions(label))
        if space.source.meta.stage == "3d":
            volume = G.synthesis(ws, noise=point.noise)[0, 0]
        else:
            depth = space.info.shape[0]
            index = torch.arange(depth, device=space.device) if G.cfg.depth_places else None
            ws = ws if index is None else ws.expand(depth, -1, -1)
            volume = G.synthesis(ws, noise=point.noise, slice_index=index)[:, 0, 0].expand(depth, -1, -1)
        self._volumes[key] = volume.cpu().numpy()
        while len(self._volumes) > KEPT:
            self._volumes.popitem(last=False)
        return self._volumes[key]

    def volume(self, query: Mapping[str, str], save: bool) -> Reply:
        """The volume of a point as NIfTI with the data set's affine and intensities. save: compressed, to be kept."""
        point = parse_point(query)
        image = to_nifti(self._computed(self._make, point, self._label(query)), self._config.info)
        name = f"seed{point.seed:04d}" if point.is_seed else f"seed{point.seed:04d}-changed"
        return nifti_reply(image, f"{name}.nii.gz" if save else f"{name}.nii")

    def command(self, query: Mapping[str, str]) -> str:
        """The command line that makes the same volume, bit for bit; "" where there is none."""
        point, label = parse_point(query), self._label(query)
        source = self._computed(self._space, label).source
        if source.meta.stage == "2d":
            return ""
        run, options = str(self._run), point.options()
        if point.is_seed:
            words = ["ssgan", "generate", "--run", run, "--out", "samples", "--seeds", *options[1:]]
        else:
            words = ["ssgan", "latents", "volume", "--run", run, "--out", "volume", *options]
        words += [] if label is None else ["--class", self._config.class_names[label]]
        words += ["--checkpoint", source.path.stem if self._checkpoint is None else str(self._checkpoint)]
        return shlex.join([*words, "--device", self._device.type])

    # ---- training volumes ----

    def nearest(self, query: Mapping[str, str]) -> dict[str, Any]:
        """The nearest training volumes of the volume of a point, nearest first, and what is usual among them."""
        if self._data is None:
            raise NotFound(self._no_data)
        volume = self._computed(self._make, parse_point(query), self._label(query))
        with self._training_lock:
            if self._training is None:
                self._training = TrainingVolumes(self._data.volumes)
        distances = self._training.distances(np.clip(volume, -1, 1)[None])[0]
        order = np.argsort(distances, kind="stable")[:NEAREST].tolist()
        found = [{"index": i, "source": self._data.records[i]["source"], "distance": distances[i]} for i in order]
        return {"nearest": found, "median": self._training.median, "low": self._training.low}

    def item(self, name: str) -> Reply:
        """Training volume number `name`."""
        if self._data is None:
            raise NotFound(self._no_data)
        return dataset_volume(self._data, name)


def _number(kind: type, query: Mapping[str, str], name: str, default: Any) -> Any:
    try:
        return kind(query[name]) if query.get(name, "") != "" else default
    except ValueError:
        raise UserError(f"{name}: expected a number; got {query[name]!r}") from None


def parse_point(query: Mapping[str, str]) -> Point:
    """Reads a point from the query of an address, such as seed=3&mix=4&levels=0,1&moves=1:0.5,2:-1.

    Raises:
        UserError: a value is not a number, or out of range.
    """
    text = query.get("levels", "")
    try:
        levels = tuple(sorted({int(level) for level in text.split(",")} if text else ()))
    except ValueError:
        raise UserError(f"levels: expected numbers such as 0,1; got {text!r}") from None
    moves = (parse_move(move) for move in query.get("moves", "").split(",") if move)
    return Point(
        seed=_number(int, query, "seed", 0),
        truncation=_number(float, query, "truncation", 1.0),
        noise=query.get("noise", "const"),
        to_seed=_number(int, query, "to", None),
        at=_number(float, query, "at", 0.0),
        mix_seed=_number(int, query, "mix", None) if levels else None,
        mix_levels=levels,
        moves=tuple((k, amount) for k, amount in moves if amount),
    )
