"""Pairs ``(x, z)`` of the 1-rectified flow: ``z`` is noise, ``x`` what the teacher's ODE makes of it (Algorithm 1).

Images are stored as 8-bit pixels in numbered shards; noise is not stored at all, since :func:`noise` computes it from
``(seed, index)``. Image ``i`` of a folder therefore depends on nothing but the teacher, the seed and ``i``: shards can
be made in any order and by any number of processes, and a run that was interrupted goes on with those that are missing.

A folder may hold millions of pairs. But for small folders nothing is kept in memory: rows are read where they lie, and
each is compared with its checksum as it is read, so that a damaged one is never used.

Pairs that the paper's released code made come in with :func:`import_released`. Their noise is stored as the state of
the generator it was drawn from, and :func:`noise_of_states` draws it again. The noise of real images, which
:func:`invert` finds, is stored as it is.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from rfpp import samplers
from rfpp.base import files, processes, progress, rng
from rfpp.base.checks import at_least
from rfpp.base.processes import Stopped
from rfpp.data import to_float, to_uint8
from rfpp.flow import Denoiser, RectifiedFlow, interpolate
from rfpp.samplers import edm_sample

INDEX = "pairs.json"
SHARD_SIZE = 4096
IN_MEMORY = 1 << 26
"""Bytes up to which a folder is kept in memory once its shards were read."""
FORMAT = 2
"""Of the shards; 2 has a checksum for each row."""


class Damaged(ValueError):
    """A shard does not hold what was written."""


def noise(seed: int, indices: Sequence[int] | Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise ``(len(indices), *shape)``; each row a function of ``(seed, index)`` alone."""
    key = rng.derive(seed, "pairs")
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, indices, strict=True):
        np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, int(index)])).standard_normal(
            dtype=np.float32, out=row
        )
    return torch.from_numpy(rows)


STATE_BYTES = 32


def noise_of_states(states: Tensor, shape: Sequence[int]) -> Tensor:
    """The noise ``(N, *shape)`` that numpy's PCG64 draws from each of the ``states`` ``(N, 32)``, bit for bit.

    A state is two big-endian numbers of 16 bytes, as the released archives have them: the generator's state and its
    increment. The generator draws in double precision, and the noise is that, rounded to single.
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
    sampler: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    shape: Sequence[int] | None = None,
    classes: int | None = None,
    shard_size: int = SHARD_SIZE,
    device: torch.device | str = "cpu",
    advance: Callable[[int], Any] | None = None,
) -> Path:
    """Make ``n`` pairs with EDM's Heun sampler, ``2 num_steps - 1`` evaluations each, and return ``out_dir``.

    ``sampler(z, labels) -> x`` takes its place, for a flow whose ODE is better solved in another way. ``advance`` is
    told how many pairs were made, in place of a progress bar. Several processes, each called alike, share the shards.

    ``shape`` ``(C, H, W)`` and ``classes`` are read off the denoiser's network where it has one; labels are then drawn
    in turn, ``index mod classes``. Shards that are already there are kept.

    Raises ``ValueError`` for ``n`` or ``batch_size`` below 1, ``classes`` that the network does not have, or if
    ``out_dir`` holds pairs made with other settings or by another denoiser.
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
    elif classes and network is not None and classes != getattr(network, "label_dim", classes):
        raise ValueError(f"classes={classes}, but the denoiser's network has label_dim={network.label_dim}")
    index = {
        "n": n, "seed": seed, "num_steps": None if sampler else num_steps, "shape": list(shape), "classes": classes,
        "shard_size": shard_size, "denoiser": _fingerprint(denoiser),
    }  # fmt: skip

    def make(indices: Tensor, advance: Callable[[int], Any]) -> dict[str, Tensor]:
        images = torch.empty((len(indices), *shape), dtype=torch.uint8)
        for chunk, rows in zip(indices.split(batch_size), images.split(batch_size), strict=True):
            z = noise(seed, chunk, shape).to(device)
            labels = (chunk % classes).to(device) if classes else None
            x = sampler(z, labels) if sampler else edm_sample(denoiser, z, num_steps, labels=labels)
            rows.copy_(to_uint8(x))
            advance(len(chunk))
        return {"images": images, "indices": indices}

    return _fill(Path(out_dir), index, make, "pairs" if sampler else f"pairs, {2 * num_steps - 1} NFE", advance)


