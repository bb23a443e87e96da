"""Reading other people's pickles without running them.

A pickle is a program: it names functions and calls them, and Python's own loader does as it is told. :func:`read` is an
interpreter of its own that does not. It keeps a stack of plain values, and where the program names something, it looks
the name up in a table of stand-ins that can only make numbers, containers, tensors, and :class:`Object` records. A name
that is not in the table ends the reading with :class:`Refused`, before anything is called or imported.

:func:`read_torch` reads the files of ``torch.save`` on top of it, those in a zip archive and those from before.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor


class Refused(ValueError):
    """The file is damaged, or asks for more than plain data and tensors."""


@dataclass(eq=False)
class Object:
    """An instance of a class that is not rebuilt: its name and what was in its ``__dict__``."""

    class_name: str
    state: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _StandIn:
    """What a global name is read as. ``call(*arguments)`` stands for calling it, ``new()`` for making an instance."""

    name: str
    call: Callable[..., Any] | None = None
    new: Callable[[], Any] | None = None


def _brief(value: Any) -> str:
    """A value in a message: spelling out a nest of lists could take for ever."""
    text = repr(value) if isinstance(value, str | bytes | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= 100 else text[:100] + "..."


def _plain_keys(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary whose keys cost nothing to hash: tuples within tuples could keep a machine busy for years, and
    large numbers can be chosen so that all have the same hash."""
    found = {}
    for key, value in pairs:
        if not isinstance(key, str | bytes | int | None) or (isinstance(key, int) and abs(key) >= 1 << 31):
            raise Refused(f"a dictionary or set has a key of type {type(key).__name__}, or a very large number")
        found[key] = value
    return found


def _ordered_dict(items: Iterable[Any] = ()) -> dict[Any, Any]:
    return _plain_keys((key, value) for key, value in items)


def _set(items: Iterable[Any] = ()) -> set[Any]:
    return set(_plain_keys((item, None) for item in items))


def _encode(text: str, encoding: str) -> bytes:
    """How protocols 0 to 2 write bytes."""
    if encoding != "latin1":
        raise Refused(f"_codecs.encode with encoding {_brief(encoding)}; only 'latin1' is allowed")
    return text.encode("latin1")


def _reconstructor(kind: _StandIn, base: _StandIn, state: Any) -> Any:
    """How protocols 0 and 1 make an instance."""
    made = _new(kind)
    if isinstance(made, dict) and isinstance(state, dict):
        made.update(state)
    elif base is not ALLOWED["builtins.object"] or state is not None:
        raise Refused(f"an instance of {kind.name} with another base than object")
    return made


def _persistent_object(meta: dict[str, Any]) -> Object:
    """EDM's modules: ``meta`` also holds Python source, which the original loader executes and this one drops."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Refused("a persistent object that is not of type 'class'")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise Refused("a persistent object without class_name and state")
    return Object(name, state)


def _numpy_dtype(code: Any, *options: Any) -> np.dtype[Any]:
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
        raise Refused(f"numpy.dtype({_brief(code)}); only plain numbers are allowed")
    return np.dtype(code)


def _numpy_scalar(dtype: np.dtype[Any], content: bytes) -> float | int | bool:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise Refused("a numpy scalar that is not one number")
    number: float | int | bool = np.frombuffer(content, dtype)[0].item()
    return number


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *options: Any) -> Tensor:
    """A view of a storage that stays inside it; hooks and the need for a gradient are dropped."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, Tensor) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers[:64]):
        raise Refused("a tensor without a storage, or with a size that is not a list of whole numbers")
    if len(size) != len(stride) or len(size) > 16:
        raise Refused(f"a tensor of {len(size)} dimensions with {len(stride)} strides")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numel = math.prod(int(n) for n in size)
    if numel > len(storage) or (numel and last >= len(storage)):
        raise Refused(f"a tensor of {numel} numbers does not fit its storage of {len(storage)}; is the file whole?")
    return storage.as_strided(size, stride, offset)


def _device(kind: Any, number: Any = 0) -> str:
    if not isinstance(kind, str):
        raise Refused("a device without a name")
    return kind


def _size(sizes: Any) -> tuple[Any, ...]:
    if not isinstance(sizes, list | tuple):
        raise Refused(f"a size made of a {type(sizes).__name__}")
    return tuple(sizes)


