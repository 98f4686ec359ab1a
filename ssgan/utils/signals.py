"""Turns SIGINT, SIGTERM and SIGHUP into a request to save and stop."""

from __future__ import annotations

import os
import signal
import threading
from types import TracebackType
from typing import Any

SIGNALS = [signal.SIGINT, signal.SIGTERM]
SIGNALS += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # Windows has none


class StopSignals:
    """Records the first SIGINT, SIGTERM or SIGHUP, so that a step can be finished and saved; a second one ends the
    process. SIGHUP comes when a terminal is closed or a connection breaks; nohup has it ignored, and it stays so.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._terminals: list[int] = []  # of standard output and standard error, those that are one
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python sets handlers there only
            signals = [s for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            self._before = {s: signal.signal(s, self._note) for s in signals}
            self._terminals = [fd for fd in (1, 2) if os.isatty(fd)]
        return self

    def _note(self, number: int, frame: object) -> None:
        self.received = signal.Signals(number)
        if self.received.name == "SIGHUP":  # to write to the terminal that is gone is an error
            for fd in self._terminals:
                os.dup2(os.open(os.devnull, os.O_WRONLY), fd)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._restore()
