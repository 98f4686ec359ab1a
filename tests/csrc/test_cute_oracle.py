"""CuTe, of NVIDIA's CUTLASS, as an oracle: programs print its descriptors, swizzles, fragments and im2col tensors. The
kernels and the emulator must agree with it. So an error that both of them share shows too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import cute, cute_faults
from tests.support.cute_checks import CHECKS
from tests.support.cute_faults import FAULTS


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_agrees_with_cute(check, cute_programs, emulator, server):
    done = server.run("cute_checks.py", str(emulator), str(cute_programs), check)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=[f.what.replace(" ", "-") for f in FAULTS])
def test_a_planted_fault_is_noticed(fault, tmp_path, cute_programs, emulator, server):
    module, programs = cute_faults.planted(fault, tmp_path, emulator, cute_programs)
    done = server.run("cute_checks.py", str(module), str(programs), fault.check)
    assert done.returncode == 3, f"{fault.what}: exit code {done.returncode}; {done.stderr[-1500:]}"
    if fault.unnoticed:
        done = server.run("cuda_checks.py", str(module), fault.unnoticed)
        assert done.returncode == 0, f"{fault.what}: the emulator alone notices it; {done.stderr[-1500:]}"


def test_missing_headers_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv(cute.VARIABLE, str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"{cute.VARIABLE}: .* has no cute/tensor.hpp"):
        cute.cute_headers()
    (tmp_path / "cute").mkdir()
    (tmp_path / "cute" / "tensor.hpp").touch()
    assert cute.cute_headers() == Path(tmp_path)
    monkeypatch.delenv(cute.VARIABLE)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps nvidia-cutlass"):
        cute.cute_headers()
