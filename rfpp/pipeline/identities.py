"""Identities of values in keys: their type, parameters and code, also for values from a reader's code."""

from __future__ import annotations

import ast
import builtins
import dataclasses
import functools
import hashlib
import inspect
import linecache
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from rfpp.base.files import content, digest
from rfpp.pairs import INDEX, PairDataset
from rfpp.pipeline.digests import code_digest, definition_of, is_own
from rfpp.pipeline.syntax import Normal, free_names, shape

Own = set[tuple[str, str]]
"""Definitions of this package, each by its module and name; ``"*"`` is a whole module."""
_NOTHING = object()
_PURE = ("math", "torch")
"""Packages whose built-in functions, such as ``torch.tanh``, are identified by their names."""
_ADVICE = "write it into a module or a notebook's cell, as a class or function with a name"


class Unidentified(ValueError):
    """Raised when a value has no identity for a key, so that its result could be mistaken for another's."""


def _name(thing: Any) -> str:
    return f"{thing.__module__}:{thing.__qualname__}"


def _array(value: Tensor | np.ndarray[Any, Any]) -> dict[str, Any]:
    array = value.detach().cpu().contiguous()[...].numpy() if isinstance(value, Tensor) else np.ascontiguousarray(value)
    content = hashlib.sha256(array.data if array.size else b"").hexdigest()  # without a copy
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": content}


