"""The `ssgan` command: imports the subcommand's module and passes the remaining arguments to it.

A module is imported only when its command is called, so `ssgan --help` does not load torch.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

DISTRIBUTION = "split-shuffle-gan"

# Command -> one line for the help. The command NAME is the module ssgan.NAME, so `python -m ssgan.NAME` is the same.
COMMANDS: dict[str, str] = {
    "prepare": "turn folders of scans into a data set: orientation, spacing, shape, intensity",
    "phantom": "make a data set of random ellipsoid heads; nothing to download",
    "split": "split a data set into one to train on and one to evaluate with",
    "train": "train a GAN: 2D on slices, inflation, 3D on volumes; the same command resumes",
    "generate": "write volumes of a trained run as NIfTI, PNG and GIF",
    "evaluate": "measure generated volumes against real ones: distances, variety, copies",
    "labelnet": "train a small network on a data set's classes, for the features of evaluate",
    "segmenter": "train a small segmentation network on a data set's masks, for the masks of evaluate",
    "latents": "explore the latent space: interpolate, mix, sweep, find directions, project a scan, edit it",
    "view": "look at a run, a data set or NIfTI files in the browser, and walk through the latent space",
    "report": "show a run on one HTML page that needs no network, with a model card",
    "export": "write the networks of a run for MONAI and other programs",
    "summary": "print the parameters of the networks, layer by layer",
    "inflate": "turn a 2D checkpoint into the start of a 3D GAN",
}


def version() -> str:
    """The installed version, or a note that the package is not installed."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "unknown (run from the source tree, not installed)"


def usage() -> str:
    """The text of `ssgan --help`."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: ssgan COMMAND [OPTIONS]\n\n"
        "3D Split&Shuffle-GAN: train it on your volumes and generate new ones.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n  -h, --help  this text\n  --version   print the version\n\n"
        "`ssgan COMMAND --help` lists its options; `ssgan train --preset demo --out runs/demo` needs no data."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status: 0 success, 2 user error, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        print(usage(), file=sys.stderr)
        return 2
    name, rest = arguments[0], arguments[1:]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"ssgan {version()}")
        return 0
    if name not in COMMANDS:
        print(f"ssgan: error: {_unknown_command(name)}", file=sys.stderr)
        return 2
    try:
        command = importlib.import_module(f"ssgan.{name}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "ssgan", "ssconv"):
            raise
        print(f"ssgan {name}: error: the package {package} is not installed: pip install {package}", file=sys.stderr)
        return 2
    return command.main(rest)


def _unknown_command(name: str) -> str:
    kind = "option" if name.startswith("-") else "command"
    choices = ["--help", "--version"] if kind == "option" else list(COMMANDS)
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(choices)}"
    return f"unknown {kind} {name!r}; {hint} (`ssgan --help` lists the commands)"
