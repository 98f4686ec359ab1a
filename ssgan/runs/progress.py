"""The progress of training in the terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass

from tqdm import tqdm


@dataclass
class Progress:
    """Shows the progress of one stage on stderr: a bar with the time left on a terminal, else a line now and then."""

    stage: str
    total: int  # images
    done: int  # images
    enabled: bool = True
    every: float = 30.0  # seconds between lines where stderr is not a terminal

    def __post_init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first = self.done
        self._bar = None
        if self.enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=self.total, initial=self.done, desc=f"stage {self.stage}", unit="img", dynamic_ncols=True
            )

    def update(self, images: int, stats: Iterable[tuple[str, float]]) -> None:
        """Moves to `images` shown; `stats` are names and values to print beside the progress."""
        gained, self.done = images - self.done, images
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(_shown(stats), refresh=False)
            self._bar.update(gained)
        elif self.enabled and (now - self._last >= self.every or images >= self.total):
            self._last = now
            rate = (self.done - self._first) / max(now - self._start, 1e-9)
            left = tqdm.format_interval(max(self.total - self.done, 0) / max(rate, 1e-9))
            text = (
                f"stage {self.stage}: {self.done}/{self.total} images ({100 * self.done / max(self.total, 1):.0f} %), "
                f"{rate:.1f} img/s, {left} left"
            )
            print(", ".join(filter(None, (text, _shown(stats)))), file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _shown(stats: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in stats)