def invert(
    flow: RectifiedFlow,
    images: Tensor,
    labels: Tensor | None,
    out_dir: str | Path,
    *,
    nfe: int = 128,
    seed: int = 0,
    batch_size: int = 256,
    shard_size: int = SHARD_SIZE,
    device: torch.device | str = "cpu",
) -> Path:
    """Pairs of real images and the noise that ``flow`` carries them to (Section 4.4), and return ``out_dir``.

    ``images``: 8-bit pixels ``(N, C, H, W)``; ``labels``: ``(N,)`` or ``None``. The noise is stored as it is, and the
    little noise that inversion starts with is a function of ``(seed, i)``. Shards that are there are kept.
    Raises ``ValueError`` if ``out_dir`` holds pairs made with other settings or by another flow; that it holds other
    images, it does not notice.
    """
    samplers.steps_for(nfe, "euler")
    classes = 0 if labels is None else int(labels.max()) + 1
    shape = list(images.shape[1:])
    index = {
        "n": len(images), "seed": seed, "nfe": nfe, "shape": shape, "classes": classes,
        "shard_size": shard_size, "noise": "stored", "denoiser": _fingerprint(flow),
    }  # fmt: skip

    def make(indices: Tensor, advance: Callable[[int], Any]) -> dict[str, Tensor]:
        found = torch.empty((len(indices), *shape))
        for chunk, rows in zip(indices.split(batch_size), found.split(batch_size), strict=True):
            x = to_float(images[chunk]).to(device)
            start = interpolate(x, noise(seed, chunk, shape).to(device), samplers.INVERSION_START)
            given = None if labels is None else labels[chunk].to(device)
            with torch.no_grad():
                rows.copy_(samplers.integrate(flow, start, samplers.inversion_times(nfe), labels=given)[-1])
            advance(len(chunk))
        shard = {"images": images[indices], "indices": indices, "noise": found}
        return shard if labels is None else {**shard, "labels": labels[indices]}

    return _fill(Path(out_dir), index, make, f"inverting images, {nfe} NFE")


def _fingerprint(denoiser: Denoiser) -> str | None:
    """SHA-256 of a denoiser's weights, whatever they are called; ``None`` for one that has none to show."""
    tensors = list(denoiser.state_dict().values()) if isinstance(denoiser, nn.Module) else []
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest() if tensors else None


def _checksums(columns: Mapping[str, Tensor]) -> Tensor:
    """CRC-32 of each row of some columns, ``(N,)``."""
    arrays = [columns[name].contiguous().numpy() for name in sorted(columns)]
    found = torch.empty(len(arrays[0]), dtype=torch.int64)
    for row in range(len(found)):
        value = 0
        for array in arrays:
            value = zlib.crc32(array[row].tobytes(), value)
        found[row] = value
    return found


