"""Prints hashes of what the project computes, to show that a change of the code changed no number.

    python -m tests.support.fingerprint OUT                  # the code of before: writes OUT/fingerprint.json
    python -m tests.support.fingerprint OUT2 --before OUT    # the code of after: exit status 1 where a number differs

It goes through the commands and the public names of `ssconv` only, so it runs on any commit. The second form also loads
what the first wrote: it resumes its half-finished run and generates from its finished one. It computes with one thread,
so that sums have one order. The hashes belong to one machine and one build of torch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import nibabel
import numpy as np
import torch
from safetensors import safe_open

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").exists())
SHARED = ROOT.parent / "shared" / "data"
SHORT = ["--device", "cpu", "--threads", "1", "--kimg-2d", "0.64", "--seed", "3"]
RUNS = {
    "default": ["--preset", "demo"],
    "everything": [
        *["--preset", "demo", "--batch-2d", "16", "--batch-3d", "8", "--augment", "fixed", "--augment-p", "0.3"],
        *["--pl-weight-2d", "1", "--pl-weight-3d", "1", "--r1-gamma-3d", "1", "--style-mixing-2d", "0.9"],
        *["--style-mixing-3d", "0.9", "--no-depth-aware", "--inflate", "average", "--accumulate", "2"],
        *["--warmup-kimg", "0.1", "--metrics", "frechet,msssim", "--arch-d", "dense"],
    ],
    "classes": ["--preset", "demo", "--conditional", "--augment", "ada"],
    "bf16": ["--preset", "demo", "--precision", "bf16", "--arch", "acs4", "--checkpoint-activations"],
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def command(*words: object) -> None:
    words = [str(w) for w in words]
    done = subprocess.run([sys.executable, "-m", f"ssgan.{words[0]}", *words[1:]], cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        raise SystemExit(f"ssgan {' '.join(words)}:\n{done.stdout.decode()}\n{done.stderr.decode()}")


def tensors(path: Path) -> str:
    digest = hashlib.sha256()
    with safe_open(path, "np") as file:
        for name in sorted(file.keys()):
            digest.update(name.encode() + file.get_tensor(name).tobytes())
    return digest.hexdigest()[:16]


def files(folder: Path, pattern: str) -> dict[str, str]:
    """Hashes of files; of NIfTI, those of voxels and affine, since gzip keeps the time."""
    found = {}
    for path in sorted(folder.glob(pattern)):
        data = path.read_bytes()
        if path.name.endswith(".nii.gz"):
            image = nibabel.load(path)
            data = np.asarray(image.dataobj).tobytes() + image.affine.tobytes()
        found[path.name] = sha256(data)
    return found


def operator() -> dict[str, str]:
    """Forward and gradients of the operator, every backend that is there, from a fixed seed."""
    import ssconv

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(7)
    found = {}
    for backend in ("reference", "cpu"):
        if ssconv.backends()[backend] != "available":
            raise SystemExit(f"fingerprint: backend {backend}: {ssconv.backends()[backend]}")
        for dtype in (torch.float32, torch.bfloat16):
            for kernels in (((3, 3, 3),), ((3, 3, 3), (1, 3, 3)), ((3, 3, 3), (1, 3, 3), (3, 1, 3), (3, 3, 1))):
                for stride, transposed in ((1, False), (2, False), ((1, 2, 2), True)):
                    count = len(kernels)
                    x = torch.randn(2, 16, 5, 6, 7, generator=generator).to(dtype).requires_grad_()
                    weights = [
                        (torch.randn(8 // count, 16 // count, *k, generator=generator) * 0.1).to(dtype).requires_grad_()
                        for k in kernels
                    ]
                    bias, in_scale, out_scale = (
                        torch.randn(*s, generator=generator).to(dtype).requires_grad_() for s in ((8,), (2, 16), (2, 8))
                    )
                    y = ssconv.split_shuffle_conv3d(
                        x, weights, bias, stride=stride, transposed=transposed, in_scale=in_scale, out_scale=out_scale,
                        activation="lrelu", gain=1.4, clamp=2.0, backend=backend,
                    )  # fmt: skip
                    grads = torch.autograd.grad(
                        (y * torch.randn(y.shape, generator=generator)).sum(), (x, *weights, bias, in_scale, out_scale)
                    )
                    data = b"".join(t.detach().float().contiguous().numpy().tobytes() for t in (y, *grads))
                    found[f"{backend} {str(dtype)[6:]} {count} {stride} {transposed}"] = sha256(data)
        x = torch.randn(2, 3, 4, 5, 6, generator=generator).requires_grad_()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        y = ssconv.upfirdn3d(x, taps, up=2, padding=(2, 1, 2, 1, 2, 1), gain=8, backend=backend)
        (g,) = torch.autograd.grad(y.square().sum(), x)
        found[f"{backend} upfirdn"] = sha256(
            y.detach().contiguous().numpy().tobytes() + g.contiguous().numpy().tobytes()
        )
    return found


def prepare(out: Path) -> dict[str, dict[str, str]]:
    source = out / "nifti"
    source.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        affine = np.diag([1.5, -1, 2, 1.0]) + np.array([[0, 0, 0, i]] * 3 + [[0] * 4])
        nibabel.save(
            nibabel.Nifti1Image(rng.gamma(2, 100, (9 + i, 20, 13)).astype("f4"), affine), source / f"v{i}.nii.gz"
        )
    (source / "bad.nii").write_bytes(b"no volume")
    (out / "labels.csv").write_text("file,class\n" + "".join(f"v{i}.nii.gz,{'AB'[i % 2]}\n" for i in range(6)))
    found = {}
    command(
        "prepare", "--input", source, "--out", out / "prepared", "--shape", 16, 24, 16, "--labels", out / "labels.csv"
    )
    sources = {"prepared": out / "prepared"}
    if SHARED.exists():
        for name, folder, options in (
            ("real", "msd-hippocampus/images", ["--spacing", 2, 2, 2, "--slice-axis", "sagittal"]),
            ("dicom", "dicom", ["--recipe", "mri"]),
        ):
            command("prepare", "--input", SHARED / folder, "--out", out / name, "--shape", 16, 24, 16, *options)
            sources[name] = out / name
    for name, folder in sources.items():
        info = json.loads((folder / "dataset.json").read_text())
        found[name] = files(folder, "*.npy") | files(folder, "*.png")
        found[name]["json"] = sha256(
            json.dumps(info, sort_keys=True).replace(str(out), "").replace(str(ROOT), "").encode()
        )
    return found


def generate(run: Path, out: Path, *options: str) -> dict[str, str]:
    command("generate", "--run", run, "--seeds", "0-2", "--out", out, "--truncation", "0.8", *options)
    return files(out, "*.nii.gz") | files(out, "*.png")


def train(out: Path, before: Path | None) -> dict[str, dict[str, str]]:
    found = {}
    command("phantom", "--out", out / "phantoms", "--shape", 16, 16, 16, "--count", 40, "--seed", 5)
    found["phantoms"] = files(out / "phantoms", "*.npy") | files(out / "phantoms", "*.png")
    for name, options in RUNS.items():
        run, data = out / name, out / ("prepared" if name == "classes" else "phantoms")
        words = ["train", "--data", data, *options, *SHORT]
        if name == "default":  # one that is stopped half-way, and goes on; the other code goes on from the half too
            command(*words, "--kimg-3d", "0.08", "--out", run)
            shutil.copytree(run, out / "half")
        command(*words, "--kimg-3d", "0.16", "--out", run)
        found[name] = {p.name: tensors(p) for p in sorted((run / "checkpoints").glob("*-final*"))}
        found[f"{name} samples"] = generate(
            run, out / f"{name}-samples", *(["--class", "all"] if name == "classes" else [])
        )
    command(
        "evaluate", "--real", out / "phantoms", "--fake", out / "default", "--out", out / "metrics.json", "--count", 20
    )
    metrics = json.loads((out / "metrics.json").read_text())
    found["evaluate"] = {"metrics": sha256(json.dumps(metrics["metrics"], sort_keys=True).encode())}
    command("latents", "interpolate", "--run", out / "default", "--seeds", "0-1", "--out", out / "walk")
    found["latents"] = files(out / "walk", "*.png")
    command("report", "--run", out / "default")
    command("summary", "--preset", "heart")
    if before is not None:  # what the code of before left goes on being read
        data, run = before / "phantoms", out / "resumed"
        shutil.copytree(before / "half", run)
        command("train", "--data", data, *RUNS["default"], *SHORT, "--kimg-3d", "0.16", "--out", run)
        found["resumed"] = {p.name: tensors(p) for p in sorted((run / "checkpoints").glob("*-final*"))}
        found["again"] = generate(before / "everything", out / "again")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder to write to")
    parser.add_argument("--before", type=Path, metavar="OUT", help="compare with what this folder holds")
    args = parser.parse_args()
    out = args.out.resolve()
    before = args.before and args.before.resolve()
    out.mkdir(parents=True)
    found = {"operator": operator()} | prepare(out) | train(out, before)
    (out / "fingerprint.json").write_text(json.dumps(found, indent=1))
    if before is None:
        print(f"{sum(map(len, found.values()))} hashes in {out / 'fingerprint.json'}")
        return 0
    old = json.loads((before / "fingerprint.json").read_text())
    old |= {"resumed": old["default"], "again": old["everything samples"]}
    wrong = [f"{group}: {name}" for group in old for name in old[group] | found.get(group, {})
             if found.get(group, {}).get(name) != old[group].get(name)]  # fmt: skip
    print("\n".join(wrong) or f"all {sum(map(len, old.values()))} hashes are those of before")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
