"""Data flows one way: each file imports only files above it in its package's list, and ssconv never imports ssgan."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = {
    "ssconv": [
        "backend.__init__",
        "backend.cuda.__init__",
        "backend.triton.__init__",
        "ops.__init__",
        "spec",
        "backend.reference",
        "backend.cpu",
        "backend.gpu",
        "backend.tuning",
        "backend.triton.kernels",
        "backend.triton.table",
        "backend.triton.launch",
        "backend.cuda.table",
        "backend.cuda.plan",
        "backend.cuda.sm90",
        "backend.cuda.clocks",
        "backend.cuda.sm90_halo",
        "backend.cuda.launch",
        "backend.dispatch",
        "ops.transforms",
        "ops.conv",
        "functional",
        "inflate",
        "layers",
        "convert",
        "inflate_model",
        "__init__",
    ],
    "ssgan": [
        "__init__",
        "utils.__init__",
        "config.__init__",
        "models.__init__",
        "augmentation.__init__",
        "runs.__init__",
        "training.__init__",
        "latent_space.__init__",
        "reporting.__init__",
        "utils.errors",
        "utils.files",
        "models.stylegan2_pickle",
        "utils.environment",
        "config.augmentation",
        "config.training",
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
        "utils.pictures",
        "models.layers",
        "models.networks",
        "models.stylegan2",
        "models.sampling",
        "models.dense_to_split",
        "models.inflation",
        "training.losses",
        "augmentation.resampling",
        "augmentation.ada",
        "runs.checkpoint",
        "training.distributed",
        "training.precision",
        "training.schedule",
        "training.cuda_graphs",
        "training.step",
        "training.start_file",
        "metrics.__init__",
        "metrics.sliced",
        "metrics.distances",
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
        "training.monitor",
        "runs.log",
        "training.dry_run",
        "training.loop",
        "prepare",
        "phantom",
        "split",
        "summary",
        "inflate",
        "generate",
        "metrics.volume_sets",
        "evaluate",
        "labelnet",
        "latent_space.files",
        "latent_space.walks",
        "latent_space.projection",
        "latents",
        "reporting.collect",
        "reporting.html",
        "reporting.picture",
        "reporting.model_card",
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
