"""Which families of kernels have proved themselves on this card, and `ssconv.verify`.

No kernel of ours serves `backend="auto"` on a GPU before it gave right results on that very card. The checks run in
processes of their own, so that a fault or a hang costs a family its trust and the user nothing. The verdicts are kept
in the user's cache folder and hold for a card, its driver, torch, Triton and the build of ssconv.

SSCONV_VERIFY=0 in the environment starts nothing: without a verdict PyTorch serves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ssconv.backend import cache
from ssconv.backend.families import Family, allowed
from ssconv.backend.gpu import capturing

SWITCH = "SSCONV_VERIFY"
PROVIDER = "ssconv.backend.families"  # the module that knows the families of a device; tests have their own
START_SECONDS = 120.0  # for a process to import torch and reach the GPU
CHECK_SECONDS = 60.0  # for one check, after which it hangs: much, for the machine may be busy
COMPILE_SECONDS = 90.0  # the same for Triton, which compiles
TOTAL_SECONDS = 600.0
WAIT_SECONDS = 300.0  # for another process that verifies
TRUSTED, FAILED, UNABLE = "trusted", "failed", "cannot serve this card"


class CannotVerifyError(RuntimeError):
    """The checks could not run. This says nothing about the kernels."""


@dataclasses.dataclass
class Verdict:
    """What a family's checks came to. largest_error: relative to the root mean square of the exact result. reason: of a
    failure, with the check."""

    verdict: str
    reason: str = ""
    checks: int = 0
    largest_error: float = 0.0
    seconds: float = 0.0


@dataclasses.dataclass
class VerifyReport:
    """What `verify` found.

    identity: card, driver, torch, Triton and build. verdicts: by family.
    """

    identity: dict[str, str]
    verdicts: dict[str, Verdict]

    @property
    def failed(self) -> list[str]:
        """The families whose checks failed."""
        return [name for name, verdict in self.verdicts.items() if verdict.verdict == FAILED]

    def __str__(self) -> str:
        rows = [("family", "checks", "largest error", "seconds", "verdict")]
        for name, v in self.verdicts.items():
            verdict = f"{v.verdict}: {v.reason}" if v.reason else v.verdict
            rows.append((name, str(v.checks), f"{v.largest_error:.1e}", f"{v.seconds:.1f}", verdict))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [f"{name + ':':8}{value}" for name, value in self.identity.items()]
        for row in rows:
            cells = [row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4]]
            lines.append("  ".join(cells))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report for a JSON file."""
        return {
            "identity": self.identity,
            "verdicts": {name: dataclasses.asdict(verdict) for name, verdict in self.verdicts.items()},
        }


# -------------------------------------------------------------------------------------------------------- the processes


def families_of(device: torch.device) -> tuple[Family, ...]:
    """Every family that may serve a device."""
    return importlib.import_module(PROVIDER).of_device(device)


