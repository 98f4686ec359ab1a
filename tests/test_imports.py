"""Data flows one way: each file imports only files above it in its package's list, and ssconv never imports ssgan."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = {
    "ssconv": [
        "spec",
        "reference",
        "cpu",
        "gpu",
        "tuning",
        "triton_kernels",
        "triton_table",
        "triton_backend",
        "cuda_table",
        "cuda_plans",
        "cuda_hopper",
        "cuda_clocks",
        "cuda_halo",
        "cuda_backend",
        "backends",
        "vmap",
        "ops",
        "functional",
        "inflate",
        "layers",
        "convert",
        "inflate_model",
        "__init__",
    ],
    "ssgan": [
        "__init__",
        "errors",
        "files",
        "pickles",
        "machine",
        "policies",
        "config",
        "data.__init__",
        "data.axes",
        "data.dataset",
        "data.labels",
        "data.volume",
        "data.nifti",
        "data.itk",
        "data.dicom",
        "data.sources",
        "data.recipes",
        "data.preparation",
        "data.workers",
        "data.phantom",
        "data.split",
        "images",
        "layers",
        "networks",
        "stylegan2",
        "sampling",
        "selection",
        "inflation",
        "losses",
        "resample",
        "augment",
        "checkpoint",
        "distributed",
        "precision",
        "schedule",
        "graphs",
        "gan",
        "starts",
        "metrics.__init__",
        "metrics.sliced",
        "metrics.sets",
        "metrics.voxels",
        "metrics.features",
        "metrics.extractors.__init__",
        "metrics.extractors.weights",
        "metrics.extractors.resnet",
        "metrics.extractors.planes",
        "metrics.extractors.medicalnet",
        "metrics.extractors.radimagenet",
        "metrics.extractors.inception",
        "metrics.extractors.discriminator",
        "metrics.extractors.labels",
        "metrics.extractors.choose",
        "metrics.training",
        "measures",
        "runlog",
        "dryrun",
        "trainer",
        "prepare",
        "phantom",
        "split",
        "summary",
        "inflate",
        "generate",
        "compared",
        "evaluate",
        "labelnet",
        "latentfiles",
        "walks",
        "projection",
        "latents",
        "facts",
        "report_page",
        "report_picture",
        "model_card",
        "report",
        "train",
        "cli",
        "__main__",
    ],
}


def imported(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in (*ORDER, "tests", "benchmarks")}


@pytest.mark.parametrize("package", ORDER)
def test_every_file_imports_only_what_stands_above_it(package):
    order = ORDER[package]
    files = {
        str(p.relative_to(ROOT / package).with_suffix("")).replace("/", "."): p for p in (ROOT / package).rglob("*.py")
    }
    assert set(files) == set(order), "a file without a place in the list: give it one"
    for place, name in enumerate(order):
        for target in imported(files[name]):
            top, _, rest = target.partition(".")
            assert top not in ("tests", "benchmarks"), f"{package}.{name} imports {target}"
            assert not (package == "ssconv" and top == "ssgan"), f"ssconv.{name} imports {target}"
            if top == package and rest in order:
                assert order.index(rest) < place, f"{package}.{name} imports {target}, which stands below it"
