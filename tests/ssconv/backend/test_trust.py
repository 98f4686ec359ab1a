"""No family of kernels serves before its checks passed, whatever they meet: stand-ins on the CPU for every case."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import ssconv
from ssconv.__main__ import main
from ssconv.backend import cache, checks, choice, trust

PROVIDER = "tests.support.stand_in_families"
CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch, tmp_path):
    """The stand-ins as the families of the CPU, and a cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    monkeypatch.delenv("SSCONV_VERIFY", raising=False)
    monkeypatch.setattr(trust, "PROVIDER", PROVIDER)
    choice.forget()
    yield lambda *names: monkeypatch.setenv("STAND_INS", ",".join(names))
    choice.forget()


@pytest.fixture
def counted(monkeypatch):
    """Checks that every family passes without a process; the list fills with the families of each run."""
    runs: list[list[str]] = []

    def passed(device, families, told=None):
        runs.append(list(families))
        for name in families:
            told(name, trust.Verdict(trust.TRUSTED, checks=1))
        return {name: trust.Verdict(trust.TRUSTED, checks=1) for name in families}

    monkeypatch.setattr(trust, "run_checks", passed)
    return runs


def names() -> list[str]:
    return os.environ["STAND_INS"].split(",")


def processes(tmp_path: Path) -> int:
    """How many processes have run a stand-in."""
    log = tmp_path / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_every_fault_costs_its_family_alone(stand_ins, monkeypatch, capsys):
    stand_ins("right", "wrong", "wrong_in_half", "crashes", "hangs", "raises", "never_twice_the_same", "unable", "slow")
    monkeypatch.setattr(trust, "limit_of", lambda name, backends: 2.0 if name == "hangs" else 300.0)
    seen = []
    report = trust.verify("cpu", lambda name, verdict: seen.append(name))
    assert seen == list(report.verdicts) == names()
    found = {name: v.verdict for name, v in report.verdicts.items()}
    assert found == {name: "failed" for name in names()} | {
        "right": "trusted", "slow": "trusted", "unable": "cannot serve this card",
    }  # fmt: skip
    reasons = {name: v.reason for name, v in report.verdicts.items()}
    for name, text in {
        "wrong": r"1 of \d+ values are wrong, the first at",
        "wrong_in_half": "convolve, f16, split 5 to 7, exact: result 0: 1 of",
        "crashes": "the process ended (signal SIGSEGV",
        "hangs": "no answer in 2 s",
        "raises": "RuntimeError: CUDA error: an illegal memory access was encountered",
        "never_twice_the_same": "two calls differ",
    }.items():
        assert text.split(r"\d+")[-1] in reasons[name], reasons[name]
    assert report.verdicts["right"].checks == 9  # three operations in bf16, f16 and float32
    assert report.failed == [n for n, v in found.items() if v == "failed"]
    assert trust.trusted(CPU, names()) == {"right", "slow"}
    for word in ("family", "wrong_in_half", "cannot serve this card", "signal SIGSEGV", "build"):
        assert word in str(report)


def test_the_first_call_says_one_line_and_the_verdict_lasts(stand_ins, tmp_path, capfd):
    stand_ins("right", "wrong")
    assert trust.trusted(CPU, names()) == {"right"}
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "1 of 2 families are right; not used: wrong" in said and "SSCONV_VERIFY=0" in said
    runs = processes(tmp_path)
    trust.forget()
    assert trust.trusted(CPU, names()) == {"right"}
    assert processes(tmp_path) == runs and capfd.readouterr().err == ""


def test_a_verdict_of_another_build_is_none(stand_ins, counted, monkeypatch):
    stand_ins("right")
    trust.trusted(CPU, names())
    real = dict(cache.identity(CPU))
    assert set(real) == {"card", "driver", "torch", "triton", "build"} and len(counted) == 1
    for number, part in enumerate(real, 2):
        other = tuple((real | {part: "another"}).items())
        monkeypatch.setattr(cache, "identity", lambda device, other=other: other)
        trust.forget()
        assert trust.trusted(CPU, names()) == {"right"}
        assert len(counted) == number, f"the verdict of another {part} was taken"


