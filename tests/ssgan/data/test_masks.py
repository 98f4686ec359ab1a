"""The mask of each volume: by name, pattern and table; what is ambiguous, claimed twice or left over; class names."""

import json
import os

import numpy as np
import pytest

from ssgan.data.labels import LabelError
from ssgan.data.mask_names import MaskNameError, parse_names
from ssgan.data.masks import ENDINGS, MaskError, find_masks, load_masks
from ssgan.data.sources import Source, find_files
from ssgan.data.writer import MaskClasses
from tests.support.nifti_cases import save


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(root):
    """The sources of the NIfTI, NRRD and MetaImage files below a folder, as --input finds them."""
    return [Source(str(f.relative_to(root)), (f,)) for f in find_files(root).files]


def found(given, root, **more):
    """Volume -> its mask relative to root, as they are matched; and the rest."""
    masks, volumes = find_masks(str(given), listed(root), root, **more)
    files = {name: os.path.relpath(path, root) for name, path in masks.files.items()}
    names = [v.name for v in volumes]
    assert sorted([*files, *masks.missing, *masks.refused]) == sorted(names)  # every volume is accounted for
    return files, masks, names


def test_the_same_path_or_name_below_another_folder(tmp_path):
    """Another suffix and another place below the folder do no harm; the same path comes before the same name."""
    touch(tmp_path / "in", "a/1.nii.gz", "a/2.nii", "b/1.nii.gz", "3.nrrd")
    touch(tmp_path / "m", "a/1.nii", "b/1.nrrd", "deep/er/2.mha", "3.nii.gz")
    files, masks, names = found(tmp_path / "m", tmp_path / "in")
    assert files == {"a/1.nii.gz": "../m/a/1.nii", "a/2.nii": "../m/deep/er/2.mha", "b/1.nii.gz": "../m/b/1.nrrd"} | {
        "3.nrrd": "../m/3.nii.gz"
    }
    assert len(names) == 4 and not masks.unused and not masks.notes


