"""The examples in the docstrings of public functions and classes run as written."""

import doctest

import pytest
import torch
from torch import nn

import ssconv

# Reports and constants have no example.
NAMES = [n for n in ssconv.__all__ if n not in ("KERNEL_SETS", "ConvertReport", "InflateReport", "VerifyReport")]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of(name):
    names = vars(ssconv) | {"ssconv": ssconv, "nn": nn, "torch": torch}
    found = doctest.DocTestFinder(recurse=False).find(getattr(ssconv, name), name, globs=names)
    (example,) = [test for test in found if test.examples]
    assert doctest.DocTestRunner().run(example).failed == 0
