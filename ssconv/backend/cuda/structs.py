"""The structs that the CUDA kernels take, with the fields of csrc/cuda/params.h, where comments say what each holds.

tests/csrc/test_cuda_structs.py compares sizes and offsets with those of the C++ compiler.
"""

from __future__ import annotations

import ctypes
from ctypes import Structure, c_float, c_int, c_int64, c_uint32, c_void_p

FUSED = 4  # branches of a block, at most
BRANCHES = 16  # branches of a launch, at most
PARITIES = 8


class Grid(Structure):
    _fields_ = [("x", c_uint32), ("y", c_uint32), ("z", c_uint32)]


class Divider(Structure):
    """Divides n < 2^31 by a constant: (n * multiplier / 2^32 + n) >> shift."""

    _fields_ = [("divisor", c_uint32), ("multiplier", c_uint32), ("shift", c_uint32)]

    @classmethod
    def by(cls, divisor: int) -> Divider:
        if divisor == 0:
            return cls()
        shift = (divisor - 1).bit_length()
        return cls(divisor, (2**32 * (2**shift - divisor)) // divisor + 1, shift)


class Companion(Structure):
    _fields_ = [("data", c_void_p), ("format", c_int)]


class Volume(Structure):
    _fields_ = [("data", c_void_p), ("stride", c_int64 * 5), ("size", c_int * 4)]


class Branch(Structure):
    _fields_ = [("extent", c_int * 3), ("number", c_int), ("start", c_int64 * PARITIES)]


class Geometry(Structure):
    _fields_ = [("first", c_int * 3), ("stride", c_int * 3), ("adjoint", c_int)]


class Epilogue(Structure):
    _fields_ = [
        ("scale", c_void_p), ("bias", c_void_p), ("noise", Companion), ("noise_stride", c_int64),
        ("slope", c_float), ("gain", c_float), ("clamp", c_float), ("clamped", c_int),
    ]  # fmt: skip


class ConvSm80Params(Structure):
    _fields_ = [
        ("grid", Grid), ("arithmetic", c_int), ("fused", c_int), ("block_n", c_int), ("elementwise", c_int),
        ("stages", c_int), ("cached", c_int), ("x", Volume), ("in_scale", c_void_p), ("weights", c_void_p),
        ("y", c_void_p), ("z", c_void_p), ("size", c_int * 3), ("in_channels", c_int), ("out_channels", c_int),
        ("branches", c_int), ("shuffle", c_int), ("geometry", Geometry), ("epilogue", Epilogue),
        ("box_bits", c_int * 4), ("m_tiles", Divider * 3), ("n_tiles", Divider), ("branch", Branch * BRANCHES),
    ]  # fmt: skip


class ConvSm90Call(Structure):
    _fields_ = [
        ("grid", Grid), ("arithmetic", c_int), ("fused", c_int), ("tile_n", c_int), ("cluster", c_int),
        ("x", Volume), ("weights", c_void_p), ("y", c_void_p), ("z", c_void_p), ("size", c_int * 3),
        ("channels", c_int), ("box_channels", c_int), ("padded_channels", c_int), ("out_channels", c_int),
        ("branches", c_int), ("geometry", Geometry), ("epilogue", Epilogue), ("outputs", c_uint32),
        ("slots", c_uint32), ("work", c_uint32), ("n_tiles", Divider), ("m_tiles", Divider), ("voxels", Divider),
        ("d", Divider), ("h", Divider), ("w", Divider), ("branch", Branch * FUSED),
    ]  # fmt: skip


class ConvSm90HaloCall(Structure):
    _fields_ = [
        ("grid", Grid), ("arithmetic", c_int), ("fused", c_int), ("tile_n", c_int), ("x", Volume),
        ("weights", c_void_p), ("y", c_void_p), ("z", c_void_p), ("size", c_int * 3), ("channels", c_int),
        ("chunk_channels", c_int), ("swizzled", c_int), ("out_channels", c_int), ("branches", c_int),
        ("geometry", Geometry), ("epilogue", Epilogue), ("tile", c_int * 3), ("work", c_uint32), ("n_tiles", Divider),
        ("m_tiles", Divider), ("d", Divider), ("h", Divider), ("w", Divider),
        ("branch", Branch * FUSED),
    ]  # fmt: skip


class PackWeightsParams(Structure):
    _fields_ = [
        ("grid", Grid), ("arithmetic", c_int), ("in_channels", c_int), ("padded_channels", c_int),
        ("out_channels", c_int), ("tile_n", c_int), ("lane_columns", c_int), ("swizzled", c_int),
        ("geometry", Geometry), ("packed", c_void_p), ("weight", c_void_p * BRANCHES),
        ("stride", c_int64 * 5 * BRANCHES), ("branch", Branch * BRANCHES),
    ]  # fmt: skip


class PackInputParams(Structure):
    _fields_ = [
        ("grid", Grid), ("format", c_int), ("x", Volume), ("scale", c_void_p), ("out", c_void_p),
        ("channels", c_int), ("padded_channels", c_int), ("branches", c_int), ("voxels_first", c_int),
        ("voxels", c_int64), ("d", Divider), ("h", Divider), ("w", Divider),
    ]  # fmt: skip


class WgradBranch(Structure):
    _fields_ = [("extent", c_int * 3), ("number", c_int), ("first_tile", c_int)]


class WgradSm80Params(Structure):
    _fields_ = [
        ("grid", Grid), ("arithmetic", c_int), ("tile_m", c_int), ("stages", c_int), ("low", Volume), ("high", Volume),
        ("low_channels", c_int), ("high_channels", c_int), ("workspace", c_void_p), ("geometry", Geometry),
        ("m_tiles", c_int), ("voxels", c_uint32), ("steps", c_int), ("steps_per_split", c_int), ("d", Divider),
        ("h", Divider), ("w", Divider), ("branches", c_int), ("branch", WgradBranch * BRANCHES),
    ]  # fmt: skip


class WgradSm90Call(Structure):
    _fields_ = [
        ("grid", Grid), ("arithmetic", c_int), ("tile_m", c_int), ("low", Volume), ("high", Volume),
        ("workspace", c_void_p), ("geometry", Geometry), ("low_channels", c_int), ("high_channels", c_int),
        ("low_box", c_int), ("high_box", c_int), ("boxes", c_int), ("m_tiles", c_int), ("steps", c_int),
        ("steps_per_split", c_int), ("d", Divider), ("h", Divider), ("w", Divider), ("branches", c_int),
        ("branch", WgradBranch * FUSED),
    ]  # fmt: skip


class WgradReduceParams(Structure):
    _fields_ = [
        ("grid", Grid), ("splits", c_int), ("m_tiles", c_int), ("tile_m", c_int), ("rows", c_int),
        ("columns", c_int), ("chunk", c_int), ("chunks", c_int), ("transposed", c_int), ("workspace", c_void_p),
        ("branches", c_int), ("out", c_void_p * BRANCHES), ("taps", c_int * BRANCHES),
        ("first_tile", c_int * (BRANCHES + 1)),
    ]  # fmt: skip


class EpilogueParams(Structure):
    _fields_ = [
        ("grid", Grid), ("format", c_int), ("z", Volume), ("y", c_void_p), ("epilogue", Epilogue),
        ("channels", c_int), ("groups", c_int), ("threads", c_int), ("blocks", Divider), ("d", Divider),
        ("h", Divider), ("w", Divider),
    ]  # fmt: skip


class EpilogueBackwardParams(Structure):
    _fields_ = [
        ("grid", Grid), ("format", c_int), ("gy", Volume), ("y", Volume), ("z", Volume), ("gz", c_void_p),
        ("scale", c_void_p), ("bias_sums", c_void_p), ("scale_sums", c_void_p), ("noise_sums", c_void_p),
        ("slope", c_float), ("gain", c_float), ("clamp", c_float), ("clamped", c_int), ("channels", c_int),
        ("groups", c_int), ("lanes", c_int), ("voxels_per_block", c_int), ("blocks", Divider), ("d", Divider),
        ("h", Divider), ("w", Divider),
    ]  # fmt: skip


class UpfirdnParams(Structure):
    _fields_ = [
        ("grid", Grid), ("format", c_int), ("shared_bytes", c_int), ("x", Volume), ("y", c_void_p),
        ("size", c_int * 3), ("channels", c_int), ("taps", Companion * 3), ("length", c_int * 3), ("up", c_int * 3),
        ("down", c_int * 3), ("padding", c_int * 3), ("border", c_int),
        ("folded", c_int * 2), ("tile", c_int * 3), ("input_tile", c_int * 3),
        ("block_channels", c_int), ("blocks", Divider * 4),
    ]  # fmt: skip


def offset_of(struct: type, path: str) -> int:
    """The offset of a field within a struct, also of a nested one ("x.data") or of an array's item ("weight[3]")."""
    offset = 0
    for name in path.replace("[", ".").replace("]", "").split("."):
        if name.isdigit():
            struct = struct._type_  # type: ignore[attr-defined]
            offset += int(name) * ctypes.sizeof(struct)
        else:
            offset += getattr(struct, name).offset
            struct = dict(struct._fields_)[name]  # type: ignore[attr-defined]
    return offset
