"""Networks that see few rows at a time, so that memory does not depend on how many images a caller has."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rfpp.base.checks import at_least

Model = TypeVar("Model", bound=nn.Module)


def in_batches(function: Callable[..., Tensor], rows: int, x: Tensor, *others: Any, **named: Any) -> Tensor:
    """``function(x, *others, **named)``, computed for ``rows`` rows of ``x`` ``(B, ...)`` at a time, and joined.

    Other tensors with ``B`` rows are divided alike; everything else is passed on as it is. ``function`` treats each row
    by itself. Raises ``ValueError`` for fewer than one row.
    """
    at_least("rows", rows, 1)
    count = len(x)
    if count <= rows:
        return function(x, *others, **named)

    def part(value: Any, chosen: slice) -> Any:
        return value[chosen] if isinstance(value, Tensor) and value.ndim and len(value) == count else value

    slices = [slice(first, first + rows) for first in range(0, count, rows)]
    return torch.cat(
        [
            function(
                x[chosen],
                *(part(value, chosen) for value in others),
                **{name: part(value, chosen) for name, value in named.items()},
            )
            for chosen in slices
        ]
    )


class _InBatches:
    """The ``forward`` of a model, in batches.

    A model that its own attribute refers to would keep its memory, also on a GPU, until Python looks for cycles.
    """

    def __init__(self, model: nn.Module, rows: int) -> None:
        self.model, self.rows = weakref.ref(model), rows

    def __call__(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        model = self.model()
        assert model is not None  # it is calling
        return in_batches(partial(type(model).forward, model), self.rows, x, *others, **named)

    def __reduce__(self) -> tuple[Any, ...]:
        return _InBatches, (self.model(), self.rows)  # a copy of the model computes with its own weights


def at_most(rows: int, model: Model) -> Model:
    """Return ``model`` itself, which from now on computes at most ``rows`` rows of its inputs at once.

    Without gradients, this bounds the memory that a call takes. With them, all batches' graphs are kept.
    """
    model.forward = _InBatches(model, rows)
    return model


def setting(trace: str) -> str:
    """The setting that decides how many rows were computed at once where a traceback ends."""
    is_training = os.path.join("rfpp", "engine", "loop.py") in trace
    return "machinery.micro_batch" if is_training else "pairs.batch_size"
