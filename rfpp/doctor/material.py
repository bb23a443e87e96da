"""The material to examine, whatever its source: pairs as tensors, a training as its folder."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rfpp import checkpoints, engine, pairs
from rfpp.base import batches, files, processes, rng
from rfpp.base.checks import at_least, one_of
from rfpp.checkpoints.weights import read_safetensors
from rfpp.configurations import CONFIGURATIONS
from rfpp.denoisers import EDMPrecond, VPPrecond
from rfpp.experiment import Experiment
from rfpp.flow import RectifiedFlow
from rfpp.pairs import PairDataset
from rfpp.pipeline import shipped
from rfpp.pipeline.flows import MakePairs, TrainFlow
from rfpp.pipeline.networks import HISTORY, MODEL, STATES
from rfpp.pipeline.plan import Config
from rfpp.pipeline.store import MANIFEST

ROWS = 4096
"""The most pairs that are read from a folder."""
SAMPLES, NOISES, LABELS = "samples.zip", "z.zip", "images_labels.csv"
"""The archives that the paper's released code writes."""
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_PAIRS = ("pairs", "own_pairs", "inverted", "samples")
_EXPECTED = (
    "expected a folder of pairs (with pairs.json), of a step in the store (with manifest.json), of a training that "
    f"goes on, or of released archives ({SAMPLES} and {NOISES}), or a .safetensors file with x, z and, with classes, "
    "labels"
)


@dataclass(frozen=True)
class Pairs:
    """Some rows of a set of pairs: ``x``, ``z`` ``(n, C, H, W)``, ``labels`` ``(n,)`` or ``None`` without ``classes``.

    ``total``: how many pairs the set has; ``num_steps``: steps of EDM's sampler, if it made the images; ``teacher``:
    the model that made the images, if available; ``inverted``: whether ``z`` was made from ``x`` instead. Raises
    ``ValueError`` for tensors or a teacher that do not fit.
    """

    x: Tensor
    z: Tensor
    labels: Tensor | None = None
    classes: int = 0
    total: int | None = None
    num_steps: int | None = None
    teacher: Any = None
    inverted: bool = False

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or not self.x.numel() or self.x.shape != self.z.shape:
            shapes = f"x is {tuple(self.x.shape)}, z is {tuple(self.z.shape)}"
            raise ValueError(f"{shapes}; both must be (n, C, H, W) with at least one row and one pixel")
        if self.labels is not None and self.labels.shape != self.x.shape[:1]:
            raise ValueError(f"labels are {tuple(self.labels.shape)}; ({len(self.x)},) is needed, one for each pair")
        if self.teacher is not None:
            network, own = self.teacher.model, tuple(self.x.shape[1:])
            made = (network.in_channels, network.img_resolution, network.img_resolution)
            if (made, bool(network.label_dim)) != (own, self.labels is not None):
                kinds = [f"{shape} {'with' if has else 'without'} classes" for shape, has in
                         ((made, network.label_dim), (own, self.labels is not None))]  # fmt: skip
                raise ValueError(
                    f"the teacher makes images of {kinds[0]}, but the pairs have {kinds[1]}; choose another teacher"
                )

    def __len__(self) -> int:
        return len(self.x)

    def __str__(self) -> str:
        shape = " x ".join(map(str, self.x.shape[1:]))
        rows = "" if self.total in (None, len(self)) else f", of which {len(self):,} are read"
        return f"{self.total or len(self):,} pairs of {shape}{rows}"


@dataclass(frozen=True)
class Training:
    """A training, finished or in progress: its ``inputs`` as the store keeps them, and what exists of it so far.

    ``flow`` is ``None`` until the end. ``pairs``: its training pairs, ``held_out``: others of the same teacher, both if
    available. ``frechet``: the Fréchet distance of its one-step samples, if they were graded. ``damaged``: files that
    differ from their checksums.
    """

    folder: Path
    inputs: Mapping[str, Any]
    history: engine.History
    step: int
    flow: RectifiedFlow | None = None
    pairs: Pairs | None = None
    held_out: Pairs | None = None
    teacher: Any = None
    frechet: float | None = None
    damaged: Sequence[str] = ()

    @property
    def optimisation(self) -> engine.Optimisation:
        """The settings of the optimisation."""
        return engine.Optimisation(**self.inputs["optimisation"]["fields"])

    def __str__(self) -> str:
        steps = self.optimisation.steps
        done = f"{steps:,} steps" if self.step == steps else f"step {self.step:,} of {steps:,}"
        return f"training of {self.inputs['batch_size']} pairs a step, {done}"


