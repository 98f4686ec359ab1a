"""A point of the latent space, given by seeds and moves: the ws of one volume, and the options that name it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ssgan.latent_space.directions import Directions, principal_directions
from ssgan.latent_space.files import LatentError
from ssgan.latent_space.generator import LatentSpace
from ssgan.latent_space.styles import level_slices, mix
from ssgan.runs.generator import MAX_SEED

SAMPLES, SAMPLE_SEED = 10_000, 0  # of the w whose principal directions are taken
LARGEST_MOVE = 100.0  # standard deviations


@dataclass(frozen=True)
class Point:
    """A point of the latent space. Its ws are computed in this order:

    w = (1 - at) w(seed) + at w(to_seed), each truncated; the styles of `mix_levels` are those of w(mix_seed); every
    style is moved by the amounts of `moves`.

    moves: (direction from 1, amount in standard deviations of w along it) of the principal directions of w.
    noise: "const" or "none".

    Raises:
        LatentError: a value out of range; the message names the option of `ssgan latents volume`.
    """

    seed: int
    truncation: float = 1.0
    noise: str = "const"
    to_seed: int | None = None
    at: float = 0.0
    mix_seed: int | None = None
    mix_levels: tuple[int, ...] = ()
    moves: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        for name in ("seed", "to_seed", "mix_seed"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= MAX_SEED:
                raise LatentError(f"--{name.replace('_', '-')}: expected 0 to {MAX_SEED}; got {value}")
        for name in ("truncation", "at"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise LatentError(f"--{name}: expected 0 to 1; got {value:g}")
        if self.noise not in ("const", "none"):
            raise LatentError(f"--noise: expected const or none; got {self.noise!r}")
        if self.at and self.to_seed is None:
            raise LatentError("--at: needs the seed of --to-seed")
        if bool(self.mix_levels) != (self.mix_seed is not None):
            raise LatentError("--mix-seed and --mix-levels: expected both or neither")
        numbers = [k for k, _ in self.moves]
        if len(set(numbers)) != len(numbers) or any(not abs(amount) <= LARGEST_MOVE for _, amount in self.moves):
            raise LatentError(
                f"--move: expected each direction once, moved by at most {LARGEST_MOVE:g}; got {self.moves}"
            )

    @property
    def is_seed(self) -> bool:
        """Whether the volume is that of a seed, which `ssgan generate` makes too."""
        return not (self.at or self.mix_levels or self.moves)

    def options(self) -> list[str]:
        """The options of `ssgan latents volume` that name this point; of `ssgan generate` too, but for --seed, where
        `is_seed`."""
        words = ["--seed", str(self.seed)]
        words += ["--truncation", repr(self.truncation)] if self.truncation != 1 else []
        words += ["--noise", self.noise] if self.noise != "const" else []
        words += ["--to-seed", str(self.to_seed), "--at", repr(self.at)] if self.at else []
        if self.mix_levels:
            words += ["--mix-seed", str(self.mix_seed), "--mix-levels", ",".join(map(str, self.mix_levels))]
        words += ["--move", *(f"{k}:{amount:+}" for k, amount in self.moves)] if self.moves else []
        return words


def point_ws(space: LatentSpace, point: Point, directions: Callable[[], Directions]) -> Tensor:
    """Computes the ws (1, num_ws, w_dim) of a point.

    directions: gives those of `find_directions`; called where the point has moves.

    Raises:
        LatentError: the generator has no such level or direction.
    """
    ws = space.ws([point.seed], point.truncation)
    if point.at:
        ws = ws.lerp(space.ws([point.to_seed], point.truncation), point.at)
    if point.mix_levels:
        count = len(level_slices(space.G))
        if not all(0 <= level < count for level in point.mix_levels):
            raise LatentError(f"--mix-levels: expected levels 0 to {count - 1}; got {list(point.mix_levels)}")
        ws = mix(space.G, ws, space.ws([point.mix_seed], point.truncation), point.mix_levels)
    if point.moves:
        found = directions()
        for k, amount in point.moves:
            if not 1 <= k <= len(found.std):
                raise LatentError(f"--move: expected directions 1 to {len(found.std)}; got {k}")
            ws = ws + amount * (found.components[k - 1] * found.std[k - 1]).to(ws)
    return ws


def find_directions(space: LatentSpace) -> Directions:
    """Finds all principal directions of w, of the space's class, as `ssgan latents directions` does by default."""
    return principal_directions(space.G, space.G.cfg.w_dim, SAMPLES, SAMPLE_SEED, space.label)


def parse_move(text: str) -> tuple[int, float]:
    """ "2:-1.5" -> (2, -1.5). Raises LatentError."""
    number, _, amount = text.partition(":")
    try:
        return int(number), float(amount)
    except ValueError:
        raise LatentError(
            f"--move: expected a direction and standard deviations, such as 2:-1.5; got {text!r}"
        ) from None
