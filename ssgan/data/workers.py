"""Maps a function over items in processes, in order; a process that dies or hangs loses one item only.

The standard executors stop altogether when a process dies, and a native reader can die of a damaged file.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from ssgan.data.volume import Failure

Item = TypeVar("Item")
AHEAD = 2  # results per worker that may wait for an earlier one, to bound the memory


def run_in_order(
    function: Callable[[Item], Any], items: Sequence[Item], workers: int, limit: float
) -> Iterator[Any | Failure]:
    """Yields function(item) for each item, in their order, computed in `workers` processes.

    An item that takes more than `limit` seconds, or whose process dies, yields a Failure, and a new process continues.
    `function` must be defined at the top of a module (or a partial of such a function), because it is pickled.
    """
    pool = [_Worker(function) for _ in range(max(1, min(workers, len(items))))]
    results: dict[int, Any] = {}
    given = taken = 0  # items handed to workers, results yielded
    try:
        while taken < len(items):
            for i, worker in enumerate(pool):
                if worker.item is None and given < min(len(items), taken + AHEAD * len(pool)):
                    if not worker.give(given, items[given]):
                        pool[i] = worker = _Worker(function)
                        worker.give(given, items[given])
                    given += 1
            while taken in results:
                yield results.pop(taken)
                taken += 1
            if any(w.item is None for w in pool) and given < min(len(items), taken + AHEAD * len(pool)):
                continue
            busy = [w for w in pool if w.item is not None]
            if not busy:
                continue
            now = time.monotonic()
            ready = wait(
                [w.pipe for w in busy] + [w.process.sentinel for w in busy],
                max(0.0, min(w.began + limit - now for w in busy)),
            )
            for i, worker in enumerate(pool):
                if worker.item is None:
                    continue
                item = worker.item
                if worker.pipe in ready or worker.process.sentinel in ready:
                    results[item] = worker.take()
                elif time.monotonic() - worker.began >= limit:
                    results[item] = Failure(f"not read within {limit:g} s: damaged, or the machine is too slow")
                    worker.stop()
                if worker.gone:
                    pool[i] = _Worker(function)
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """A process that computes one item at a time; `item` is its number, None while it waits."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        context = _context()
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, function), daemon=True)
        self.process.start()
        child.close()
        self.item: int | None = None
        self.began, self.gone = 0.0, False

    def give(self, number: int, item: Any) -> bool:
        try:
            self.pipe.send(item)
        except OSError:  # it died while it waited
            self.stop()
            return False
        self.item, self.began = number, time.monotonic()
        return True

    def take(self) -> Any:
        self.item = None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.stop()
            return Failure(_cause(self.process.exitcode))

    def stop(self) -> None:
        self.gone, self.item = True, None
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _context() -> Any:
    """A fork server that has the modules loaded: it starts a process in milliseconds, without this one's threads.

    Every process runs the program's main module again, as `__mp_main__`. Its imports are loaded here, but not the
    module itself: Python would warn, in every process, that it runs a module that has been imported.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "ssgan.data.preparation"])
    return context


def _serve(pipe: Connection, function: Callable[[Any], Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # native readers print warnings without the file's name
    while True:
        try:
            item = pipe.recv()
        except (EOFError, OSError):  # the parent is gone or done
            return
        try:
            result = function(item)
        except MemoryError:
            result = Failure("not enough memory to read it")
        except Exception as error:  # whatever a reader raises for a damaged file must not stop the others
            result = Failure(f"the reader failed: {type(error).__name__}: {error}".splitlines()[0])
        try:
            pipe.send(result)
        except OSError:
            return


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        return f"the reader was killed ({name}): out of memory?" if -code == 9 else f"the reader crashed ({name}) on it"
    return f"the reader's process ended (status {code}) on it"
