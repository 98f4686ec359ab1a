"""Reads published weights from the user's own file and loads them into a network, every name and shape checked.

Nothing is downloaded and no code in a file is run: it is `.safetensors`, or `.pth`/`.pt` for torch's restricted
unpickler.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssgan.utils.errors import UserError

COUNTER = ".num_batches_tracked"  # of batch norm; older files lack it, and evaluation does not need it


class WeightsError(UserError):
    """A file of weights that is absent, unreadable or for another network."""


@dataclass(frozen=True)
class Weights:
    """The contents of a file. tensors: name -> tensor, without the `module.` of DataParallel. sha256: of the file."""

    path: Path
    tensors: dict[str, Tensor]
    sha256: str


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def read_weights(path: Path) -> Weights:
    """Reads the tensors of a file, or of the `state_dict` entry in it.

    Raises:
        WeightsError: no such file, another suffix, a damaged file, or an entry that is not a tensor.
    """
    if not path.is_file():
        raise WeightsError(f"--weights {path} is not a file; give the file of weights you have downloaded yourself")
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        elif path.suffix in (".pth", ".pt"):
            found = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise WeightsError(
                f"--weights {path}: expected .pth, .pt or .safetensors; got {path.suffix or 'no suffix'}"
            )
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"--weights {path} cannot be read as weights alone ({str(error).splitlines()[0][:160]}); it is damaged, or "
            "holds a whole pickled model: save its state_dict()"
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise WeightsError(f"--weights {path}: expected a dictionary of names and tensors (a state_dict)")
    tensors = {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
    return Weights(path, tensors, file_sha256(path))


def recognise(tensors: dict[str, Tensor]) -> str | None:
    """Guesses from names and shapes which network a file is for, in words; None where it cannot tell."""
    if "Conv2d_1a_3x3.conv.weight" in tensors:
        return "an Inception-v3 (--extractor inception)"
    first = tensors.get("conv1.weight")
    if first is None:
        return (
            "a run's checkpoint (--extractor discriminator)" if any(n.startswith("G_ema.") for n in tensors) else None
        )
    blocks = sum(bool(re.fullmatch(r"layer\d\.\d+\.conv1\.weight", name)) for name in tensors)
    depth = blocks * (3 if "layer1.0.conv3.weight" in tensors else 2) + 2
    if first.dim() == 5:
        return f"a 3D ResNet-{depth}" + (f" (--extractor medicalnet-{depth})" if depth in (10, 18, 34, 50) else "")
    if "conv1.bias" in tensors and depth == 50:
        return "RadImageNet's ResNet-50 (--extractor radimagenet)"
    return f"a 2D ResNet-{depth} without the biases of RadImageNet's"


def fit(module: nn.Module, weights: Weights, name: str, ignored: tuple[str, ...] = ()) -> nn.Module:
    """Loads weights into a module built on the meta device, as float32, for evaluation; checks every name and shape.

    ignored: prefixes of tensors that a file may hold besides (its head).

    Raises:
        WeightsError: tensors that are missing, unknown, of another shape or not finite; up to three are named, and the
            network that the file seems to be for.
    """
    given = {
        n: t for n, t in weights.tensors.items() if not n.startswith(ignored or ("\0",)) and not n.endswith(COUNTER)
    }
    own = {n: t for n, t in module.state_dict().items() if not n.endswith(COUNTER)}
    wrong = [f"{n} is missing" for n in own if n not in given] + [f"{n} is unknown" for n in given if n not in own]
    wrong += [
        f"{n} is {tuple(given[n].shape)}, expected {tuple(t.shape)}"
        for n, t in own.items()
        if n in given and given[n].shape != t.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        seen = recognise(weights.tensors)
        hint = f"; the file looks like {seen}" if seen else ""
        raise WeightsError(f"--weights {weights.path} does not fit {name}: {'; '.join(wrong[:3])}{more}{hint}")
    bad = [n for n, t in given.items() if not torch.isfinite(t).all()]
    if bad:
        raise WeightsError(f"--weights {weights.path}: {bad[0]} holds NaN or infinite values; the file is damaged")
    state = {n: t.float().contiguous() for n, t in given.items()}
    state |= {n: torch.zeros((), dtype=torch.int64) for n in module.state_dict() if n.endswith(COUNTER)}
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)
