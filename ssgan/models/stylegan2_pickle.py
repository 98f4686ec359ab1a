"""Reads a pickle of networks safely: interprets the opcodes itself and imports no name that the file mentions.

Python's pickle imports and calls the names in a file. This reader has a stack, a memo and a table of the few names that
a pickle of StyleGAN2-ADA (PyTorch) needs. Each stands for a function below that makes plain data: dicts, numbers, views
of tensors, and `Persistent` for an object of NVIDIA's `torch_utils.persistence`, whose source code in the file is
ignored. Any other name, opcode or use is refused.

Work and memory are bounded by the file's size: lengths are checked against the file, keys are strings or small numbers
(so hashing costs nothing), storages have together no more bytes than the file and tensors no more elements, a tensor no
more than its storage, and nothing recurses.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssgan.utils.errors import UserError

MAX_BYTES = 4 << 30  # the largest published pickle has 0.4e9
MAX_WORK = 20_000_000  # opcodes and copied elements; a published pickle has about 0.1e6
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # torch.save's format before it wrote zip files
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


class PickleError(UserError):
    """A file that is no pickle of StyleGAN2-ADA's networks, or that needs more than plain data."""


@dataclass(frozen=True)
class Persistent:
    """An object that was saved with its source code: the name of its class and its attributes."""

    class_name: str
    state: dict[str, Any]


@dataclass(frozen=True)
class Storage:
    """A flat tensor that others are views of."""

    data: Tensor


@dataclass
class Dtype:
    """A numpy.dtype, little-endian or without byte order."""

    name: str


@dataclass(frozen=True)
class Ignored:
    """A value that is not needed, such as a numpy array."""

    kind: str


@dataclass(frozen=True)
class GlobalName:
    """A global name that the pickle may use."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class _Budget:
    """What is left for a file: steps (opcodes and copied elements), bytes of storages, elements of tensors."""

    steps: int
    storage_bytes: int
    elements: int

    def spend(self, kind: str, count: int) -> None:
        left = getattr(self, kind) - count
        setattr(self, kind, left)
        if left < 0:
            more = {
                "steps": f"it takes more than {MAX_WORK} steps to read",
                "storage_bytes": "its storages together have more bytes than the file",
                "elements": "its tensors together have more elements than the file has bytes",
            }
            raise _Refused(more[kind])


class _Mark:
    """Stands on the stack where the arguments of a later opcode begin."""


class _Refused(Exception):
    """The reason why a stream is not read; `read` turns it into a PickleError that names the file."""


def read(path: Path) -> Any:
    """Returns the data of a pickle.

    Raises:
        PickleError: the file is too large, cut short, no pickle, or uses a name that StyleGAN2-ADA's pickles do not.
        OSError: it cannot be read.
    """
    if not path.exists():
        raise PickleError(f"{path} does not exist; expected a StyleGAN2-ADA pickle (.pkl)")
    if not path.is_file():
        raise PickleError(f"{path} is not a file; expected a StyleGAN2-ADA pickle (.pkl)")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise PickleError(f"{path} has {size} bytes; expected at most {MAX_BYTES}, more than any published network's")
    data = path.read_bytes()
    try:
        if data[:4] == b"PK\x03\x04":
            raise _Refused("it is a zip file, as torch.save writes; expected a pickle of NVIDIA's training, whole")
        if data[:1] != b"\x80":
            raise _Refused("it does not begin as a pickle; expected NVIDIA's own file, not a page or a link to it")
        return _Unpickler(io.BytesIO(data), _Budget(MAX_WORK, size, size)).run()
    except _Refused as refusal:
        raise PickleError(f"{path} is refused: {refusal}; nothing in it was run") from None


def describe(value: Any) -> str:
    """Describes a value from a file for a message; containers, which may be endless, by their type, but for shapes."""
    if isinstance(value, tuple) and len(value) <= 8 and all(_is_count(n) for n in value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    if value is None or isinstance(value, (str, int, float)):
        return repr(value[:80] if isinstance(value, str) else value)
    return str(value)[:80] if isinstance(value, GlobalName) else f"a {type(value).__name__}"


# ------------------------------------------------------------------------------------------- meaning of global names


def _persistent(unpickler: _Unpickler, meta: Any) -> Persistent:
    if not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
        raise _Refused("an object of torch_utils.persistence has no state")
    if meta.get("type") != "class" or meta.get("version") != 6 or not isinstance(meta.get("class_name"), str):
        raise _Refused(
            "an object of torch_utils.persistence is not a class of version 6: "
            f"type {describe(meta.get('type'))}, version {describe(meta.get('version'))}"
        )
    return Persistent(meta["class_name"], meta["state"])


def _tensor(unpickler: _Unpickler, storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v2: a view of its storage, without requires_grad, hooks and metadata."""
    numbers = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 8
    if not isinstance(storage, Storage) or not numbers or not all(map(_is_count, (offset, *size, *stride))):
        raise _Refused("a tensor without a storage, or with an impossible size")
    held, count = storage.data.numel(), math.prod(size)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count > held or (count and last >= held):
        raise _Refused(f"a tensor of {count} elements up to index {last} in a storage of {held}")
    unpickler.budget.spend("elements", count)
    return storage.data.as_strided(size, stride, offset) if count else storage.data.new_empty(size)


