"""The table of Triton configurations: reading, choosing, searching and saving."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ssconv.backend.triton import table as triton_table
from ssconv.backend.triton.table import COMMITTED, TABLE, Key, candidates

KEY = Key.of("conv", 90, "16bit", 2, 50, True)


def test_a_class_is_a_range_of_channels_and_a_generation():
    assert Key.of("conv", 89, "16bit", 2, 50, True) == Key("conv", 80, "16bit", 2, 64, True)
    assert Key.of("conv", 120, "16bit", 2, 1, True).architecture == 80
    assert Key.of("conv", 103, "16bit", 2, 1000, True) == Key("conv", 100, "16bit", 2, 128, True)


@pytest.mark.parametrize("architecture", [70, 75, 80, 86, 89, 90, 100, 103, 110, 120, 200])
@pytest.mark.parametrize("kernel", triton_table.KERNELS)
@pytest.mark.parametrize("arithmetic", triton_table.ARITHMETIC)
def test_every_class_has_a_configuration(kernel, arithmetic, architecture):
    for branches in triton_table.BRANCHES if kernel == "conv" else (1,):
        for channels in (1, 16, 17, 64, 128, 500):
            for describable in (False, True):
                config = TABLE.lookup(Key.of(kernel, architecture, arithmetic, branches, channels, describable))
                assert describable or not config.descriptors


def test_descriptors_come_first_where_they_serve():
    assert TABLE.lookup(KEY).descriptors
    assert not TABLE.lookup(Key.of("conv", 90, "16bit", 2, 50, False)).descriptors
    assert not TABLE.lookup(Key.of("conv", 86, "16bit", 2, 50, True)).descriptors


def test_a_written_table_is_read_back(tmp_path):
    path = tmp_path / "folder" / "table.json"
    table = TABLE.read(COMMITTED)
    TABLE.write(path, table)
    assert TABLE.read(path) == table
    assert list(path.parent.iterdir()) == [path], "a temporary file is left"


@pytest.mark.parametrize("arithmetic", triton_table.ARITHMETIC)
@pytest.mark.parametrize("kernel", triton_table.KERNELS)
def test_there_are_candidates_and_all_are_valid(kernel, arithmetic, tmp_path):
    for architecture in (80, 90):
        key = Key.of(kernel, architecture, arithmetic, 2, 64, True)
        found = list(candidates(key))
        assert 10 < len(found) < 500
        assert any(c.descriptors for c in found) == (architecture == 90)
        for config in found:
            TABLE.write(tmp_path / "table.json", {key: config})
            assert TABLE.read(tmp_path / "table.json") == {key: config}


ROW = json.loads(COMMITTED.read_text())[0]
BAD = {
    "not JSON": ("[", "entry 0"),
    "no list": ("{}", "expected a list"),
    "no config": ([{k: v for k, v in ROW.items() if k != "config"}], "entry 1: .*config"),
    "another name": ([ROW | {"blocks": 3}], "entry 1: .*blocks"),
    "unknown kernel": ([ROW, ROW | {"kernel": "sum"}], "entry 2: .*kernel: expected one of conv, wgrad"),
    "unknown channels": ([ROW | {"channels": 5}], "channels: expected one of 16"),
    "odd tile": ([ROW | {"config": ROW["config"] | {"block_m": 24}}], "config block_m: expected a power of two"),
    "small tile": ([ROW | {"config": ROW["config"] | {"block_k": 8}}], "config block_k: expected a power of two"),
    "no warps": ([ROW | {"config": ROW["config"] | {"warps": 0}}], "config warps"),
    "descriptors for what has none": (
        [ROW | {"describable": False, "config": ROW["config"] | {"descriptors": True}}], "config descriptors"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named(content, message, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"table.json: {message}" if "entry" in message else message) as caught:
        dataclasses.replace(TABLE, committed=path).lookup(KEY)
    assert str(path) in str(caught.value)
