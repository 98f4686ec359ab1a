"""The README files: commands that the programs take, Python that runs, links that lead somewhere, figures that hold."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssgan.cli import COMMANDS
from ssgan.config.presets import PRESETS
from ssgan.summary import share_table

ROOT = Path(__file__).parents[2]
LEFT_OUT = {".git", ".venv", "build", "dist", "runs"}


def _readmes() -> list[Path]:
    found = (p.relative_to(ROOT) for p in ROOT.rglob("README.md"))
    return sorted(p for p in found if not any(part in LEFT_OUT or part.startswith(".") for part in p.parts))


READMES = _readmes()
EXPECTED = ("", "ssgan", "ssgan/metrics", "ssconv", "csrc", "benchmarks", "benchmarks/experiments")


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / readme).read_text(), re.MULTILINE | re.DOTALL)


def shell_lines(readme: Path) -> list[str]:
    """The lines of the bash blocks, continued lines joined, without comments. Of usage lines such as
    `--spacing 1 1 1] [--recipe mri|ct` the optional arguments are taken, and the first alternative."""
    lines = "\n".join(blocks(readme, "bash")).replace("\\\n", " ").splitlines()
    bare = (re.sub(r"(^|\s)#.*", "", line).strip().removesuffix("&").strip() for line in lines)
    return [re.sub(r"(?<=\w)\|[\w|]+", "", line) if "[--" in line else line for line in bare if line]


def arguments(line: str) -> list[str]:
    return shlex.split(line.replace("[--", "--").replace("]", "") if "[--" in line else line)


def python_commands(readme: Path) -> Iterator[tuple[str, list[str]]]:
    """(module, arguments) of every line that starts a program of this project."""
    for line in shell_lines(readme):
        if found := re.search(r"(?:^|\s)ssgan (\w+.*)$", line):
            name, *rest = arguments(found[1])
            yield f"ssgan.{name}", rest
        elif found := re.search(r"-m ((?:ssgan|ssconv|benchmarks)[\w.]*)(.*)$", line):
            yield found[1], arguments(found[2])


COMMAND_LINES = [
    pytest.param(module, rest, id=f"{readme}: {module} {' '.join(rest)}")
    for readme in READMES
    for module, rest in python_commands(readme)
]


class Parsed(BaseException):
    """The arguments were taken; the program is not to start. No `except Exception` holds it up."""


@pytest.mark.parametrize(("module", "rest"), COMMAND_LINES)
def test_the_program_takes_the_arguments(module: str, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_known_args

    def parse_args(self: argparse.ArgumentParser, args: list[str] | None = None, namespace: object = None) -> None:
        _, unknown = parse(self, args, namespace)
        if unknown:
            self.error(f"unknown arguments {unknown}")
        raise Parsed

    if module.partition(".")[0] == "ssgan":
        assert module.removeprefix("ssgan.") in COMMANDS
    run_until_parsed(module, rest, parse_args, monkeypatch)


def test_no_command_writes_into_a_folder_of_committed_results() -> None:
    outs = [
        rest[rest.index("--out") + 1] for readme in READMES for _, rest in python_commands(readme) if "--out" in rest
    ]
    assert len(outs) > 20
    assert [out for out in outs if out.startswith("benchmarks/") and (ROOT / out).is_dir()] == []


def run_until_parsed(module: str, rest: list[str], parse_args: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts a program with a `parse_args` that raises Parsed. One that takes no arguments runs to its end."""
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(sys, "argv", [module, *rest])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # runpy runs a module that others have imported
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except Parsed:
            return
    assert not rest, f"{module} takes no arguments"


def modules_in_text(readme: Path) -> list[str]:
    return re.findall(r"`(?:python -m )?(benchmarks(?:\.\w+)+)", (ROOT / readme).read_text())


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a program and of its subcommands."""
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found = found.union(*map(options_of, action.choices.values()))
    return found


def test_options_in_the_text_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option in backticks is one of some program that the README files name, or of another project's."""
    known = {"--no-build-isolation"}  # pip's

    def parse_args(self: argparse.ArgumentParser, args: object = None, namespace: object = None) -> None:
        known.update(options_of(self))
        raise Parsed

    modules = {f"ssgan.{name}" for name in COMMANDS} | {m for r in READMES for m, _ in python_commands(r)}
    modules |= {module for readme in READMES for module in modules_in_text(readme)}
    for module in sorted(modules):
        run_until_parsed(module, [], parse_args, monkeypatch)
    named = [
        (str(readme), option)
        for readme in READMES
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", (ROOT / readme).read_text(), flags=re.DOTALL))
        if not span.startswith("pip ")
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span)
    ]
    assert len(named) > 60
    assert [(readme, option) for readme, option in named if option not in known] == []


