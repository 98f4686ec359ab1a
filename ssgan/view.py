"""`ssgan view`: shows a run, a data set or NIfTI files in the browser, in planes and in 3D.

    python -m ssgan.view RUN [--checkpoint 3d-best] [--data DATASET]
    python -m ssgan.view DATASET
    python -m ssgan.view FOLDER
    python -m ssgan.view FILE.nii.gz ...

A server of this machine alone answers the page; no network is needed. Ctrl-C ends it. Nothing is written but what you
save.
"""

from __future__ import annotations

import argparse
import getpass
import os
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from ssconv.parser import Parser
from ssgan.data.dataset import is_dataset
from ssgan.runs.config import is_run
from ssgan.runs.generator import CHECKPOINT_HELP
from ssgan.utils.cores import use_threads
from ssgan.utils.environment import pick_device
from ssgan.utils.errors import UserError, run_command
from ssgan.viewing.browsing import DatasetBrowser, FileBrowser
from ssgan.viewing.exploring import RunExplorer
from ssgan.viewing.server import Server, Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help="a run, a data set, a folder, or NIfTI files"
    )
    parser.add_argument("--checkpoint", type=Path, help=f"{CHECKPOINT_HELP}; without it the newest is followed")
    parser.add_argument("--data", type=Path, help="the run's data set (default: where the run found it)")
    parser.add_argument("--port", type=int, default=0, help="of this machine (default: any that is free)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")


def open_source(args: argparse.Namespace) -> Source:
    """Finds out what the paths are, and opens it. Raises UserError."""
    first = args.paths[0]
    run = len(args.paths) == 1 and is_run(first)
    if not run and (args.checkpoint or args.data):
        raise UserError(f"--checkpoint and --data belong to a run; {first} is none (it has no config.json)")
    if run:
        return RunExplorer(first, args.checkpoint, args.data, pick_device(args.device))
    if len(args.paths) == 1 and is_dataset(first):
        return DatasetBrowser(first)
    return FileBrowser(args.paths)


def has_browser() -> bool:
    """Whether a window can be opened where the user sits."""
    shown = sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(shown) and not os.environ.get("SSH_CONNECTION")


def tunnel(port: int) -> str:
    """The ssh command that makes the server reachable from the machine where the user sits."""
    connection = os.environ.get("SSH_CONNECTION", "").split()
    host = connection[2] if len(connection) == 4 else socket.gethostname()
    return f"ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{host}"


def run(args: argparse.Namespace) -> int:
    use_threads()
    server = Server(open_source(args), args.port)
    print(f"{server.address}\nopen it in a browser of this machine; Ctrl-C ends it", flush=True)
    if args.no_browser or not has_browser() or not webbrowser.open(server.address):
        print(f"from another machine, this there first: {tunnel(server.port)}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped")
    finally:
        server.server_close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="ssgan view", description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    return run_command(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
