"""MODEL_CARD.md of a run, after Mitchell et al. 2019, from the same content as the report."""

from __future__ import annotations

from ssgan.metrics.masks import mask_table
from ssgan.reporting.content import ReportContent, count_parameters
from ssgan.reporting.formatting import format_duration, format_number


def render_model_card(content: ReportContent) -> str:
    """Renders the card in Markdown. Entries that a person has to fill in are bold."""
    cfg, info, meta = content.cfg, content.info, content.meta
    network = cfg.network
    counts = next((row for row in count_parameters(cfg) if row[0] == network.arch_name and len(row) == 3), None)
    size = f"{counts[1]:,} (generator) and {counts[2]:,} (discriminator)" if counts else "unknown"
    shape = " x ".join(map(str, network.shape))
    spacing = " x ".join(f"{s:g}" for s in info.spacing)
    phantom = info.recipe == "phantom"
    many = "unknown, the data set was not at hand" if content.data is None else str(len(content.data))
    origin = (
        "Random ellipsoid phantoms made by this project: no patients, and no anatomy worth modelling."
        if phantom
        else "The licence, consent and population of the scans are not known here: **fill them in before sharing.**"
    )
    before = f", after {meta.images_before:,} in the 2D stage that it was inflated from" if meta.images_before else ""
    versions = ", ".join(f"{k} {content.environment[k]}" for k in ("ssgan", "commit", "Python", "torch"))
    hyper = cfg.stage_2d if meta.stage == "2d" else cfg.stage_3d
    r1, r2 = hyper.gammas(cfg.loss)
    masks = ""
    if network.mask_classes:
        masks = f", each with a mask of {', '.join((info.mask_names or ())[1:])}"
    places = ", the 2D stage knew where along depth each slice lies" if cfg.network.depth_places else ""
    return f"""# Model card: {content.run.resolve().name}

Written by `ssgan report` from the run's own records. What a person has to add is in bold.

## Model

- 3D Split&Shuffle-GAN (after Liu et al. 2022), a StyleGAN2 for volumes
- architecture `{network.arch_name}`, preset `{cfg.preset}`
- makes volumes of {shape} voxels (D x H x W), {spacing} mm (x, y, z), slice axis {info.slice_axis}{masks}
- parameters: {size}
- checkpoint `{content.checkpoint.name}`, SHA-256 `{content.sha256}`
- {"training is finished" if content.result is not None else "**training is not finished**"}

## Intended use

Research: method development, augmentation studies, teaching, tests of software that needs volumes without patients.
Whether synthetic volumes help a task has to be shown for that task, on real held-out data.

## Not intended

- Diagnosis, treatment, or any decision about a person. Generated volumes may show anatomy or findings that do
  not occur.
- Measuring prevalence, effect sizes or any population statistic: a GAN drops modes, and rare findings first.
- Standing in for real data in a clinical validation.
- Passing off generated volumes as real: their files have the geometry and intensities of real ones, so label them.
- Use as anonymised data without a privacy review; see below.

## Data

- {many} volumes, recipe `{info.recipe}`
- intensities {info.intensity_low:g} to {info.intensity_high:g}, scaled to [-1, 1]
- SHA-256 of the voxels `{info.content_hash}`
- {origin}
- Generated volumes have the affine and the intensity scale of a typical volume of the set; they inherit its scanners,
  protocols, ages and biases.

## Training

    {content.command}

- {meta.images:,} real images shown in stage {meta.stage}{before}; {format_duration(content.seconds)}; seed {cfg.seed}
- loss `{cfg.loss}`; weights of the gradient penalties in stage {meta.stage}: R1 {r1:g}, R2 {r2:g}
- inflation profile `{cfg.inflate}`{places}; every hyper-parameter is in `config.json`, every step in `log.jsonl`

## Evaluation

{evaluation(content)}

## Privacy and memorisation

{privacy(content)}

GANs can reproduce training volumes, small data sets above all. A distance check finds near copies, not flipped, shifted
or partial ones, and is no proof of anonymity and no differential privacy. **Before sharing weights or volumes made from
patients' scans: a check against the whole training set, and the approval that licence and ethics board ask for.**

## Limits

- {shape} voxels at {spacing} mm: what is finer is not modelled.
- Truncation below 1 makes volumes more typical and less varied; report it with every result.
- Voxels at a volume's border and intensities outside the scale above were cut off in preparation.
- One run with one seed: it says nothing about the spread between runs.

## Reproducing

The command above with the same data set, versions and number of threads gives the same weights on a CPU. This card was
made with {versions}.
"""


def evaluation(content: ReportContent) -> str:
    """Renders the distances of the training and the table of metrics.json."""
    lines = []
    if content.distance is not None:
        floor = "" if content.floor is None else f" (real against real: {content.floor:.4f})"
        lines.append(f"- sliced Wasserstein distance to the data, measured in training: {content.distance:.4f}{floor}")
    if content.metrics is None:
        return "\n".join([*lines, "- **not evaluated yet** with `ssgan evaluate`"])
    found = content.metrics
    if content.metrics_note:
        lines.append(f"- {content.metrics_note}")
    lines += ["", "| metric | value | 95 % interval | floor (real against real) | better |", "|---|---|---|---|---|"]
    for name, row in found["metrics"].items():
        interval = row.get("interval")
        shown = "none" if interval is None else f"{format_number(interval[0])} to {format_number(interval[1])}"
        value, floor = format_number(row.get("value")), format_number(row.get("floor"))
        lines.append(f"| {name} | {value} | {shown} | {floor} | {row.get('better', '')} |")
    if "masks" in found:
        table = mask_table(found["masks"])
        lines += ["", f"{table.caption[0].upper()}{table.caption[1:]}. Of generated masks / of real ones:", ""]
        lines += [f"| class | {' | '.join(table.columns)} |", "|---" * (1 + len(table.columns)) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join([*lines, "", f"{found['count']} against {found['count']} volumes. Protocol: {found['protocol']}."])


def privacy(content: ReportContent) -> str:
    """Renders the checks for copies."""
    lines = []
    check = (content.metrics or {}).get("memorisation") or {}
    for space in ("features", "voxels"):
        if space in check:
            row = check[space]
            lines.append(
                f"- {space}: median distance to the nearest training volume over that of the reference "
                f"({check.get('reference', 'unknown')}): {format_number(row['ratio'])}, well below 1 points to copies; "
                f"{row['below_5_percent']:.1%} nearer than the reference's 5 % quantile"
            )
    near = content.neighbours
    if near is not None:
        lines.append(
            f"- {len(near.distance)} volumes (seeds 0 to {len(near.distance) - 1}): distances to the nearest training "
            f"volume {min(near.distance):.3f} to {max(near.distance):.3f}; of training volumes to their nearest other "
            f"one: median {near.median:.3f}, 5 % quantile {near.low:.3f}"
        )
    return "\n".join(lines) or "- **not checked**: `ssgan evaluate`, and `ssgan report` with the data set at hand, do"
