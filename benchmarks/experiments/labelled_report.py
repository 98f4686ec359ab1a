"""The table and the pictures of `benchmarks.experiments.labelled`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssgan.data.axes import to_axial
from ssgan.data.dataset import VolumeDataset
from ssgan.models.sampling import latents, synthesise_pairs
from ssgan.runs import checkpoint
from ssgan.runs.generator import load_generator
from ssgan.utils.pictures import contact_sheet

Record = dict[str, Any]
NAMES = {
    "real": "real pairs", "generated": "real and generated", "semi": "real and generated, semi-supervised GAN",
    "real-plain": "real, no augmentation", "generated-plain": "real and generated, no augmentation",
}  # fmt: skip
BASE = {"generated": "real", "semi": "real", "generated-plain": "real-plain"}
COLUMNS = 5  # pairs in a row of the picture


def by_cell(records: Sequence[Record]) -> dict[tuple[int, str], dict[int, Record]]:
    """Gives (labelled volumes, arm) -> seed -> record, of the cells that are scored on the held-out volumes."""
    table: dict[tuple[int, str], dict[int, Record]] = {}
    for r in sorted(records, key=lambda r: (r["n"], list(NAMES).index(r["arm"]) if r["arm"] in NAMES else -1)):
        if r["arm"] in NAMES:
            table.setdefault((r["n"], r["arm"]), {})[r["seed"]] = r
    return table


def differences(table: dict[tuple[int, str], dict[int, Record]], n: int, arm: str, key: str) -> dict[int, float]:
    """Gives seed -> an arm's figure minus that of the real pairs alone, trained with the same augmentation."""
    own, base = table.get((n, arm), {}), table.get((n, BASE.get(arm, "")), {})
    return {seed: own[seed][key] - base[seed][key] for seed in sorted(own) if seed in base}


def lacks_seeds(table: dict[tuple[int, str], dict[int, Record]], n: int, arm: str) -> bool:
    """Whether an arm has not run at every seed of the real pairs: its mean does not compare with theirs."""
    return not set(table.get((n, BASE.get(arm, arm)), {})) <= set(table[n, arm])


