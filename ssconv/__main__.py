"""python -m ssconv verify | choices | backends"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ssconv.backend import trust
from ssconv.backend.choice import choices, open_stores
from ssconv.backend.dispatch import backends
from ssconv.parser import Parser


def main(arguments: list[str] | None = None) -> int:
    """Runs a command. Returns its exit code."""
    parser = Parser(prog="python -m ssconv", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser(
        "verify",
        help="check every family of GPU kernels against float64; exit code 1 if one failed, 2 if none could run",
    )
    verify.add_argument("--device", help="the GPU, such as cuda:1 (default: the current one)")
    verify.add_argument(
        "--report",
        type=Path,
        help="where to write the report for a bug report (default: ssconv-verify.json if one failed)",
    )
    commands.add_parser(
        "choices", help="list what serves each kind of call on the GPUs of this machine, and its rivals"
    )
    commands.add_parser("backends", help="list the backends, and why those that are missing are not available")
    args = parser.parse_args(arguments)
    if args.command == "verify":
        return _verify(args.device, args.report)
    if args.command == "choices":
        open_stores()
        for kind, _, times in choices():
            print(kind, *(f"    {seconds * 1e3:9.4f} ms  {name}" for name, seconds in times.items()), sep="\n")
        return 0
    for name, state in backends().items():
        print(f"{name + ':':11}{state}")
    return 0


def _verify(device: str | None, path: Path | None) -> int:
    def told(name: str, verdict: trust.Verdict) -> None:
        print(f"{name}: {verdict.verdict} ({verdict.checks} checks, {verdict.seconds:.1f} s)", file=sys.stderr)

    try:
        report = trust.verify(device, told)
    except RuntimeError as error:
        print(f"python -m ssconv verify: {error}", file=sys.stderr)
        return 2
    print(report)
    if path or report.failed:
        path = path or Path("ssconv-verify.json")
        try:
            trust.write_report(report, path)
        except OSError:
            path = Path(tempfile.gettempdir()) / path.name
            trust.write_report(report, path)
        print(f"written: {path}" + (" (please attach it to a bug report)" if report.failed else ""))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
