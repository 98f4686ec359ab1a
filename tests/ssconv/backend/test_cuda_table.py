"""The table of CUDA configurations: every class has one that fits its card, and invalid rows raise."""

from __future__ import annotations

import dataclasses

import pytest

from ssconv.backend.cuda.table import KERNELS, SHARED, TABLE, Config, Key, candidates, family, stage_bytes
from ssconv.backend.tuning import ARITHMETIC, BRANCHES, Table

KEY = Key.of("product", 89, "16bit", 2, 50, False)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [(80, 80), (86, 86), (87, 80), (89, 86), (90, 90), (100, 90), (103, 90), (120, 86), (130, 86)],
)
def test_cards_of_one_family_have_its_shared_memory(architecture, expected):
    assert family(architecture) == expected


@pytest.mark.parametrize("architecture", [80, 86, 87, 89, 90, 100, 120, 200])
@pytest.mark.parametrize("arithmetic", ARITHMETIC)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_class_has_a_configuration_that_its_card_has_room_for(kernel, arithmetic, architecture):
    for branches in BRANCHES if kernel == "product" else (1,):
        for columns in (1, 16, 17, 64, 128, 500):
            for singly in (False, True) if kernel == "product" else (False,):
                key = Key.of(kernel, architecture, arithmetic, branches, columns, singly)
                config = TABLE.lookup(key)
                assert stage_bytes(key, config.width) * config.stages <= SHARED[key.architecture]
                assert config in list(candidates(key)) or config.programs not in (0, 512)


def test_a_class_without_a_row_takes_one_that_has_room(tmp_path):
    """9.0's stages do not fit on 8.6; 8.6's do on 9.0."""
    rows = TABLE.read(TABLE.committed)

    def only(architecture: int, columns: int) -> Table[Key, Config]:
        path = tmp_path / f"{architecture}.json"
        TABLE.write(path, {k: c for k, c in rows.items() if k.architecture == architecture and k.columns == columns})
        return dataclasses.replace(TABLE, committed=path)

    with pytest.raises(LookupError, match="no configuration for"):
        only(90, 64).lookup(KEY)
    assert only(86, 64).lookup(Key.of("product", 90, "16bit", 2, 16, False)) == rows[KEY]


BAD = {
    "unknown card": ({"architecture": 70}, {}, "architecture: expected one of 80, 86, 90; got 70"),
    "a width that there is not": ({}, {"width": 48}, "config width: expected one of 32, 64, 128; got 48"),
    "too narrow for four branches": ({"branches": 4}, {"width": 32}, "config width: expected one of 64, 128"),
    "too wide for single elements": ({"singly": True}, {"width": 128}, "config width: expected one of 32, 64"),
    "stages": ({}, {"stages": 5}, "config stages: expected one of 2, 3, 4; got 5"),
    "no room": (
        {"branches": 1},
        {"width": 128, "stages": 4},
        "config stages: 4 need 131072 bytes of shared memory; 8.6 has 101376",
    ),
    "branches of a weight gradient": ({"kernel": "weights"}, {}, "branches: expected one of 1; got 2"),
    "no blocks": ({"kernel": "weights", "branches": 1}, {"programs": 0}, "config programs: expected a positive"),
}


@pytest.mark.parametrize(("key", "config", "message"), BAD.values(), ids=BAD)
def test_an_invalid_row_is_named(key, config, message, tmp_path):
    path = tmp_path / "table.json"
    row = dataclasses.replace(KEY, **key)
    TABLE.write(path, {row: dataclasses.replace(Config(64, 2), **config)})
    with pytest.raises(ValueError, match=f"table.json: entry 1: not a table of CUDA configurations: {message}"):
        dataclasses.replace(TABLE, committed=path).lookup(KEY)


def test_the_committed_configuration_is_the_first_candidate():
    found = list(TABLE.configs(KEY))
    assert found[0] == TABLE.lookup(KEY) and len(found) == len(set(found)) > 3
    assert set(found) == set(candidates(KEY)) | {found[0]}
