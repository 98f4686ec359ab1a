"""Errors that are the user's to mend, and how a command reports them."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input: the message names the argument or file, what was expected, what came and what to do."""


class ConfigError(UserError):
    """An invalid configuration: the message names the field, what was expected, what came and what to do."""


def run_command(program: str, command: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Runs a command and turns user errors into one line on stderr and exit status 2; Ctrl-C gives 130.

    program: what the user called, such as "ssgan train".
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