def test_switched_off_nothing_starts_and_a_verdict_still_counts(stand_ins, counted, monkeypatch, capfd):
    stand_ins("right")
    monkeypatch.setenv("SSCONV_VERIFY", "0")
    assert trust.trusted(CPU, names()) == set() and not counted
    trust.verify("cpu")
    trust.forget()
    assert trust.trusted(CPU, names()) == {"right"}
    assert capfd.readouterr().err == ""


def test_a_verdict_lasts_though_the_gpu_is_not_reached_after_it(stand_ins, monkeypatch):
    """After a hang the card may refuse the next process; the family that hung must not hang the next run."""
    stand_ins("wrong", "right")
    real, begun = trust._Process, []

    def once(device, families):
        begun.append(families)
        if len(begun) == 2:
            raise trust.CannotVerifyError("a process could not reach the GPU")
        return real(device, families)

    monkeypatch.setattr(trust, "_Process", once)
    with pytest.warns(RuntimeWarning, match="could not reach the GPU"):
        assert trust.trusted(CPU, names()) == set()
    trust.forget()
    assert trust.trusted(CPU, names()) == {"right"}
    assert begun == [["wrong", "right"], ["right"], ["right"]]


def test_only_what_has_no_verdict_is_checked(stand_ins, counted):
    stand_ins("right", "slow")
    trust.trusted(CPU, ["right"])
    trust.trusted(CPU, names())
    assert counted == [["right"], ["slow"]]


def cannot(text: str) -> None:
    """Nothing is trusted, one warning says why, and no verdict is kept."""
    with pytest.warns(RuntimeWarning, match=text):
        assert trust.trusted(CPU, names()) == set()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trust.trusted(CPU, names()) == set()
    assert not list(cache.folder().glob("*.json"))


def test_too_little_memory_is_no_verdict(stand_ins):
    stand_ins("has_no_room", "right")
    cannot("too little free memory: Tried to allocate 2.00 GiB; PyTorch serves")


def test_a_device_that_no_other_process_reaches_is_no_verdict(stand_ins, monkeypatch):
    """A card in exclusive-process mode refuses the second process its context."""
    stand_ins("right")
    monkeypatch.setattr(trust, "PROVIDER", "tests.support.stand_in_families")
    real = trust._Process

    def refused(device, families):
        return real(torch.device("cuda"), families)  # which this torch or machine lacks

    monkeypatch.setattr(trust, "_Process", refused)
    cannot("a process could not reach the GPU")


@pytest.mark.parametrize("executable", ["", "/nowhere/python"])
def test_without_a_process_there_is_no_verdict(stand_ins, monkeypatch, executable):
    stand_ins("right")
    monkeypatch.setattr(sys, "executable", executable)
    cannot("no process could be started|sys.executable")


def test_a_capture_waits_for_a_call_outside(stand_ins, counted, monkeypatch):
    stand_ins("right")
    monkeypatch.setattr(trust, "capturing", lambda: True)
    cannot("a CUDA graph's capture forbids")
    assert not counted and not trust.lasting(CPU)
    monkeypatch.setattr(trust, "capturing", lambda: False)
    assert trust.trusted(CPU, names()) == {"right"}


