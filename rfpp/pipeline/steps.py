"""Steps as values: a step's fields are all its inputs, and its key is the hash of its inputs and its code."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from rfpp.base import processes
from rfpp.engine import Machinery
from rfpp.pipeline.digests import code_digest, presentation
from rfpp.pipeline.identities import identity
from rfpp.pipeline.store import Artifact, Store


@dataclass(frozen=True)
class Cost:
    """The cost of a step. ``passes``: forward passes of the flow's network; ``trained``: images of training steps, and
    whether these are ``with_lpips``; ``stored``: bytes that remain on disk, without checkpoints that are kept."""

    passes: int = 0
    trained: int = 0
    with_lpips: bool = False
    stored: int = 0

    @property
    def in_all(self) -> int:
        """All forward passes; an image of a training step counts three, because a backward pass costs two."""
        return self.passes + 3 * self.trained


@dataclass(frozen=True)
class Size:
    """The size of a problem, on which costs depend: ``pixels`` of an image over all channels, ``parameters`` of the
    flow's network, and the number of training ``images``."""

    pixels: int
    parameters: int
    images: int


@dataclass(frozen=True)
class Run:
    """Where and how steps are computed. It changes no result, so no key includes it.

    ``batch_size``: pairs or samples at once; ``position``: a remark for progress bars, such as "(1 of 3)"; ``advance``:
    called with the number of new evaluations of images; ``part``: the part of a step to compute, all of it if ``None``.
    """

    store: Store
    machinery: Machinery
    batch_size: int = 500
    position: str = ""
    advance: Callable[[int], Any] | None = None
    part: int | None = None

    def find(self, step: Step) -> Artifact | None:
        """Return the step's result if it is finished and undamaged."""
        return self.store.peek(step.name, step.inputs)

    def get(self, step: Step) -> Artifact:
        """Return the step's result; computes the step and its dependencies if absent."""
        finished = self.find(step)
        for need in step.needs:
            if finished is None or self.find(need) is not None:  # for a finished step, only check what exists
                self.get(need)
        if finished is not None:
            return finished
        with _computing():
            run = replace(step.suited(self), part=None)
            return self.store.get(step.name, step.inputs, lambda folder: step.compute(folder, run))

    def get_part(self, step: Step, part: int) -> None:
        """Compute one of the step's :attr:`Step.parts` in its unfinished folder, where :meth:`get` finds it.

        Whoever asks for parts holds the step's lock, so that no other run computes it.
        """
        with _computing(), self.store.part(step.name, step.key, part) as folder:
            step.compute(folder, replace(step.suited(self), part=part))


@contextlib.contextmanager
def _computing() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():  # callers may have gradients off; training needs them
        processes.cast_each_time()  # in this thread: a cluster's worker computes in another than it starts in
        yield


@dataclass(frozen=True)
class Step(ABC):
    """A step of the path from data to grades.

    The compared fields are the step's inputs. Beyond them, :meth:`compute` only reads a :class:`Run`, which changes no
    result. ``code`` lists code that the class runs without naming it, such as the methods of a loaded network. The key
    covers every definition reached from the class and from ``code``.
    """

    name: ClassVar[str]
    code: ClassVar[tuple[Any, ...]] = ()

    @abstractmethod
    def compute(self, folder: Path, run: Run) -> None:
        """Write the result into ``folder``, which may hold complete files of an interrupted attempt.

        A step of several :attr:`parts` makes only one of them if ``run.part`` is its number, from 0.
        """

    @property
    @presentation
    def parts(self) -> int:
        """The number of parts that can be computed side by side, before the step finds them and finishes."""
        return 1

    @property
    @presentation
    def title(self) -> str:
        """The step's work, in a few words."""
        return self.name

    @presentation
    def cost(self, size: Size) -> Cost:
        """Return the cost of the step on a problem of this size."""
        return Cost()

    @presentation
    def suited(self, run: Run) -> Run:
        """Return the run without what this step cannot use, which changes no result either."""
        return run

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """The fields and the digest of the code, as a JSON value."""
        values = {field.name: identity(getattr(self, field.name)) for field in fields(self) if field.compare}
        return {**values, "code": code_digest(type(self), *self.code)}

    @cached_property
    def key(self) -> str:
        """The name of the step on disk."""
        return Store.key(self.name, self.inputs)

    def identity(self) -> list[str]:
        """Return the identity of the step among another step's inputs."""
        return [self.name, self.key]

    @property
    def needs(self) -> tuple[Step, ...]:
        """The steps among the fields."""
        values = (getattr(self, field.name) for field in fields(self) if field.compare)
        return tuple(value for value in values if isinstance(value, Step))


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Return steps and their dependencies, each once and after the steps that it needs."""
    ordered: dict[str, Step] = {}

    def with_needs(step: Step) -> Iterator[Step]:
        for need in step.needs:
            yield from with_needs(need)
        yield step

    for step in steps:
        for each in with_needs(step):
            ordered.setdefault(each.key, each)
    return list(ordered.values())
