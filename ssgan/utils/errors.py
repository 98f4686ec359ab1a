"""Errors that the user can correct, and how a command reports them."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Wrong input: the message names the argument or file, what was expected, what came and what to do."""


class ConfigError(UserError):
    """An invalid configuration: the message names the field, what was expected, what came and what to do."""


def run_command(program: str, command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command and returns its exit status; prints a user error as one line on stderr.

    The status is the command's own, 2 after a user error or an error of the file system, 130 after Ctrl-C. program:
    the command's name in messages, such as "ssgan train".
    """
    try:
        return command(args)
    except UserError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or str(error)
        where = f" ({error.filename})" if error.filename else ""
        print(f"{program}: error: {what}{where}; what was saved before is intact", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{program}: stopped", file=sys.stderr)
        return 130
    return 2