def _parameter(unpickler: _Unpickler, data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise _Refused("a parameter that is no tensor")
    return data


def _storage(unpickler: _Unpickler, data: Any) -> Storage:
    """torch.storage._load_from_bytes: a storage in torch.save's old format, a stream of five pickles and raw numbers.

    It holds one storage; its pickles are read by this same reader.
    """
    if not isinstance(data, bytes):
        raise _Refused("a storage that is not given as bytes")
    if unpickler.nested:
        raise _Refused("a storage within a storage")
    unpickler.budget.spend("storage_bytes", len(data))
    stream, budget = io.BytesIO(data), unpickler.budget
    magic, protocol, system = (_Unpickler(stream, budget, nested=True).run() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != 1001 or not isinstance(system, dict) or not system.get("little_endian"):
        raise _Refused("a storage that is not in torch.save's format of one storage, little-endian")
    found = _Unpickler(stream, budget, nested=True, inner=True).run()
    keys = _Unpickler(stream, budget, nested=True).run()
    if not isinstance(found, _StorageHeader) or keys != [found.key]:
        raise _Refused("a storage whose stream holds something else")
    start = stream.tell() + 8
    if int.from_bytes(data[start - 8 : start], "little") != found.count or found.count > MAX_BYTES:
        raise _Refused("a storage whose number of elements differs from its header")
    if start + found.count * found.dtype.itemsize != len(data):
        raise _Refused(f"a storage of {found.count} elements in {len(data)} bytes")
    if found.count == 0:
        return Storage(torch.empty(0, dtype=found.dtype))
    raw = torch.from_numpy(np.frombuffer(bytearray(data[start:]), np.uint8))
    return Storage(raw.view(found.dtype))


@dataclass(frozen=True)
class _StorageHeader:
    """Dtype, key and number of elements of a storage, which its stream gives before the elements."""

    dtype: torch.dtype
    key: str
    count: int


def _storage_header(saved: Any) -> _StorageHeader:
    match saved:
        case ("storage", GlobalName(module="torch", name=kind), str(key), str(), int(count), *view) if kind in STORAGES:
            if view in ([], [None]) and _is_count(count):
                return _StorageHeader(STORAGES[kind], key, count)
    raise _Refused("a storage of an unknown kind")


def _dictionary(unpickler: _Unpickler, pairs: Any = ()) -> dict[Any, Any]:
    items = list(pairs) if isinstance(pairs, (list, tuple)) else None
    if items is None or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in items):
        raise _Refused("an OrderedDict of something else than pairs")
    unpickler.spend(len(items))
    return {_key(k): v for k, v in items}


def _set(unpickler: _Unpickler, items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple)):
        raise _Refused("a set of something else than a list")
    unpickler.spend(len(items))
    return {_key(item) for item in items}