def load_teacher(source: str) -> Any:
    """Load a shipped denoiser by its name, or one from a file as :func:`rfpp.checkpoints.load_any` does.

    Raises ``ValueError`` or ``FileNotFoundError`` where there is none.
    """
    model = copy.deepcopy(shipped.load(source)) if source in shipped.RECIPES else checkpoints.load_any(source)
    model = model.denoiser if isinstance(model, RectifiedFlow) else model
    if not isinstance(model, EDMPrecond | VPPrecond):
        raise ValueError(f"teacher={source!r} is a {type(model).__name__}; a denoiser is needed")
    return _placed(model)


_AT_ONCE = 128
"""Rows that a network computes at once."""


def _placed(model: Any) -> Any:
    """A denoiser on this process's device that computes few rows at once; give a copy of one that others share."""
    return batches.at_most(_AT_ONCE, processes.place(model))


def of_dataset(dataset: PairDataset, rows: int = ROWS, teacher: Any = None) -> Pairs:
    """At most ``rows`` of a folder's pairs, drawn at random and kept in order.

    Raises :class:`rfpp.pairs.Damaged` for rows that differ from their checksums.
    """
    at_least("rows", rows, 1)
    index = json.loads((dataset.folder / pairs.INDEX).read_text())
    chosen = torch.randperm(len(dataset), generator=rng.generator(0, "doctor", "rows"))[:rows].sort().values
    x, z, labels = dataset.batch(chosen)
    return Pairs(
        x, z, labels, dataset.classes, len(dataset), index.get("num_steps"), teacher, index.get("noise") == "stored"
    )