class _Process:
    """A process that checks families, and the lines that it writes."""

    def __init__(self, device: torch.device, names: Sequence[str]) -> None:
        request = {"device": str(device), "provider": PROVIDER, "families": list(names)}
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
        if not sys.executable:
            raise CannotVerifyError("this program does not say which Python runs it (sys.executable)")
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ssconv.backend.checks", json.dumps(request)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise CannotVerifyError(f"no process could be started: {error}") from None
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.last_words: list[str] = []
        self.readers = [threading.Thread(target=f, daemon=True) for f in (self._read, self._read_errors)]
        for reader in self.readers:
            reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.last_words = [*self.last_words[-4:], line.strip()]

    def next_event(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None where the process has ended.

        Raises:
            TimeoutError: none came in time.
        """
        try:
            line = self.lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError from None
        return None if line is None else json.loads(line)

    def end(self) -> str:
        """Kills the process if it has not ended, and says how it ended."""
        with contextlib.suppress(OSError):
            self.process.kill()
        try:
            code = self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            return "it cannot be killed"
        for reader in self.readers:
            reader.join(1.0)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"{how}; {self.last_words[-1]}" if self.last_words else how


def run_checks(device: torch.device, names: Sequence[str], told: Callable[[str, Verdict], None]) -> dict[str, Verdict]:
    """Checks families in processes of their own; where one fails, the next begins anew. told: is called after each.

    Raises:
        CannotVerifyError: no process could be started, or none reached the device, or there is too little memory.
    """
    verdicts: dict[str, Verdict] = {}
    backends = {family.name: family.backend for family in families_of(device)}
    end = time.monotonic() + TOTAL_SECONDS
    while remaining := [name for name in names if name not in verdicts]:
        process = _Process(device, remaining)
        try:
            for name, verdict in _verdicts(process, backends, end):
                verdicts[name] = verdict
                told(name, verdict)
        finally:
            process.end()
    return verdicts


def limit_of(family: str, backends: dict[str, str]) -> float:
    """Seconds in which a family's check has to end."""
    return COMPILE_SECONDS if backends.get(family) == "triton" else CHECK_SECONDS


def _verdicts(process: _Process, backends: dict[str, str], end: float) -> Iterator[tuple[str, Verdict]]:
    """The verdicts that a process comes to until it ends."""
    try:
        ready = process.next_event(START_SECONDS)
    except TimeoutError:
        raise CannotVerifyError(f"a process did not reach the GPU in {START_SECONDS:.0f} s") from None
    if ready is None:
        raise CannotVerifyError(f"a process could not reach the GPU ({process.end()})")
    name, check, verdict, start = "", "", Verdict(FAILED), time.monotonic()
    while True:
        limit = limit_of(name, backends)
        if time.monotonic() > end:
            raise CannotVerifyError(f"the checks took more than {TOTAL_SECONDS:.0f} s")
        try:
            event = process.next_event(limit)
        except TimeoutError:
            verdict.reason = f"{check}: no answer in {limit:.0f} s"
            verdict.seconds = time.monotonic() - start
            yield name, verdict
            return
        if event is None:
            how = process.end()
            if not name:
                if process.process.returncode == 0:
                    return
                raise CannotVerifyError(f"a process ended before its first check ({how})")
            verdict.reason = f"{check}: the process ended ({how})"
            verdict.seconds = time.monotonic() - start
            yield name, verdict
            return
        match event["event"]:
            case "family":
                name, check, verdict, start = event["name"], "", Verdict(FAILED), time.monotonic()
            case "begin":
                check = event["check"]
            case "done":
                verdict.checks += 1
                verdict.largest_error = max(verdict.largest_error, event["error"])
            case "no room":
                raise CannotVerifyError(f"too little free memory: {event['reason']}")
            case "failed":
                verdict.reason, verdict.seconds = f"{check}: {event['reason']}", time.monotonic() - start
                yield name, verdict
                return
            case "passed":
                verdict.verdict = TRUSTED if verdict.checks else UNABLE
                verdict.seconds = event["seconds"]
                yield name, verdict
                name = ""


# ------------------------------------------------------------------------------------------------------------ verdicts

_STORES: dict[Any, cache.Store] = {}
_CANNOT: dict[Any, str] = {}  # why the checks cannot run in this process, by identity
_WARNED: set[str] = set()
_LOCK = threading.RLock()
_NEWEST = [0]  # how many verdicts this process has come to


def forget() -> None:
    """Reads the verdicts anew at the next call."""
    with _LOCK:
        for kept in (_STORES, _CANNOT, _WARNED):
            kept.clear()


def _store(device: torch.device) -> cache.Store:
    identity = cache.identity(device)
    if identity not in _STORES:
        _STORES[identity] = cache.Store("verdicts", identity)
    return _STORES[identity]


def trusted(device: torch.device, names: Sequence[str]) -> set[str]:
    """Those of some families that may serve a device. Where verdicts are missing the checks run first, and a line on
    stderr says so; where they cannot run a warning says why, and none is trusted."""
    with _LOCK:
        store = _store(device)
        if missing := [name for name in names if name not in store.entries]:
            store.read()
            missing = [name for name in names if name not in store.entries]
        if missing and os.environ.get(SWITCH) != "0":
            _fill(store, device, missing)
        entries = store.entries
        return {name for name in names if entries.get(name, {}).get("verdict") == TRUSTED}


def newest() -> int:
    """A number that changes when this process comes to another verdict."""
    return _NEWEST[0]


def lasting(device: torch.device) -> bool:
    """Whether `trusted` gives the same for the rest of this process: not while a CUDA graph kept the checks from
    running."""
    return not capturing()


def _fill(store: cache.Store, device: torch.device, names: Sequence[str]) -> None:
    """Runs the checks of some families, or waits for a process that does."""
    if capturing():
        _warn(
            "the kernels are not verified on this GPU yet, which a CUDA graph's capture forbids; PyTorch serves. Make "
            "a call before the capture, or run: python -m ssconv verify"
        )
        return
    if store.identity in _CANNOT:
        return
    try:
        with store.locked(".verify", WAIT_SECONDS) as had:
            if not had:
                raise CannotVerifyError(f"another process has been verifying for {WAIT_SECONDS:.0f} s")
            store.read()
            missing = [name for name in names if name not in store.entries]
            if missing:
                _tell(store, device, missing)
    except CannotVerifyError as error:
        _CANNOT[store.identity] = str(error)
        _warn(f"the kernels cannot be verified on this GPU: {error}; PyTorch serves. Try: python -m ssconv verify")


def _tell(store: cache.Store, device: torch.device, names: Sequence[str]) -> None:
    """Runs the checks and says so in one line on stderr."""
    card = dict(store.identity)["card"]
    print(
        f"ssconv: verifying its kernels on {card}, once for this build ({SWITCH}=0 skips it) ..",
        end="",
        file=sys.stderr,
    )
    sys.stderr.flush()
    start, outcome = time.monotonic(), "it could not"
    try:
        verdicts = run_checks(device, names, _saved_to(store))
        wrong = [name for name, v in verdicts.items() if v.verdict == FAILED]
        right = sum(v.verdict == TRUSTED for v in verdicts.values())
        outcome = f"{right} of {right + len(wrong)} families are right" + (
            f"; not used: {', '.join(wrong)} (python -m ssconv verify says why)" if wrong else ""
        )
    finally:
        print(f" {outcome}, {time.monotonic() - start:.0f} s", file=sys.stderr)


def _saved_to(store: cache.Store, told: Callable[[str, Verdict], None] | None = None) -> Callable[[str, Verdict], None]:
    """Keeps each verdict as it comes: should the GPU not be reached after a hang, the family that hung is known."""

    def save(name: str, verdict: Verdict) -> None:
        store.save({name: dataclasses.asdict(verdict)})
        _NEWEST[0] += 1
        if told is not None:
            told(name, verdict)

    return save


def _warn(text: str) -> None:
    if text not in _WARNED:
        _WARNED.add(text)
        warnings.warn(f"ssconv: {text}", RuntimeWarning, stacklevel=2)


def verify(
    device: torch.device | str | None = None, told: Callable[[str, Verdict], None] | None = None
) -> VerifyReport:
    """Checks every family of kernels on a GPU against float64 and keeps the verdicts, which `backend="auto"` obeys.

    The checks run in processes of their own with a time limit: a wrong number, a fault or a hang costs a family its
    trust, and nothing else. `python -m ssconv verify` prints the report.

    Args:
        device: a GPU; without it the current one.
        told: is called with a family's name and verdict when it has one.

    Raises:
        RuntimeError: there is no GPU that the kernels serve, or the checks could not run; the message says why.

    Example:
        >>> report = ssconv.verify()  # doctest: +SKIP
        >>> report.failed  # doctest: +SKIP
        []
    """
    device = _device(device)
    names = [family.name for family in families_of(device) if allowed(family.name)]
    if not names:
        raise RuntimeError(f"no kernels serve {device}; python -m ssconv backends says why")
    with _LOCK:
        store = _store(device)
        with store.locked(".verify", WAIT_SECONDS) as had:
            if not had:
                raise CannotVerifyError(f"another process has been verifying for {WAIT_SECONDS:.0f} s")
            verdicts = run_checks(device, names, _saved_to(store, told))
        _CANNOT.pop(store.identity, None)
    return VerifyReport(dict(store.identity), verdicts)


def devices() -> list[torch.device]:
    """The GPUs of this machine."""
    current = torch.accelerator.current_accelerator()
    return [] if current is None else [torch.device(current.type, i) for i in range(torch.accelerator.device_count())]


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        found = devices()
        if not found:
            raise RuntimeError("expected a GPU; this machine has none, or this torch has no support for it")
        device = found[torch.accelerator.current_device_index()]
    try:
        device = torch.device(device)
    except RuntimeError:
        raise RuntimeError(f"device: expected a GPU such as cuda:0; got {device!r}") from None
    if device.index is None and device.type != "cpu":
        device = torch.device(device.type, torch.accelerator.current_device_index())
    return device


def write_report(report: VerifyReport, path: Path) -> None:
    """Writes a report as JSON, for a bug report."""
    path.write_text(json.dumps(report.as_dict(), indent=1) + "\n")
