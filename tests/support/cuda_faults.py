"""Faults to plant in the CUDA kernels and their plans, each of which the checks on the emulator must notice.

`make faults` plants them all, one at a time (tests/csrc/test_cuda_kernels.py).
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.support import emulated
from tests.support.forked import ROOT, Done, Server


def objects(folder: Path, names: list[str]) -> list[Path]:
    return [folder / f"{name}.o" for name in names]


def build(folder: Path) -> Path:
    """Builds the emulator's module from the sources without a fault."""
    names = list(emulated.sources())
    emulated.compile_objects(names, folder)
    return emulated.link(objects(folder, names), folder / "emulated.so")


CONV_SM80 = ("conv_sm80_bf16",)
WGRAD_SM80 = ("wgrad_sm80",)
PACK = ("pack",)
EPILOGUE = ("epilogue",)
UPFIRDN = ("upfirdn",)
CONV_SM90 = ("conv_sm90",)
WGRAD_SM90 = ("wgrad_sm90",)
CONV_SM90_HALO = ("conv_sm90_halo",)


@dataclass(frozen=True)
class Fault:
    """Replaces `old`, which stands once in csrc/cuda/`file`, by `new`; `check` must notice. `units` are compiled anew;
    without units the file is one of ssconv/."""

    what: str
    file: str
    old: str
    new: str
    units: tuple[str, ...] = CONV_SM80
    check: str = "quick"


def _halo(what: str, file: str, old: str, new: str, units: tuple[str, ...] = CONV_SM90_HALO) -> Fault:
    return Fault(what, file, old, new, units, "halo_quick")


def _sm90(what: str, file: str, old: str, new: str, units: tuple[str, ...] = CONV_SM90) -> Fault:
    return Fault(what, file, old, new, units, "sm90_quick")


def _parity(what: str, file: str, old: str, new: str, units: tuple[str, ...] = CONV_SM90) -> Fault:
    return Fault(what, file, old, new, units, "parity_quick")


def _cluster(what: str, file: str, old: str, new: str, units: tuple[str, ...] = CONV_SM90) -> Fault:
    return Fault(what, file, old, new, units, "cluster_quick")


