"""Steps as values: a step's fields are all its inputs, and its key is the hash of these and of the code it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from rfpp.engine import Machinery
from rfpp.pipeline.digests import code_digest, presentation
from rfpp.pipeline.identities import identity
from rfpp.pipeline.store import Artifact, Store


@dataclass(frozen=True)
class Cost:
    """What a step takes: ``passes``, forward passes of the flow's network; ``trained``, images of training steps, and
    whether these are ``with_lpips``; ``stored``, bytes that stay, but for checkpoints that are to be kept."""

    passes: int = 0
    trained: int = 0
    with_lpips: bool = False
    stored: int = 0


@dataclass(frozen=True)
class Size:
    """What costs depend on: ``pixels`` of an image over all channels, ``parameters`` of the flow's network, and how
    many training ``images`` there are."""

    pixels: int
    parameters: int
    images: int


@dataclass(frozen=True)
class Run:
    """Where and how steps are computed. It changes no result, so no key has it.

    ``batch_size``: pairs or samples at once; ``position``: a remark for progress bars, such as "(1 of 3)"; ``advance``
    is told how many evaluations of images were made.
    """

    store: Store
    machinery: Machinery
    batch_size: int = 500
    position: str = ""
    advance: Callable[[int], Any] | None = None

    def find(self, step: Step) -> Artifact | None:
        """The step's result if it is finished and whole."""
        return self.store.peek(step.name, step.inputs)

    def get(self, step: Step) -> Artifact:
        """The step's result; computes the step and its dependencies if absent."""
        finished = self.find(step)
        for need in step.needs:
            if finished is None or self.find(need) is not None:  # of a finished step, what is there is only looked at
                self.get(need)
        if finished is not None:
            return finished
        with torch.inference_mode(False), torch.enable_grad():  # whoever asks may need no gradient; a training does
            return self.store.get(step.name, step.inputs, lambda folder: step.compute(folder, self), resumable=True)


@dataclass(frozen=True)
class Step(ABC):
    """An arrow of the path from data to grades.

    The compared fields are the step's inputs. What :meth:`compute` reads beyond them, a :class:`Run`, changes no
    result. ``code`` names what the class runs without naming it, such as the methods of a loaded network: the key
    covers every definition that is reached from the class and from these.
    """

    name: ClassVar[str]
    code: ClassVar[tuple[Any, ...]] = ()

    @abstractmethod
    def compute(self, folder: Path, run: Run) -> None:
        """Write the result into ``folder``, which may hold the whole files of an interrupted attempt."""

    @property
    @presentation
    def title(self) -> str:
        """What the step does, in a few words."""
        return self.name

    @presentation
    def cost(self, size: Size) -> Cost:
        """What the step takes on a problem of this size."""
        return Cost()

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The fields and the digest of the code, as a JSON value."""
        values = {field.name: identity(getattr(self, field.name)) for field in fields(self) if field.compare}
        return {**values, "code": code_digest(type(self), *self.code)}

    @cached_property
    def key(self) -> str:
        """What the step is called on disk."""
        return Store.key(self.name, self.inputs)

    def identity(self) -> list[str]:
        """What stands for the step among another one's inputs."""
        return [self.name, self.key]

    @property
    def needs(self) -> tuple[Step, ...]:
        """The steps among the fields."""
        values = (getattr(self, field.name) for field in fields(self) if field.compare)
        return tuple(value for value in values if isinstance(value, Step))


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Steps and all that they need, each once and after those that it needs."""
    ordered: dict[str, Step] = {}

    def with_needs(step: Step) -> Iterator[Step]:
        for need in step.needs:
            yield from with_needs(need)
        yield step

    for step in steps:
        for each in with_needs(step):
            ordered.setdefault(each.key, each)
    return list(ordered.values())