def test_a_mask_at_one_volumes_path_is_no_other_volumes(tmp_path):
    """Files of one name in the folder of each subject, of which some have no mask; also beside the images."""
    touch(tmp_path / "in", "s1/t1.nii", "s2/t1.nii", "s3/t1.nii")
    touch(tmp_path / "m", "s2/t1.nii")
    files, masks, _ = found(tmp_path / "m", tmp_path / "in")
    assert files == {"s2/t1.nii": "../m/s2/t1.nii"} and list(masks.missing) == ["s1/t1.nii", "s3/t1.nii"]
    touch(tmp_path / "in", "s1/t1_seg.nii")
    files, masks, _ = found(tmp_path / "in", tmp_path / "in")
    assert files == {"s1/t1.nii": "s1/t1_seg.nii"} and list(masks.missing) == ["s2/t1.nii", "s3/t1.nii"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", ["m", "in", "in/masks"])
def test_the_usual_endings(place, ending, tmp_path):
    """In another folder, beside the images, and in a folder below them."""
    touch(tmp_path / "in", "s1/t1.nii.gz", "s2/t2.nii.gz")
    beside = place == "in"
    touch(tmp_path / place, f"{'s1/' if beside else ''}t1{ending}.nii.gz", f"{'s2/' if beside else 'x/'}t2{ending}.nii")
    files, masks, names = found(tmp_path / place, tmp_path / "in")
    assert names == ["s1/t1.nii.gz", "s2/t2.nii.gz"] and set(files) == set(names)
    assert [os.path.basename(f) for f in files.values()] == [f"t1{ending}.nii.gz", f"t2{ending}.nii"]
    assert len(masks.notes) == (place != "m")
    if masks.notes:
        assert masks.notes[0].startswith("2 files below --input are masks, not volumes, such as ")


def test_nnunets_and_the_decathlons_folders(tmp_path):
    """imagesTr/case_0000 and labelsTr/case; the whole task as --input; macOS' hidden files."""
    touch(tmp_path / "t", "imagesTr/la_003_0000.nii.gz", "imagesTr/la_004_0000.nii.gz", "labelsTr/la_003.nii.gz")
    touch(tmp_path / "t", "labelsTr/la_004.nii.gz", "labelsTr/._la_004.nii.gz", "labelsTr/la_009.nii.gz")
    expected = {f"la_00{i}_0000.nii.gz": f"../labelsTr/la_00{i}.nii.gz" for i in (3, 4)}
    files, masks, _ = found(tmp_path / "t" / "labelsTr", tmp_path / "t" / "imagesTr")
    assert files == expected and masks.unused == {"../labelsTr/la_009.nii.gz": "a mask of no volume (below --masks)"}
    files, masks, names = found(tmp_path / "t" / "labelsTr", tmp_path / "t")
    assert files == {f"imagesTr/{k}": v[3:] for k, v in expected.items()} and len(names) == 2
    assert masks.notes == [
        "3 files below --input are masks, not volumes, such as labelsTr/la_003.nii.gz"
    ] and masks.unused == {"labelsTr/la_009.nii.gz": "a mask of no volume (below --masks)"}


def test_two_channels_of_nnunet_share_no_mask(tmp_path):
    touch(tmp_path / "in", "c_0000.nii.gz", "c_0001.nii.gz")
    touch(tmp_path / "m", "c.nii.gz")
    files, masks, _ = found(tmp_path / "m", tmp_path / "in")
    assert files == {"c_0000.nii.gz": "../m/c.nii.gz"} and list(masks.missing) == ["c_0001.nii.gz"]


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_masks_that_a_link_leads_to(linked, tmp_path):
    touch(tmp_path / "in", "images/1.nii", "labels/1.nii")
    given = tmp_path / "in" / "labels"
    if linked:
        (tmp_path / "link").symlink_to(tmp_path / "in", target_is_directory=True)
        given = tmp_path / "link" / "labels"
    files, _, names = found(given, tmp_path / "in")
    assert names == ["images/1.nii"] and os.path.samefile(tmp_path / "in" / files["images/1.nii"], given / "1.nii")


def test_what_may_be_two_masks_is_refused(tmp_path):
    """Two files of one name in different folders, two endings; an exact name is preferred to an ending."""
    touch(tmp_path / "in", "1.nii", "2.nii", "3.nii", "4.nii")
    touch(tmp_path / "m", "a/1.nii", "b/1.nii", "2_seg.nii", "2_mask.nii", "3.nii", "3_seg.nii", "4.nii", "x/4.nii")
    files, masks, _ = found(tmp_path / "m", tmp_path / "in")
    assert files == {"3.nii": "../m/3.nii", "4.nii": "../m/4.nii"}
    assert masks.refused == {
        volume: f"2 files may be its mask, such as ../m/{one} and ../m/{other}; say which in a table for --masks"
        for volume, one, other in (("1.nii", "a/1.nii", "b/1.nii"), ("2.nii", "2_seg.nii", "2_mask.nii"))
    }
    assert set(masks.unused) == {"../m/3_seg.nii", "../m/x/4.nii"}
    touch(tmp_path / "both", "1.nii", "1_seg.nii", "1_mask.nii", "2.nii", "2_seg.nii")
    _, masks, names = found(tmp_path / "both", tmp_path / "both")
    assert names == ["1.nii", "2.nii"] and list(masks.refused) == ["1.nii"]


def test_a_mask_that_two_volumes_claim_is_refused_for_both(tmp_path):
    touch(tmp_path / "in", "a/1.nii", "b/1.nii", "2.nii")
    touch(tmp_path / "m", "1.nii", "2.nii")
    files, masks, _ = found(tmp_path / "m", tmp_path / "in", optional=True)
    assert files == {"2.nii": "../m/2.nii"} and masks.excluded == {
        f"{one}/1.nii": f"its mask ../m/1.nii is that of {other}/1.nii too; give each volume a mask of its own"
        for one, other in ("ab", "ba")
    }


def test_a_pattern(tmp_path):
    """Relative to --input, or absolute; {dir} is the volume's folder; masks that --input finds are no volumes."""
    root = tmp_path / "in"
    touch(root, "s1/t1.nii.gz", "s2/t1.nii.gz", "s1/t1_roi.nii.gz", "s2/t1_roi.nii.gz", "s3/t1.nii.gz")
    files, masks, names = found("{dir}/{name}_roi.nii.gz", root)
    assert files == {"s1/t1.nii.gz": "s1/t1_roi.nii.gz", "s2/t1.nii.gz": "s2/t1_roi.nii.gz"} and len(names) == 3
    assert masks.missing == {"s3/t1.nii.gz": "no mask: s3/t1_roi.nii.gz does not exist"}
    assert masks.notes == ["2 files below --input are masks, not volumes, such as s1/t1_roi.nii.gz"]
    touch(tmp_path, "m/s1/t1.mha", "m/s3/t1.mha")
    for pattern in ("../m/{dir}/{name}.mha", f"{tmp_path}/m/{{dir}}/{{name}}.mha"):
        assert set(found(pattern, root)[0]) == {"s1/t1.nii.gz", "s3/t1.nii.gz"}
    with pytest.raises(MaskError, match=r"none of the 5 volumes has a mask; s1/t1.nii.gz: .*is the volume itself"):
        found("{dir}/{name}.nii.gz", root)


def test_a_table(tmp_path):
    """Relative to the table's folder or else to --input, or absolute; by file or subject; rows that match nothing."""
    root = tmp_path / "in"
    touch(root, "sub-01/a.nii.gz", "sub-02/a.nii.gz", "sub-03/a.nii.gz", "sub-04/a.nii.gz", "roi/2.nii.gz")
    touch(tmp_path, "tables/1.nii.gz", "else/4.nii.gz")
    table = tmp_path / "tables" / "m.tsv"
    rows = ["participant_id\tage\tMask", "sub-01\t3\t1.nii.gz", "sub-02\t4\troi/2.nii.gz", "sub-03\t5\tn/a"]
    rows += [f"sub-04\t6\t{tmp_path / 'else' / '4.nii.gz'}", "sub-09\t7\t9.nii.gz"]
    table.write_text("\n".join(rows))
    files, masks, names = found(table, root)
    assert files == {"sub-01/a.nii.gz": "../tables/1.nii.gz", "sub-02/a.nii.gz": "roi/2.nii.gz"} | {
        "sub-04/a.nii.gz": "../else/4.nii.gz"
    }
    assert masks.missing == {"sub-03/a.nii.gz": "no mask in m.tsv: line 4 leaves it empty"}
    assert masks.problems == ["line 6: 'sub-09' is not among the input files"] and len(names) == 4
    table.write_text("file,mask\nsub-01/a,1.nii.gz\nsub-02/a,gone.nii.gz\n")
    _, masks, _ = found(table, root)
    assert masks.refused == {"sub-02/a.nii.gz": "its mask ../tables/gone.nii.gz does not exist"}
    assert masks.missing["roi/2.nii.gz"] == "no mask in m.tsv: no row names it"


@pytest.mark.parametrize(
    "text, words",
    [
        ("file,class\na,b\n", r"--masks .*line 1: expected a header with the columns file \(or subject\) and mask"),
        ("", "--masks .*line 1: expected a header"),
        ("file,mask\nx,y\n", "--masks .*none of its 1 rows gives a mask to one of the 2 volumes"),
        ("file,mask\n1.nii,1.nii\n2.nii,2.nii\n", "the table names every file of --input as a mask"),
        ("file,mask\n1,a.nii\n1,b.nii\n", "--masks .*line 3: '1' has the mask 'a.nii' already, by line 2; now 'b.nii'"),
        ("subject,mask\n1,2,3\n", "--masks .*line 2: expected 2 columns"),
    ],
)
def test_tables_that_cannot_be_used(text, words, tmp_path):
    touch(tmp_path / "in", "1.nii", "2.nii")
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises((LabelError, MaskError), match=words):
        found(tmp_path / "m.csv", tmp_path / "in")


@pytest.mark.parametrize(
    "given, words",
    [
        ("nowhere", "--masks nowhere does not exist; expected a folder, a pattern with {name}"),
        ("{in}/1.nii", "is a volume; expected a folder"),
        ("{empty}", "none of the 1 volumes has a mask; 1.nii: no mask below .*: no other file has its name, or .*_seg"),
        ("{empty}/{name}.nii", "none of the 1 volumes has a mask; 1.nii: no mask: .*1.nii does not exist"),
        ("{in}", "none of the 1 volumes has a mask"),
        ("{dicom}", r"--masks .*dicom: a\.dcm is DICOM \(a DICOM-SEG is not read\); convert it to NIfTI"),
    ],
)
def test_no_masks(given, words, tmp_path):
    touch(tmp_path / "in", "1.nii")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dicom").mkdir()
    for name in ("a.dcm", "b"):
        (tmp_path / "dicom" / name).write_bytes(b"\0" * 128 + b"DICM")
    for name in ("in", "empty", "dicom"):
        given = given.replace(f"{{{name}}}", str(tmp_path / name))
    with pytest.raises(MaskError, match=words):
        found(given, tmp_path / "in")


def test_what_is_no_mask_is_named(tmp_path):
    """Formats that are not read, and DICOM beside masks that are; images of another folder when --masks is above."""
    touch(tmp_path / "t", "in/1.nii", "m/1.nii", "m/2.mgz", "test/7.nii")
    (tmp_path / "t" / "m" / "3.dcm").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "t" / "m" / "4.dcm").write_bytes(b"\0" * 128 + b"DICM")
    for given in ("t/m", "t"):
        files, masks, _ = found(tmp_path / given, tmp_path / "t" / "in")
        assert files == {"1.nii": "../m/1.nii"}
        assert masks.unused["../m/2.mgz"] == "not read as a mask; expected .nii, .nii.gz, .nrrd, .mha or .mhd"
        assert "DICOM-SEG is not read); convert it to NIfTI (and 1 more)" in masks.unused["../m/3.dcm"]
        assert ("../test/7.nii" in masks.unused) == (given == "t")


