"""Counts the calls that a training step makes to kernels, phase by phase.

    python -m benchmarks.training.launches [--presets hippocampus heart] [--out FILE.jsonl] [--device cuda]

On a GPU these are kernels and copies as PyTorch's profiler sees them. On a CPU they are calls of PyTorch's and ssconv's
operators that compute something, each of which is one kernel or a few on a GPU: a call counts, views and empty tensors
do not. Adam goes parameter by parameter on a CPU unless it is fused, and then reads counters of its own on the host.
A count needs no idle machine. FILE.md beside FILE.jsonl shows all records, so that commits stand side by side.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.training import with_batch
from benchmarks.operator.run import environment
from ssconv.parser import Parser
from ssgan.config.presets import PRESETS
from ssgan.config.training import TrainConfig
from ssgan.training.step import StageTrainer

KIND = "launches of a training step"
PHASES = ("generator", "path length", "discriminator", "R1")
REST = "average"  # everything after the last optimiser step
READ = "aten._local_scalar_dense.default"
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}


class Calls(TorchDispatchMode):
    """Counts calls of operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        view = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not view and func._schema.name.partition("::")[2] not in NOTHING:
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))

    def take(self) -> Counter[str]:
        """Returns the counts since the last call."""
        found, self.counts = self.counts, Counter()
        return found


class Kernels:
    """Counts kernels and copies on a GPU by name; the counterpart of `Calls`."""

    def __init__(self) -> None:
        self.profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])

    def __enter__(self) -> Kernels:
        self.profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.profile.__exit__(*error)

    def take(self) -> Counter[str]:
        torch.cuda.synchronize()
        self.profile.__exit__(None, None, None)
        events = self.profile.events() or []
        found = Counter(e.name for e in events if e.device_type == torch.autograd.DeviceType.CUDA)
        self.__init__()  # type: ignore[misc]
        self.__enter__()
        return found


class CountedGan(StageTrainer):
    """Takes the counts before and after each optimiser step."""

    counter: Calls | Kernels
    found: dict[str, Counter[str]]

    def _optimiser_step(self, phase: str, loss: Tensor) -> Any:
        self.found[phase] = self.counter.take()
        result = super()._optimiser_step(phase, loss)
        self.found[f"optimiser, {phase}"] = self.counter.take()
        return result

    def counted_step(self, reals: Tensor) -> dict[str, Counter[str]]:
        """Counts a step that has all phases."""
        self.step = math.lcm(self.cfg.d_reg_interval, self.cfg.g_reg_interval)
        self.found = {}
        with Calls() if self.device.type == "cpu" else Kernels() as self.counter:
            self.train_step(reals)
            self.found[REST] = self.counter.take()
        return self.found


def count(cfg: TrainConfig, device: str) -> dict[str, Any]:
    """Counts the launches of a step by phase, and in the mean over steps, where lazy phases count by their share."""
    gan = CountedGan(cfg, "3d", torch.device(device))
    reals = torch.rand(cfg.stage_3d.batch, cfg.network.image_channels, *cfg.network.shape) * 2 - 1
    gan.counted_step(reals)  # Adam makes its state in the first step
    found = gan.counted_step(reals)
    reads = {name: counts.pop(READ, 0) for name, counts in found.items()}
    share = {"path length": 1 / cfg.g_reg_interval, "R1": 1 / cfg.d_reg_interval}
    totals = {name: sum(counts.values()) for name, counts in found.items()}
    mean = sum(n * share.get(name.removeprefix("optimiser, "), 1.0) for name, n in totals.items())
    most = sum(found.values(), Counter()).most_common(16)
    return {"launches": totals, "mean": mean, "reads": sum(reads.values()), "most": dict(most)}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Writes Markdown: a row for each preset and commit; the networks' launches + those of the optimiser step."""
    head = ["widths", "commit", *PHASES, "average", "a step in the mean", "values read on the host"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for r in records:
        of = r["launches"]
        phases = [f"{of[p]} + {of[f'optimiser, {p}']}" if p in of else "" for p in PHASES]
        reads = r["reads"] if r["on"] == "cpu" else "not counted"
        cells = [r["preset"], str(r["commit"]), *phases, str(of[REST]), f"{r['mean']:.0f}", str(reads)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def most(records: Sequence[dict[str, Any]]) -> str:
    """Writes Markdown: the operators that the step of each record calls most."""
    lines = []
    for r in records:
        named = ", ".join(f"{name.removesuffix('.default')} {n}" for name, n in r["most"].items())
        lines.append(f"* {r['preset']}, {r['commit']}: {named}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m benchmarks.training.launches", description=__doc__.partition("\n")[0])
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["hippocampus", "heart"])
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 32, 32), metavar=("D", "H", "W"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="JSON lines to append to; a table in Markdown beside it")
    args: argparse.Namespace = parser.parse_args(argv)
    records = []
    for preset in args.presets:
        cfg = PRESETS[preset].train_config(preset, tuple(args.shape), precision=args.precision)
        record = {"kind": KIND, **environment(), "on": args.device, "preset": preset, "precision": args.precision}
        records.append(record | {"shape": list(args.shape), "batch": args.batch})
        records[-1] |= count(with_batch(cfg, args.batch), args.device)
    print(table(records), most(records), sep="\n\n")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("a") as file:
            file.writelines(json.dumps(r) + "\n" for r in records)
        records = [json.loads(line) for line in args.out.read_text().splitlines()]
        title = "# Launches of a training step\n\nThe networks' + the optimiser's, by phase; the calls made most below."
        args.out.with_suffix(".md").write_text(f"{title}\n\n{table(records)}\n\n{most(records)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