def test_every_readme_is_found_and_has_commands() -> None:
    assert {str(p.parent) if p.parent.name else "" for p in READMES} == set(EXPECTED)
    modules = [module for readme in READMES for module, _ in python_commands(readme)]
    assert {f"ssgan.{name}" for name in COMMANDS} - {"ssgan.summary", "ssgan.phantom"} <= set(modules)
    assert modules.count("ssgan.train") >= 8  # the two recipes for several GPUs are among them
    assert sum(module.startswith("benchmarks.") for module in modules) >= 12


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_scripts_targets_and_extras_exist(readme: Path) -> None:
    text = (ROOT / readme).read_text()
    lines = shell_lines(readme)
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:^|`)make ([a-z]+)", "\n".join(lines) + text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for script in re.findall(r"(?:bash|python) ((?:\w+/)+[\w.]+)", text):
        assert (ROOT / script).is_file(), script
    for extra in re.findall(r"'\.\[(\w+)\]'", text):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), extra


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_modules_and_commands_in_the_text_exist(readme: Path) -> None:
    text = (ROOT / readme).read_text()
    for name in re.findall(r"`ssgan ([a-z]+)", text):
        assert name in COMMANDS, name
    for module in modules_in_text(readme):
        path = ROOT.joinpath(*module.split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for path in re.findall(r"`((?:ssgan|ssconv|csrc|benchmarks|tests)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).strip().replace(" ", "-")


@pytest.mark.parametrize("readme", READMES, ids=str)
def test_links_lead_somewhere(readme: Path) -> None:
    text = (ROOT / readme).read_text()
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?:|mailto:", link)]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / readme.parent / path).resolve() if path else ROOT / readme
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_every_result_is_linked() -> None:
    """From a README, or from a result that is linked; the JSON lines behind a table have its name."""
    results = ROOT / "benchmarks" / "results"
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files", str(results)], capture_output=True, text=True)
    if tracked.returncode != 0:
        pytest.skip("needs a git checkout")
    linked: set[Path] = set()
    waiting = [ROOT / readme for readme in READMES]
    while waiting:
        page = waiting.pop()
        for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
            target = (page.parent / link).resolve()
            if target.is_file() and target.is_relative_to(results) and target not in linked:
                linked.add(target)
                waiting += [target] if target.suffix == ".md" else []
    stems = [str(path.with_suffix("")) for path in linked]
    files = [ROOT / name for name in tracked.stdout.splitlines() if (ROOT / name).is_file()]
    unlinked = [
        str(file.relative_to(ROOT))
        for file in files
        if file not in linked
        and file.name != ".gitkeep"
        and not (file.suffix == ".jsonl" and any(s.startswith(str(file.with_suffix(""))) for s in stems))
    ]
    assert not unlinked


@pytest.mark.parametrize(
    "code",
    [pytest.param(code, id=f"{readme}: {i}") for readme in READMES for i, code in enumerate(blocks(readme, "python"))],
)
def test_the_python_runs(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "monai" in code:
        pytest.importorskip("monai")
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    shown = capsys.readouterr().out
    for expected in re.findall(r"^print\(.*\)  # ([\d(].*|torch\.Size.*)$", code, re.MULTILINE):
        assert expected in shown
    if claimed := re.search(r"; ([\d,]+ -> [\d,]+) parameters$", code, re.MULTILINE):
        assert claimed[1] in shown


def test_the_first_page_is_short_and_begins_with_what_one_needs() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    first_screen = "\n".join(lines[:70])
    for needed in ("real-and-generated.png", "**Status.**", "make demo", "make test", "pip install .", "```python"):
        assert needed in first_screen, needed


@pytest.mark.parametrize("column", range(len(PRESETS)), ids=PRESETS)
def test_the_parameter_table_is_what_summary_prints(column: int) -> None:
    name = list(PRESETS)[column]
    rows = re.findall(r"^\| \**`(\w+)`.*?\| (\d.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    shown = {arch: cells.split(" | ")[column] for arch, cells in rows}
    assert shown == {arch: f"{g + d:,} ({share:.1%})" for arch, g, d, share in share_table(name)}
