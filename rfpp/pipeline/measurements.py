"""What a study makes of flows and images, kept like any other step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors.torch import load_file
from torch import Tensor

from rfpp.base import files
from rfpp.configurations import imported
from rfpp.pipeline.digests import is_own, presentation
from rfpp.pipeline.steps import Run, Step

_VALUE, _TENSORS = "value.json", "tensors.safetensors"


@dataclass(frozen=True, eq=False)
class Measurement(Step):
    """``function(*arguments)``: its key covers the function's code, and what the arguments are made of.

    The result may consist of numbers, strings, tensors, ``None``, lists, tuples, mappings, and dataclasses of this
    package; for anything else the work ends in a ``TypeError``.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]

    name: ClassVar[str] = "measurement"

    @property
    @presentation
    def title(self) -> str:
        return self.function.__name__.replace("_", " ")

    def compute(self, folder: Path, run: Run) -> None:
        tensors: dict[str, Tensor] = {}
        value = _taken_apart(self.function(*self.arguments), tensors)
        files.write_tensors(folder / _TENSORS, tensors)
        files.write_text(folder / _VALUE, json.dumps(value))

    def load(self, run: Run) -> Any:
        """What the function gave."""
        folder = run.get(self).folder
        return _put_together(json.loads((folder / _VALUE).read_text()), load_file(folder / _TENSORS))


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert a result to JSON; its tensors are put into ``tensors``.

    A number, a string or ``None`` stands for itself, anything else is an object with one entry.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value)
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if kind in (list, tuple):
        return {kind.__name__: [_taken_apart(item, tensors) for item in value]}
    if isinstance(value, Mapping):
        return {"mapping": [[_taken_apart(part, tensors) for part in item] for item in value.items()]}
    if dataclasses.is_dataclass(value) and is_own(kind):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {f"{kind.__module__}:{kind.__qualname__}": _taken_apart(parts, tensors)}
    raise TypeError(
        f"the result holds a {kind.__name__}, which cannot be stored; allowed: numbers, strings, tensors, dataclasses "
        "of rfpp, and lists, tuples and mappings of these"
    )


def _put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {_put_together(key, tensors): _put_together(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        items = [_put_together(item, tensors) for item in content]
        return tuple(items) if kind == "tuple" else items
    made: Any = imported(kind, "class")
    if not (is_own(made) and dataclasses.is_dataclass(made)):
        raise ValueError(f"class={kind!r} is not a dataclass of rfpp; delete the measurement to make it again")
    found: Any = made(**_put_together(content, tensors))  # type: ignore[operator]
    return found