def of_file(path: Path, teacher: Any = None) -> Pairs:
    """The pairs of a ``.safetensors`` file with ``x``, ``z`` and, optionally, ``labels``.

    Raises ``FileNotFoundError``, or ``ValueError`` for a file with other contents.
    """
    tensors, _ = read_safetensors(path)
    if not {"x", "z"} <= tensors.keys() <= {"x", "z", "labels"}:
        raise ValueError(f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; {_EXPECTED}")
    labels, classes = tensors.get("labels"), 0
    if labels is not None:
        if labels.dtype not in _INTEGERS:
            raise ValueError(f"{path} has labels of type {labels.dtype}; integers are needed, from 0 on")
        labels = labels.long()
        # The teacher knows how many classes there are. Without one, labels below 0 must leave a class to compare with.
        classes = teacher.model.label_dim if teacher is not None else 1 + max([0, *labels.flatten().tolist()])
    return Pairs(tensors["x"].float(), tensors["z"].float(), labels, classes, teacher=teacher)


def _manifest(folder: Path) -> dict[str, Any]:
    """What the store wrote beside a step; empty elsewhere.

    Raises :class:`rfpp.pairs.Damaged` for a file that cannot be read, and ``ValueError`` for one of another kind.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        _ = found["step"], found["inputs"], found["files"]
    except ValueError as error:
        raise pairs.Damaged(f"{path} cannot be read ({error})") from error
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the manifest of a step ({error}); {_EXPECTED}") from error
    return found


def teacher_of(folder: Path, inputs: Mapping[str, Any]) -> Any:
    """The teacher that a step in the store started from: a shipped one, or one in the store; else ``None``."""
    name, *key = inputs.get("teacher") or [None]
    for known in shipped.RECIPES:
        if name == shipped.sha256(known):
            return _placed(copy.deepcopy(shipped.load(known)))
    trained = folder.parents[1] / str(name) / str(key[0] if key else "") / MODEL
    return _placed(checkpoints.load(trained)) if trained.is_file() else None


def _stored_pairs(folder: Path, rows: int, teacher: Any) -> Pairs:
    manifest = _manifest(folder)
    if teacher is None and manifest.get("step") == MakePairs.name:
        teacher = teacher_of(folder, manifest["inputs"])
    return of_dataset(PairDataset(folder), rows, teacher)


def _released(folder: Path, rows: int, teacher: Any) -> Pairs:
    labels = folder / LABELS
    with tempfile.TemporaryDirectory(prefix="rfpp-") as place:
        made = pairs.import_released(
            folder / SAMPLES, folder / NOISES, Path(place) / "pairs", labels if labels.is_file() else None
        )
        return of_dataset(PairDataset(made), rows, teacher)


def _held_out(source: Path, rows: int) -> Pairs | None:
    """The smallest set of pairs beside ``source`` made in the same way from other noise; ``None`` if there is none."""
    of, others = _manifest(source)["inputs"], []
    for path in source.parent.glob(f"[!.]*/{MANIFEST}"):
        with suppress(ValueError):  # a manifest of theirs that is damaged says nothing about this training
            inputs = _manifest(path.parent)["inputs"]
            alike = all(inputs[key] == of[key] for key in ("num_steps", "teacher"))
            if alike and inputs["seed"] != of["seed"]:
                others.append((inputs["n"], path.parent))
    return of_dataset(PairDataset(min(others)[1]), rows) if others else None


def trained_on_pairs(experiment: Experiment, config: Config, seed: int) -> TrainFlow:
    """The training of a configuration; raises ``ValueError`` for an arena method, whose losses have other ranges."""
    step = experiment.plan.flow(config, seed)
    if not isinstance(step, TrainFlow):
        raise ValueError(
            f"config={str(config)!r} is a method of rfpp.arena, whose trainings are not examined; "
            f"choose one of {', '.join(CONFIGURATIONS)}"
        )
    return step


def of_training(
    folder: Path, inputs: Mapping[str, Any] | None = None, rows: int = ROWS, frechet: float | None = None
) -> Training:
    """The training in a folder of the store; ``inputs``: those of its step, if it has no checkpoint yet.

    Raises ``ValueError`` for a folder that does not tell which training it holds.
    """
    manifest, states = _manifest(folder), engine.Checkpoints(folder / STATES)
    notes = [note for step in reversed(states.steps()) if (note := states.note(step))]
    inputs = inputs or manifest.get("inputs") or (notes[0]["settings"] if notes else None)
    if not inputs or "optimisation" not in inputs:
        raise ValueError(f"{folder} has no checkpoint yet; name the training by --preset, --config and --seed")
    damaged = [
        name for name, entry in manifest.get("files", {}).items()
        if not (folder / name).is_file() or files.sha256(folder / name) != entry["sha256"]
    ]  # fmt: skip
    history = engine.History(**notes[0]["history"]) if notes else engine.History()
    if manifest and HISTORY not in damaged:
        history = engine.History(**json.loads((folder / HISTORY).read_text()))
    flow = checkpoints.load(folder / MODEL) if manifest and MODEL not in damaged else None
    assert flow is None or isinstance(flow, RectifiedFlow)
    if flow is not None:
        _placed(flow.denoiser)
    kind, key = inputs["pairs"]
    source, seen, others = folder.parents[1] / kind / key, None, None
    if (source / pairs.INDEX).is_file():
        seen = _stored_pairs(source, rows, None)
        others = _held_out(source, rows) if kind == MakePairs.name and (source / MANIFEST).is_file() else None
    steps = inputs["optimisation"]["fields"]["steps"]
    step = steps if manifest else (notes[0]["step"] if notes else 0)
    return Training(
        folder, inputs, history, step, flow, seen, others, teacher_of(folder, inputs), frechet, damaged
    )  # fmt: skip


def read(place: str | Path, teacher: str | None = None, rows: int = ROWS) -> Pairs | Training:
    """Read the pairs or the training at ``place``; ``teacher``: the name or file of the model that made the pairs.

    Raises ``FileNotFoundError`` or ``ValueError`` for a place that holds neither pairs nor a training.
    """
    at_least("rows", rows, 1)
    place, model = Path(place), None if teacher is None else load_teacher(teacher)
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist; {_EXPECTED}")
    if place.is_file():
        if place.suffix != ".safetensors":
            raise ValueError(f"{place} is a {place.suffix or 'plain'} file; {_EXPECTED}")
        return of_file(place, model)
    manifest = _manifest(place)
    if manifest:
        one_of(f"step of {place}", manifest["step"], (*_PAIRS, TrainFlow.name))
    if manifest.get("step") == TrainFlow.name or (place / STATES).is_dir():
        if teacher is not None:
            raise ValueError(f"teacher={teacher!r} is only for pairs; {place} holds a training, which names its own")
        return of_training(place, rows=rows)
    if (place / pairs.INDEX).is_file():
        return _stored_pairs(place, rows, model)
    if (place / SAMPLES).is_file() and (place / NOISES).is_file():
        return _released(place, rows, model)
    raise ValueError(f"{place} holds neither pairs nor a training; {_EXPECTED}")
