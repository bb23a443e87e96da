"""Fill and read a folder of pairs: an index, and shards with a checksum for each row."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from rfpp.base import files, processes, progress
from rfpp.base.processes import Stopped
from rfpp.data import to_float
from rfpp.pairs.generators import GENERATOR, noise, noise_of_states

INDEX = "pairs.json"
SHARD_SIZE = 4096
IN_MEMORY = 1 << 26
"""The largest folder, in bytes, that is kept in memory once its shards were read."""
FORMAT = 2
"""The format of the shards; format 2 has a checksum for each row."""


class Damaged(ValueError):
    """Raised for a shard that does not hold what was written, or a manifest that cannot be read."""


def _shard(out_dir: Path, number: int) -> Path:
    return out_dir / f"shard-{number:05d}.safetensors"


def _read_index(out_dir: Path) -> dict[str, Any]:
    try:
        index: Any = json.loads((out_dir / INDEX).read_text())
    except ValueError as error:
        raise ValueError(
            f"{out_dir / INDEX} is damaged ({error}); delete {out_dir} and make the pairs again"
        ) from error
    if not isinstance(index, dict):
        raise ValueError(
            f"{out_dir / INDEX} is damaged (a {type(index).__name__} instead of settings); delete {out_dir} and make "
            "the pairs again"
        )
    return {"generator": 1, **index}


def _checksums(columns: Mapping[str, Tensor]) -> Tensor:
    """Compute the CRC-32 of each row over all columns, ``(N,)``."""
    arrays = [columns[name].contiguous().numpy() for name in sorted(columns)]
    found = torch.empty(len(arrays[0]), dtype=torch.int64)
    for row in range(len(found)):
        value = 0
        for array in arrays:
            value = zlib.crc32(array[row].tobytes(), value)
        found[row] = value
    return found


def fill(
    out_dir: Path,
    index: dict[str, Any],
    make: Callable[[Tensor, Callable[[int], Any]], dict[str, Tensor]],
    desc: str,
    advance: Callable[[int], Any] | None = None,
    only: int | None = None,
) -> Path:
    """Write a folder's ``index`` and then its missing shards; process ``k`` of ``K`` writes every ``K``-th shard.

    ``make(indices, advance)`` makes the tensors of one shard and reports its progress in pairs. ``only``: the number of
    a single shard that this process writes.
    Raises ``ValueError`` if the folder holds pairs made with other settings, and
    :class:`rfpp.base.processes.Stopped` after SIGINT or SIGTERM: finished shards are kept.
    """
    index = {**index, "format": FORMAT}
    processes.by_main(lambda: _agree(out_dir, index))
    n, size = index["n"], index["shard_size"]
    shards = range(-(-n // size))
    if only is not None and only not in shards:
        raise ValueError(f"only={only}: {n} pairs have shards 0..{len(shards) - 1}")
    own = shards[processes.index() :: processes.count()] if only is None else range(only, only + 1)
    shared = f", process 1 of {processes.count()}" if processes.count() > 1 else ""
    mine = sum(min(size, n - number * size) for number in own)
    bar: Any = None if advance else progress.bar(total=mine, desc=desc + shared, unit="pair")
    tell = advance or bar.update
    with processes.stoppable() as stop, bar or nullcontext():

        def report(made: int) -> None:
            tell(made)
            if stop:
                raise Stopped(
                    f"{desc}: stopped by {stop.asked}; finished pairs are kept in {out_dir}. Run again to go on"
                )

        for number in own:
            path, indices = _shard(out_dir, number), torch.arange(number * size, min(n, (number + 1) * size))
            if path.is_file() and _whole(path):
                report(len(indices))
            else:
                columns = make(indices, report)
                files.write_tensors(path, {**columns, "crc": _checksums(columns)})
            report(0)
    processes.wait()
    return out_dir


def share_done(out_dir: str | Path) -> float:
    """The share of a folder that has been filled, from 0 to 1."""
    index = _read_index(Path(out_dir))
    return min(1.0, len(list(Path(out_dir).glob("shard-*.safetensors"))) * index["shard_size"] / index["n"])


def _agree(out_dir: Path, index: dict[str, Any]) -> None:
    """Write a new folder's index; raise ``ValueError`` if the folder has another index."""
    out_dir.mkdir(parents=True, exist_ok=True)
    if not (out_dir / INDEX).is_file():
        files.write_text(out_dir / INDEX, json.dumps(index, indent=1, sort_keys=True))
        return
    found = _read_index(out_dir)
    # A denoiser without weights cannot be distinguished from another.
    different = [
        key
        for key in index
        if found.get(key) != index[key] and not (key == "denoiser" and None in (found.get(key), index[key]))
    ]
    if different:
        raise ValueError(
            f"{out_dir} holds pairs made with other settings "
            f"({', '.join(f'{key}: {found.get(key)} instead of {index[key]}' for key in different)}); "
            "choose another out_dir or delete it"
        )


def _whole(path: Path) -> bool:
    """Whether a shard is undamaged; a warning names a damaged shard."""
    try:
        columns = load_file(path)
        whole = torch.equal(columns.pop("crc"), _checksums(columns))
    except (SafetensorError, KeyError):
        whole = False
    if not whole:
        warnings.warn(f"{path} is damaged; making it again", stacklevel=4)
    return whole


