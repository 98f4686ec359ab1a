"""`ssgan split`: disjoint, complete, fixed by the seed, and no subject in both parts."""

import random

import numpy as np
import pytest

from ssgan.data.dataset import DatasetError, VolumeDataset
from ssgan.data.phantom import write_phantom_dataset
from ssgan.data.split import split_indices
from ssgan.split import main

VISITS = [f"sub-{s:02d}/ses-{v}/sub-{s:02d}_T1w.nii.gz" for s in range(20) for v in range(1 + s % 3)]


def test_a_split_is_disjoint_complete_and_fixed_by_its_seed() -> None:
    names = [f"scan_{i:02d}.nii" for i in range(30)]
    train, held = split_indices(names, 7)
    assert len(held) == 7 and sorted(train + held) == list(range(30))
    shuffled = random.Random(3).sample(names, len(names))
    again = split_indices(shuffled, 7)
    assert {shuffled[i] for i in again[1]} == {names[i] for i in held}
    assert split_indices(names, 7, seed=1)[1] != held


@pytest.mark.parametrize("seed", range(5))
def test_a_subject_is_on_one_side(seed: int) -> None:
    train, held = split_indices(VISITS, 8, seed)
    subjects = [{VISITS[i][:6] for i in part} for part in (train, held)]
    assert not subjects[0] & subjects[1] and len(subjects[0] | subjects[1]) == 20
    assert 8 <= len(held) < 8 + 3
    alone = split_indices(VISITS, 8, seed, subject=".^")
    assert len(alone[1]) == 8


def test_what_cannot_be_split() -> None:
    with pytest.raises(DatasetError, match="two volumes have the same source name"):
        split_indices(["a", "b", "a"], 1)
    with pytest.raises(DatasetError, match="3 held out of 3 volumes of 3 subjects leave none to train on"):
        split_indices(["a", "b", "c"], 3)
    with pytest.raises(DatasetError, match="0 held out of 3 volumes of 3 subjects leave nothing held out"):
        split_indices(["a", "b", "c"], 0)


def test_the_command_writes_both_with_all_that_the_whole_says(tmp_path, capsys) -> None:
    whole = write_phantom_dataset(tmp_path / "whole", 12, (8, 12, 8), seed=4)
    out = tmp_path / "parts"
    command = ["--data", str(tmp_path / "whole"), "--out", str(out), "--hold-out", "5"]
    assert main(command) == 0
    assert f"--real {out / 'train'} --held-out {out / 'held'}" in capsys.readouterr().out
    parts = VolumeDataset(out / "train"), VolumeDataset(out / "held")
    assert [len(part) for part in parts] == [7, 5]
    found = {record["source"]: part.volumes[i] for part in parts for i, record in enumerate(part.records)}
    for volume, record in zip(whole.volumes, whole.records, strict=True):
        assert np.array_equal(found[record["source"]], volume)
    for part in parts:
        assert (part.info.spacing, part.info.affine) == (whole.info.spacing, whole.info.affine)
    assert main(command) == 2
    assert "train" in capsys.readouterr().err
    assert main([*command[:-1], "12"]) == 2
    assert "12 held out of 12 volumes" in capsys.readouterr().err
    assert main([*command, "--subject", "("]) == 2
    assert "--subject (: expected a regular expression" in capsys.readouterr().err
    assert main([*command, "--seed", "-1"]) == 2
    assert "--seed: expected 0 or more; got -1" in capsys.readouterr().err


def test_nothing_is_written_where_one_of_the_two_is_taken(tmp_path, capsys) -> None:
    write_phantom_dataset(tmp_path / "whole", 6, (8, 8, 8))
    (tmp_path / "parts" / "held").mkdir(parents=True)
    (tmp_path / "parts" / "held" / "notes.txt").write_text("mine")
    assert main(["--data", str(tmp_path / "whole"), "--out", str(tmp_path / "parts"), "--hold-out", "2"]) == 2
    assert "held" in capsys.readouterr().err
    assert not (tmp_path / "parts" / "train").exists()