FAULTS = [
    # conv_sm80: the pipeline of stages
    Fault("no barrier before a stage is used", "conv_sm80.cuh",
          "        sync_threads();  // the stage has arrived for all threads, and all have read the one before\n", ""),
    Fault("no wait for a stage", "conv_sm80.cuh", "        wait_for_oldest_stage(p.stages);\n", ""),
    Fault("a wait for a stage too few", "pipeline_sm80.cuh", "    cp_async_wait<1>();", "    cp_async_wait<2>();"),
    Fault("a stage filled while it is read", "conv_sm80.cuh", "        loader.fill(fill * STAGE);\n",
          "        loader.fill(read * STAGE);\n"),
    Fault("no wait at the end", "conv_sm80.cuh", "    cp_async_wait<0>();\n    Store::store_tile(",
          "    Store::store_tile("),
    # conv_sm80: loads
    Fault("taps shifted by one", "conv_sm80_load.cuh", "taps[i].shift + (p.geometry",
          "taps[i].shift + 1 + (p.geometry"),
    Fault("heights and widths swapped in a mask", "conv_sm80_load.cuh", "inside(h + (r >> 8 & 255), p.x.size[2])",
          "inside(h + (r >> 8 & 255), p.x.size[3])"),
    Fault("no mask along D", "conv_sm80_load.cuh", "r >> 31 == 0 && inside(d + (r & 255), p.x.size[1]) &&",
          "r >> 31 == 0 &&"),
    Fault("samples beyond the last", "conv_sm80_load.cuh", "(exists ? 0u : 1u << 31)", "0u"),
    Fault("channels of the first branch for all", "conv_sm80_load.cuh",
          "w * p.x.stride[4] + static_cast<int64_t>(number)",
          "w * p.x.stride[4] + static_cast<int64_t>(0)"),
    Fault("elements outside not masked", "conv_sm80_load.cuh", "        if (valid) {", "        if (sample) {"),
    Fault("scales of the first sample", "conv_sm80_load.cuh",
          "load(p.in_scale + n * p.branches * p.in_channels + c_all)", "load(p.in_scale + c_all)"),
    Fault("the first block's weights for all", "conv_sm80_load.cuh",
          "static_cast<int64_t>(tile.n_tile) * tiles_left *",
          "static_cast<int64_t>(0) * tiles_left *"),
    Fault("the first step's weights for all", "conv_sm80_load.cuh", "      weights += BN * CHUNKS;\n", ""),
    Fault("parities of the adjoint swapped", "arithmetic.cuh", "const int tap = reach % stride;",
          "const int tap = (reach + 1) % stride;", (*CONV_SM80, *PACK)),
    # conv_sm80: products
    Fault("the same rows twice", "conv_sm80_multiply.cuh", "16 * i + lane % 16, k + lane",
          "16 * i + lane % 8, k + lane"),
    Fault("a tile of columns twice", "conv_sm80_multiply.cuh", "first_column + 8 * j + lane / 16 * 8 + lane % 8",
          "first_column + 8 * j + lane % 8"),
    Fault("a last chunk of few channels skipped", "conv_sm80.cuh", "(k_left + Config::SIZE - 1) / Config::SIZE",
          "k_left / Config::SIZE"),
    # conv_sm80: epilogue and stores
    Fault("branches side by side, not interleaved", "conv_sm80_store.cuh", "run[c * S + s] = values[c];",
          "run[s * RUN + c] = values[c];"),
    Fault("columns beyond the last stored", "chunks.cuh", "    if (i < count) store(p + i, from_float<T>(values[i]));",
          "    store(p + i, from_float<T>(values[i]));"),
    Fault("outputs of one parity side by side", "conv_sm80_tile.cuh",
          "q[j] * p.geometry.stride[j] + tile.parity[j] : q[j]", "q[j] + tile.parity[j] : q[j]"),
    Fault("noise of the first sample", "channel_epilogue.cuh", "n * e.noise_stride + voxel", "voxel"),
    Fault("clamped on one side", "channel_epilogue.cuh", "    y = y < -e.clamp ? -e.clamp : y;\n", ""),
    Fault("shuffled channels of one branch side by side", "conv_sm80_store.cuh",
          "const int step = p.shuffle ? p.branches : 1;", "const int step = 1;"),
    Fault("the identity reads the first branch", "conv_sm80_store.cuh",
          "static_cast<int64_t>(b.number) * p.in_channels + column;", "column;"),
    # packing of weights and inputs
    Fault("columns not permuted", "pack.cuh", "lane * p.lane_columns + within", "in_half", PACK),
    Fault("weights of a channel too many", "pack.cuh", "channel < p.in_channels &&", "channel <= p.in_channels &&",
          PACK),
    Fault("taps of the first parity for all", "pack.cuh", "taps[0].first + tap", "0 + tap", PACK),
    Fault("channels beyond a branch's last", "pack.cuh",
          "first + j < p.channels ? to_float(load(x + j * p.x.stride[1])) : 0.f",
          "to_float(load(x + j * p.x.stride[1]))", PACK),
    # wgrad_sm80
    Fault("no barrier in the weight gradient", "wgrad_sm80.cuh",
          "      sync_threads();  // the stage has arrived for all threads, and all have read the one before\n", "",
          WGRAD_SM80),
    Fault("a split of too many voxels", "wgrad_sm80.cuh", "? k_tile + p.steps_per_split : p.steps",
          "? k_tile + p.steps_per_split + 1 : p.steps", WGRAD_SM80),
    Fault("windows without stride", "wgrad_sm80.cuh", "divmod(p.h, rest) * p.geometry.stride[1] + shift[1]",
          "divmod(p.h, rest) + shift[1]", WGRAD_SM80),
    Fault("all splits to one tile of the workspace", "wgrad_sm80.cuh", "(int64_t(block_y()) * blocks_x() + block_x())",
          "int64_t(block_x())", WGRAD_SM80),
    Fault("the last split not added", "wgrad_reduce.cuh", "split < p.splits;", "split < p.splits - 1;", WGRAD_SM80),
    Fault("rows and columns of a transposed weight swapped", "wgrad_reduce.cuh", "p.transposed ? int64_t(channel)",
          "!p.transposed ? int64_t(channel)", WGRAD_SM80),
    Fault("voxels beyond the last", "wgrad_sm80.cuh", "bool valid = high_channel >= 0 && rest < p.voxels;",
          "bool valid = high_channel >= 0;", WGRAD_SM80),
    # the epilogue's backward
    Fault("no barrier before the warps' sums are added", "epilogue.cuh",
          "    sync_threads();\n    for (int i = thread_index(); i < p.lanes",
          "    for (int i = thread_index(); i < p.lanes", EPILOGUE),
    Fault("half of a voxel's channels in its noise", "epilogue.cuh", "for (int mask = 1; mask < p.lanes; mask *= 2)",
          "for (int mask = 2; mask < p.lanes; mask *= 2)", EPILOGUE),
    Fault("slope before the gain's sign", "epilogue.cuh", "((p.gain > 0 ? y[i] : -y[i]) > 0)", "(y[i] > 0)", EPILOGUE),
    Fault("un-shuffle in the wrong order", "epilogue.cuh", "own[j] = values[j * S + s];",
          "own[j] = values[j * S + S - 1 - s];", EPILOGUE),
    # upfirdn
    Fault("no barrier between two filters", "upfirdn.cuh",
          "      put(second + i / groups * cell + c * 4, sum);\n    }\n    sync_threads();\n",
          "      put(second + i / groups * cell + c * 4, sum);\n    }\n", UPFIRDN, "quick_filters"),
    Fault("a result over what is still read", "upfirdn.cuh", "(in > out ? in : out)", "in", UPFIRDN, "quick_filters"),
    Fault("taps not flipped", "upfirdn.cuh", "p.length[i] - 1 - t)", "t)", UPFIRDN, "quick_filters"),
    Fault("zeros between samples forgotten", "upfirdn.cuh", "t += p.up[i], at", "t += 1, at", UPFIRDN, "quick_filters"),
    Fault("the outer slices are not repeated", "upfirdn.cuh", "if (p.border == Border::replicate) d =",
          "if (p.border == Border::fold) d =", UPFIRDN, "quick_filters"),
    Fault("what lies before the first slice is not added", "upfirdn.cuh", "o = at_d == 0 ? -p.folded[0] : at_d;",
          "o = at_d;", UPFIRDN, "quick_filters"),
    Fault("the first tile does not reach what is added", "upfirdn.cuh",
          "if (first[0] == 0) source[0] = first_source(p, 0, -p.folded[0]);", "", UPFIRDN, "quick_filters"),
    # conv_sm90_halo: its pipelines
    _halo("no wait for a full buffer", "conv_sm90_halo.cuh", "      inputs.wait_full();\n", ""),
    _halo("no wait for a full stage of weights", "conv_sm90_halo.cuh",
          "        if (in_stage == 0) weights.wait_full();\n", ""),
    _halo("no wait for a free buffer", "conv_sm90_halo.cuh",
          "          pipeline.wait_empty();\n          mbarrier_arrive_expect_tx(pipeline.full_barrier(), b.",
          "          mbarrier_arrive_expect_tx(pipeline.full_barrier(), b."),
    _halo("no wait for a free stage of weights", "conv_sm90_halo.cuh",
          "          pipeline.wait_empty();\n          mbarrier_arrive_expect_tx(pipeline.full_barrier(), STAGE);",
          "          mbarrier_arrive_expect_tx(pipeline.full_barrier(), STAGE);"),
    _halo("the bytes of one plane expected", "conv_sm90_halo.cu", "b.expected = p.copies * pixels * pixel;",
          "b.expected = pixels * pixel;"),
    _halo("a buffer freed before its wgmmas are done", "conv_sm90_halo.cuh",
          "          Inputs::release(previous_buffer);\n          previous_buffer = inputs.stage;\n",
          "          previous_buffer = inputs.stage;\n          Inputs::release(previous_buffer);\n"),
    _halo("a stage of weights freed before its wgmmas are done", "conv_sm90_halo.cuh",
          "          Weights::release(previous_stage);\n          previous_stage = weights.stage;\n",
          "          previous_stage = weights.stage;\n          Weights::release(previous_stage);\n"),
    _halo("a branch's last buffer never freed", "conv_sm90_halo.cuh", "    Inputs::release(previous_buffer);\n  }",
          "  }"),
    _halo("a stagger that never ends", "conv_sm90_halo.cuh", "mbarrier_init(STAGGER, 4);",
          "mbarrier_init(STAGGER, 8);"),
    _halo("a stagger of more than the first chunk", "conv_sm90_halo.cuh",
          "      if (stagger > 0) start_second_group();\n      stagger = 0;\n", ""),
    _halo("both pipelines' mbarriers at one address", "conv_sm90_halo.cuh", "STAGES * STAGE, Weights::END>",
          "STAGES * STAGE, MBARRIERS>"),
    # conv_sm90_halo: its input, and where a tap starts in it
    _halo("a halo on one side", "conv_sm90_halo.cu", "p.geometry.first[i]) - (b.extent[i] - 1) / 2;",
          "p.geometry.first[i]);"),
    _halo("the adjoint's windows where the forward's are", "conv_sm90_halo.cu",
          "(p.geometry.adjoint ? -p.geometry.first[i] : p.geometry.first[i])", "p.geometry.first[i]"),
    _halo("the adjoint's taps in the forward's order", "conv_sm90_halo.cu",
          "p.geometry.adjoint ? b.extent[j] - 1 - shift[j] : shift[j]", "shift[j]"),
    _halo("rows of the tile, not of the halo", "conv_sm90_halo.cu", "b.stride = box[2] * pixel;",
          "b.stride = p.tile[2] * pixel;"),
    _halo("planes of channels too near", "conv_sm90_halo.cu", "b.leading = p.swizzled ? 0 : b.plane;",
          "b.leading = p.swizzled ? 0 : b.plane - 128;"),
    _halo("the next 16 of K one plane on", "conv_sm90_halo.cu", "2 * b.plane / 16", "b.plane / 16"),
    _halo("copies of another swizzle", "conv_sm90_halo.cu", "box, p.span, p.map[s]", "box, p.span / 2, p.map[s]"),
    _halo("matrices of another swizzle", "conv_sm90_halo.cuh",
          "p.span, b.leading", "p.span ? 192 - p.span : 0, b.leading"),
    _halo("a map with the next branch's channels", "ptx/tensor_map.cuh", "t.channels = channels;",
          "t.channels = channels + 8;"),
    _halo("slices beyond a chunk's last tap", "conv_sm90_halo.cu",
          "b.slices = taps * (p.chunk_channels / 16);\n  b.steps = (b.slices + 3) / 4;",
          "b.steps = (taps * (p.chunk_channels / 16) + 3) / 4;\n  b.slices = b.steps * 4;"),
    # conv_sm90_halo: products and stores
    _halo("no wgmma fence in conv_sm90_halo", "conv_sm90_halo.cuh", "        wgmma_fence();\n", ""),
    _halo("no commit in conv_sm90_halo", "conv_sm90_halo.cuh", "        wgmma_commit();\n", ""),
    _halo("no wait before the halo's accumulators are read", "conv_sm90_halo.cuh", "    wgmma_wait<0>();\n", ""),
    _halo("the halo's accumulators of the tile before", "conv_sm90_halo.cuh", "chunk > 0 || slice > 0 || k > 0",
          "true"),
    _halo("a tile's first chunk not accumulated", "conv_sm90_halo.cuh", "chunk > 0 || slice > 0 || k > 0",
          "slice > 0 || k > 0"),
    _halo("the first warpgroup's matrices for both", "conv_sm90_halo.cuh", "warp_uniform(thread_index() / 128) * MI",
          "0"),
    _halo("a matrix's rows in another order", "conv_sm90_halo.cuh",
          "2 * (warp % 4) + row % 2", "warp % 4 + row % 2 * 4"),
    _halo("outputs beyond an edge stored", "conv_sm90_halo.cuh", " && w < p.size[2];", ";"),
    _halo("the halo's outputs of the first sample", "conv_sm90_halo.cuh", "n = tile.at[0];", "n = 0;"),
    _halo("the halo's weights of the first columns", "conv_sm90_halo.cuh",
          "static_cast<int64_t>(tile.n_tile) * k_tiles",
          "static_cast<int64_t>(0) * k_tiles"),
    _halo("weights of the first chunk for all", "pack.cuh", "k_tile / chunk_tiles * chunk_channels + ", "", PACK),
    _halo("chunks not in whole stages", "backend/cuda/sm90_halo.py",
          "chunks += n_tiles * chunks_of_k * steps * columns", "chunks += n_tiles * steps * columns", ()),
    # conv_sm90: its pipeline
    _sm90("no wait for a full stage", "conv_sm90.cuh", "      pipeline.wait_full();\n", ""),
    _sm90("no wait for a free stage", "conv_sm90.cuh", "pipeline.wait_empty();\n      mbarrier", "mbarrier"),
    _sm90("a phase bit that stays", "pipeline_sm90.cuh", "    parity ^= 1;\n", ""),
    _sm90("fewer bytes expected than come", "conv_sm90.cuh", "mbarrier_arrive_expect_tx(full, STAGE);",
          "mbarrier_arrive_expect_tx(full, A_BYTES);"),
    _sm90("a stage freed before its wgmmas are done", "conv_sm90.cuh",
          "      Pipeline::template release<CLUSTER>(previous);\n      previous = pipeline.stage;\n",
          "      previous = pipeline.stage;\n      Pipeline::template release<CLUSTER>(previous);\n"),
    _sm90("a stage freed by one warpgroup of two", "pipeline_sm90.cuh", "4 * CONSUMERS * BLOCKS);", "4 * BLOCKS);"),
    _sm90("no fence after the mbarriers' initialisation", "pipeline_sm90.cuh", "      fence_mbarrier_init();\n", ""),
    _sm90("no barrier after the mbarriers' initialisation", "pipeline_sm90.cuh", "      sync_threads();\n",
          "      ;\n"),
    # conv_sm90: its bulk copies
    _sm90("corners in the order of the tensor", "conv_sm90.cu", "set_window(box, x, i, b.lower[i]",
          "set_window(box, x, 2 - i, b.lower[i]"),
    _sm90("steps of one", "conv_sm90.cu", "b.lower[i], p.input_stride[i],", "b.lower[i], 1,"),
    _sm90("a map of all branches' channels", "conv_sm90.cu",
          "  const MapTensor x = branch_of(p.x, b.number, p.channels, p.arithmetic == Arithmetic::f16);",
          "  MapTensor x = branch_of(p.x, b.number, p.channels, p.arithmetic == Arithmetic::f16);\n"
          "  x.channels *= p.branches - b.number;"),
    _sm90("taps beyond the last", "conv_sm90.cuh", "const bool in_k = tap[0] < r.count[0];",
          "const bool in_k = true;"),
    _sm90("taps in the forward's order", "conv_sm90.cuh", "p.geometry.adjoint ? r.shift[i] - tap[i] : tap[i]",
          "tap[i]"),
    # conv_sm90: products
    _sm90("a swizzle that is not the copy's", "conv_sm90.cuh",
          "group * ROWS * span), span, 0, 8 * span)", "group * ROWS * span), 128, 0, 8 * span)"),
    _sm90("no wgmma fence", "conv_sm90.cuh", "      wgmma_fence();\n", ""),
    _sm90("no commit", "conv_sm90.cuh", "      wgmma_commit();\n", ""),
    _sm90("no wait before the accumulators are read", "conv_sm90.cuh", "    wgmma_wait<0>();\n", ""),
    _sm90("accumulators of the tile before", "conv_sm90.cuh", "k_tile > 0 || k > 0", "true"),
    # conv_sm90: stores, and packed weights
    _sm90("its branches in the wrong order", "shuffled_store.cuh",
          "outputs[i % S][g]", "outputs[S - 1 - i % S][g]"),
    _sm90("outputs beyond the last stored", "conv_sm90.cuh", "if (output >= p.outputs) return false;", ""),
    _sm90("the first sample's noise for all", "shuffled_store.cuh", "epilogue.apply(values, n, voxel);",
          "epilogue.apply(values, 0, voxel);"),
    _sm90("weights not swizzled", "pack.cuh", "p.swizzled ? packed_column % 8 : 0", "0", PACK),
    _sm90("a tap's weights padded otherwise than its inputs", "backend/cuda/sm90.py",
          "padded_channels=padded,\n        tile_n", "padded_channels=channels,\n        tile_n", ()),
    # conv_sm90: the adjoint of a stride, parity by parity
    _parity("taps of one parity for all", "conv_sm90.cuh", "const Params::ParityTaps& r = b.taps[tile.parity];",
            "const Params::ParityTaps& r = b.taps[0];"),
    _parity("outputs of one parity of sm_90a side by side", "conv_sm90.cuh",
            "divmod(*count[i], n) * p.geometry.stride[i] +", "divmod(*count[i], n) +"),
    _parity("voxels of a parity that lie outside", "conv_sm90.cuh",
            "exists = exists && at < static_cast<uint32_t>(p.size[i]);", "exists = true;"),
    _parity("accumulators where no tap reaches", "conv_sm90.cuh", "taps.count[0] > 0 ? accumulator :",
            "true ? accumulator :"),
    _parity("a wave of more slots than are left", "conv_sm90.cuh",
            "p.slots - first < clusters ? p.slots - first : clusters", "clusters"),
    _parity("a map that begins where the last parity's taps do", "conv_sm90.cu",
            "if (taps[k].count == 0 || found) continue;", "if (taps[k].count == 0) continue;"),
    _parity("the packed weights of one parity for all", "conv_sm90.cu", "r.start = branch.start[k];",
            "r.start = branch.start[0];"),
    _parity("parities in another order than their taps", "conv_sm90.cu",
            "std::swap(p.parity[j], p.parity[j - 1]);", ""),
    _parity("weights of the first parity alone", "backend/cuda/sm90.py", "        len(every_parity),\n        padded",
            "        1,\n        padded", ()),
    # conv_sm90: clusters
    _cluster("no arrival at the other block's mbarriers", "pipeline_sm90.cuh",
             "mbarrier_arrive_cluster(EMPTY + 8 * stage, cluster_rank() ^ 1);", ";"),
    _cluster("stages freed by one block's warps", "pipeline_sm90.cuh", "4 * CONSUMERS * BLOCKS);", "4 * CONSUMERS);"),
    _cluster("weights for the block itself alone", "conv_sm90.cuh", "bulk_load_multicast(3,",
             "bulk_load_multicast(1 << cluster_rank(),"),
    _cluster("the same half of the weights by both blocks", "conv_sm90.cuh", "cluster_rank() * (B_BYTES / 2)", "0"),
    _cluster("no barrier of the cluster at its start", "pipeline_sm90.cuh",
             "      cluster_sync();", "      sync_threads();"),
    _cluster("a block that ends while the other frees its stages", "conv_sm90.cuh",
             "for (int i = 0; i < STAGES; ++i) {", "for (int i = 0; i < 0; ++i) {"),
    _cluster("the same outputs by both blocks", "conv_sm90.cuh", "(CLUSTER > 1 ? cluster_rank() : 0)", "0"),
    _cluster("half a cluster", "backend/cuda/sm90.py", "multiprocessors // cluster)) * cluster",
             "multiprocessors // cluster))", ()),
    # wgrad_sm90
    _sm90("windows of wgrad_sm90 without stride", "wgrad_sm90.cuh",
          "at[1 + i] * p.geometry.stride[i] + b.lower[i]", "at[1 + i] + b.lower[i]", WGRAD_SM90),
    _sm90("K along the rows", "wgrad_sm90.cuh", "wgmma<T, BN, true, true>",
          "wgmma<T, BN, true, false>", WGRAD_SM90),
    _sm90("the next channels too near", "wgrad_sm90.cuh", "BK * high_span, 8 * high_span)",
          "8 * high_span, 8 * high_span)", WGRAD_SM90),
    _sm90("all splits of sm_90a to one tile of the workspace", "wgrad_sm90.cuh", "(block_y() * tiles + number)",
          "(number)",
          WGRAD_SM90),
    _sm90("a stage of the weight gradient freed too early", "wgrad_sm90.cuh",
          "      Pipeline::release(previous);\n      previous = pipeline.stage;\n",
          "      previous = pipeline.stage;\n      Pipeline::release(previous);\n", WGRAD_SM90),
    # plans
    Fault("weights' strides not swapped", "backend/cuda/sm80.py", "if call.swap else stride", "if False else stride",
          ()),
    Fault("a filter's tile without its halo", "backend/cuda/plan.py", "((t - 1) * s + n - 1) // u + 1",
          "((t - 1) * s) // u + 1", (), "quick_filters"),
]  # fmt: skip


