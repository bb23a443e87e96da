"""Pairs ``(x, z)`` of the 1-rectified flow: ``z`` is noise, ``x`` what the teacher's ODE makes of it (Algorithm 1).

Images are stored as 8-bit pixels in numbered shards; noise is not stored at all, since :func:`noise` computes it from
``(seed, index)``. Image ``i`` of a folder therefore depends on nothing but the teacher, the seed and ``i``: shards can
be made in any order, and a run that was interrupted goes on with the first shard that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from rfpp import files, progress, rng
from rfpp.checks import at_least
from rfpp.data import to_float, to_uint8
from rfpp.flow import Denoiser
from rfpp.samplers import edm_sample

INDEX = "pairs.json"
SHARD_SIZE = 4096


def noise(seed: int, indices: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise ``(len(indices), *shape)``; each row a function of ``(seed, index)`` alone."""
    key = rng.derive(seed, "pairs")
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(index)])).standard_normal(
            dtype=np.float32, out=row
        )
    return torch.from_numpy(rows)


def _shard(out_dir: Path, number: int) -> Path:
    return out_dir / f"shard-{number:05d}.safetensors"


def _read_index(out_dir: Path) -> dict[str, Any]:
    try:
        index: dict[str, Any] = json.loads((out_dir / INDEX).read_text())
    except ValueError as error:
        raise ValueError(
            f"{out_dir / INDEX} is damaged ({error}); delete {out_dir} and make the pairs again"
        ) from error
    return index


def generate(
    denoiser: Denoiser,
    n: int,
    out_dir: str | Path,
    *,
    seed: int = 0,
    batch_size: int = 256,
    num_steps: int = 18,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    shard_size: int = SHARD_SIZE,
    device: torch.device | str = "cpu",
) -> Path:
    """Make ``n`` pairs with EDM's Heun sampler, ``2 num_steps - 1`` evaluations each, and return ``out_dir``.

    ``shape`` ``(C, H, W)`` and ``classes`` are read off the denoiser's network where it has one; labels are then drawn
    in turn, ``index mod classes``. Shards that are already there are kept.

    Raises ``ValueError`` for ``n`` or ``batch_size`` below 1, or if ``out_dir`` holds pairs made with other settings.
    """
    for name, value in (("n", n), ("batch_size", batch_size), ("shard_size", shard_size)):
        at_least(name, value, 1)
    at_least("num_steps", num_steps, 2)
    at_least("seed", seed, 0)
    network = getattr(denoiser, "model", None)
    if shape is None:
        if network is None:
            raise ValueError("shape=None, and the denoiser has no network to read it off; pass shape=(C, H, W)")
        shape = (network.in_channels, network.img_resolution, network.img_resolution)
    if classes is None:
        classes = getattr(network, "label_dim", 0)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    index = {
        "n": n, "seed": seed, "num_steps": num_steps, "shape": list(shape), "classes": classes, "shard_size": shard_size
    }  # fmt: skip
    if (out_dir / INDEX).is_file():
        found = _read_index(out_dir)
        different = [key for key in index if found.get(key) != index[key]]
        if different:
            raise ValueError(
                f"{out_dir} holds pairs made with other settings "
                f"({', '.join(f'{key}: {found.get(key)} instead of {index[key]}' for key in different)}); "
                "choose another out_dir or delete it"
            )
    else:
        files.write_text(out_dir / INDEX, json.dumps(index, indent=1, sort_keys=True))

    with progress.bar(total=n, desc=f"pairs, {2 * num_steps - 1} NFE", unit="pair") as bar:
        for number, first in enumerate(range(0, n, shard_size)):
            indices = torch.arange(first, min(first + shard_size, n))
            path = _shard(out_dir, number)
            if path.is_file() and _readable(path):
                bar.update(len(indices))
                continue
            images = []
            for chunk in indices.split(batch_size):
                z = noise(seed, chunk, shape).to(device)
                labels = (chunk % classes).to(device) if classes else None
                images.append(to_uint8(edm_sample(denoiser, z, num_steps, labels=labels)).cpu())
                bar.update(len(chunk))
            files.write_tensors(path, {"images": torch.cat(images), "indices": indices})
    return out_dir


def _readable(path: Path) -> bool:
    try:
        load_file(path)
    except (SafetensorError, OSError):
        path.unlink()
        return False
    return True


class PairDataset(Dataset[tuple[Tensor, ...]]):
    """Pairs of a folder that :func:`generate` filled: ``dataset[i] -> (x, z)``, or ``(x, z, label)`` with classes.

    ``x``: ``(C, H, W)`` in [-1, 1]; ``z``: the same shape; ``label``: a scalar integer tensor.
    Raises ``FileNotFoundError`` when the folder holds no pairs or lacks a shard, ``ValueError`` for a damaged shard.
    """

    def __init__(self, out_dir: str | Path) -> None:
        out_dir = Path(out_dir)
        if not (out_dir / INDEX).is_file():
            raise FileNotFoundError(f"no pairs in {out_dir}: {INDEX} is missing; run rfpp.pairs.generate first")
        index = _read_index(out_dir)
        self.seed, self.shape, self.classes = index["seed"], tuple(index["shape"]), index["classes"]
        shards = []
        for number in range(-(-index["n"] // index["shard_size"])):
            path = _shard(out_dir, number)
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing; run rfpp.pairs.generate again, it keeps the other shards")
            try:
                shards.append(load_file(path)["images"])
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged ({error}); run rfpp.pairs.generate again") from error
        self.images = torch.cat(shards)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """``x, z, labels`` for many indices at once; ``labels`` is ``None`` without classes."""
        x, z = to_float(self.images[indices]), noise(self.seed, indices, self.shape)
        labels = (indices % self.classes).to(device) if self.classes else None
        return x.to(device), z.to(device), labels

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} pairs")
        x, z, labels = self.batch(torch.tensor([index % len(self)]))
        return (x[0], z[0]) if labels is None else (x[0], z[0], labels[0])
