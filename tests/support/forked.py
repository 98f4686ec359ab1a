"""Runs scripts that need a process of their own, each in a fork of a process that has imported torch.

    python tests/support/forked.py

reads a JSON object with script, arguments, path and log from each line of stdin, and prints the script's exit code,
negative for a signal, on a line of stdout.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
SECONDS = 600  # limit of a script: a planted fault may hang


@dataclass(frozen=True)
class Done:
    """The end of a script. returncode: negative for a signal. stderr: the script's output."""

    returncode: int
    stderr: str


@dataclass(frozen=True)
class Server:
    """Runs scripts of this folder."""

    requests: IO[str]
    replies: IO[str]
    log: Path

    def run(self, script: str, *arguments: str, package: Path = ROOT) -> Done:
        """package: the folder whose ssconv the script imports."""
        path = [str(package), str(ROOT)]
        request = {"script": str(SUPPORT / script), "arguments": arguments, "path": path, "log": str(self.log)}
        self.requests.write(json.dumps(request) + "\n")
        self.requests.flush()
        reply = self.replies.readline()
        assert reply, "the server died"
        return Done(int(reply), self.log.read_text(errors="replace"))


@contextmanager
def server(log: Path, **environment: str) -> Iterator[Server]:
    """Starts a server with these environment variables; an empty value removes one."""
    variables = {n: v for n, v in {**os.environ, **environment}.items() if v or n not in environment}
    command = [sys.executable, str(Path(__file__))]
    with subprocess.Popen(
        command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        yield Server(process.stdin, process.stdout, log)
        process.stdin.close()


def _child(script: str, arguments: Sequence[str], path: Sequence[str], log: str) -> int:
    signal.alarm(SECONDS)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(descriptor, 1)  # stdout belongs to the server's replies
    sys.path[:0] = path
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve() -> None:
    """Imports expensive packages, but none that is tested, then forks for every request."""
    sys.path.pop(0)  # this folder
    import hypothesis
    import numpy
    import torch

    try:
        import triton
    except ImportError:
        triton = None
    del hypothesis, numpy, triton
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _child(**json.loads(line))
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
