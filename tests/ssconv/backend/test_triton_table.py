"""The table of Triton configurations: reading, choosing, searching and saving."""

from __future__ import annotations

import json

import pytest

from ssconv.backend.triton import table as triton_table
from ssconv.backend.triton.table import COMMITTED, TABLE, Config, Key, candidates

KEY = Key.of("conv", 90, "16bit", 2, 50, True)
SMALL = Config(16, 16, 16, 4, 2)


@pytest.fixture(autouse=True)
def own_table(tmp_path, monkeypatch):
    """A machine without a table of its own, and no search."""
    path = tmp_path / "folder" / "table.json"
    monkeypatch.setenv("SSCONV_TRITON_TABLE", str(path))
    monkeypatch.delenv("SSCONV_AUTOTUNE", raising=False)
    TABLE.forget()
    yield path
    TABLE.forget()


def refuse(config: Config) -> None:
    pytest.fail("nothing is to run without SSCONV_AUTOTUNE=1")


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


def test_this_machines_own_table_comes_first(own_table):
    assert TABLE.lookup(KEY) != SMALL
    TABLE.forget()
    TABLE.write(own_table, {KEY: SMALL})
    assert TABLE.choose(KEY, refuse, lambda function: 0.0) == SMALL
    other = Key.of("conv", 90, "16bit", 4, 50, True)
    assert TABLE.lookup(other) == TABLE.read(COMMITTED)[other]


def test_a_written_table_is_read_back(own_table):
    table = TABLE.read(COMMITTED)
    TABLE.write(own_table, table)
    assert TABLE.read(own_table) == table
    assert list(own_table.parent.iterdir()) == [own_table], "a temporary file is left"


def test_the_search_takes_the_fastest_that_runs_and_saves_it(own_table, monkeypatch):
    monkeypatch.setenv("SSCONV_AUTOTUNE", "1")
    TABLE.write(own_table, {Key.of("wgrad", 90, "16bit", 1, 16, True): SMALL})

    class OutOfResources(Exception):
        pass

    fastest = [c for c in candidates(KEY) if c.stages != 4][5]
    ran = []

    def run(config: Config) -> None:
        if config.stages == 4:
            raise OutOfResources
        ran.append(config)

    def seconds(function) -> float:
        function()
        return 1.0 if ran[-1] == fastest else 2.0

    assert TABLE.choose(KEY, run, seconds) == fastest
    assert {c for c in ran if c.stages == 4} == set()
    count = len(ran)
    assert TABLE.choose(KEY, run, seconds) == fastest and len(ran) == count, "searched twice"
    saved = TABLE.read(own_table)
    assert saved[KEY] == fastest and len(saved) == 2
    monkeypatch.delenv("SSCONV_AUTOTUNE")
    TABLE.forget()
    assert TABLE.choose(KEY, refuse, seconds) == fastest


def test_another_error_in_a_search_is_not_hidden(monkeypatch):
    monkeypatch.setenv("SSCONV_AUTOTUNE", "1")

    def run(config: Config) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        TABLE.choose(KEY, run, lambda function: 0.0)


def test_no_candidate_runs(monkeypatch):
    monkeypatch.setenv("SSCONV_AUTOTUNE", "1")

    class OutOfResources(Exception):
        pass

    def run(config: Config) -> None:
        raise OutOfResources

    with pytest.raises(LookupError, match="no candidate runs"):
        TABLE.choose(KEY, run, lambda function: 0.0)


@pytest.mark.parametrize("arithmetic", triton_table.ARITHMETIC)
@pytest.mark.parametrize("kernel", triton_table.KERNELS)
def test_there_are_candidates_and_all_are_valid(kernel, arithmetic, own_table):
    for architecture in (80, 90):
        key = Key.of(kernel, architecture, arithmetic, 2, 64, True)
        found = list(candidates(key))
        assert 10 < len(found) < 500
        assert any(c.descriptors for c in found) == (architecture == 90)
        for config in found:
            TABLE.write(own_table, {key: config})
            assert TABLE.read(own_table) == {key: config}


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
def test_a_bad_file_is_named(content, message, own_table):
    own_table.parent.mkdir()
    own_table.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=f"table.json: {message}" if "entry" in message else message) as caught:
        TABLE.lookup(KEY)
    assert str(own_table) in str(caught.value)
