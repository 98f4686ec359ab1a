"""benchmarks.experiments: the cells of the grids and their settings."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.experiments import (
    grids,
    step_times,
)
from benchmarks.experiments.grids import Cell
from ssgan.config.network import ARCHITECTURES
from ssgan.models.layers import BranchWeights
from ssgan.utils.errors import ConfigError
from tests.support.experiment_stand_ins import TINY

# ---- cells ----


def test_cells_of_the_first_seed_come_first_and_grids_share_theirs():
    a = grids.cells("A", TINY, TINY.shape, [0, 1])
    starts = ("none", "average", "places")
    assert [(c.arch, c.inflate, c.seed) for c in a[:6]] == [(n, s, 0) for n in ("dense", "split_depth") for s in starts]
    assert [c.seed for c in a] == [0] * 6 + [1] * 6
    b, c = (grids.cells(g, TINY, TINY.shape, [0, 1]) for g in "BC")
    assert {x.inflate for x in b} == {"none", "average", "centre", "triangle", "places"}
    # One 2D stage serves every profile, but the one that knows places.
    assert [len({x.folder_2d for x in b if x.seed == 0 and (x.inflate == "places") == own}) for own in (0, 1)] == [1, 1]
    assert a[4].folder in {x.folder for x in b} and a[4].folder in {x.folder for x in c}
    assert a[5].folder in {x.folder for x in b} and a[5].label == "split_depth, inflated centre, depth-aware"
    for cells in (a, b, c):
        assert len({x.folder for x in cells}) == len(cells)
    d = grids.cells("D", TINY, TINY.shape, [0, 1])
    assert {d[0].folder, d[3].folder} <= {x.folder for x in a} and len({x.folder for x in d}) == 8
    assert [x.label for x in d[1:3]] == ["split_depth G and dense D, scratch", "dense G and split_depth D, scratch"]
    sizes = [grids.build(grids.config(TINY, TINY.shape, x, "3d").network) for x in d[:4]]
    g, e = ([grids.parameter_count(nets[i]) for nets in sizes] for i in (0, 1))
    assert g[0] == g[2] > g[1] == g[3] and e[0] == e[1] > e[2] == e[3]
    assert len({step_times.kind(dataclasses.asdict(x), "3d") for x in d[:4]}) == 4
    with pytest.raises(ConfigError, match="grid: expected A, B, C, D or E; got 'F'"):
        grids.cells("F", TINY, TINY.shape, [0])


def test_the_grid_of_levels():
    """Each cell's networks are dense at the levels that its label says, split_depth at the others."""
    scale = grids.SCALES["cpu"]
    e = grids.cells("E", scale, scale.shape, [0, 1])
    assert [x.label for x in e[:6]] == [
        "dense, scratch", "split_depth dense at level 0, scratch", "split_depth dense at levels 0, 1, scratch",
        "split_depth dense at level 2, scratch", "split_depth dense at levels 1, 2, scratch", "split_depth, scratch",
    ]  # fmt: skip
    a = {x.folder for x in grids.cells("A", scale, scale.shape, [0, 1])}
    assert {e[0].folder, e[5].folder, e[6].folder, e[11].folder} <= a and len({x.folder for x in e}) == 12
    assert len({step_times.kind(dataclasses.asdict(x), "3d") for x in e}) == 6
    for cell in e[:6]:
        nets = grids.build(grids.config(scale, scale.shape, cell, "3d").network)
        dense = {
            int(name.split(".")[2]) if part == "G" else 2 - int(name.split(".")[1])
            for part, net in zip("GD", nets, strict=True)
            for name, module in net.named_modules()
            if "blocks" in name and isinstance(module, BranchWeights) and module.kernels == ((3, 3, 3),)
        }
        assert dense == ({0, 1, 2} if cell.arch == "dense" else set(cell.dense_levels)), cell.label


@pytest.mark.parametrize("name", ["cpu", "cpu32", "gpu"])
def test_equal_parameters_and_the_paper_s_share(name):
    scale = grids.SCALES[name]
    cells = grids.cells("C", scale, scale.shape, [0])
    sizes = {(c.arch, c.note): grids.parameters(grids.network(scale, scale.shape, c.arch, c.widths)) for c in cells}
    target = sizes["split_depth", ""]
    assert target <= 0.485 * sizes["dense", ""]
    assert {a for a, note in sizes if note == ""} == set(ARCHITECTURES)
    matched = {a: n for (a, note), n in sizes.items() if note == "equal parameters"}
    assert set(matched) == set(ARCHITECTURES) - {"split_depth"}
    for arch, count in matched.items():
        assert abs(count / target - 1) < 0.06, arch
    wider = {key: n for key, n in sizes.items() if key[1] == "dense's parameters"}
    assert list(wider) == [("split_depth", "dense's parameters")]
    assert abs(wider["split_depth", "dense's parameters"] / sizes["dense", ""] - 1) < 0.06


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed=3", "is not a setting that may be changed; expected one of"),
        ("stage_3d.kimg=3", "is not a setting that may be changed; expected one of"),
        ("stage_3d.speed=3", "is not a setting that may be changed; expected one of"),
        ("stage_3d=3", r"one of its parts, such as stage_3d\.kimg"),
        ("warmup_kimg.rise=3", "is a single value"),
        ("stage_3d.lr_d=fast", "expected NAME=VALUE with a JSON value"),
    ],
)
def test_settings_that_cannot_be(text, message):
    cell = Cell("dense", "none", (8, 4), 0)
    with pytest.raises(ConfigError, match=message):
        grids.config(TINY, TINY.shape, cell, "3d", grids.parse_changes([text]))


def test_settings_hold_for_every_cell():
    changes = grids.parse_changes(["stage_3d.lr_d=0.0005", "warmup_kimg=2", "augment.xflip=false"][:2])
    for cell in grids.cells("A", TINY, TINY.shape, [0]):
        cfg = grids.config(TINY, TINY.shape, cell, "3d", changes)
        assert (cfg.stage_3d.lr_d, cfg.warmup_kimg) == (0.0005, 2)