def _rebuilt(unpickler: _Unpickler, cls: Any, base: Any, state: Any) -> dict[Any, Any]:
    if cls not in EASY_DICTS or not (state is None or isinstance(state, dict)):
        raise _Refused(f"copyreg._reconstructor of {describe(cls)}")
    unpickler.spend(len(state or {}))
    return dict(state or {})


def _encoded(unpickler: _Unpickler, text: Any, codec: Any) -> bytes:
    """_codecs.encode: bytes as pickle protocol 2 writes them."""
    if not isinstance(text, str) or codec != "latin1":
        raise _Refused("_codecs.encode of something else than text to latin1")
    unpickler.spend(len(text))
    try:
        return text.encode("latin1")
    except UnicodeEncodeError:
        raise _Refused("_codecs.encode of text that is not latin1") from None


def _dtype(unpickler: _Unpickler, name: Any, *rest: Any) -> Dtype:
    return Dtype(name if isinstance(name, str) else "")


def _scalar(unpickler: _Unpickler, dtype: Any, data: Any) -> Any:
    if not isinstance(dtype, Dtype) or dtype.name not in NUMBERS or not isinstance(data, bytes):
        raise _Refused("a numpy scalar that is no number")
    if len(data) != int(dtype.name[1]):
        raise _Refused(f"a numpy scalar {dtype.name} of {len(data)} bytes")
    return np.frombuffer(data, "?" if dtype.name == "b1" else f"<{dtype.name}")[0].item()


def _array(unpickler: _Unpickler, *rest: Any) -> Ignored:
    return Ignored("numpy array")


def _device(unpickler: _Unpickler, *rest: Any) -> Ignored:
    return Ignored("torch device")