def test_sources_of_dicom_series_have_their_folders_name(tmp_path):
    touch(tmp_path / "m", "patient/t1.nii.gz", "t2.nii.gz")
    sources = [Source("patient/t1", (tmp_path / "in" / "patient" / "t1" / "0.dcm",)), Source("t2", (tmp_path / "0",))]
    masks, _ = find_masks(str(tmp_path / "m"), sources, tmp_path / "in")
    assert {n: f.name for n, f in masks.files.items()} == {"patient/t1": "t1.nii.gz", "t2": "t2.nii.gz"}


def imap(function, items):
    return map(function, items)


def loaded(tmp_path, values=((0, 1, 2), (0, 2, 5)), **more):
    """`load_masks` of one small volume for each tuple of values of its mask."""
    root = tmp_path / "t" / "imagesTr"
    for i, chosen in enumerate(values):
        touch(root, f"{i}.nii")
        save(tmp_path / "t" / "labelsTr" / f"{i}.nii", np.resize(np.array(chosen, np.int16), (3, 4, 5)))
    return load_masks(str(tmp_path / "t" / "labelsTr"), listed(root), root, imap, **more)[0]


DECATHLON = {"0": "Background", "1": "Anterior", "2": "Posterior", "5": "Cyst"}
NNUNET = {"background": 0, "Anterior": 1, "Posterior": 2, "Cyst": 5}


