"""The dispatcher `ssgan`: what it lists, what it loads, and what it says to a wrong word."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ssgan import cli


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=900)


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("prepare", "phantom", "train", "generate", "summary", "inflate"):
        described = [line.split(maxsplit=1)[1] for line in lines if line.split()[:1] == [name]]
        assert len(described) == 1 and len(described[0]) > 15, name
    assert max(map(len, lines)) <= 120


def test_help_loads_neither_torch_nor_numpy() -> None:
    result = run_python(
        "import sys; from ssgan import cli; status = cli.main(['--help']);"
        "print('LOADED', sorted({'torch', 'numpy', 'ssconv', 'nibabel'} & set(sys.modules))); sys.exit(status)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "LOADED []"


def test_python_m_ssgan_is_the_same_command() -> None:
    result = subprocess.run([sys.executable, "-m", "ssgan", "--help"], capture_output=True, text=True, timeout=900)
    assert (result.returncode, result.stdout) == (0, cli.usage() + "\n")


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    import ssconv

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out in (
        f"ssgan {ssconv.__version__}\n",
        "ssgan unknown (run from the source tree, not installed)\n",
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        pytest.param("trian", "unknown command 'trian'; did you mean 'train'?", id="typo"),
        pytest.param("generat", "unknown command 'generat'; did you mean 'generate'?", id="cut short"),
        pytest.param(
            "zzz", "unknown command 'zzz'; expected one of prepare, phantom, split, train,", id="nothing near"
        ),
        pytest.param("--versoin", "unknown option '--versoin'; did you mean '--version'?", id="option"),
    ],
)
def test_a_wrong_word_is_one_line_on_stderr(word: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word, "--out", "x"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert err.startswith(f"ssgan: error: {expected}")


def test_no_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().err == cli.usage() + "\n"


def test_the_rest_of_the_line_and_the_status_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = types.ModuleType("ssgan.train")
    module.main = lambda argv: seen.append(argv) or 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ssgan.train", module)
    assert cli.main(["train", "--out", "runs/a b", "--help"]) == 7
    assert seen == [["--out", "runs/a b", "--help"]]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def import_module(name: str) -> types.ModuleType:
        raise ModuleNotFoundError("No module named 'nibabel.nifti1'", name="nibabel.nifti1")

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    assert cli.main(["prepare"]) == 2
    assert (
        capsys.readouterr().err == "ssgan prepare: error: the package nibabel is not installed: pip install nibabel\n"
    )


def test_a_missing_module_of_our_own_is_a_bug_and_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> types.ModuleType:
        raise ModuleNotFoundError("No module named 'ssgan.gone'", name="ssgan.gone")

    monkeypatch.setattr(cli.importlib, "import_module", import_module)
    with pytest.raises(ModuleNotFoundError, match=r"ssgan\.gone"):
        cli.main(["prepare"])


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_is_a_module_of_its_own(name: str) -> None:
    assert importlib.util.find_spec(f"ssgan.{name}") is not None


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_explains_itself_both_ways(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert stopped.value.code == 0
    assert text.startswith(f"usage: ssgan {name}")
    module = importlib.import_module(f"ssgan.{name}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_refuses_an_unknown_option_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([name, "--no-such-option"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"ssgan {name}: error: ") and line.endswith(f"; see ssgan {name} --help")


def test_an_error_behind_a_second_word_names_that_words_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["latents", "interpolate"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "the following arguments are required: --run" in line
    assert line.endswith("; see ssgan latents interpolate --help")


def test_python_m_ssconv_refuses_an_unknown_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from ssconv.__main__ import main

    with pytest.raises(SystemExit):
        main(["verifi"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m ssconv: error: ") and line.endswith("; see python -m ssconv --help")


def test_no_program_of_the_project_has_another_parser() -> None:
    root = Path(__file__).parents[2]
    files = [p for package in ("ssconv", "ssgan", "benchmarks") for p in sorted((root / package).rglob("*.py"))]
    assert len(files) > 150
    assert [str(p) for p in files if "ArgumentParser(" in p.read_text()] == []