def identity(value: Any) -> Any:
    """Return the JSON value that represents a value in a key.

    An object may define its own as ``identity()``. Otherwise an instance is identified by its class, the class's code,
    and its fields (for a dataclass, the compared fields). Raises :class:`Unidentified` for a lambda, a class without
    available source, and any other value that cannot be distinguished from others.
    """
    if isinstance(value, type) or inspect.isfunction(value):
        return {"type": _name(value), "code": code_digest(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    if inspect.isbuiltin(value) and str(value.__module__).partition(".")[0] in _PURE:
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple):
        return [identity(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((identity(item) for item in value), key=digest)
    if isinstance(value, Mapping):
        return {str(key): identity(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return _array(value)
    if callable(own := getattr(value, "identity", None)):
        return own()
    if isinstance(value, functools.partial):
        return [identity(value.func), identity(value.args), identity(value.keywords)]
    if isinstance(value, BaseModel):
        return {"type": _name(type(value)), "fields": identity(value.model_dump())}
    return _instance(value)


def _module(module: nn.Module) -> dict[str, Any]:
    """Return what makes up a network: weights, buffers, and the public attributes of each of its parts.

    An attribute that belongs to the network's owner rather than to its function has a name with an underscore. So does
    ``forward``, if it is an attribute: :func:`rfpp.base.batches.at_most` sets it.
    """
    settings = {
        f"{place}.{name}": value
        for place, part in module.named_modules()
        for name, value in vars(part).items()
        if not name.startswith("_") and name not in ("training", "forward")
    }
    buffers = {f"buffer {name}": value for name, value in module.named_buffers()}  # a state dict lacks some
    return {**module.state_dict(), **buffers, "settings": settings, "made as": repr(module)}


def _instance(value: Any) -> dict[str, Any]:
    """Identify an object by its class and its parts."""
    kind = type(value)
    kinds = {kind}
    if dataclasses.is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.compare}
    elif isinstance(value, PairDataset):
        stored = [value.folder / INDEX, *sorted(value.folder.glob("shard-*.safetensors"))]
        parts = {path.name: content(path) for path in stored}
    elif isinstance(value, nn.Module):
        parts, kinds = _module(value), {type(part) for part in value.modules()}
    elif kind.__module__ == "builtins" or not hasattr(value, "__dict__"):
        raise Unidentified(f"{value!r} cannot be identified: it is a {kind.__name__}; {_ADVICE}")
    else:
        parts = vars(value)
    return {"type": _name(kind), "fields": identity(parts), "code": code_digest(*kinds)}


# Readers' code

_INSTALLED = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _is_installed(thing: Any) -> bool:
    """Whether something belongs to Python or to an installed package, so that its name identifies it."""
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    if module is None or module.__name__ == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or str(Path(file).resolve()).startswith(_INSTALLED) or module.__name__ == "builtins"


_GENERATED = ("<string>", dataclasses.__file__)
"""The files of a dataclass's generated methods."""


def _code(thing: Any) -> types.CodeType | None:
    """Return the code of a function, or of any function of a class."""
    if inspect.isfunction(thing):
        return thing.__code__
    for part in vars(thing).values() if isinstance(thing, type) else ():
        part = getattr(part, "fget", None) or getattr(part, "__func__", part)
        if inspect.isfunction(part) and part.__code__.co_filename not in _GENERATED:
            return part.__code__
    return None


def _source(thing: Any) -> ast.AST:
    """Return the definition of a reader's class or function from its cell or file."""
    if thing.__name__ == "<lambda>":
        raise Unidentified(f"a lambda ({thing!r}) cannot be identified: it has no name; {_ADVICE}")
    code = _code(thing)
    file = code.co_filename if code is not None else getattr(sys.modules.get(thing.__module__), "__file__", None)
    lines = linecache.getlines(file) if file else []
    try:
        tree = ast.parse("".join(lines))
    except SyntaxError:  # a cell with magic commands
        tree = ast.parse("".join(line for line in lines if not line.lstrip().startswith(("%", "!"))))
    kinds = (ast.ClassDef,) if isinstance(thing, type) else (ast.FunctionDef, ast.AsyncFunctionDef)
    named = [node for node in ast.walk(tree) if isinstance(node, kinds) and node.name == thing.__name__]
    if code is not None and len(named) > 1:  # several have this name: take the one around its code
        first = code.co_firstlineno
        named = [node for node in named if node.lineno - len(node.decorator_list) <= first <= (node.end_lineno or 0)]
    if not named:
        raise Unidentified(f"{_name(thing)} cannot be identified: its source is not available; {_ADVICE}")
    return named[-1]


def _namespace(thing: Any) -> dict[str, Any]:
    """Return the global names of the module of a class or function, and the names in its closure."""
    found = dict(vars(sys.modules.get(thing.__module__, builtins)))
    parts = [thing] if inspect.isfunction(thing) else list(vars(thing).values())
    functions = [part for part in parts if inspect.isfunction(part)]
    for function in functions:
        found |= function.__globals__
    for function in functions:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name != "__class__":
                found[name] = cell.cell_contents
    return found


def _follow(parts: list[str], namespace: Mapping[str, Any], found: dict[str, str], own: Own) -> None:
    """Add the definition or value that a dotted name in a reader's code refers to."""
    value, rest = namespace[parts[0]], parts[1:]
    while isinstance(value, types.ModuleType) and rest:
        if not hasattr(value, rest[0]):
            raise Unidentified(f"{'.'.join(parts)} cannot be identified: {value.__name__} has no {rest[0]}")
        value, rest = getattr(value, rest[0]), rest[1:]
    if isinstance(value, types.ModuleType):
        if value.__name__.partition(".")[0] == "rfpp":
            own.add((value.__name__, "*"))
        else:
            found[f"name {'.'.join(parts)}"] = value.__name__
        return
    if isinstance(value, type) or inspect.isfunction(value):
        if is_own(value):
            own.add(definition_of(value))
        elif _is_installed(value):
            found[f"name {'.'.join(parts)}"] = _name(value)
        else:
            _read(value, found, own)
    elif callable(value) and _is_installed(value):
        found[f"name {'.'.join(parts)}"] = str(getattr(value, "__qualname__", value))
    else:
        found[f"value of {'.'.join(parts)}"] = digest(identity(value))


def _read(thing: Any, found: dict[str, str], own: Own) -> None:
    """Add a reader's definition and everything that it names."""
    name = _name(thing)
    if name in found:
        return
    found[name] = ""  # it may name itself
    plain = Normal(lambda parts: False).visit(_source(thing))
    found[name] = digest(shape(plain))
    namespace = _namespace(thing)
    for parts in free_names(plain):
        if parts[0] in namespace and namespace[parts[0]] is not getattr(builtins, parts[0], _NOTHING):
            _follow(parts, namespace, found, own)
        elif not hasattr(builtins, parts[0]) and parts[0] != "__class__":
            raise Unidentified(f"{name} cannot be identified: it names {parts[0]}, which is not defined")


def reader_code(thing: Any, own: Own) -> dict[str, str]:
    """Return the hashes of a reader's class or function and of everything that it names, by name.

    Definitions of this package that it names are added to ``own`` instead.
    Raises :class:`Unidentified` if the source of one of them is not available.
    """
    if not (isinstance(thing, type) or inspect.isfunction(thing)):
        raise Unidentified(f"{thing!r} cannot be identified: it is a {type(thing).__name__}; {_ADVICE}")
    found: dict[str, str] = {}
    if _is_installed(thing):
        return {_name(thing): ""}
    _read(thing, found, own)
    return found
