"""`prepare --labels`: classes by file or by subject, and an exact message for every row that does not fit."""

import json
import os

import numpy as np
import pytest

from ssgan import prepare
from ssgan.data.dataset import DatasetError, VolumeDataset, class_names
from ssgan.data.labels import LabelError, read_labels
from tests.support.nifti_cases import ARGUMENTS, good

NAMES = ["0.nii.gz", "1.nii.gz", os.path.join("sub", "2.nii.gz")]


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "labels.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


@pytest.fixture
def source(tmp_path):
    for seed, name in enumerate(NAMES):
        good(tmp_path / "in" / name, seed)
    return tmp_path / "in"


def run(source, out, *more):
    return prepare.main([str(a) for a in ("--input", source, "--out", out, *ARGUMENTS, *more)])


def test_from_the_csv_to_numbers(source, tmp_path, capfd):
    """By file name or path, in any order, with a byte order mark, a quoted comma and further columns."""
    rows = ["Age,FILE,Class", '70,1.nii.gz,"well, almost"', "", "3,sub/2.nii.gz,ill", "4, 0.nii.gz , ill"]
    path = table(tmp_path, "\n".join(rows), "utf-8-sig")
    assert run(source, tmp_path / "out", "--labels", path, "--strict") == 0
    assert "classes ill: 2, well, almost: 1" in capfd.readouterr().out
    dataset = VolumeDataset(tmp_path / "out")
    assert dataset.info.classes == ("ill", "well, almost")
    assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == [0, 1, 0]
    assert [r["class_label"] for r in dataset.records] == ["ill", "well, almost", "ill"]


def test_without_labels_and_in_old_data_sets(source, tmp_path):
    assert run(source, tmp_path / "out") == 0
    dataset = VolumeDataset(tmp_path / "out")
    assert dataset.labels is None and dataset.info.classes is None
    path = tmp_path / "out" / "dataset.json"
    head = json.loads(path.read_text())
    del head["info"]["classes"]
    path.write_text(json.dumps(head))
    old = VolumeDataset(tmp_path / "out")
    assert old.labels is None and old.info == dataset.info


@pytest.mark.parametrize("change", ["unknown", "absent", "twice", "no list"])
def test_damaged_classes_are_named(change, source, tmp_path):
    path = table(tmp_path, "file,class\n0.nii.gz,a\n1.nii.gz,b\n2.nii.gz,a\n")
    assert run(source, tmp_path / "out", "--labels", path) == 0
    path = tmp_path / "out" / "dataset.json"
    head = json.loads(path.read_text())
    match change:
        case "unknown":
            head["volumes"][1]["class_label"] = "c"
        case "absent":
            del head["volumes"][1]["class_label"]
        case "twice":
            head["info"]["classes"] = ["a", "b", "a"]
        case "no list":
            head["info"]["classes"] = 2
    path.write_text(json.dumps(head))
    with pytest.raises(DatasetError, match=r"expected classes of|classes no names"):
        VolumeDataset(tmp_path / "out")


def test_class_order():
    assert class_names(["10", "9", "9", "0"]) == ("0", "9", "10")
    assert class_names(["b", "10", "9"]) == ("10", "9", "b") and class_names([]) is None


ADNI = os.path.join("002_S_0413", "MPRAGE", "2006-05-02", "I13894", "ADNI_002_S_0413_MR_MPRAGE_I13894.nii")
FLAT = "ADNI_123_S_00042_MR_MPRAGE_I9.nii.gz"


def test_subjects_stand_for_all_their_volumes():
    """By a folder's name, a file's stem or an ADNI id within; ADNI's own table serves as it comes (Subject, Group)."""
    names = [ADNI, ADNI.replace("2006", "2007"), FLAT, os.path.join("p1", "a.nrrd"), "p2.mha"]
    rows = ["Image Data ID,Subject,Group,Sex", "I1,002_S_0413,CN,F", "I2,002_S_0413,CN,F", "I3,123_S_00042,AD,M"]
    found = read_labels(write_lines(rows), names)
    assert found.classes == {names[0]: "CN", names[1]: "CN", FLAT: "AD"}
    assert set(found.missing) == set(names[3:])
    assert found.notes == ["line 3: '002_S_0413' stands there twice with the same class, as in line 2"]
    rows = ["participant_id,class", "p1,x", "p2,y", "002_S_0413,z", "123_S_00042,z"]
    assert list(read_labels(write_lines(rows), names, strict=True).classes.values()) == ["x", "y", "z", "z", "z"]


