"""The noise of pairs, which is drawn again instead of stored: from ``(seed, index)``, or from a kept state.

Noise of ``(seed, index)`` comes from Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011), which turns a key and a counter into random words. On the CPU numpy computes the words, elsewhere torch does. The
words are the same, so noise differs between devices at most by the rounding of elementary functions.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfpp.base import rng

GENERATOR = 2
"""Version of the noise in new stores. Each store names its version; stores that name none have version 1."""
STATE_BYTES = 32
Floats = np.ndarray[Any, np.dtype[np.float32]]
CPU_CHUNK, DEVICE_CHUNK = 1 << 16, 1 << 24
"""How many numbers are drawn at once: on the CPU, as many as fit its cache."""


def noise(
    seed: int,
    indices: Sequence[int] | Tensor,
    shape: Sequence[int],
    device: torch.device | str = "cpu",
    *,
    version: int = GENERATOR,
) -> Tensor:
    """Return standard normal noise ``(len(indices), *shape)``; a row depends only on ``(seed, index)`` and its size.

    Raises ``ValueError`` for an unknown ``version`` of the generator.
    """
    rows = indices.tolist() if isinstance(indices, Tensor) else [int(index) for index in indices]
    if version == 1:
        return _first_version(seed, rows, shape).to(device)
    if version != GENERATOR:
        raise ValueError(f"version={version} of the noise is not known; allowed: 1, {GENERATOR}")
    key, device, size = rng.derive(seed, "pairs"), torch.device(device), math.prod(shape)
    words = -(-size // 2)  # of 64 bits, two numbers each
    values = torch.empty(len(rows), 2 * words, device=device)
    if device.type == "cpu":
        _fill(key, rows, values.numpy())
    else:
        step = max(1, DEVICE_CHUNK // max(1, 2 * words))
        for start in range(0, len(rows), step):
            halves = philox(key, rows[start : start + step], words, device).view(torch.int32).float()
            _normal(halves[:, :words], halves[:, words:], values[start : start + step], torch)
    return values[:, :size].reshape(len(rows), *shape)


def _fill(key: int, indices: Sequence[int], values: Floats) -> None:
    """Fill ``values`` with standard normal numbers, a row for each index, from numpy's :func:`philox`.

    The work arrays are reused and stay in the processor's cache; allocating new memory would take as long as all the
    rest.
    """
    n = values.shape[1] // 2
    step = max(1, CPU_CHUNK // max(1, 2 * n))
    halves = np.empty((2, min(step, len(indices)), n), dtype=np.float32)
    bits = np.random.Philox(key=key, counter=0)
    state = bits.state  # setting it takes a tenth of the time of a new generator
    for start in range(0, len(indices), step):
        chosen = indices[start : start + step]
        for place, index in enumerate(chosen):
            state["state"]["counter"][3] = index
            bits.state = state
            halves[:, place] = bits.random_raw(n).view(np.int32).reshape(2, n)
        radius, angle = halves[:, : len(chosen)]
        _normal(radius, angle, values[start : start + step], np)


def philox(key: int, indices: Sequence[int], n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the first ``n`` 64-bit words that Philox4x64-10 makes of each index, ``(len(indices), n)``.

    The index is the highest word of the counter. The lowest word counts blocks of four words from 1, as in numpy.
    """
    blocks = -(-n // 4)
    low = torch.arange(1, blocks + 1, device=device).repeat(len(indices), 1)
    high = torch.tensor(indices, dtype=torch.int64, device=device).reshape(-1, 1).expand_as(low)
    a, b, c, d = low, torch.zeros_like(low), torch.zeros_like(low), high
    first, second = key, 0
    for _ in range(10):
        (up_a, down_a), (up_c, down_c) = _multiply(a, 0xD2E7470EE14C6C93), _multiply(c, 0xCA5A826395121157)
        a, b, c, d = up_c ^ b ^ _signed(first), down_c, up_a ^ d ^ _signed(second), down_a
        first, second = first + 0x9E3779B97F4A7C15, second + 0xBB67AE8584CAA73B
    return torch.stack([a, b, c, d], dim=2).flatten(1)[:, :n]


def _signed(word: int) -> int:
    """Return the lowest 64 bits of an integer as torch's signed integer."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


def _multiply(a: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the upper and lower 64 bits of products of unsigned 64-bit words, by multiplying their halves."""
    half = 0xFFFFFFFF
    high, low, factor_high, factor_low = (a >> 32) & half, a & half, factor >> 32, factor & half
    left, right = high * factor_low, low * factor_high
    middle = ((low * factor_low >> 32) & half) + (left & half) + (right & half)
    upper = high * factor_high + ((left >> 32) & half) + ((right >> 32) & half) + (middle >> 32)
    return upper, a * _signed(factor)


def _normal(radius: Any, angle: Any, normal: Any, library: Any) -> None:
    """Write standard normal numbers ``(N, 2 n)`` to ``normal``, by the method of Box and Muller (1958).

    ``radius`` and ``angle`` are signed 32-bit words as floats, ``(N, n)`` each, and are overwritten. ``library``: numpy
    or torch, whichever the arrays belong to. A radius has 31 random bits; the largest is 6.66.
    """
    n = radius.shape[1]
    # Measured from -1/2 instead of the smallest word, so that single precision keeps all bits of small numbers.
    library.abs(library.add(radius, 0.5, out=radius), out=radius)
    library.log(library.multiply(radius, 2**-31, out=radius), out=radius)
    library.sqrt(library.multiply(radius, -2, out=radius), out=radius)
    library.multiply(angle, math.pi * 2**-31, out=angle)
    library.multiply(library.cos(angle), radius, out=normal[:, :n])
    library.multiply(library.sin(angle, out=angle), radius, out=normal[:, n:])


def _first_version(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Return the noise of version 1 stores: numpy's normal numbers, one row after another."""
    key = int(np.random.SeedSequence([seed, zlib.crc32(b"pairs")]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
        generator.standard_normal(dtype=np.float32, out=row)
    return torch.from_numpy(rows)


def noise_of_states(states: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the noise ``(N, *shape)`` that numpy's PCG64 draws from each of the ``states`` ``(N, 32)``, bit for bit.

    As in the released archives, a state is two big-endian numbers of 16 bytes: the generator's state and its increment.
    The generator draws in double precision, and the noise is rounded to single precision.
    """
    generator = np.random.PCG64(0)
    rows = np.empty((len(states), *shape), dtype=np.float32)
    for row, content in zip(rows, states.numpy(), strict=True):
        state, increment = (int.from_bytes(half.tobytes(), "big") for half in np.split(content, 2))
        generator.state = {
            "bit_generator": "PCG64", "state": {"state": state, "inc": increment}, "has_uint32": 0, "uinteger": 0
        }  # fmt: skip
        row[...] = np.random.Generator(generator).standard_normal(shape)
    return torch.from_numpy(rows)
