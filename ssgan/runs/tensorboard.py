"""TensorBoard events of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


class TensorBoardWriter:
    """Writes the TensorBoard events of one stage to RUN/tensorboard/STAGE; steps are real images shown."""

    def __init__(self, folder: Path, stage: str, images: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        # Events after the checkpoint are purged. Each stage counts its own images, so each has its own writer.
        self._writer = SummaryWriter(str(folder / "tensorboard" / stage), purge_step=images + 1 if images else 0)

    def scalars(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float) and name != "seconds":
                self._writer.add_scalar(name, value, row["images"])

    def image(self, name: str, path: Path, images: int) -> None:
        with Image.open(path) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), images, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
