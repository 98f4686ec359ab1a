"""Errors that the user can correct, and how a command reports them."""

from __future__ import annotations

import argparse
import errno
import io
import re
import sys
from collections.abc import Callable

OUT_OF_MEMORY = (  # in the messages of PyTorch's allocators, CUDA's libraries and C++
    "can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED", "bad_alloc", "bad allocation",
)  # fmt: skip


class UserError(ValueError):
    """Wrong input: the message names the argument or file, what was expected, what came and what to do."""


class OutOfMemory(UserError):
    """The memory of the machine or the GPU is too small; the message says for what, and what needs less."""


class ConfigError(UserError):
    """An invalid configuration: the message names the field, what was expected, what came and what to do."""


def out_of_memory(error: BaseException) -> str | None:
    """Returns what an error for lack of memory asked for, such as ": 2.50 GiB more were asked for"; "" where it does
    not say, None for other errors.

    PyTorch raises OutOfMemoryError for a GPU and a plain RuntimeError for a CPU; numpy and Python raise MemoryError.
    """
    text = str(error)
    if not isinstance(error, MemoryError) and not any(words in text for words in OUT_OF_MEMORY):
        return None
    found = re.search(r"tried to allocate (\d+) bytes", text)
    size = f"{int(found[1]) / 2**30:.2f} GiB" if found else ""
    found = re.search(r"(?:[Tt]ried|Unable) to allocate ([\d.]+ [KMGTPE]?i?B)", text)
    size = size or (found[1] if found else "")
    return f": {size} more were asked for" if size else ""


def run_command(program: str, command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command and returns its exit status; prints a user error as one line on stderr.

    The status is the command's own, 2 after a user error, an error of the file system or for lack of memory, 130 after
    Ctrl-C. program: the command's name in messages, such as "ssgan train".
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # names of files may have characters that the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        return command(args)
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        print(f"{program}: error: {what}{where}; what was saved before is intact", file=sys.stderr)
    except (MemoryError, RuntimeError) as error:
        asked = out_of_memory(error)
        if asked is None:
            raise
        less = "a smaller --batch needs less; " if hasattr(args, "batch") else ""
        print(f"{program}: error: out of memory{asked}; {less}what was saved before is intact", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    return 2
