"""The commands that README.md shows are ones that the programs take."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def commands() -> list[str]:
    """The arguments of `ssgan` in the indented lines, continued lines joined; not usage with [options]."""
    lines = re.findall(r"^    (.+)$", README.replace("\\\n", " "), re.MULTILINE)
    found = (re.search(r"(?:^|-m )ssgan[. ](\w+ .*)$", line) for line in lines)
    return [match[1].partition(" #")[0].removesuffix("&") for match in found if match and "[" not in match[1]]


def test_they_are_found():
    assert {"prepare", "train", "generate", "inflate", "evaluate", "latents", "report"} <= {
        c.split()[0] for c in commands()
    }
    assert sum(c.startswith("train ") for c in commands()) >= 4  # the two fleet recipes are among them


@pytest.mark.parametrize("command", commands())
def test_the_arguments_are_known(command):
    name, *arguments = shlex.split(command)
    parser = argparse.ArgumentParser()
    importlib.import_module(f"ssgan.{name}").add_arguments(parser)
    parser.parse_args(arguments)