class PairDataset(Dataset[tuple[Tensor, ...]]):
    """Pairs of a folder: ``dataset[i] -> (x, z)``, or ``(x, z, label)`` with classes.

    The folder was filled by :func:`generate`, :func:`invert` or :func:`import_released`. Rows are read on demand;
    opening a folder takes no longer for millions of pairs than for a few.

    ``x``: ``(C, H, W)`` in [-1, 1]; ``z``: the same shape; ``label``: a scalar integer tensor.
    Raises ``FileNotFoundError`` when the folder holds no pairs or lacks a shard, ``ValueError`` for an index that is
    damaged or of another version, and :class:`Damaged` when a row is read that differs from what was written.
    """

    def __init__(self, out_dir: str | Path) -> None:
        self.folder = Path(out_dir)
        if not (self.folder / INDEX).is_file():
            raise FileNotFoundError(f"no pairs in {out_dir}: {INDEX} is missing; run rfpp.pairs.generate first")
        index = _read_index(self.folder)
        if index.get("format") != FORMAT:
            raise ValueError(
                f"{out_dir} has pairs of format {index.get('format', 1)}, but this version reads {FORMAT}; "
                "delete it and make them again"
            )
        if index["generator"] not in range(1, GENERATOR + 1):
            raise ValueError(
                f"{out_dir} has noise of generator {index['generator']}, but this version knows 1 to {GENERATOR}; "
                "use a newer version"
            )
        self.seed: int = index.get("seed", 0)
        self.generator: int = index["generator"]
        self.shape, self.classes = tuple(index["shape"]), index["classes"]
        self._n, self._shard_size = int(index["n"]), int(index["shard_size"])
        self._kept: dict[int, dict[str, Tensor]] = {}
        there = {path.name: path.stat().st_size for path in self.folder.glob("shard-*.safetensors")}
        self._is_small = sum(there.values()) <= IN_MEMORY
        for number in range(-(-self._n // self._shard_size)):
            if (path := _shard(self.folder, number)).name not in there:
                raise FileNotFoundError(f"{path} is missing; make the pairs again (the other shards are kept)")

    def __len__(self) -> int:
        return self._n

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``n`` pairs with replacement, ``(n,)``."""
        return torch.randint(len(self), (n,), generator=generator)

    def read(self, indices: Tensor) -> dict[str, Tensor]:
        """Return the stored columns of these pairs, ``(len(indices), ...)`` each: ``images`` as 8-bit pixels,
        ``labels`` and ``noise`` for inverted images, ``labels`` and generator ``states`` for imported pairs.

        Raises ``IndexError`` for an index that no pair has.
        """
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < len(self):
            raise IndexError(
                f"indices span {int(indices.min())}..{int(indices.max())}; this folder has pairs 0..{len(self) - 1}"
            )
        rows = {number: (indices // self._shard_size == number).nonzero().flatten()
                for number in torch.unique(indices // self._shard_size).tolist()}  # fmt: skip
        parts = [self._rows(number, indices[places] % self._shard_size) for number, places in rows.items()]
        order = torch.cat(list(rows.values())).argsort() if rows else torch.empty(0, dtype=torch.int64)
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]} if parts else {}

    def _rows(self, number: int, rows: Tensor) -> dict[str, Tensor]:
        """Return some rows of one shard; the shards of small folders are kept in memory."""
        if self._is_small:
            if number not in self._kept:
                size = min(self._shard_size, self._n - number * self._shard_size)
                self._kept[number] = self._read_rows(number, torch.arange(size))
            return {name: column[rows] for name, column in self._kept[number].items()}
        return self._read_rows(number, rows)

    def _read_rows(self, number: int, rows: Tensor) -> dict[str, Tensor]:
        """Read some rows of one shard from its file, and compare them with their checksums."""
        path = _shard(self.folder, number)
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                if len(rows) > self._shard_size // 16:  # one at a time would take longer
                    found = {name: file.get_tensor(name)[rows] for name in names}
                else:
                    slices = {name: file.get_slice(name) for name in names}
                    places = rows.tolist()
                    found = {name: torch.cat([part[i : i + 1] for i in places]) for name, part in slices.items()}
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is missing; make the pairs again (the other shards are kept)") from error
        except (SafetensorError, IndexError) as error:
            raise Damaged(f"{path} is damaged ({error}); delete it and make the pairs again") from error
        expected = found.pop("crc", None)
        if expected is None or not torch.equal(expected, _checksums(found)):
            raise Damaged(
                f"{path} is damaged: rows differ from their checksums; delete it and make the pairs again "
                "(the other shards are kept)"
            )
        return found

    def batch(self, indices: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """Return ``x, z, labels`` for many indices at once; ``labels`` is ``None`` without classes."""
        stored = self.read(indices)
        if "noise" in stored:
            z = stored["noise"]
        elif "states" in stored:
            z = noise_of_states(stored["states"], self.shape)
        else:
            z = noise(self.seed, indices, self.shape, device, version=self.generator)
        labels = None
        if self.classes:
            labels = stored.get("labels", indices % self.classes).to(device)
        return to_float(stored["images"]).to(device), z.to(device), labels

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} pairs")
        x, z, labels = self.batch(torch.tensor([index % len(self)]))
        return (x[0], z[0]) if labels is None else (x[0], z[0], labels[0])