@pytest.mark.parametrize("labels", [DECATHLON, NNUNET], ids=["Decathlon", "nnU-Net"])
@pytest.mark.parametrize("place", ["t", "t/labelsTr"])
def test_names_from_a_dataset_json(place, labels, tmp_path):
    (tmp_path / "t" / "labelsTr").mkdir(parents=True)
    (tmp_path / place / "dataset.json").write_text(json.dumps({"name": "x", "labels": labels}))
    masks = loaded(tmp_path)
    assert masks.classes == MaskClasses((0, 1, 2, 5), ("background", "Anterior", "Posterior", "Cyst"))
    assert masks.notes == []


def test_names_are_the_values_without_a_dataset_json(tmp_path):
    """One of this project's data sets is none, nor is one two folders above."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "dataset.json").write_text(json.dumps({"format": "ssgan-dataset"}))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": NNUNET}))
    assert loaded(tmp_path).classes == MaskClasses((0, 1, 2, 5), ("background", "1", "2", "5"))


def test_names_that_are_missing_or_too_many_are_remarked_on(tmp_path):
    (tmp_path / "t").mkdir()
    path = tmp_path / "t" / "dataset.json"
    path.write_text(json.dumps({"labels": {"0": "background", "1": "a", "7": "b", "9": "c"}}))
    masks = loaded(tmp_path)
    assert masks.classes.names == ("background", "a", "2", "5") and masks.notes == [
        f"{path} has no name for the values 2, 5: they are their names",
        f"no mask has the values 7, 9, which {path} names",
    ]
    masks = loaded(tmp_path, names=parse_names("1=x, 5 = y z ,7=w"))
    assert masks.classes.names == ("background", "x", "2", "y z")
    assert masks.notes[1] == "no mask has the values 7, which --mask-names names"


@pytest.mark.parametrize(
    "labels, words",
    [
        (
            {"background": 0, "whole": [1, 2], "core": [2]},
            r"'whole' is a region of the values \[1, 2\]; .*--mask-names",
        ),
        ({"background": 0, "a": 1, "ignore": 2}, r"nnU-Net's 'ignore' \(value 2\), voxels that nobody has labelled"),
        ({"0": "background", "1": "a", "2": "a"}, r"the values 1 and 2 of the masks are both named 'a'"),
        ({"0": "b", "1": "background"}, "the values 0 and 1 of the masks are both named 'background'"),
        ({"a": 1, "b": 1}, "expected a name for each value.* got 'b': 1"),
        ({"a": "b"}, "expected a name for each value.* got 'a': 'b'"),
        ({"a": True}, "expected a name for each value.* got 'a': True"),
        ({"1": ""}, "expected a name for each value"),
        (["a", "b"], r"expected a name for each value.* got 'labels': \['a', 'b'\]"),
        (None, "expected a name for each value"),
    ],
    ids=str,
)
def test_names_that_cannot_be_used(labels, words, tmp_path):
    """Each names the dataset.json; --mask-names replaces them."""
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "dataset.json").write_text(json.dumps({"labels": labels}))
    with pytest.raises(MaskNameError, match=rf"dataset\.json.*{words}"):
        loaded(tmp_path)
    assert loaded(tmp_path, names=parse_names("1=a,2=b,5=c")).classes.names == ("background", "a", "b", "c")


@pytest.mark.parametrize(
    "text, words",
    [
        ("anterior", "got 'anterior'"),
        ("1=", "got '1='"),
        ("=a", "got '=a'"),
        ("1=a,", "got ''"),
        ("0=air", "got '0=air'"),
        ("256=a", "got '256=a'"),
        ("-1=a", "got '-1=a'"),
        ("1.5=a", r"got '1\.5=a'"),
        ("", "got ''"),
        ("1=a,1=b", "the value 1 stands twice"),
    ],
)
def test_mask_names_that_are_none(text, words):
    with pytest.raises(MaskNameError, match=rf"--mask-names: .*{words}"):
        parse_names(text)


def test_two_values_of_one_name_in_the_option(tmp_path):
    with pytest.raises(MaskNameError, match="--mask-names: the values 1 and 5 of the masks are both named 'a'"):
        loaded(tmp_path, names=parse_names("1=a,5=a"))


def test_masks_that_cannot_be_used_are_refused_before_the_work(tmp_path):
    """Bad values, no NIfTI, all empty, too many values together."""
    root, masks = tmp_path / "t" / "imagesTr", tmp_path / "t" / "labelsTr"
    touch(root, "a.nii", "b.nii")
    touch(masks, "a.nii")
    save(masks / "b.nii", np.full((3, 4, 5), 300, np.int16))
    with pytest.raises(MaskError, match=r"no mask can be used; a.nii: its mask \.\./labelsTr/a\.nii: "):
        loaded(tmp_path, values=())
    found = loaded(tmp_path)
    assert found.refused["b.nii"] == "its mask ../labelsTr/b.nii: values from 300 to 300; expected labels from 0 to 255"
    assert set(found.files) == {"0.nii", "1.nii"} and set(found.excluded) == {"a.nii", "b.nii"}
    with pytest.raises(MaskError, match=r"imagesTr/a\.nii: its mask .* \(--strict stops"):
        loaded(tmp_path, strict=True)


def test_masks_of_nothing_and_of_too_many_classes(tmp_path):
    with pytest.raises(MaskError, match="all 2 masks are empty"):
        loaded(tmp_path / "a", values=((0, 0), (0,)))
    with pytest.raises(MaskError, match="33 different values; expected at most 32 classes"):
        loaded(tmp_path / "b", values=(range(20), range(13, 33)))
    assert len(loaded(tmp_path / "c", values=(range(20), range(13, 32))).classes.values) == 32
    assert loaded(tmp_path / "d", values=((3,), (7, 255))).classes.values == (0, 3, 7, 255)


@pytest.mark.parametrize("what", ["missing", "unused", "ambiguous", "row"])
def test_strict_stops_at_what_is_left_out(what, tmp_path):
    loaded(tmp_path)
    root, masks, given = tmp_path / "t" / "imagesTr", tmp_path / "t" / "labelsTr", str(tmp_path / "t" / "labelsTr")
    one = (masks / "0.nii").read_bytes()
    match what:
        case "missing":
            touch(root, "9.nii")
        case "unused":
            (masks / "9.nii").write_bytes(one)
        case "ambiguous":
            touch(root, "9.nii")
            for name in ("9_seg.nii", "9_mask.nii"):
                (masks / name).write_bytes(one)
        case "row":
            given = str(tmp_path / "m.csv")
            (tmp_path / "m.csv").write_text("file,mask\n0,t/labelsTr/0.nii\n1,t/labelsTr/1.nii\n7,x.nii\n")
    words = {
        "missing": "no mask below",
        "unused": "a mask of no volume",
        "ambiguous": "2 files may be",
        "row": "line 4",
    }
    kept = load_masks(given, listed(root), root, imap)[0]
    assert len(kept.files) == 2
    with pytest.raises(MaskError, match=rf"{words[what]}.* \(--strict stops at the first such"):
        load_masks(given, listed(root), root, imap, strict=True)
    if what == "missing":
        assert load_masks(given, listed(root), root, imap, strict=True, optional=True)[0].excluded == {}
