"""Random numbers that belong to their caller.

Nothing in ``rfpp`` draws from torch's or numpy's global generators. Every random step names what it
is for, ``generator(seed, "pairs", 17)``, and gets the same stream on every run, whatever ran before:
a resumed or reordered computation is the same computation.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(0, "reflow", step)``; equal inputs, equal seed.

    A name always comes with the same number of parts: zeros at the end do not count (``numpy.random.SeedSequence``), so
    ``derive(0, "reflow")`` and ``derive(0, "reflow", 0)`` are one and the same.
    """
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by :func:`derive`."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))


def fresh(generator: torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """The given generator, or a new one seeded by the operating system when it is ``None``."""
    if generator is not None:
        return generator
    new = torch.Generator(device)
    new.seed()
    return new


@contextmanager
def scoped(seed: int, *purpose: str | int) -> Iterator[None]:
    """Run code that can only draw from torch's global generators (dropout), and put their state back."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive(seed, *purpose))
        yield
