"""The table of stand-ins: the names that a pickle may use, and the replacement of each."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from rfpp.base.pickles.machine import DTYPES
from rfpp.base.pickles.values import Object, Refused, StandIn, as_set, brief, new_instance, ordered_dict


def _encode(text: str, encoding: str) -> bytes:
    """Read bytes as protocols 0 to 2 write them."""
    if encoding != "latin1":
        raise Refused(f"it calls _codecs.encode with encoding {brief(encoding)}; only 'latin1' is allowed")
    return text.encode("latin1")


def _reconstructor(kind: StandIn, base: StandIn, state: Any) -> Any:
    """Make an instance as protocols 0 and 1 do."""
    made = new_instance(kind)
    if isinstance(made, dict) and isinstance(state, dict):
        made.update(state)
    elif base is not STAND_INS["builtins.object"] or state is not None:
        raise Refused(f"it makes an instance of {kind.name} with a base other than object, or with a state")
    return made


def _persistent_object(meta: dict[str, Any]) -> Object:
    """Read one of EDM's modules. ``meta`` also holds Python source, which EDM's loader executes and this one drops."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise Refused("it has a persistent object that is not of type 'class'")
    name, state = meta.get("class_name"), meta.get("state")
    if not isinstance(name, str) or not isinstance(state, dict):
        raise Refused("it has a persistent object without class_name or state")
    return Object(name, state)


def _numpy_dtype(code: Any, *options: Any) -> np.dtype[Any]:
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biuf][1248]", code):
        raise Refused(f"it calls numpy.dtype({brief(code)}); only plain numbers are allowed")
    return np.dtype(code)


def _numpy_scalar(dtype: np.dtype[Any], content: bytes) -> float | int | bool:
    if not isinstance(dtype, np.dtype) or not isinstance(content, bytes) or len(content) != dtype.itemsize:
        raise Refused("it has a numpy scalar that is not one number")
    number: float | int | bool = np.frombuffer(content, dtype)[0].item()
    return number


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *options: Any) -> Tensor:
    """Return a view that stays inside its storage; hooks and ``requires_grad`` are dropped."""
    numbers = [offset, *size, *stride]
    if not isinstance(storage, Tensor) or not all(type(n) is int and 0 <= n < 1 << 48 for n in numbers[:64]):
        raise Refused("it has a tensor without a storage, or with a size that is not a list of whole numbers")
    if len(size) != len(stride) or len(size) > 16:
        raise Refused(
            f"it has a tensor of {len(size)} dimensions and {len(stride)} strides; these must be equal and at most 16"
        )
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    numel = math.prod(int(n) for n in size)
    if numel > len(storage) or (numel and last >= len(storage)):
        raise Refused(f"a tensor of {numel} numbers does not fit its storage of {len(storage)}; is the file complete?")
    return storage.as_strided(size, stride, offset)


def _device(kind: Any, number: Any = 0) -> str:
    if not isinstance(kind, str):
        raise Refused("it has a device without a name")
    return kind


def _size(sizes: Any) -> tuple[Any, ...]:
    if not isinstance(sizes, list | tuple):
        raise Refused(f"it makes a size from a {type(sizes).__name__}; a list or tuple is needed")
    return tuple(sizes)


def _from_type(rebuild: Any, kind: Any, arguments: Any, state: Any) -> Tensor:
    """Read a tensor that torch wrote with attributes, and drop the attributes."""
    if rebuild not in (STAND_INS["torch._utils._rebuild_tensor_v2"], STAND_INS["torch._utils._rebuild_parameter"]):
        raise Refused("it has a tensor that none of torch's usual functions makes")
    made: Tensor = rebuild.call(*arguments)
    return made


_TABLE = [
    StandIn("collections.OrderedDict", ordered_dict),
    StandIn("builtins.bytes", lambda: b""),  # how protocols 0 to 2 write no bytes at all
    StandIn("builtins.set", as_set),
    StandIn("builtins.frozenset", as_set),
    StandIn("builtins.object"),
    StandIn("builtins.dict", ordered_dict),
    StandIn("_codecs.encode", _encode),
    StandIn("copyreg._reconstructor", _reconstructor),
    StandIn("dnnlib.util.EasyDict", new=dict),
    StandIn("numpy.dtype", _numpy_dtype),
    StandIn("numpy.core.multiarray.scalar", _numpy_scalar),
    StandIn("numpy._core.multiarray.scalar", _numpy_scalar),
    StandIn("torch.Size", _size),
    StandIn("torch.device", _device),
    StandIn("torch._utils._rebuild_tensor", _tensor),
    StandIn("torch._utils._rebuild_tensor_v2", _tensor),
    StandIn("torch._utils._rebuild_parameter", lambda data, *options: data),
    StandIn("torch._utils._rebuild_parameter_with_state", lambda data, *options: data),
    StandIn("torch._tensor._rebuild_from_type_v2", _from_type),
    StandIn("torch.Tensor"),
    StandIn("torch.nn.parameter.Buffer"),
    StandIn("torch.nn.parameter.Parameter"),
    StandIn("torch.nn.modules.container.ModuleDict", new=lambda: Object("ModuleDict")),
    StandIn("torch.nn.modules.container.ModuleList", new=lambda: Object("ModuleList")),
    StandIn("torch_utils.persistence._reconstruct_persistent_obj", _persistent_object),
    *(StandIn(f"torch.{name}Storage") for name in DTYPES),
    *(StandIn(str(dtype)) for dtype in DTYPES.values()),
]

STAND_INS: Mapping[str, StandIn] = {entry.name: entry for entry in _TABLE}
"""The names that a file of ``torch.save`` may use, with their stand-ins."""
