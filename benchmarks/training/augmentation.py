"""Times adaptive augmentation beside the discriminator, and draws each augmentation.

    python -m benchmarks.training.augmentation --picture augmentations.png            # each on a phantom, at p = 1
    python -m benchmarks.training.augmentation --time [--preset hippocampus] [--batch 8] [--threads 1]

Times are medians on the CPU, taken in turn: a discriminator step (forward, backward to the weights), a generator's
backward through it (forward, gradient of the images), and the same two passes of the augmentations alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.operator.timing import measure
from ssconv.parser import Parser
from ssgan.augmentation.ada import Augment
from ssgan.config.augmentation import FLIPS, PLANES, POLICIES, AugmentConfig, policy
from ssgan.config.presets import PRESETS, preset
from ssgan.data.phantom import make_phantom
from ssgan.models.networks import Discriminator
from ssgan.utils.pictures import contact_sheet

COLUMNS = 4
STRONG = policy("full", flips=tuple(FLIPS), quarter_turns=tuple(PLANES))
EACH = (
    "flips", "quarter_turns", "rotation", "scale", "stretch", "shift", "drift", "contrast", "brightness", "midtones",
    "bands", "noise", "cutout",
)  # fmt: skip


def picture(path: Path, edge: int = 48, seed: int = 0) -> Path:
    """Draws a row per augmentation, one phantom under four draws of it at p = 1; the last row has all of them."""
    images = torch.from_numpy(make_phantom((edge, edge, edge), seed, 0))[None, None].expand(COLUMNS, -1, -1, -1, -1)
    rows, names = [images], ["the phantom"] + [""] * (COLUMNS - 1)
    for name in (*EACH, "all"):
        config = STRONG if name == "all" else AugmentConfig(**{name: getattr(STRONG, name)})
        augment = Augment(config, (edge, edge, edge))
        rows.append(augment(images, augment.draw(COLUMNS, 1.0, torch.Generator().manual_seed(seed + 1))))
        names += [name] * COLUMNS
    title = f"augmentations of the policy full, flips and quarter turns besides, at p = 1; seed {seed}"
    return contact_sheet(torch.cat(rows)[:, 0].numpy(), names, path, title=title, columns=COLUMNS)


def times(name: str, batch: int, repeats: int) -> dict[str, float]:
    """Measures the median seconds of each pass at a preset's 3D shape."""
    network = preset(name).network()
    discriminator = Discriminator(network)
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(batch, 1, *network.shape, generator=generator) * 2 - 1).requires_grad_(True)
    functions: dict[str, Callable[[], object]] = {
        "D, forward and backward to its weights": lambda: discriminator(images.detach()).sum().backward(),
        "D, forward and gradient of the images": lambda: torch.autograd.grad(discriminator(images).sum(), images),
    }
    for which in ("default", "full"):
        augment = Augment(POLICIES[which], network.shape)
        for p in (0.3, 1.0):

            def draw_and_apply(augment: Augment = augment, p: float = p) -> torch.Tensor:
                return augment(images, augment.draw(batch, p, generator))

            def forward(act: Callable[[], torch.Tensor] = draw_and_apply) -> None:
                with torch.no_grad():
                    act()

            def gradient(act: Callable[[], torch.Tensor] = draw_and_apply) -> None:
                torch.autograd.grad(act().square().sum(), images)

            functions[f"{which}, p = {p:g}, forward"] = forward
            functions[f"{which}, p = {p:g}, forward and gradient of the images"] = gradient
    return {k: t.median for k, t in measure(functions, repeats=repeats, warmup=1, budget=120.0).items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.training.augmentation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--picture", type=Path, metavar="PNG")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--preset", choices=PRESETS, default="hippocampus")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if args.picture is None and not args.time:
        parser.error("nothing to do: give --picture PNG, --time or both")
    torch.set_num_threads(args.threads)
    if args.picture is not None:
        print(picture(args.picture))
    if args.time:
        found = times(args.preset, args.batch, args.repeats)
        whole = next(iter(found.values()))
        for name, seconds in found.items():
            print(f"{seconds * 1000:9.1f} ms  {seconds / whole:6.1%}  {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