def planted(fault: Fault, folder: Path, clean: Path) -> tuple[Path, Path]:
    """Builds the emulator's module and the package with one fault; their paths."""
    package = ROOT
    folder.mkdir(parents=True, exist_ok=True)
    if fault.units:
        root = folder / "source"
        shutil.copytree(ROOT / "csrc", root / "csrc", ignore=shutil.ignore_patterns("cpu", "*.o"))
        shutil.copytree(ROOT / "tests" / "emulator", root / "tests" / "emulator")
        path = root / "csrc" / "cuda" / fault.file
    else:
        package = folder
        shutil.copytree(ROOT / "ssconv", folder / "ssconv", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        path = folder / "ssconv" / fault.file
    text = path.read_text()
    assert text.count(fault.old) == 1, f"{fault.file} has {text.count(fault.old)} of {fault.old!r}: plant it elsewhere"
    path.write_text(text.replace(fault.old, fault.new))
    if not fault.units:
        return clean, package
    emulated.compile_objects(fault.units, folder, root)
    others = [name for name in emulated.sources() if name not in fault.units]
    return emulated.link(
        [*objects(folder, list(fault.units)), *objects(clean.parent, others)], folder / "emulated.so"
    ), ROOT


def check(fault: Fault, folder: Path, clean: Path, server: Server) -> Done:
    """Runs the fault's check with the fault planted."""
    module, package = planted(fault, folder, clean)
    return server.run("cuda_checks.py", str(module), fault.check, package=package)
