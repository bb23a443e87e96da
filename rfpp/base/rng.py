"""Random numbers that belong to their caller.

Nothing in ``rfpp`` depends on torch's or numpy's global generators, or leaves them changed: code that can draw from no
others runs within :func:`scoped`. Every random step of a run names its purpose, as in ``generator(seed, "pairs", 17)``,
and gets the same stream on every run, whatever ran before. A resumed or reordered computation therefore gives the same
result. A function that is called with ``generator=None`` draws anew each time.
"""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, e.g. ``derive(0, "reflow", step)``; equal inputs give equal seeds.

    The seed is the first 63 bits of the BLAKE2b hash of the arguments as JSON. Different arguments give different
    texts: trailing zeros count, and ``"1"`` differs from ``1``. Raises ``TypeError`` for arguments that are neither
    strings nor integers.
    """
    parts = [part if isinstance(part, str) else operator.index(part) for part in (seed, *purpose)]
    return int.from_bytes(hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator seeded by :func:`derive`."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))


def fresh(generator: torch.Generator | None, device: torch.device | str = "cpu") -> torch.Generator:
    """Return the given generator or, for ``None``, a new one seeded by the operating system."""
    if generator is not None:
        return generator
    new = torch.Generator(device)
    new.seed()
    return new


@contextmanager
def scoped(seed: int, *purpose: str | int) -> Iterator[None]:
    """Seed torch's global generators for code that can draw from no others (dropout), then restore their state."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive(seed, *purpose))
        yield