def markdown(records: Sequence[Record]) -> str:
    """Writes a row for each number of labelled volumes and arm, and the search for the share."""
    first, table = records[0], by_cell(records)
    about, env, classes = first["about"], first["environment"], first["classes"]
    size, (scored, networks) = " x ".join(map(str, first["shape"])), (first["scored"], about["networks"])
    scored = max((r["scored"] for r in records if r["arm"] in NAMES), default=scored)
    lines = [
        "# Few labelled volumes: do generated pairs of image and mask help?",
        "",
        f"Volumes of {size} (D, H, W) at {about['spacing']:g} mm. GANs: preset {about['preset']}, "
        f"{about['kimg_2d']:g} thousand slices, then {about['kimg_3d']:g} thousand volumes shown, R1 and R2 "
        f"{about['gamma']:g}; {about['pairs']} generated pairs each, none chosen. U-Nets {tuple(about['channels'])}: "
        f"{about['steps']} steps of {about['batch']}, Adam {about['lr']:g} with a cosine schedule. A cell is the mean "
        f"of {networks} U-Nets and {scored} held-out volumes; here means over the seeds (range). Differences: Dice in "
        "points minus that of the real pairs alone, with the same augmentation, one for each seed. HD95: 95 % "
        "Hausdorff distance; where a class is missing in one of the masks the volume's diagonal counts (column "
        f"missing: how often). {env['device']}, {env['threads']} threads, torch {env['torch']}, commit "
        f"{env['commit']}, {env['date'][:10]}. Protocol {first['protocol']}.",
        "",
        "| labelled | trained on | Dice | "
        + " | ".join(classes)
        + " | HD95, mm | missing | Dice, difference by seed |",
        "|---" * (6 + len(classes)) + "|",
    ]
    for (n, arm), cells in table.items():
        own = [cells[seed] for seed in sorted(cells)]
        row = [str(n), NAMES[arm], _spread([r["dice"] for r in own], ".3f")]
        row += [f"{np.mean([r['dice_classes'][c] for r in own]):.3f}" for c in range(len(classes))]
        row += [_spread([r["hd95"] for r in own], ".2f"), str(sum(r["empty"] for r in own))]
        gains = differences(table, n, arm, "dice")
        row.append(", ".join(f"{seed}: {100 * gain:+.1f}" for seed, gain in gains.items()) or "–")
        lines.append("| " + " | ".join(row) + " |")
    unfinished = [f"{n} labelled, {NAMES[arm]}" for n, arm in table if lacks_seeds(table, n, arm)]
    if unfinished:
        lines += ["", f"Not every seed has run yet, so only the differences compare: {'; '.join(unfinished)}."]
    searched = sorted((r for r in records if r["arm"] == "search"), key=lambda r: r["share"])
    if searched:
        shown = ", ".join(f"{100 * r['share']:.0f} %: {r['dice']:.4f}" for r in searched)
        r = searched[0]
        lines += [
            "",
            f"Share of generated pairs in a batch, searched with {r['n']} labelled volumes of seed {r['seed']}, scored "
            f"on {r['scored']} other volumes that train: Dice {shown}.",
        ]
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float], form: str) -> str:
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def draw(records: Sequence[Record], path: Path) -> None:
    """Draws Dice over the number of labelled volumes: a point for each seed, and for each arm a line through the means
    of those that have run at every seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    table = by_cell(records)
    counts = sorted({n for n, _ in table})
    for number, arm in enumerate(NAMES):
        own = [n for n in counts if (n, arm) in table]
        if not own:
            continue
        shift = 1 + 0.02 * (number - 1)  # points of the arms side by side
        whole = [n for n in own if not lacks_seeds(table, n, arm)]
        means = [np.mean([r["dice"] for r in table[n, arm].values()]) for n in whole]
        line = "--" if arm.endswith("plain") else "-"
        axes.plot([n * shift for n in whole], means, line, color=f"C{number}", label=NAMES[arm])
        for n in own:
            dots = [r["dice"] for r in table[n, arm].values()]
            axes.plot([n * shift] * len(dots), dots, ".", color=f"C{number}")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled volumes")
    axes.set_ylabel("Dice on held-out volumes, points are seeds")
    axes.grid(alpha=0.3)
    if table:
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_pairs(out: Path, path: Path) -> Path | None:
    """Draws the first real pairs of seed 0, and the first generated ones of each of its finished GANs; none chosen."""
    runs = [run for run in (out / "runs").glob("*-seed0") if _final(run).exists()]
    runs.sort(key=lambda run: (run.name.startswith("semi"), int(re.findall(r"\d+", run.name)[0])))
    if not runs:
        return None
    largest = max((r for r in runs if not r.name.startswith("semi")), key=lambda r: len(_data(out, r)), default=runs[0])
    data = _data(out, largest)
    count = min(COLUMNS, len(data))
    volumes, masks = [np.array(data.volumes[:count])], [np.array(data.masks[:count])]  # type: ignore[index]
    names = _names("real", count)
    for run in runs:
        G = load_generator(run, _final(run)).G
        made, made_masks = synthesise_pairs(G, latents(range(count), G.cfg.z_dim), batch=count, noise="random")
        volumes.append(np.clip(made, -1, 1))
        masks.append(made_masks)
        names += _names(f"GAN {run.name.removesuffix('-seed0')}", count)
    info = data.info
    title = f"the first {count} pairs of seed 0 of each, none chosen; the number is that of labelled volumes"
    return contact_sheet(
        to_axial(np.concatenate(volumes), info.slice_axis), names, path, spacing=info.spacing, title=title,
        columns=count, masks=to_axial(np.concatenate(masks), info.slice_axis),
    )  # fmt: skip


def _names(label: str, count: int) -> list[str]:
    return [label, *[""] * (count - 1)]


def _final(run: Path) -> Path:
    return checkpoint.final_path(run / "checkpoints", "3d")


def _data(out: Path, run: Path) -> VolumeDataset:
    return VolumeDataset(out / "sets" / run.name)