_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_DTYPES = {
    "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64,
    "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32,
    "Long": torch.int64,
}  # fmt: skip


def _read_legacy(file: IO[bytes], size: int) -> Any:
    """A file of ``torch.save`` as it was before zip archives: five pickles, then the numbers of each storage."""
    if read(file) != _MAGIC or read(file) != _PROTOCOL:
        raise Refused("this is not a file of torch.save")
    system = read(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("numbers that are not little-endian")
    storages: dict[str, Tensor] = {}
    left = size

    def persistent(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        nonlocal left
        if key not in storages:
            left -= numel * dtype.itemsize
            if left < 0:
                raise Refused(f"storage {_brief(key)} should have {numel} numbers, more than the file; is it whole?")
            storages[key] = torch.zeros(numel, dtype=dtype)
        return storages[key]

    result = read(file, persistent, _WITHIN)
    keys = read(file)
    if not isinstance(keys, list) or set(_set(keys)) != set(storages):
        raise Refused("storages that are announced are not those that are used")
    for key in keys:
        storage = storages[key]
        if int.from_bytes(file.read(8), "little") != len(storage):
            raise Refused(f"storage {_brief(key)} does not have its {len(storage)} numbers; is the file whole?")
        content = file.read(len(storage) * storage.itemsize)
        if len(content) != len(storage) * storage.itemsize:
            raise Refused(f"the file ends within storage {_brief(key)}")
        if content:
            storage.copy_(torch.frombuffer(bytearray(content), dtype=storage.dtype))
    return result


def _load_from_bytes(content: bytes) -> Any:
    """A storage inside a pickle: a file of its own, which holds nothing else."""
    if not isinstance(content, bytes):
        raise Refused(f"a storage made of a {type(content).__name__}")
    storage = _read_legacy(io.BytesIO(content), len(content))
    if not isinstance(storage, Tensor):
        raise Refused("a storage that is something else")
    return storage


def _from_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """How torch writes a tensor that has attributes; these are dropped."""
    if rebuild not in (ALLOWED["torch._utils._rebuild_tensor_v2"], ALLOWED["torch._utils._rebuild_parameter"]):
        raise Refused("a tensor made by something else")
    made: Tensor = rebuild.call(*arguments)
    return made


_TABLE = [
    _StandIn("collections.OrderedDict", _ordered_dict),
    _StandIn("builtins.bytes", lambda: b""),  # how protocols 0 to 2 write no bytes at all
    _StandIn("builtins.set", _set),
    _StandIn("builtins.frozenset", _set),
    _StandIn("builtins.object"),
    _StandIn("builtins.dict", _ordered_dict),
    _StandIn("_codecs.encode", _encode),
    _StandIn("copyreg._reconstructor", _reconstructor),
    _StandIn("dnnlib.util.EasyDict", new=dict),
    _StandIn("numpy.dtype", _numpy_dtype),
    _StandIn("numpy.core.multiarray.scalar", _numpy_scalar),
    _StandIn("numpy._core.multiarray.scalar", _numpy_scalar),
    _StandIn("torch.Size", _size),
    _StandIn("torch.device", _device),
    _StandIn("torch._utils._rebuild_tensor", _tensor),
    _StandIn("torch._utils._rebuild_tensor_v2", _tensor),
    _StandIn("torch._utils._rebuild_parameter", lambda data, *options: data),
    _StandIn("torch._utils._rebuild_parameter_with_state", lambda data, *options: data),
    _StandIn("torch._tensor._rebuild_from_type_v2", _from_type),
    _StandIn("torch.Tensor"),
    _StandIn("torch.nn.parameter.Buffer"),
    _StandIn("torch.nn.parameter.Parameter"),
    _StandIn("torch.storage._load_from_bytes", _load_from_bytes),
    _StandIn("torch.nn.modules.container.ModuleDict", new=lambda: Object("ModuleDict")),
    _StandIn("torch.nn.modules.container.ModuleList", new=lambda: Object("ModuleList")),
    _StandIn("torch_utils.persistence._reconstruct_persistent_obj", _persistent_object),
    *(_StandIn(f"torch.{name}Storage") for name in _DTYPES),
    *(_StandIn(str(dtype)) for dtype in _DTYPES.values()),
]
ALLOWED: Mapping[str, _StandIn] = {entry.name: entry for entry in _TABLE}
"""The names a pickle may use, and what each is read as."""
_WITHIN = {name: entry for name, entry in ALLOWED.items() if entry.call is not _load_from_bytes}
"""Of these, the ones for a file of torch.save: it has its storages beside it, and files within files could go on."""

_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def _global(names: Mapping[str, _StandIn], module: Any, name: Any) -> _StandIn:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Refused("a global without a name")
    full = f"{_PYTHON_2.get(module, module)}.{name}"
    if full not in names:
        shown = full if len(full) <= 100 else full[:100] + "..."
        raise Refused(f"it names {shown}, which is not among the names that weights need (rfpp.base.pickles.ALLOWED)")
    return names[full]


def _new(kind: Any) -> Any:
    if not isinstance(kind, _StandIn) or kind.new is None:
        raise Refused(f"an instance of {kind.name if isinstance(kind, _StandIn) else type(kind).__name__}")
    return kind.new()


Persistent = Callable[[torch.dtype, str, int], Tensor]
"""Finds a storage by its type, key and number of elements."""


class _Machine:
    """The stack, the marks and the memo of a pickle program; one method for each kind of instruction."""

    def __init__(self, persistent: Persistent | None, names: Mapping[str, _StandIn]) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent, self.names = persistent, names
        self.work = 0

    def spend(self, *values: Any) -> None:
        """Count what a call copies. A value that is used again and again would make much out of a small file."""
        sized = (value for value in values if isinstance(value, str | bytes | list | tuple | dict | set))
        self.work += len(values) + sum(len(value) for value in sized)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def storage(self, identity: Any) -> Tensor:
        if self.persistent is None or not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise Refused("a persistent id that is not a storage")
        _, kind, key, _, numel, *view = identity
        short = kind.name.removeprefix("torch.").removesuffix("Storage") if isinstance(kind, _StandIn) else ""
        if short not in _DTYPES or not isinstance(key, str) or type(numel) is not int or numel < 0 or any(view):
            raise Refused("a storage of an unknown kind")
        return self.persistent(_DTYPES[short], key, numel)

    def fill(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(_set(items))
        else:
            raise Refused(f"items for a {type(target).__name__}")

    def fill_dict(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise Refused(f"keys and values for a {type(target).__name__}")
        target.update(_plain_keys(zip(items[::2], items[1::2], strict=True)))

    def build(self, target: Any, state: Any) -> None:
        """Give an instance its attributes: ours are records, and nothing else may be changed."""
        if isinstance(target, np.dtype):
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
                raise Refused("numpy numbers that are not little-endian")
            return
        if isinstance(target, dict):
            return  # the version numbers beside a state dict
        if not isinstance(target, Object) or not isinstance(state, dict):
            name = target.name if isinstance(target, _StandIn) else type(target).__name__
            raise Refused(f"attributes for {name}")
        target.state.update(_plain_keys(state.items()))

    def step(self, name: str, argument: Any) -> None:
        """One instruction; instructions that push their argument are not seen here."""
        stack = self.stack
        match name:
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "POP":
                if stack:
                    stack.pop()
                else:
                    self.since_mark()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT" | "EMPTY_SET":
                stack.append({"LIST": list, "TUPLE": tuple, "DICT": dict, "SET": set}[name.removeprefix("EMPTY_")]())
            case "LIST":
                items = self.since_mark()
                self.stack.append(items)
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(stack) < count:
                    raise Refused("a tuple of more than there is")
                self.stack[-count:] = [tuple(stack[-count:])]
            case "DICT":
                items = self.since_mark()
                self.stack.append({})
                self.fill_dict(self.stack[-1], items)
            case "FROZENSET":
                items = self.since_mark()
                self.stack.append(_set(items))
            case "APPEND":
                item = stack.pop()
                self.fill(stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self.since_mark()
                self.fill(self.stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.fill_dict(stack[-1], [key, value])
            case "SETITEMS":
                items = self.since_mark()
                self.fill_dict(self.stack[-1], items)
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GLOBAL":
                stack.append(_global(self.names, *argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_global(self.names, module, attribute))
            case "INST":
                _global(self.names, *argument.split(" ", 1))
                raise Refused(f"it makes an instance of {argument.replace(' ', '.')} in the manner of Python 1")
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _StandIn) or function.call is None or not isinstance(arguments, tuple):
                    called = function.name if isinstance(function, _StandIn) else f"a {type(function).__name__}"
                    raise Refused(f"it calls {called}, which is not a function")
                self.spend(*arguments)
                stack.append(function.call(*arguments))
            case "NEWOBJ":
                arguments, kind = stack.pop(), stack.pop()
                if arguments != ():
                    raise Refused("an instance with arguments")
                stack.append(_new(kind))
            case "BUILD":
                state = stack.pop()
                self.spend(state)
                self.build(stack[-1], state)
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "EXT1" | "EXT2" | "EXT4":
                raise Refused(f"it names extension code {argument}")
            case _:
                raise Refused(f"it has the instruction {name}, which weights do not need")


_PUSH = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def read(file: IO[bytes], persistent: Persistent | None = None, names: Mapping[str, _StandIn] | None = None) -> Any:
    """The value of the pickle at the file's position, which ends behind it; nothing in it is executed.

    ``persistent`` finds the storages of ``torch.save``'s files. Raises :class:`Refused` for a pickle that is damaged or
    names anything outside ``names``, :data:`ALLOWED` by default.
    """
    machine = _Machine(persistent, ALLOWED if names is None else names)
    try:
        for opcode, argument, position in pickletools.genops(file):
            if machine.work > 4 * (position or 0) + 65536:
                raise Refused("it uses the same values over and over, and would grow without bound")
            if opcode.name in ("PROTO", "FRAME"):
                continue
            if opcode.name == "STOP":
                if machine.marks or len(machine.stack) != 1:
                    raise Refused("it ends in the middle")
                return machine.stack.pop()
            if opcode.name in _PUSH:
                machine.stack.append(_CONSTANTS.get(opcode.name, argument))
            else:
                machine.step(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        raise Refused(f"it is damaged, or no pickle ({type(error).__name__}: {str(error)[:200]})") from error
    raise Refused("it ends in the middle")


def read_file(path: str | Path) -> Any:
    """:func:`read` for a file of one pickle; the error names the file."""
    path = Path(path)
    with path.open("rb") as file:
        try:
            return read(file)
        except Refused as error:
            raise Refused(f"{path} is refused: {error}") from error


def _read_zip(archive: zipfile.ZipFile, size: int) -> Any:
    """A file of ``torch.save`` as it is since torch 1.6: ``data.pkl``, and each storage in a file of its own."""
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Refused("this zip archive is not a file of torch.save: it has no data.pkl, or several")
    root = pickles[0].removesuffix("data.pkl")
    storages: dict[str, Tensor] = {}
    left = size

    def content(name: str) -> bytes:
        nonlocal left
        info = entries.get(root + name)
        if info is None:
            raise Refused(f"{root}{name} is missing; is the file whole?")
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"{root}{name} is compressed, which torch.save never does")
        left -= info.file_size
        if left < 0:
            raise Refused("its entries hold more than the file: an archive that unfolds")
        return archive.read(info)

    def persistent(dtype: torch.dtype, key: str, numel: int) -> Tensor:
        if key not in storages:
            numbers = content(f"data/{key}")
            if len(numbers) != numel * dtype.itemsize:
                raise Refused(f"storage {key} has {len(numbers)} bytes instead of {numel * dtype.itemsize}")
            storages[key] = torch.frombuffer(bytearray(numbers), dtype=dtype) if numel else torch.zeros(0, dtype=dtype)
        return storages[key]

    if root + "byteorder" in entries and content("byteorder") != b"little":
        raise Refused("numbers that are not little-endian")
    return read(io.BytesIO(content("data.pkl")), persistent, _WITHIN)


def read_torch(path: str | Path) -> Any:
    """What ``torch.save`` wrote to ``path``, tensors on the CPU, nothing executed.

    Raises :class:`Refused`, naming the file, for one that is damaged or names anything outside :data:`ALLOWED`.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive, size)
        with path.open("rb") as file:
            return _read_legacy(file, size)
    except (ValueError, OSError, EOFError, LookupError, RuntimeError, struct.error, zipfile.BadZipFile) as error:
        raise Refused(f"{path} is refused: {error}") from error
