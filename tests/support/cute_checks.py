"""Compares the emulator, the kernels' launches on it and the CUDA build's tensor maps with CuTe's numbers.

    python tests/support/cute_checks.py EMULATOR.so PROGRAMS CHECK ...

PROGRAMS: the folder of the programs of tests/csrc/cute. Exit code 0: all hold; 3: one fails, and stderr says which.
"""

from __future__ import annotations

import itertools
import random
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from ssconv.backend.cuda import sm90
from ssconv.backend.cuda.plan import Launch, Layout
from ssconv.backend.cuda.sm80 import ConvCall, WgradCall
from ssconv.spec import Geometry, Triple
from tests.support import cute, emulated
from tests.support.sm90_checks import address, aligned, bits

# ------------------------------------------------------------------------------------------- operands and fragments


def integers(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(rows * columns).integers(-8, 9, (rows, columns)).astype(np.float32)


def image_of(matrix: np.ndarray, bytes_of: np.ndarray) -> np.ndarray:
    """A matrix in bf16 as it lies in shared memory, in whole KiB."""
    image = aligned((-(-(int(bytes_of.max()) + 2) // 1024) * 512,), np.uint16)
    image[bytes_of // 2] = bits(matrix, False)
    return image


def products(module: ModuleType, programs: Path) -> None:
    """The emulator reads by CuTe's descriptors what CuTe lays there, and gives threads the accumulators CuTe says."""
    known = cute.layouts(programs)
    operands = {name: o for name, o in known.items() if "bytes" in o}
    plain = "K 128"
    of_a = [(a, plain, n) for a in operands if "of B" not in a for n in (32, 64)]
    of_b = [(plain, b, 128) for b in operands if "of B" in b] + [(plain, b, 64) for b in operands if b[:4] == "K 64"]
    for a, b, n in (*of_a, *of_b):
        (left, right), sides = (np.array(operands[o]["bytes"]) for o in (a, b)), (operands[a], operands[b])
        depth = min(left.shape[1], right.shape[1])
        m_a, m_b = integers(*left.shape), integers(right.shape[0] + 1, right.shape[1])[1:]
        first, second = image_of(m_a, left), image_of(m_b, right)
        image = aligned((first.size + second.size,), np.uint16)
        image[: first.size], image[first.size :] = first, second
        out = np.zeros((128, n // 2), np.float32)
        module.set_ranges([(address(image), image.nbytes, False), (address(out), out.nbytes, True)])
        for (i, row), (j, column) in itertools.product(*(enumerate(s["descriptors"]) for s in sides)):
            if j > 0 and "of B" not in b:
                continue
            module.multiply_described(
                n, address(image), image.nbytes, row[: depth // 16],
                [d + first.nbytes // 16 for d in column[: depth // 16]], a[0] == "M", b[0] == "M", address(out),
            )  # fmt: skip
            wanted = m_a[64 * i : 64 * i + 64, :depth] @ m_b[j * 128 : j * 128 + n, :depth].T
            element = np.array(known[f"wgmma {n}"])
            assert np.array_equal(out, wanted[element % 64, element // 64]), f"{a} by {b}, {n} columns, tiles {i}, {j}"


class Side(NamedTuple):
    """What the kernels pass to csrc/cuda/ptx/wgmma.cuh for one of CuTe's operands."""

    name: str
    swizzle: int
    leading: int
    stride: int


SIDES = [
    *(Side(f"K {span}", span, 0, 8 * span) for span in (128, 64, 32)),
    Side("K 0", 0, 256 * 16, 128),
    Side("K 128 of B", 128, 0, 1024),
    *(Side(f"MN {span}{of}", span, 64 * span, 8 * span) for span in (128, 64, 32) for of in ("", " of B")),
    Side("MN 0", 0, 128, 64 * 16),
    Side("planes 10 100", 0, 100 * 16, 160),
    Side("planes 18 162", 0, 162 * 16, 288),
]  # fmt: skip


def meaningful(descriptor: int, k_major: bool, rows: int) -> int:
    """The descriptor without a leading offset that wgmma ignores: of swizzled rows along K, or of M or N no longer than
    a swizzled row."""
    span = (0, 128, 64, 32)[descriptor >> 62]
    ignored = span > 0 and (k_major or rows * 2 <= span)
    return descriptor & ~(0x3FFF << 16) if ignored else descriptor


def descriptors(module: ModuleType, programs: Path) -> None:
    """The kernels' function makes CuTe's descriptors."""
    known = cute.layouts(programs)
    for side in SIDES:
        rows, k_major = 128 if "of B" in side.name else 64, side.name[0] != "M"
        for wanted in itertools.chain(*known[side.name]["descriptors"]):
            made = module.smem_descriptor((wanted & 0x3FFF) << 4, side.swizzle, side.leading, side.stride)
            same = meaningful(made, k_major, rows) == meaningful(wanted, k_major, rows)
            assert same, f"{side.name}: {made:#x}, CuTe has {wanted:#x}"


def swizzles(module: ModuleType, programs: Path) -> None:
    """A tensor copy puts the chunks of its rows where CuTe's swizzle does."""
    known = cute.layouts(programs)
    for span in (128, 64, 32):
        (moved,) = known[f"swizzle {span}"]
        x = aligned((1, 1, 1, 4096 // span, span // 2), np.uint16)
        x[...] = np.arange(1, x.size + 1).reshape(x.shape)
        out = np.zeros(2048, np.uint16)
        module.set_ranges([(address(x), x.nbytes, False), (address(out), out.nbytes, True)])
        size = [span // 2, 4096 // span, 1, 1, 1]
        module.copy_tile(address(x), size, [span, 4096, 4096, 4096], size, span, 0, [0, 0, 0, 0], address(out))
        found = out.reshape(256, 8)[np.array(moved) // 16]
        assert np.array_equal(found, x.reshape(256, 8)), f"rows of {span} bytes"


def fragments(module: ModuleType, programs: Path) -> None:
    """mma.sync and ldmatrix lay matrices over the lanes as CuTe says."""
    known = cute.layouts(programs)
    for name, tf32, depth in (("16", False, 16), ("tf32", True, 8)):
        left, right = integers(16, depth), integers(8, depth)
        of_a, of_b, of_c = (np.array(known[f"mma {name} {o}"]) for o in "ABC")
        lanes = [left[of_a % 16, of_a // 16], right[of_b % 8, of_b // 8]]
        a, b = (np.ascontiguousarray(v if tf32 else bits(v, False)).view(np.uint32) for v in lanes)
        c = np.zeros((32, 4), np.float32)
        module.set_ranges([(address(t), t.nbytes, t is c) for t in (a, b, c)])
        module.multiply_fragments(tf32, address(a), address(b), address(c))
        assert np.array_equal(c, (left @ right.T)[of_c % 16, of_c // 16]), f"mma {name}"
    for count, transposed in ((2, False), (4, False), (4, True)):
        name = f"ldmatrix {'transposed ' if transposed else ''}{count}"
        image = aligned((count * 64,), np.uint16)
        image[:] = np.arange(1, image.size + 1)
        out = np.zeros((32, count), np.uint32)
        module.set_ranges([(address(image), image.nbytes, False), (address(out), out.nbytes, True)])
        module.load_matrices(count, transposed, address(image), address(out))
        at = np.zeros(count * 64, np.int64)  # element of the image that holds each element of CuTe's matrices
        lanes = np.arange(32)[:, None] % (8 * count)
        at[np.array(known[f"{name} from"])] = lanes * 8 + np.arange(8)
        found = out.view(np.uint16)
        assert np.array_equal(found, image[at][np.array(known[f"{name} to"])]), name


# --------------------------------------------------------------------------------------------------- im2col launches


class Problem(NamedTuple):
    """A layer of one branch. size: of x, N, D, H, W."""

    operation: str
    size: tuple[int, int, int, int]
    kernel: Triple
    stride: Triple
    padding: str
    channels: int

    @property
    def pad(self) -> Triple:
        d, h, w = ((k - 1) // 2 if self.padding == "same" else 0 for k in self.kernel)
        return d, h, w


OPERATIONS = ("fprop", "wgrad", "dgrad")
EXTENTS = (3, 5, 7, 9)


def problems() -> list[Problem]:
    """Layers in which every operation meets every kernel, padding and (but dgrad) stride, along some dimension; the
    rest is drawn."""
    draw, found = random.Random(25), []
    for operation, padding, again in itertools.product(OPERATIONS, ("same", "valid"), range(2)):
        classes = list(itertools.product((1, 3, 5), (1,) if operation == "dgrad" else (1, 2)))
        draw.shuffle(classes)
        for along in (classes[i : i + 3] for i in range(0, len(classes), 3)):
            kernel, stride = zip(*along, strict=True)
            taps = kernel[0] * kernel[1] * kernel[2]
            size = [draw.choice([e for e in EXTENTS if e >= k]) for k in kernel]
            channels = 64 if taps <= 9 or again else 32 if taps <= 27 else 16
            found.append(Problem(operation, (draw.choice((1, 2)), *size), kernel, stride, padding, channels))
    return found


def drawn(shape: tuple[int, ...]) -> torch.Tensor:
    t = torch.zeros(shape, dtype=torch.bfloat16)
    return t.contiguous(memory_format=torch.channels_last_3d) if len(shape) == 5 else t


def launch_of(problem: Problem) -> tuple[Launch, dict[str, torch.Tensor | None]]:
    """The launch that the plan makes of a problem on one multiprocessor, and its tensors, of zeros."""
    batch, *size = problem.size
    geometry = Geometry((problem.kernel,), problem.stride, problem.padding)
    x = drawn((batch, problem.channels, *size))
    y = drawn((batch, problem.channels, *geometry.output_size(size)))
    if problem.operation == "wgrad":
        plan = sm90.wgrad_sm90(
            WgradCall(Layout.of(y), Layout.of(x), (0,), geometry, problem.channels, problem.channels, 0), 1
        )
        return plan.multiply, {"low": y, "high": x, "workspace": torch.zeros(plan.workspace)}
    read, written = (x, y) if problem.operation == "fprop" else (y, x)
    weight = drawn((problem.channels, problem.channels, *problem.kernel))
    call = ConvCall(
        x=Layout.of(read), in_channels=problem.channels, weight_strides=(weight.stride(),),
        swap=problem.operation == "dgrad", noise=None, geometry=geometry, adjoint=problem.operation == "dgrad",
        size=tuple(written.shape[2:]), out_channels=problem.channels, groups=1, clamped=False, arithmetic=0,
    )  # fmt: skip
    plan = sm90.conv_sm90(call, 1, 1)
    tensors = dict.fromkeys(("in_scale", "out_scale", "bias", "noise", "z"))
    (launches,), (elements,) = plan.launches, plan.packed
    return launches[1], {**tensors, "x": read, "y": written, "packed_weights": drawn((elements,))}


def traced(module: ModuleType, problem: Problem) -> tuple[Any, list[dict[str, Any]], list[tuple[Any, ...]]]:
    """The launch's struct, its copies of what CuTe reads by im2col (without those of channels beyond the last, which
    bring zeros), and its wgmmas."""
    launch, tensors = launch_of(problem)
    touched = [(name, t) for name in (*launch.reads, *launch.writes) if (t := tensors[name]) is not None]
    module.set_ranges([(t.data_ptr(), t.nbytes, name in launch.writes) for name, t in touched])
    module.start_trace()
    module.call(launch.kernel, launch.filled(tensors, {"slope": 1.0, "gain": 1.0, "clamp": 0.0}), 0)
    copies, products = module.end_trace()
    base = next(t for name, t in touched if name in ("x", "high")).data_ptr()
    boxes = [c for c in copies if c["base"] == base and c["coordinate"][0] < problem.channels]
    return launch.params, boxes, products


def cute_line(problem: Problem) -> list[int]:
    operation = OPERATIONS.index(problem.operation)
    return [operation, *problem.size, *problem.kernel, *problem.pad, *problem.stride, problem.channels]


def positions(module: ModuleType, programs: Path) -> None:
    """Every box of a launch brings the voxels that CuTe's im2col tensor has for those outputs at that tap, and the
    launch's boxes are all of them. The CUDA build asks for the same maps."""
    every = problems()
    asked = []
    compared = 0
    for problem, (arguments, voxels) in zip(every, cute.im2col(programs, map(cute_line, every)), strict=True):
        _, boxes, _ = traced(module, problem)
        geometry = Geometry((problem.kernel,), problem.stride, problem.padding)
        outputs = problem.size
        if problem.operation != "dgrad":
            outputs = problem.size[0], *geometry.output_size(problem.size[1:])
        seen = set()
        for box in boxes:
            at = [
                (c - low) // s for c, low, s in zip(box["coordinate"][1:4], arguments["lower"], arguments["step"][1:])
            ]
            first = np.ravel_multi_index((box["coordinate"][4], *at[::-1]), outputs)
            tap = box["offset"][::-1]
            if problem.operation == "dgrad":
                tap = [k - 1 - t for k, t in zip(problem.kernel, tap, strict=True)]
            wanted = np.full(len(box["voxels"]), -1)
            there = voxels[tuple(tap)][first : first + wanted.size]
            wanted[: there.size] = there
            assert np.array_equal(box["voxels"], wanted), f"{problem}: outputs from {first} on, tap {tap}"
            seen.add((first, *tap))
            compared += wanted.size
        pixels = len(boxes[0]["voxels"])
        firsts = range(0, voxels.shape[3], pixels)
        assert seen == set(itertools.product(firsts, *map(range, problem.kernel))), f"{problem}: boxes are missing"
        asked.append((problem, arguments, boxes[0]))
    print(f"{compared} positions of {len(every)} layers")
    same_im2col_maps(programs, asked)


def same_im2col_maps(programs: Path, asked: list[tuple[Problem, dict[str, Any], dict[str, Any]]]) -> None:
    """The CUDA build asks the driver for the map that CuTe asks for. asked: problems, CuTe's arguments, and a box."""
    described = [
        [*b["size"][:0:-1], *b["stride"][::-1], b["size"][0], "im2col", *b["lower"][::-1], *b["upper"][::-1],
         *b["step"][::-1], b["channels"], len(b["voxels"])]
        for _, _, b in asked
    ]  # fmt: skip
    for (problem, arguments, box), made in zip(asked, cute.driver_arguments(programs, described), strict=True):
        ours = cute.by_name(made)
        for name in ("size", "stride", "lower", "step"):
            assert ours[name] == arguments[name], f"{problem}: {name} {ours[name]}, CuTe has {arguments[name]}"
        assert ends(ours) == ends(arguments), f"{problem}: upper {ours['upper']}, CuTe has {arguments['upper']}"
        assert ours["box"] == [box["channels"], len(box["voxels"])]
        if box["channels"] == 64:  # as CuTe's program has it
            assert ours["swizzle"] == arguments["swizzle"], f"{problem}: {ours['swizzle']}, CuTe {arguments['swizzle']}"


def driver_maps(module: ModuleType, programs: Path) -> None:
    """The CUDA build asks the driver for CuTe's swizzle, for every length of a row; and for CuTe's tiles."""
    known = cute.layouts(programs)
    (modes,) = known["driver's swizzles"]
    x = [2, 7, 11, 13, 384384, 54912, 4992, 384, 192]  # N, D, H, W, their strides in bytes, channels
    im2col = [[*x, "im2col", *[0] * 6, *[1] * 3, channels, 64] for channels in (16, 32, 64)]
    tiles = [[*x, "tiled", span // 2 or 8, 3, 9, 8, span] for span in (0, 32, 64, 128)]
    found = [line[-1] for line in cute.driver_arguments(programs, [*im2col, *tiles])]
    assert found == [*modes[1:], *modes], f"swizzles {found}; CuTe has {modes}"
    small = [2, 7, 11, 13, 48048, 6864, 624, 48, 24]
    found = cute.driver_arguments(programs, [[*small, "tiled", 8, 4, 12, 10, 0], [*x, "tiled", 64, 3, 9, 8, 128]])
    wanted = [known["box 8 0"][0], known["box 64 128"][0]]
    assert found == wanted, f"tiled maps {found}; CuTe has {wanted}"


def ends(arguments: dict[str, list[int]]) -> list[int]:
    """The last base positions along W, H, D: the upper corner need not be one."""
    return [
        low + (n - 1 + high - low) // step * step
        for n, low, high, step in zip(
            arguments["size"][1:4], arguments["lower"], arguments["upper"], arguments["step"][1:4], strict=True
        )
    ]


# --------------------------------------------------------------------------------------------- descriptors of launches


def launched_descriptors(module: ModuleType, programs: Path) -> None:
    """The descriptors that conv_sm90 and wgrad_sm90 compute, in every stage, are CuTe's for the layout of a stage."""
    known = {name: o["descriptors"] for name, o in cute.layouts(programs).items() if "bytes" in o}
    for channels, operation in itertools.product((64, 32, 16, 72, 128), ("fprop", "wgrad")):
        problem = Problem(operation, (1, 5, 7, 9), (3, 1, 3), (1, 1, 1), "same", channels)
        p, _, found = traced(module, problem)
        if operation == "fprop":
            a, b, second = known[f"K {2 * p.box_channels}"], known["K 128 of B"][:1], 256 * 128
            size, pairs = second + p.tile_n * 128, list(itertools.product(range(4), range(1)))
        else:
            a, b, second = known[f"MN {2 * p.low_box}"], known[f"MN {2 * p.high_box} of B"], p.tile_m * 128
            columns = 4 if p.tile_m == 64 else 2
            size, pairs = second + columns * 128 * 128, list(itertools.product(range(p.tile_m // 64), range(columns)))
        stages = {((d & 0x3FFF) << 4) // size for d, *_ in found}
        assert stages == set(range(len(stages))) and len(stages) > 1
        wanted = {
            (meaning(a[i][k], stage * size, operation, 64), meaning(b[j][k], stage * size + second, operation, 128))
            for stage in stages for (i, j), k in itertools.product(pairs, range(4))
        }  # fmt: skip
        made = {(meaning(x, 0, operation, 64), meaning(y, 0, operation, 128)) for x, y, *_ in found}
        assert made == wanted, f"{operation}, {channels} channels: {len(made - wanted)} descriptors are not CuTe's"


def meaning(descriptor: int, offset: int, operation: str, rows: int) -> int:
    return meaningful(descriptor + offset // 16, operation == "fprop", rows)


CHECKS = {
    c.__name__: c for c in (products, descriptors, swizzles, driver_maps, fragments, positions, launched_descriptors)
}


def main(emulator: str, programs: str, *names: str) -> int:
    module = emulated.load(Path(emulator))
    for name in names or CHECKS:
        try:
            CHECKS[name](module, Path(programs))
        except (AssertionError, RuntimeError):
            traceback.print_exc()
            print(f"check failed: {name}", file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