BIDS = [
    os.path.join("sub-01", "anat", "sub-01_T1w.nii.gz"),
    os.path.join("sub-01", "ses-2", "anat", "sub-01_ses-2_T1w.nii.gz"),
    "sub-02_T1w.nii.gz",
    os.path.join("derivatives", "x_sub-010_T1w.nii.gz"),
]


def test_a_bids_participants_table_works_as_it_is():
    rows = ["participant_id\tage\tgroup", "sub-01\t23,5\tpatient", "sub-02\tn/a\tcontrol", "sub-010\t70\tn/a"]
    found = read_labels(write_lines(rows), BIDS)
    assert found.classes == {BIDS[0]: "patient", BIDS[1]: "patient", BIDS[2]: "control"}
    assert found.missing == {BIDS[3]: "no class in labels.csv: line 4 leaves it empty"} and not found.notes


def test_a_bids_scans_table_names_files_from_the_subject_on():
    rows = ["filename\tacq_time\tgroup", "anat/sub-01_T1w.nii.gz\tn/a\ta", "ses-2/anat/sub-01_ses-2_T1w.nii.gz\tn/a\tb"]
    assert read_labels(write_lines(rows), BIDS).classes == {BIDS[0]: "a", BIDS[1]: "b"}


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_delimiter_is_detected(mark, end, tmp_path):
    """With cells that hold the other marks, as a decimal comma does."""
    others = "".join({",", ";", "\t"} - {mark})
    rows = [["remark", "file", "class"], [f'"{others}"', "0.nii.gz", "ä"], ["3.5", "1.nii.gz", f'"b{mark}c"']]
    path = table(tmp_path, end.join(mark.join(row) for row in rows) + end)
    assert read_labels(path, NAMES).classes == {NAMES[0]: "ä", NAMES[1]: f"b{mark}c"}


@pytest.fixture(autouse=True)
def write_lines_here(tmp_path):
    write_lines.folder = tmp_path


