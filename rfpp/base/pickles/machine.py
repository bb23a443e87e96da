"""The interpreter of pickle programs: a stack of plain values, marks and a memo, and no way to run anything."""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from rfpp.base.pickles.values import Object, Refused, StandIn, as_set, new_instance, plain_keys

DTYPES = {
    "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32, "Double": torch.float64,
    "Bool": torch.bool, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16, "Int": torch.int32,
    "Long": torch.int64,
}  # fmt: skip
"""The types of storages, by torch's names."""

Persistent = Callable[[torch.dtype, str, int], Tensor]
"""Finds a storage by its type, key and number of elements."""


_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def _look_up(names: Mapping[str, StandIn], module: Any, name: Any) -> StandIn:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise Refused("it names a global without a module or a name")
    full = f"{_PYTHON_2.get(module, module)}.{name}"
    if full not in names:
        shown = full if len(full) <= 100 else full[:100] + "..."
        raise Refused(f"it names {shown}, which is not among the names that weights need (rfpp.base.pickles.ALLOWED)")
    return names[full]


class Machine:
    """The stack, the marks and the memo of a pickle program; one method for each kind of instruction."""

    def __init__(self, persistent: Persistent | None, names: Mapping[str, StandIn]) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent, self.names = persistent, names
        self.work = 0

    def spend(self, *values: Any) -> None:
        """Count what a call copies. By reusing one value many times, a small file could fill the memory."""
        sized = (value for value in values if isinstance(value, str | bytes | list | tuple | dict | set))
        self.work += len(values) + sum(len(value) for value in sized)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def storage(self, identity: Any) -> Tensor:
        if self.persistent is None or not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise Refused("it has a persistent id that is not a storage")
        _, kind, key, _, numel, *view = identity
        short = kind.name.removeprefix("torch.").removesuffix("Storage") if isinstance(kind, StandIn) else ""
        if short not in DTYPES or not isinstance(key, str) or type(numel) is not int or numel < 0 or any(view):
            raise Refused("it has a storage of an unknown kind")
        return self.persistent(DTYPES[short], key, numel)

    def fill(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, set):
            target.update(as_set(items))
        else:
            raise Refused(f"it adds items to a {type(target).__name__}, which is not a list or a set")

    def fill_dict(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise Refused(f"it adds keys and values to a {type(target).__name__}, which is not a dictionary")
        target.update(plain_keys(zip(items[::2], items[1::2], strict=True)))

    def build(self, target: Any, state: Any) -> None:
        """Set the attributes of a record; nothing else may be changed."""
        if isinstance(target, np.dtype):
            if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", "|", "="):
                raise Refused("it has numpy numbers that are not little-endian")
            return
        if isinstance(target, dict):
            return  # the version numbers beside a state dict
        if not isinstance(target, Object) or not isinstance(state, dict):
            name = target.name if isinstance(target, StandIn) else type(target).__name__
            raise Refused(f"it sets attributes of {name}, which weights do not need")
        target.state.update(plain_keys(state.items()))

    def step(self, name: str, argument: Any) -> None:
        """Execute one instruction, except those that only push their argument."""
        if not (self._move(name, argument) or self._collect(name) or self._call(name, argument)):
            raise Refused(f"it has the instruction {name}, which weights do not need")

    def _move(self, name: str, argument: Any) -> bool:
        """Execute an instruction for the stack, its marks or the memo; return whether this is one."""
        stack = self.stack
        match name:
            case "MARK":
                self.marks.append(stack)
                self.stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case _:
                return False
        return True

    def _collect(self, name: str) -> bool:
        """Execute an instruction that makes or fills a container; return whether this is one."""
        match name:
            case "EMPTY_LIST" | "EMPTY_TUPLE" | "EMPTY_DICT" | "EMPTY_SET":
                kind = {"LIST": list, "TUPLE": tuple, "DICT": dict, "SET": set}[name.removeprefix("EMPTY_")]
                self.stack.append(kind())
            case "LIST":
                items = self.since_mark()
                self.stack.append(items)
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "FROZENSET":
                items = self.since_mark()
                self.stack.append(as_set(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                if len(self.stack) < count:
                    raise Refused("it makes a tuple of more values than it has")
                self.stack[-count:] = [tuple(self.stack[-count:])]
            case "DICT":
                items = self.since_mark()
                self.stack.append({})
                self.fill_dict(self.stack[-1], items)
            case "APPEND":
                item = self.stack.pop()
                self.fill(self.stack[-1], [item])
            case "APPENDS" | "ADDITEMS":
                items = self.since_mark()
                self.fill(self.stack[-1], items)
            case "SETITEM":
                value, key = self.stack.pop(), self.stack.pop()
                self.fill_dict(self.stack[-1], [key, value])
            case "SETITEMS":
                items = self.since_mark()
                self.fill_dict(self.stack[-1], items)
            case _:
                return False
        return True

    def _call(self, name: str, argument: Any) -> bool:
        """Execute an instruction that names something, calls it, or makes an instance; return whether this is one."""
        stack = self.stack
        match name:
            case "GLOBAL":
                stack.append(_look_up(self.names, *argument.split(" ", 1)))
            case "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(_look_up(self.names, module, attribute))
            case "INST":
                _look_up(self.names, *argument.split(" ", 1))
                raise Refused(f"it makes an instance of {argument.replace(' ', '.')} with the old instruction INST")
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, StandIn) or function.call is None or not isinstance(arguments, tuple):
                    called = function.name if isinstance(function, StandIn) else f"a {type(function).__name__}"
                    raise Refused(f"it calls {called}, which is not a function, or without a tuple of arguments")
                self.spend(*arguments)
                stack.append(function.call(*arguments))
            case "NEWOBJ":
                arguments, kind = stack.pop(), stack.pop()
                if arguments != ():
                    raise Refused("it makes an instance with arguments, which weights do not need")
                stack.append(new_instance(kind))
            case "BUILD":
                state = stack.pop()
                self.spend(state)
                self.build(stack[-1], state)
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "EXT1" | "EXT2" | "EXT4":
                raise Refused(f"it names extension code {argument}")
            case _:
                return False
        return True


_PUSH = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


def interpret(file: IO[bytes], persistent: Persistent | None, names: Mapping[str, StandIn]) -> Any:
    """Return the value of the pickle at the file's position, and move past it; nothing in it is executed.

    ``persistent`` finds the storages of ``torch.save``'s files. Raises :class:`Refused` for a pickle that is damaged or
    names anything outside ``names``.
    """
    machine = Machine(persistent, names)
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
        raise Refused(f"it is damaged or not a pickle ({type(error).__name__}: {str(error)[:200]})") from error
    raise Refused("it ends in the middle")