EASY_DICTS = (GlobalName("dnnlib.util", "EasyDict"), GlobalName("dnnlib", "EasyDict"))
FUNCTIONS: dict[GlobalName, Callable[..., Any]] = {
    GlobalName("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    GlobalName("torch._utils", "_rebuild_tensor_v2"): _tensor,
    GlobalName("torch._utils", "_rebuild_parameter"): _parameter,
    GlobalName("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    GlobalName("torch.storage", "_load_from_bytes"): _storage,
    GlobalName("collections", "OrderedDict"): _dictionary,
    GlobalName("_codecs", "encode"): _encoded,
    GlobalName("numpy", "dtype"): _dtype,
    GlobalName("torch", "device"): _device,
    **{GlobalName(module, "set"): _set for module in ("builtins", "__builtin__")},
    **{GlobalName(module, "_reconstructor"): _rebuilt for module in ("copyreg", "copy_reg")},
    **{GlobalName(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{GlobalName(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{GlobalName(f"numpy.{core}.numeric", "_frombuffer"): _array for core in ("core", "_core")},
}
REFERENCES = {  # names that are only arguments of functions
    *EASY_DICTS,
    GlobalName("numpy", "ndarray"),
    *(GlobalName(module, "dict") for module in ("builtins", "__builtin__")),
    *(GlobalName("torch", kind) for kind in STORAGES),
    *(GlobalName("torch", str(dtype).removeprefix("torch.")) for dtype in STORAGES.values()),
}


def _name(module: Any, name: Any) -> GlobalName:
    if not isinstance(module, str) or not isinstance(name, str):
        raise _Refused("it has a name that is not text")
    if module == "dnnlib.tflib.network":
        raise _Refused(
            "it holds TensorFlow networks (StyleGAN or StyleGAN2 before PyTorch); convert them with legacy.py of "
            "NVIDIA's stylegan2-ada-pytorch on a machine that you can spare, then give the result"
        )
    found = GlobalName(module, name)
    if found not in FUNCTIONS and found not in REFERENCES:
        full = f"{module}.{name}"
        raise _Refused(f"it names {full!r:.120}, which StyleGAN2-ADA's networks have no use for")
    return found


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 40


def _key(value: Any) -> Any:
    """Checks a key of a dict or set: only keys that hash fast and cannot be made to collide are taken."""
    small = isinstance(value, int) and abs(value) < 1 << 31
    if value is None or isinstance(value, str) or small:
        return value
    raise _Refused(f"a key that is neither text nor a small number ({type(value).__name__})")


# ----------------------------------------------------------------------------------------------------- the unpickler

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MAKE = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass
class _Unpickler:
    """Reads one pickle, from the stream's position to behind its STOP.

    budget: shared by all unpicklers of a file. nested: of a storage's stream. inner: that of its pickles in which a
    persistent id stands for the storage that follows.
    """

    stream: io.BytesIO
    budget: _Budget
    nested: bool = False
    inner: bool = False
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def spend(self, count: int) -> None:
        self.budget.spend("steps", count)

    def run(self) -> Any:
        operations = pickletools.genops(self.stream)
        while True:
            try:
                opcode, argument, _ = next(operations)
            except (ValueError, OverflowError, StopIteration) as error:
                raise _Refused(f"it is cut short or damaged ({str(error)[:120]})") from None
            self.spend(1)
            try:
                if opcode.name == "STOP":
                    if len(self.stack) != 1 or self.stack[0] is _Mark:
                        raise _Refused("it is damaged (things are left over at its end)")
                    return self.stack.pop()
                self.step(opcode.name, argument)
            except (IndexError, KeyError):
                raise _Refused(f"it is damaged (opcode {opcode.name} lacks what it works on)") from None

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _Mark:
            raise IndexError
        return value

    def marked(self) -> list[Any]:
        """Pops the values above the last mark, and the mark."""
        items = []
        while (value := self.stack.pop()) is not _Mark:
            items.append(value)
        return items[::-1]

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name in _MAKE:
            stack.append(_MAKE[name]())
        elif name == "MARK":
            stack.append(_Mark)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.marked()
        elif name in _TUPLES:
            stack.append(tuple([self.pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name in ("LIST", "APPENDS"):
            items = self.marked()
            self.target(list).extend(items) if name == "APPENDS" else stack.append(items)
        elif name == "APPEND":
            item = self.pop()
            self.target(list).append(item)
        elif name in ("DICT", "SETITEMS", "SETITEM"):
            items = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.marked()
            if len(items) % 2:
                raise IndexError
            if name == "DICT":
                stack.append({})
            target = self.target(dict)
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value
        elif name == "ADDITEMS":
            items = self.marked()
            self.target(set).update(map(_key, items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.target(object)
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.target(object)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            stack.append(_name(module, attribute))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            stack.append(self.call(function, arguments))
        elif name == "NEWOBJ":
            arguments, cls = self.pop(), self.pop()
            if cls not in EASY_DICTS or arguments != ():
                raise _Refused(f"it makes an object of {describe(cls)}")
            stack.append({})
        elif name == "BUILD":
            state = self.pop()
            self.build(self.target(object), state)
        elif name == "BINPERSID" and self.inner:
            stack.append(_storage_header(self.pop()))
        else:
            raise _Refused(f"it has the opcode {name}, which StyleGAN2-ADA's pickles do not")

    def target(self, kind: type) -> Any:
        """Returns the top of the stack and leaves it there."""
        value = self.stack[-1]
        if value is _Mark or not isinstance(value, kind):
            raise _Refused(f"it is damaged (a {kind.__name__} was expected)")
        return value

    def call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, GlobalName) or function not in FUNCTIONS or not isinstance(arguments, tuple):
            raise _Refused(f"it calls {describe(function)}")
        try:
            return FUNCTIONS[function](self, *arguments)
        except TypeError:
            raise _Refused(f"it calls {function} with {len(arguments)} arguments, not those expected") from None

    def build(self, target: Any, state: Any) -> None:
        """Sets the attributes of an object. None of them is needed, so they are checked and dropped."""
        if isinstance(target, Dtype):
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
                raise _Refused("a numpy dtype that is not little-endian")
        elif not (isinstance(target, Ignored) or (isinstance(target, dict) and isinstance(state, dict))):
            raise _Refused(f"it sets the state of a {type(target).__name__}")