def _fill(
    out_dir: Path,
    index: dict[str, Any],
    make: Callable[[Tensor, Callable[[int], Any]], dict[str, Tensor]],
    desc: str,
    advance: Callable[[int], Any] | None = None,
) -> Path:
    """Write the shards that are missing of a folder, and its ``index`` first; process ``k`` of ``K`` every ``K``-th.

    ``make(indices, advance)`` makes the tensors of one shard and reports its progress in pairs.
    Raises ``ValueError`` if the folder holds pairs made with other settings, and
    :class:`rfpp.base.processes.Stopped` after SIGINT or SIGTERM: finished shards are kept.
    """
    index = {**index, "format": FORMAT}
    processes.by_main(lambda: _agree(out_dir, index))
    n, size = index["n"], index["shard_size"]
    own = range(processes.index(), -(-n // size), processes.count())
    shared = f", process 1 of {processes.count()}" if processes.count() > 1 else ""
    mine = sum(min(size, n - number * size) for number in own)
    bar: Any = None if advance else progress.bar(total=mine, desc=desc + shared, unit="pair")
    tell = advance or bar.update
    with processes.stoppable() as stop, bar or nullcontext():

        def report(made: int) -> None:
            tell(made)
            if stop:
                raise Stopped(
                    f"{desc}: stopped by {stop.asked}; finished pairs are kept in {out_dir}, run again to go on"
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
    """How much of a folder that is being filled is there, from 0 to 1."""
    index = _read_index(Path(out_dir))
    return min(1.0, len(list(Path(out_dir).glob("shard-*.safetensors"))) * index["shard_size"] / index["n"])


def _agree(out_dir: Path, index: dict[str, Any]) -> None:
    """Write a new folder's index; raise ``ValueError`` if there is one that differs."""
    out_dir.mkdir(parents=True, exist_ok=True)
    if not (out_dir / INDEX).is_file():
        files.write_text(out_dir / INDEX, json.dumps(index, indent=1, sort_keys=True))
        return
    found = _read_index(out_dir)
    # A denoiser without weights cannot be told from another.
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
    """Whether a shard is what was written; a warning names one that is not."""
    try:
        columns = load_file(path)
        whole = torch.equal(columns.pop("crc"), _checksums(columns))
    except (SafetensorError, KeyError):
        whole = False
    if not whole:
        warnings.warn(f"{path} is damaged; making it again", stacklevel=4)
    return whole


# The released archives

_LARGEST_FILE, _LARGEST_SIDE = 1 << 24, 4096


def _entries(archive: zipfile.ZipFile, source: Path, ending: str) -> dict[str, zipfile.ZipInfo]:
    """The archive's files with this ending, by their names without it.

    An interrupted and repeated run of the released code stores files twice; that is fine as long as they are the same.
    """
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        path = PurePosixPath(info.filename)
        if info.is_dir() or path.suffix != ending:
            continue
        if info.file_size > _LARGEST_FILE:
            raise ValueError(
                f"{source}: {info.filename} would unfold to {info.file_size} bytes; is this the right file?"
            )
        stem = str(path.with_suffix(""))
        if stem in found and (found[stem].CRC, found[stem].file_size) != (info.CRC, info.file_size):
            raise ValueError(f"{source} has two different files called {info.filename}")
        found[stem] = info
    if not found:
        raise ValueError(f"{source} has no {ending} files")
    return found


def _open(path: Path) -> zipfile.ZipFile:
    if not path.is_file():
        raise FileNotFoundError(f"no archive at {path}")
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a whole zip archive ({error})") from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read_labels(path: Path, names: Sequence[str], classes: int | None) -> tuple[Tensor, int]:
    """The labels of the images called ``names``, and the number of classes."""
    if not path.is_file():
        raise FileNotFoundError(f"no labels at {path}")
    found: dict[str, int] = {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a list of names and classes ({error})") from error
    for number, row in enumerate(rows, start=1):
        if row:
            if len(row) != 2 or not PurePosixPath(row[0]).name or not re.fullmatch(r"\d{1,9}", row[1].strip()):
                raise ValueError(f"{path}, line {number}: {','.join(row)[:100]!r} is not a name and a class")
            name, label = str(PurePosixPath(row[0]).with_suffix("")), int(row[1])
            if found.setdefault(name, label) != label:
                raise ValueError(f"{path}, line {number}: {row[0]} has class {label}, and {found[name]} further up")
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} has no class for {len(missing)} of {len(names)} images: {_some(missing)}")
    labels = torch.tensor([found[name] for name in names])
    largest = int(labels.max())
    if classes is not None and largest >= classes:
        raise ValueError(f"{path} has class {largest}, but classes={classes}; allowed: 0..{classes - 1}")
    return labels, classes or largest + 1


def import_released(
    samples_zip: str | Path,
    z_zip: str | Path,
    out_dir: str | Path,
    labels_csv: str | Path | None = None,
    *,
    classes: int | None = None,
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Take over the pairs that the paper's released code made, and return ``out_dir``.

    ``samples_zip``: images as PNG; ``z_zip``: for each a ``.bin`` file with the state of the generator that its noise
    was drawn from; ``labels_csv``: a line ``name,class`` for each. Pairs are ordered by the numbers in their names.
    ``classes``: how many there are, by default one more than the largest. Shards that are already there are kept.

    Raises ``FileNotFoundError``, or ``ValueError`` before anything is written for archives that are damaged or do not
    match, and later naming the image that cannot be read or has another size.
    """
    at_least("shard_size", shard_size, 1)
    samples_zip, z_zip = Path(samples_zip), Path(z_zip)
    with _open(samples_zip) as sample_archive, _open(z_zip) as z_archive:
        images, noises = _entries(sample_archive, samples_zip, ".png"), _entries(z_archive, z_zip, ".bin")
        for one, other, here, there in ((images, noises, samples_zip, z_zip), (noises, images, z_zip, samples_zip)):
            alone = sorted(one.keys() - other.keys())
            if alone:
                raise ValueError(
                    f"{len(alone)} of {len(one)} files in {here} have no partner in {there}: {_some(alone)}"
                )
        wrong = [name for name, info in noises.items() if info.file_size != STATE_BYTES]
        if wrong:
            raise ValueError(f"{z_zip}: {len(wrong)} files do not have {STATE_BYTES} bytes: {_some(wrong)}")
        names = sorted(images, key=_place)
        labels = None
        if labels_csv is not None:
            labels, classes = _read_labels(Path(labels_csv), names, classes)
        shape = _pixels(sample_archive, images[names[0]], samples_zip).shape
        content = hashlib.sha256(b"" if labels is None else labels.numpy().tobytes())
        for name in names:
            content.update(f"{name} {images[name].CRC} {noises[name].CRC}\n".encode())
        index = {
            "n": len(names), "shape": list(shape), "classes": classes if labels is not None else 0,
            "shard_size": shard_size, "noise": "pcg64", "content": content.hexdigest(),
        }  # fmt: skip

        def make(indices: Tensor, advance: Callable[[int], Any]) -> dict[str, Tensor]:
            pixels = np.empty((len(indices), *shape), dtype=np.uint8)
            states = np.empty((len(indices), STATE_BYTES), dtype=np.uint8)
            for row, name in enumerate(names[i] for i in indices.tolist()):
                pixels[row] = _pixels(sample_archive, images[name], samples_zip, shape)
                states[row] = np.frombuffer(_member(z_archive, noises[name], z_zip), dtype=np.uint8)
                advance(1)
            # Numpy makes odd increments only; a file of anything else shows here.
            if not (states[:, -1] % 2).all():
                raise ValueError(f"{z_zip} does not hold PCG64 states: there are even increments")
            shard = {"images": torch.from_numpy(pixels), "indices": indices, "states": torch.from_numpy(states)}
            return shard if labels is None else {**shard, "labels": labels[indices]}

        return _fill(Path(out_dir), index, make, "importing pairs")


def _place(name: str) -> tuple[float, str]:
    number = PurePosixPath(name).name
    return (int(number) if number.isdecimal() and len(number) < 19 else float("inf")), name


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path) -> bytes:
    try:
        return archive.read(info)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{source}: {info.filename} is damaged ({error})") from error


def _pixels(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: Path, shape: tuple[int, ...] | None = None
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image as ``(C, H, W)``; its size is looked at before it is unfolded."""
    content = _member(archive, info, source)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            channels = {"L": 1, "RGB": 3}.get(image.mode)
            found = (channels, image.height, image.width)
            if channels is None or max(image.size) > _LARGEST_SIDE or (shape is not None and found != shape):
                wanted = (
                    f"mode L or RGB, at most {_LARGEST_SIDE} pixels wide" if shape is None else f"(C, H, W) = {shape}"
                )
                raise ValueError(f"it is {image.width}x{image.height} of mode {image.mode}; {wanted} is needed")
            pixels = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, channels)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{source}: {info.filename} cannot be read ({error})") from error
    return pixels.transpose(2, 0, 1)


class PairDataset(Dataset[tuple[Tensor, ...]]):
    """Pairs of a folder: ``dataset[i] -> (x, z)``, or ``(x, z, label)`` with classes.

    The folder was filled by :func:`generate`, :func:`invert` or :func:`import_released`. It is read row by row as it
    is asked for; opening it takes no longer for millions of pairs than for a few.

    ``x``: ``(C, H, W)`` in [-1, 1]; ``z``: the same shape; ``label``: a scalar integer tensor.
    Raises ``FileNotFoundError`` when the folder holds no pairs or lacks a shard, and :class:`Damaged`, when a row of a
    shard is read that is not what was written.
    """

    def __init__(self, out_dir: str | Path) -> None:
        self.folder = Path(out_dir)
        if not (self.folder / INDEX).is_file():
            raise FileNotFoundError(f"no pairs in {out_dir}: {INDEX} is missing; run rfpp.pairs.generate first")
        index = _read_index(self.folder)
        if index.get("format") != FORMAT:
            raise ValueError(
                f"{out_dir} has pairs of format {index.get('format', 1)}, this version reads {FORMAT}; "
                "delete it and make them again"
            )
        self.seed: int = index.get("seed", 0)
        self.shape, self.classes = tuple(index["shape"]), index["classes"]
        self._n, self._shard_size = int(index["n"]), int(index["shard_size"])
        self._kept: dict[int, dict[str, Tensor]] = {}
        there = {path.name: path.stat().st_size for path in self.folder.glob("shard-*.safetensors")}
        self._is_small = sum(there.values()) <= IN_MEMORY
        for number in range(-(-self._n // self._shard_size)):
            if (path := _shard(self.folder, number)).name not in there:
                raise FileNotFoundError(f"{path} is missing; make the pairs again, the other shards are kept")

    def __len__(self) -> int:
        return self._n

    def read(self, indices: Tensor) -> dict[str, Tensor]:
        """What is stored of these pairs, ``(len(indices), ...)`` each: ``images`` as 8-bit pixels, ``labels`` and
        ``noise`` where images were inverted, ``labels`` and generator ``states`` where pairs were imported."""
        rows = {number: (indices // self._shard_size == number).nonzero().flatten()
                for number in torch.unique(indices // self._shard_size).tolist()}  # fmt: skip
        parts = [self._rows(number, indices[places] % self._shard_size) for number, places in rows.items()]
        order = torch.cat(list(rows.values())).argsort() if rows else torch.empty(0, dtype=torch.int64)
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]} if parts else {}

    def _rows(self, number: int, rows: Tensor) -> dict[str, Tensor]:
        """Some rows of one shard, which is kept in a small folder."""
        if self._is_small:
            if number not in self._kept:
                size = min(self._shard_size, self._n - number * self._shard_size)
                self._kept[number] = self._read_rows(number, torch.arange(size))
            return {name: column[rows] for name, column in self._kept[number].items()}
        return self._read_rows(number, rows)

    def _read_rows(self, number: int, rows: Tensor) -> dict[str, Tensor]:
        """Some rows of one shard from its file, compared with their checksums."""
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
            raise FileNotFoundError(f"{path} is missing; make the pairs again, the other shards are kept") from error
        except (SafetensorError, IndexError) as error:
            raise Damaged(f"{path} is damaged ({error}); delete it and make the pairs again") from error
        expected = found.pop("crc", None)
        if expected is None or not torch.equal(expected, _checksums(found)):
            raise Damaged(
                f"{path} is damaged: rows differ from their checksums; delete it and make the pairs again, "
                "the other shards are kept"
            )
        return found

    def batch(self, indices: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor | None]:
        """``x, z, labels`` for many indices at once; ``labels`` is ``None`` without classes."""
        stored = self.read(indices)
        if "noise" in stored:
            z = stored["noise"]
        elif "states" in stored:
            z = noise_of_states(stored["states"], self.shape)
        else:
            z = noise(self.seed, indices, self.shape)
        labels = None
        if self.classes:
            labels = stored.get("labels", indices % self.classes).to(device)
        return to_float(stored["images"]).to(device), z.to(device), labels

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside the {len(self)} pairs")
        x, z, labels = self.batch(torch.tensor([index % len(self)]))
        return (x[0], z[0]) if labels is None else (x[0], z[0], labels[0])
