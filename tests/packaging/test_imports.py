"""Imports run one way: a folder imports from itself and from the folders above it in its package's list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Of a package: its folders and the modules on its top, each allowed to import from those above it.
ORDER = {
    "ssconv": [
        "parser",
        "allocation",
        "spec",
        "backend",
        "ops",
        "functional",
        "inflate",
        "layers",
        "convert",
        "inflate_model",
        "__init__",
        "__main__",
    ],
    "ssgan": [
        "__init__",
        "utils",
        "config",
        "data",
        "models",
        "augmentation",
        "runs",
        "metrics",
        "training",
        "latent_space",
        "viewing",
        "reporting",
        "adapters",
        *["prepare", "phantom", "split", "summary", "inflate", "generate", "evaluate", "labelnet", "segmenter"],
        *["latents", "view", "report", "export"],
        "train",
        "cli",
        "__main__",
    ],
}
COMMANDS = ORDER["ssgan"][ORDER["ssgan"].index("prepare") : ORDER["ssgan"].index("cli")]


def imported(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in (*ORDER, "tests", "benchmarks")}


def imports(package: str) -> list[tuple[str, str, str]]:
    """(file, the place of the file in ORDER, dotted name) of each import in a package."""
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        relative = path.relative_to(ROOT / package).with_suffix("")
        found += [(str(relative), relative.parts[0], target) for target in sorted(imported(path))]
    return found


@pytest.mark.parametrize("package", ORDER)
def test_every_file_has_a_place(package):
    names = {p.stem if p.suffix == ".py" else p.name for p in (ROOT / package).iterdir()}
    names = {name for name in names if (ROOT / package / name).is_dir() or (ROOT / package / f"{name}.py").exists()}
    assert names - {"__pycache__"} == set(ORDER[package])


@pytest.mark.parametrize("package", ORDER)
def test_folders_import_only_from_themselves_and_from_above(package):
    order = ORDER[package]
    for file, place, target in imports(package):
        top, _, rest = target.partition(".")
        assert top not in ("tests", "benchmarks"), f"{package}/{file} imports {target}"
        assert not (package == "ssconv" and top == "ssgan"), f"{package}/{file} imports {target}"
        other = rest.partition(".")[0]
        if top == package and other in order and other != place:
            assert order.index(other) < order.index(place), f"{package}/{file} imports {target}, which stands below it"


def test_only_runs_reads_config_json():
    """The name of a run's config.json is a value in ssgan/runs alone; elsewhere it is part of a sentence."""
    files = [p for package in ("ssgan", "benchmarks") for p in sorted((ROOT / package).rglob("*.py"))]
    constants = [
        (path.relative_to(ROOT), node.value)
        for path in files
        if "runs" not in path.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert len(files) > 100 and not [c for c in constants if "config.json" in c[1] and " " not in c[1].strip()]


def test_commands_do_not_import_each_other():
    for file, place, target in imports("ssgan"):
        if place in COMMANDS:
            assert target.split(".")[1:2] not in [[name] for name in COMMANDS], f"ssgan/{file} imports {target}"


SOURCES = {".py", ".cu", ".cuh", ".cpp", ".h", ".inl", ".js", ".css", ".html", ".sh"}
OTHERS = {"third_party", "niivue.js"}  # sources that are not ours


def test_no_source_file_has_more_than_500_lines():
    folders = ["csrc", "ssconv", "ssgan", "benchmarks", "tests"]
    files = [p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in SOURCES]
    files = [p for p in [ROOT / "setup.py", *files] if not OTHERS & set(p.relative_to(ROOT).parts)]
    lines = {str(p.relative_to(ROOT)): p.read_bytes().count(b"\n") for p in files}
    assert len(files) > 400 and not {name: n for name, n in lines.items() if n > 500}


def test_commands_are_short_and_few():
    lines = {name: (ROOT / "ssgan" / f"{name}.py").read_bytes().count(b"\n") for name in [*COMMANDS, "cli"]}
    assert len(lines) <= 16 and not {name: n for name, n in lines.items() if n >= 150}