def test_without_a_writable_folder_the_verdict_stays_in_memory(stand_ins, counted, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # a file is no folder, also for root
    stand_ins("right")
    for _ in range(2):
        assert trust.trusted(CPU, names()) == {"right"} and len(counted) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": 1}', '{"identity": {}, "entries": {}}'])
def test_a_damaged_file_is_replaced(stand_ins, counted, content):
    stand_ins("right")
    path = cache.Store("verdicts", cache.identity(CPU)).path
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert trust.trusted(CPU, names()) == {"right"}
    assert json.loads(path.read_text())["entries"]["right"]["verdict"] == "trusted"
    assert len(said) == (0 if "identity" in content else 1), "of another machine, or unreadable"


TRUSTED = f"""
import sys, torch
from ssconv.backend import trust
trust.PROVIDER = {PROVIDER!r}
print(sorted(trust.trusted(torch.device("cpu"), sys.argv[1].split(","))), flush=True)
"""


def start(*families: str) -> subprocess.Popen:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen([sys.executable, "-c", TRUSTED, ",".join(families)], **options)


def test_processes_at_once_verify_once(stand_ins, tmp_path):
    stand_ins("right", "wrong", "slow")
    running = [start(*names()) for _ in range(3)]
    ended = [process.communicate(timeout=900) for process in running]
    assert [out.strip() for out, _ in ended] == ["['right', 'slow']"] * 3, ended
    assert sum("verifying" in err for _, err in ended) == 1
    assert processes(tmp_path) == 2  # a process for the first two, another after "wrong"


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_a_killed_process_leaves_nothing_behind(stand_ins, tmp_path, monkeypatch):
    stand_ins("hangs", "right")
    process = start(*names())
    end = time.monotonic() + 900
    while not processes(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    child = int((tmp_path / "log").read_text().split()[0])
    assert alive(child)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    while alive(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(child), "the process that checked outlives the one that asked"
    assert not list(cache.folder().glob("*.json"))
    stand_ins("right")
    assert trust.trusted(CPU, ["right"]) == {"right"}, "the lock is still held"


def test_the_command(stand_ins, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stand_ins("right", "wrong")
    assert main(["verify", "--device", "cpu"]) == 1
    said = capsys.readouterr()
    assert "wrong" in said.out and "attach it to a bug report" in said.out and "right: trusted (9 checks" in said.err
    written = json.loads((tmp_path / "ssconv-verify.json").read_text())
    assert written["identity"] == dict(cache.identity(CPU))
    assert (
        written["verdicts"]["wrong"]["verdict"] == "failed"
        and "values are wrong" in written["verdicts"]["wrong"]["reason"]
    )


def test_the_command_where_nothing_fails_or_nothing_can_run(stand_ins, counted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stand_ins("right")
    assert main(["verify", "--device", "cpu"]) == 0
    assert not list(tmp_path.glob("*.json")) and "trusted" in capsys.readouterr().out
    assert main(["verify", "--device", "cpu", "--report", "report.json"]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["verdicts"]["right"]["verdict"] == "trusted"

    def cannot_run(*args):
        raise trust.CannotVerifyError("too little free memory")

    monkeypatch.setattr(trust, "run_checks", cannot_run)
    assert main(["verify", "--device", "cpu"]) == 2
    assert "too little free memory" in capsys.readouterr().err


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_command_says_so(capsys):
    assert main(["verify"]) == 2
    assert "expected a GPU" in capsys.readouterr().err
    assert main(["verify", "--device", "banana"]) == 2
    assert "device: expected a GPU such as cuda:0; got 'banana'" in capsys.readouterr().err
    assert main(["choices"]) == 0 and main(["backends"]) == 0
    assert "reference: available" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="expected a GPU"):
        ssconv.verify()


def test_what_compiles_at_each_call_makes_few_checks_of_everything():
    """Triton takes about half a second for a kernel."""
    brief = [check for check in checks.matrix(torch.device("cuda")) if check.brief]
    assert len(brief) < 45 and all(check.exact for check in brief)
    operations = {"convolve", "input_grad", "weight_grad", "epilogue", "epilogue_backward", "upfirdn"}
    assert {check.operation for check in brief if check.arithmetic == "bf16"} == operations
    assert {check.arithmetic for check in brief} == set(checks.ARITHMETIC)
    named = {name for names in checks.BRIEF.values() for name in names}
    assert all(any(f", {name}, exact" in check.name for check in brief) for name in named), "a name that is no check's"


def test_exact_operands_stay_exact():
    """Exact operands stay exact: no sum leaves what float32 holds, and the expected value is what a right kernel gives.
    The reference in float32 stands for one, adding in another order than in float64."""
    found = set()
    for check in checks.matrix(CPU):
        found.add((check.operation, check.arithmetic, check.exact))
        if check.exact and "large" not in check.name and check.arithmetic == "ieee":
            args = check.make(CPU)
            exact = checks._tensors(getattr(choice.pytorch.reference, check.operation)(*checks._wide(args)))
            single = checks._tensors(getattr(choice.pytorch.reference, check.operation)(*args))
            for one, right in zip(single, exact, strict=True):
                assert torch.equal(one.double(), right), check.name
    operations = {"convolve", "input_grad", "weight_grad", "epilogue", "epilogue_backward", "upfirdn"}
    assert found == {(o, a, e) for o in operations for a in ("bf16", "f16", "ieee") for e in (True, False)}