def write_lines(rows):
    return table(write_lines.folder, "\n".join(rows))


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "cannot be read as CSV"),
        (b"\xff\xfe\x00\x01", "cannot be read as CSV"),
        ("", "line 1: expected a header with the columns file (or subject) and class; got an empty file"),
        ("0.nii.gz,a\n1.nii.gz,b\n", "line 1: expected a header with the columns file"),
        ("file|class\n0.nii.gz|a\n", "line 1: expected a header .. ['file|class']"),
        ("file,class\n0.nii.gz,a,b\n", "line 2: expected 2 columns as in the header; got ['0.nii.gz', 'a', 'b']"),
        ("file;class\r\n0.nii.gz;a\r\n1.nii.gz;épilepsie\r\n".encode("latin-1"), "line 3 holds the byte 0xe9 .. UTF-8"),
        ("file\tclass\r0.nii.gz\t\xe9\r".encode("latin-1"), "line 2 holds the byte 0xe9"),
        ("file,class\n0.nii.gz,a\n0.nii.gz,b\n", "line 3: '0.nii.gz' has the class 'a' already, by line 2; now 'b'"),
        ("file,class\n0.nii.gz,a\n0.nii.gz,\n", "line 3: '0.nii.gz' has the class 'a' already, by line 2; now ''"),
        ("file,class\n0.nii.gz\n", "line 2: expected 2 columns as in the header; got ['0.nii.gz']"),
        ("file,class\n9.nii.gz,a\n", "none of its 1 rows gives a class to one of the 3 volumes, such as '0.nii.gz'"),
    ],
)
def test_tables_that_cannot_be_used(text, words, source, tmp_path, capfd):
    path = tmp_path / "labels.csv" if text is None else table(tmp_path, text)
    assert run(source, tmp_path / "out", "--labels", path) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"ssgan prepare: error: --labels {path}") and err.count("\n") == 1
    assert all(word in err for word in words.split(" .. ")), err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "rows, strict_words, note, skipped",
    [
        (
            ["0.nii.gz,a", "1.nii.gz,b", "2.nii.gz,a", "9.nii.gz,b"],
            "line 5: '9.nii.gz' is not among the input files",
            "labels   line 5: '9.nii.gz' is not among the input files",
            {},
        ),
        (
            ["0.nii.gz,a", "1.nii.gz,b", "2.nii.gz,a", "0.nii.gz,a"],
            "line 5: '0.nii.gz' stands there twice with the same class, as in line 2",
            "labels   line 5: '0.nii.gz' stands there twice",
            {},
        ),
        (
            ["0.nii.gz,a", "1.nii.gz,b"],
            f"{NAMES[2]} has no class in labels.csv: no row names it",
            f"skipped  {NAMES[2]}: no class in labels.csv: no row names it",
            {NAMES[2]: "no class in labels.csv: no row names it"},
        ),
        (
            ["0.nii.gz,", "1.nii.gz,b", "2.nii.gz,a"],
            "0.nii.gz has no class in labels.csv: line 2 leaves it empty",
            "skipped  0.nii.gz: no class in labels.csv: line 2 leaves it empty",
            {"0.nii.gz": "no class in labels.csv: line 2 leaves it empty"},
        ),
    ],
    ids=["unknown name", "the same row twice", "no row", "no class"],
)
def test_said_or_strict_stops(rows, strict_words, note, skipped, source, tmp_path, capfd):
    path = table(tmp_path, "\n".join(["file,class", *rows]))
    assert run(source, tmp_path / "out", "--labels", path, "--strict") == 2
    err = capfd.readouterr().err
    assert err == (
        f"ssgan prepare: error: --labels {path}: {strict_words} (--strict stops at the first such row or file)\n"
    )
    assert run(source, tmp_path / "out", "--labels", path) == 0
    assert note in capfd.readouterr().out
    dataset = VolumeDataset(tmp_path / "out")
    assert {s["file"]: s["reason"] for s in dataset.skipped} == skipped
    assert len(dataset.labels) == len(dataset) == 3 - len(skipped)


def test_one_name_for_several_files(tmp_path):
    names = ["0.nii.gz", os.path.join("sub", "0.nii.gz")]
    with pytest.raises(LabelError, match=r"line 2: '0.nii.gz' names several files; give the path below --input"):
        read_labels(write_lines(["file,class", "0.nii.gz,a"]), names)
    rows = ["file,class", "sub/0.nii.gz,b"]
    assert read_labels(write_lines(rows), names).classes == {names[1]: "b"}


FILES = ["a/0.nii.gz", "a/1.nii.gz", "b/0.nii.gz"]
SPELLINGS = {
    "folders of Windows": "{0}\\{1}.nii.gz",
    "from here": "./{0}/{1}.nii.gz",
    "from a folder above": "study/images/{0}/{1}.nii.gz",
    "absolute": "/mnt/study/{0}/{1}.nii.gz",
    "absolute on Windows": "D:\\study\\{0}\\{1}.nii.gz",
    "without the suffix": "{0}/{1}",
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_paths_of_tables_made_elsewhere(spelling, tmp_path):
    rows = [f"{spelling.format(*name.removesuffix('.nii.gz').split('/'))},{name[0]}" for name in FILES]
    labels = read_labels(table(tmp_path, "\n".join(["file,class", *rows])), FILES, strict=True)
    assert labels.classes == {name: name[0] for name in FILES}


@pytest.mark.parametrize("cell", ["/mnt/other/c/0.nii.gz", "c/0.nii.gz", "x1.nii.gz", "b/0.nii.gz/2.nii.gz", "\\"])
def test_other_paths_name_no_volume(cell, tmp_path):
    labels = read_labels(table(tmp_path, f"file,class\n{cell},x\na/1.nii.gz,y\n"), FILES)
    assert labels.classes == {"a/1.nii.gz": "y"} and labels.notes == [f"line 2: {cell!r} is not among the input files"]


def test_a_name_without_suffix_that_two_files_have(tmp_path):
    with pytest.raises(LabelError, match="line 2: '0' names several files"):
        read_labels(table(tmp_path, "file,class\n0,x\n"), ["0.nii", "0.mha"])
