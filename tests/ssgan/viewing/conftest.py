"""Fixtures of the tests that look at the viewer's page in a browser."""

import nibabel
import numpy as np
import pytest

from ssgan import view
from ssgan.viewing.browsing import FileBrowser
from ssgan.viewing.exploring import RunExplorer
from tests.support.browser import Browser
from tests.support.tiny_runs import add_checkpoint, make_run
from tests.support.viewer_pages import DATA, Pages


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def pages(browser):
    pages = Pages(browser)
    yield pages
    pages.close()


@pytest.fixture
def quiet(browser):
    """After the test: the page has seen no error, and the console has no word of one."""
    yield
    assert browser.run(f"return {DATA}.errors") == "0", browser.run(
        "return document.getElementById('status').textContent"
    )
    assert browser.console() == []


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("page"))
    add_checkpoint(run, 3)
    return run


@pytest.fixture
def of_a_run(pages, run, quiet):
    source = RunExplorer(run, None, None, view.pick_device("cpu"))
    pages.open(source)
    pages.browser.wait(f"{DATA}.near")
    yield source


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A scan of 2 x 2 x 3 mm whose right, front, upper eighth is bright; labels of it; a damaged file; an odd name."""
    root = tmp_path_factory.mktemp("scans") / "scans"
    root.mkdir()
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (-11, -13, -15)
    data = np.linspace(0, 30, 12 * 14 * 10, dtype=np.float32).reshape(12, 14, 10)
    data[6:, 7:, 5:] += 100
    labels = np.zeros(data.shape, np.uint8)
    labels[:6, :7] = 1
    labels[6:, :7] = 4
    nibabel.save(nibabel.Nifti1Image(data, affine), root / "scan.nii.gz")
    nibabel.save(nibabel.Nifti1Image(labels, affine), root / "labels.nii.gz")
    nibabel.save(nibabel.Nifti1Image(data[::-1].copy(), affine), root / "50% of #2, mirrored.nii")
    (root / "cut.nii.gz").write_bytes((root / "scan.nii.gz").read_bytes()[:200])
    return root


@pytest.fixture
def of_scans(pages, scans, quiet):
    pages.open(FileBrowser([scans / "scan.nii.gz", scans / "labels.nii.gz", scans / "50% of #2, mirrored.nii"]))
    return pages
