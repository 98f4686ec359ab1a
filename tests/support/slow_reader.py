"""Functions for worker processes in tests, on items that crash them, hang or are slow. Imports nothing heavy."""

import ctypes
import os
import pathlib
import signal
import time

from ssgan.data.preprocessing import prepare_source


def work(item):
    match item:
        case "segfault":
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "raise":
            raise KeyError("broken")
        case ("hang", path):
            pathlib.Path(path).touch()
            time.sleep(60)
        case "slow":
            time.sleep(0.3)
        case "memory":
            raise MemoryError
        case str():
            pathlib.Path(item).touch()
    return "done", item


def pid(item):
    return os.getpid()


def prepare_or_crash(source, recipe, strict=False):
    if "segfault" in source.name:
        ctypes.string_at(0)
    return prepare_source(source, recipe, strict)
