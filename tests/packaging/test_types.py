"""The types of ssconv, as a user's type checker sees them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "support" / "typed_program.py"


@pytest.mark.slow
def test_mypy_finds_the_mistakes_of_a_users_program_and_nothing_else(tmp_path: Path) -> None:
    """`make lint` checks the program with its mistakes marked; here the marks are taken off."""
    pytest.importorskip("mypy")
    copy = tmp_path / "program.py"
    copy.write_text(re.sub(r"  # type: ignore.*", "", PROGRAM.read_text()))
    marked = [i for i, line in enumerate(PROGRAM.read_text().splitlines(), 1) if "# type: ignore" in line]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", str(copy)]
    checked = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    found = [int(line) for line in re.findall(r"program\.py:(\d+): error: Argument .*\[arg-type\]", checked.stdout)]
    assert len(marked) > 5 and found == marked, checked.stdout + checked.stderr
    assert f"Found {len(marked)} errors in 1 file" in checked.stdout


def test_the_package_says_that_it_has_types() -> None:
    assert (ROOT / "ssconv" / "py.typed").is_file()
