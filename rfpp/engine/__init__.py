"""One training loop for everything, on a laptop, a box with GPUs or several: exact, resumable, in any precision.

What is trained on comes from an :class:`Objective`, which draws row ``i`` of step ``n`` from the seed, ``n`` and ``i``.
How many processes share a step, into how many pieces each cuts its part, and whether the run was interrupted therefore
change neither the data, nor the times, nor the noise. (Dropout belongs to a step and to the piece of it that is taken
at once: it does not notice an interruption, but it does another cut.)
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import multiprocessing
import signal
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from rfpp.base import files, processes, progress, rng
from rfpp.base.processes import Stopped

Batch = tuple[Tensor | None, ...]


class Objective(ABC):
    """What is minimised: a batch for each step, and a loss for each of its rows."""

    batch_size: int
    """Rows of a whole step, over all processes."""

    @abstractmethod
    def draw(self, step: int, rows: range) -> Batch:
        """These ``rows`` of a step's batch, on the CPU; each a function of seed, step and row."""

    @abstractmethod
    def losses(self, model: nn.Module, *batch: Any) -> Tensor:
        """The loss of each row, ``(B,)``; the tensors of ``draw`` come on the model's device and in its precision."""

    def times(self, *batch: Any) -> Tensor | None:
        """The time in [0, 1] of each row, ``(B,)``, where there are such: losses are then recorded over time, too."""
        return None

    def __call__(self, model: nn.Module, step: int) -> Tensor:
        """The losses of a whole step."""
        return self.losses(model, *self.draw(step, range(self.batch_size)))


PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Of the operations that autocast chooses; weights, their average and Adam's moments are always full."""


class Machinery(BaseModel):
    """How a training runs on a machine. But for ``precision``, and for which activations dropout takes (another
    ``micro_batch``, memory layout or compiler draws others), it changes no result beyond rounding.

    ``micro_batch``: rows that a process takes at once, all of its part when ``None``; the gradients of several are
    added up, and processes talk to each other once a step. ``compile``, ``channels_last``: for GPUs. ``workers``:
    processes that draw batches ahead; with none they are drawn between steps. ``save_every``: steps between two
    checkpoints; the last ``keep`` stay, and every ``keep_every``-th step's (none when 0). ``tensorboard``: write
    losses, learning rate and samples for it. A preset has it among its settings.

    Raises pydantic's ``ValidationError``, which is a ``ValueError``, for values that cannot be.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    compile: bool = False
    channels_last: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    log_every: Annotated[int, Field(ge=1)] = 10
    save_every: Annotated[int, Field(ge=1)] = 500
    keep: Annotated[int, Field(ge=1)] = 2
    keep_every: Annotated[int, Field(ge=0)] = 0
    tensorboard: bool = False


@dataclass(frozen=True)
class Optimisation:
    steps: int
    lr: float
    warmup: int = 0
    decay: bool = False
    ema: float = 0.9999


BINS, WINDOWS = 20, 10


@dataclass
class History:
    """Mean loss per logged step; and ``over_time``, where rows have a time: the mean loss in each of 20 bins of
    [0, 1], for each tenth of the training."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    over_time: list[list[float | None]] = field(default_factory=list)


class Diverged(ArithmeticError):
    """The loss stopped being a number."""


class CannotResume(ValueError):
    """The checkpoints in a folder belong to another training."""


Tensors = tuple[Tensor, ...] | list[Tensor]


def _ema_update(decay: float, averaged: Callable[[], int]) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average whose decay grows with the run, ``min(decay, n / (n + 9))``: it forgets the start.

    ``averaged``: how many were averaged so far. What torch passes as its own count would have to come from the GPU.
    """

    def update(averages: Tensors, currents: Tensors, _: Tensor | int) -> None:
        n = averaged() + 1
        torch._foreach_lerp_(averages, currents, 1 - min(decay, n / (n + 9)))

    return update


def learning_rate(step: int, lr: float, warmup: int, total: int, decay: bool) -> float:
    """Of a step, from 0: rises to ``lr``, which step ``warmup`` has in full; with ``decay`` it falls along a cosine."""
    rise = min(1.0, (step + 1) / (warmup + 1))
    return lr * rise * (0.5 + 0.5 * math.cos(math.pi * step / total) if decay else 1.0)


# Checkpoints

FORMAT = 1


class Checkpoints:
    """The states of a training in a folder, each a pair of files: the tensors, and a note with their checksum.

    The note is written last, so that a state without one is not there. What is damaged is named and passed over.
    """

    def __init__(self, folder: Path, keep: int = 2, keep_every: int = 0) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every

    def _files(self, step: int) -> tuple[Path, Path]:
        return self.folder / f"step-{step:08d}.safetensors", self.folder / f"step-{step:08d}.json"

    def steps(self) -> list[int]:
        """The steps of which there are states, in order."""
        return sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob("step-*.json"))

    def note(self, step: int) -> dict[str, Any] | None:
        """What stands beside a state, without a look at its tensors; ``None`` if it cannot be read."""
        try:
            found: dict[str, Any] = json.loads(self._files(step)[1].read_text())
        except (OSError, ValueError):
            return None
        return found

    def save(self, step: int, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> Path:
        """Write a state, and delete those that need not be kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path, beside = self._files(step)
        files.write_tensors(path, tensors)
        content = {**note, "format": FORMAT, "step": step, "sha256": files.sha256(path)}
        files.write_text(beside, json.dumps(content, sort_keys=True))
        for old in self.steps()[: -self.keep]:
            if not self.keep_every or old % self.keep_every:
                self._delete(old)
        self._sweep()
        return path

    def _delete(self, step: int) -> None:
        for file in reversed(self._files(step)):  # the note first
            file.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Delete what processes left that were killed while they wrote."""
        for path in self.folder.glob("step-*.safetensors"):
            if not path.with_suffix(".json").is_file():
                path.unlink()
        for path in (*self.folder.glob(".tmp*"), *self.folder.glob(".*.partial")):
            path.unlink()

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """A state's tensors and note; raises ``OSError``, or ``ValueError`` when it is not what was written."""
        path, beside = self._files(step)
        try:
            note = json.loads(beside.read_text())
            if note["format"] != FORMAT:
                raise ValueError(f"it has format {note['format']}; this version reads {FORMAT}")
            if files.sha256(path) != note["sha256"]:
                raise ValueError("its checksum differs")
        except (KeyError, TypeError) as error:
            raise ValueError(f"its note is damaged: {error}") from error
        return load_file(path), note

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state, tensors and note; a warning names each damaged one, which is then deleted."""
        for step in reversed(self.steps()):
            try:
                return self.read(step)
            except (OSError, ValueError) as error:
                path = self._files(step)[0]
                warnings.warn(f"{path} cannot be used ({error}); going back to the one before", stacklevel=2)
                if isinstance(error, ValueError | FileNotFoundError):
                    self._delete(step)
        return None

    def clear(self) -> None:
        """Delete what a finished training does not need: all but every ``keep_every``-th state."""
        for step in self.steps():
            if not self.keep_every or step % self.keep_every:
                self._delete(step)
        self._sweep()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


# The loop


class _Drawn(Dataset[Batch]):
    """The batches of a process, piece by piece: item ``(step, rows)``, for a loader to draw ahead."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __getitem__(self, place: tuple[int, range]) -> Batch:
        return self.objective.draw(*place)


def check(batch_size: int, machinery: Machinery) -> None:
    """Raise ``ValueError`` for a batch that the processes cannot share, or machinery that is not installed."""
    if machinery.tensorboard and find_spec("tensorboard") is None:
        raise ValueError("machinery.tensorboard=True, but it is not installed: pip install 'rfpp[tensorboard]'")
    world = processes.count()
    if batch_size % world:
        raise ValueError(f"batch_size={batch_size} cannot be shared by {world} processes; use a multiple of {world}")


def _pieces(batch_size: int, micro_batch: int | None) -> list[range]:
    """The rows of a step that this process sees, cut into what it takes at once."""
    own, share = processes.index(), batch_size // processes.count()
    rows = range(own * share, (own + 1) * share)
    size = min(micro_batch or share, share)
    return [rows[start : start + size] for start in range(0, share, size)]


class _Run:
    """All that changes during a training, as one: the model, its average, the optimiser, the losses so far."""

    def __init__(self, model: nn.Module, lr: float, ema: float, machinery: Machinery) -> None:
        processes.state()
        # Precision is the training's own, not the process's.
        accelerator = Accelerator(cpu=processes.through_gloo(), mixed_precision="no")
        self.device = accelerator.device
        model = copy.deepcopy(model).requires_grad_(True).train().to(self.device)
        if machinery.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=_ema_update(ema, lambda: self.step))
        self.optimiser = torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=machinery.precision == "fp16")
        self.step = 0
        self.history = History()
        self.recent: list[Tensor] = []
        self.over_time = torch.zeros(WINDOWS, 2, BINS, device=self.device)  # sums of losses, and how many
        if machinery.compile:
            model.compile()
        self.wrapped: nn.Module = accelerator.prepare_model(model)
        self.accelerator = accelerator

    def _parts(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, on the CPU, in the first process; all ask together."""
        found = {
            "recent": processes.mean(torch.stack(self.recent)) if self.recent else torch.empty(0),
            "over_time": processes.mean(self.over_time) * processes.count(),
        }
        if not processes.is_main():
            return {}
        for part, module in self._parts().items():
            found.update({f"{part}/{name}": tensor for name, tensor in module.state_dict().items()})
        for number, state in self.optimiser.state_dict()["state"].items():
            found.update({f"optimiser/{number}/{name}": tensor for name, tensor in state.items()})
        return {name: tensor.detach().cpu().contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Continue from a state."""
        for part, module in self._parts().items():
            prefix = f"{part}/"
            module.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser/"):
                _, number, key = name.split("/")
                state.setdefault(int(number), {})[key] = tensor
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})
        for parameter, moments in self.optimiser.state.items():
            for name, value in moments.items():
                if name != "step":  # Adam walks through memory: moments must lie there as their parameters do
                    moments[name] = torch.empty_like(parameter).copy_(value)
        self.scaler.load_state_dict(note["scaler"])
        self.step, self.history = note["step"], History(**note["history"])
        self.recent = list(tensors["recent"].to(self.device))
        self.over_time = tensors["over_time"].to(self.device) / processes.count()


def _record(run: _Run, times: Tensor | None, losses: Tensor, window: int) -> None:
    if times is not None:
        bins = (times.float() * BINS).long().clamp(0, BINS - 1)
        both = torch.stack([losses.detach().float(), torch.ones_like(losses, dtype=torch.float32)])
        run.over_time[window].index_add_(1, bins, both)


def _means_over_time(over_time: Tensor) -> list[list[float | None]]:
    sums, counts = over_time.cpu().unbind(dim=1)
    if not counts.any():
        return []
    means = (sums / counts).tolist()
    return [[value if n else None for value, n in zip(*both, strict=True)] for both in zip(means, counts, strict=True)]


def fit(
    model: nn.Module,
    objective: Objective,
    optimisation,
    *,
    seed: int = 0,
    desc: str = "training",
    machinery: Machinery | None = None,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
    pictures: Callable[[nn.Module], Tensor] | None = None,
) -> tuple[nn.Module, History]:
    """Train ``model`` with Adam and return its exponential moving average with the losses; all processes take part.

    ``warmup``: steps over which the learning rate rises to ``lr`` (the first step already trains); ``decay``: let it
    fall to nought along a cosine; ``ema``: decay of the moving average. ``folder``: where checkpoints go, and where a
    training that was stopped goes on from, to the same weights bit for bit (on a CPU, or with deterministic kernels);
    ``settings``: what else makes it this training and no other. ``on_step(step, average)`` follows each step in the
    first process; ``pictures(average)`` makes images in [-1, 1] for TensorBoard at each checkpoint but the last. The
    losses over time that TensorBoard shows are those of the first process's rows.

    Raises :class:`Diverged` when a loss is not finite, :class:`CannotResume` when ``folder`` holds another training,
    and :class:`rfpp.base.processes.Stopped` after SIGINT or SIGTERM, with a checkpoint written. ``model`` is left
    untouched.
    """
    settings = identity
    steps, lr, warmup, decay, ema = (
        optimisation.steps,
        optimisation.lr,
        optimisation.warmup,
        optimisation.decay,
        optimisation.ema,
    )
    machinery = machinery or Machinery()
    check(objective.batch_size, machinery)
    pieces = _pieces(objective.batch_size, machinery.micro_batch)
    run = _Run(model, lr, ema, machinery)
    checkpoints = Checkpoints(folder, machinery.keep, machinery.keep_every) if folder else None
    own = {
        **(settings or {}), "steps": steps, "batch_size": objective.batch_size, "lr": lr, "warmup": warmup,
        "decay": decay, "ema": ema, "seed": seed, "precision": machinery.precision,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }  # fmt: skip
    if checkpoints:
        _resume(run, checkpoints, own)
    saved = run.step
    dtype = next(run.model.parameters()).dtype
    autocast = PRECISIONS[machinery.precision]

    def prepared(batch: Batch) -> list[Tensor | None]:
        return [
            None
            if part is None
            else part.to(run.device, dtype if part.is_floating_point() else None, non_blocking=True)
            for part in batch
        ]

    def save() -> None:
        """Write a state, of which nothing is infinite or not a number."""
        nonlocal saved
        _look(run, desc, lr, checkpoints)
        if checkpoints is None or run.step == saved:
            return
        saved, tensors = run.step, run.tensors()

        def write() -> None:
            if not all(t.isfinite().all() for name, t in tensors.items() if name.startswith("model/")):
                raise _diverged(desc, f"the weights are not finite after step {run.step}", lr, checkpoints)
            note = {"settings": own, "scaler": run.scaler.state_dict(), "history": vars(run.history)}
            checkpoints.save(run.step, tensors, note)

        processes.by_main(write)

    with (
        processes.stoppable() as stop,
        _tracker(machinery, folder, run.step) as track,
        progress.bar(total=steps, desc=desc, initial=run.step) as bar,
    ):
        ask = processes.Poll()
        places = ((step, rows) for step in range(run.step, steps) for rows in pieces)
        batches = iter(_loader(objective, places, machinery))
        for step in range(run.step, steps):
            rate = learning_rate(step, lr, warmup, steps, decay)
            for group in run.optimiser.param_groups:
                group["lr"] = rate
            total = torch.zeros((), device=run.device)
            for rows in pieces:
                batch = prepared(next(batches))
                last = rows is pieces[-1]
                with (
                    rng.scoped(seed, "dropout", step, rows.start),
                    contextlib.nullcontext() if last else run.accelerator.no_sync(run.wrapped),
                ):
                    with torch.autocast(run.device.type, autocast, enabled=autocast is not None):
                        losses = objective.losses(run.wrapped, *batch)
                    # Processes average their gradients: together they make the mean over the whole step.
                    loss = losses.sum() * (processes.count() / objective.batch_size)
                    run.scaler.scale(loss).backward()
                total += loss.detach().float()
                _record(run, objective.times(*batch), losses, step * WINDOWS // steps)
            run.scaler.step(run.optimiser)
            run.scaler.update()
            run.optimiser.zero_grad()
            run.average.update_parameters(run.model)
            run.recent.append(total)
            run.step = step + 1
            bar.update()
            if on_step is not None and processes.is_main():
                on_step(run.step, run.average.module)
            logged = run.step % machinery.log_every == 0 or run.step == steps
            if logged:
                value = _look(run, desc, lr, checkpoints, close=True)
                bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
                track(run, value, rate, objective.batch_size)
            if run.step % machinery.save_every == 0 or run.step == steps:
                save()
                if pictures is not None and run.step < steps:
                    track.pictures(run, pictures)
            if ask(bool(stop)) or (run.step == steps and processes.any_of(bool(stop))):
                save()
                processes.wait()
                kept = f", and run again to go on from step {run.step}" if checkpoints else "; nothing was to be kept"
                raise Stopped(f"{desc}: stopped by {stop.asked or 'another process'} after step {run.step}{kept}")
    run.history.over_time = _means_over_time(processes.mean(run.over_time))
    return run.average.module.cpu().eval().requires_grad_(False), run.history


def _outlive_signals(_: int) -> None:
    """A signal to all processes must not take the workers from a training, which ends them when it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _loader(objective: Objective, places: Iterator[tuple[int, range]], machinery: Machinery) -> Any:
    # Forked workers share the objective; others would get a copy, pickled with the networks that its loss looks at.
    forks = machinery.workers and "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        _Drawn(objective),
        batch_size=None,
        sampler=places,
        num_workers=machinery.workers,
        multiprocessing_context="fork" if forks else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # or it would draw from the global one
    )


def _diverged(desc: str, what: str, lr: float, checkpoints: Checkpoints | None) -> Diverged:
    kept = checkpoints.steps() if checkpoints else []
    last = (
        f"; the last good checkpoint is that of step {kept[-1]} in {checkpoints.folder}" if kept and checkpoints else ""
    )
    return Diverged(f"{desc}: {what}{last}; lower the learning rate lr={lr}")


def _look(run: _Run, desc: str, lr: float, checkpoints: Checkpoints | None, close: bool = False) -> float:
    """The mean of the losses since the last entry of the history; ``close`` makes it the next entry."""
    if not run.recent:
        return run.history.losses[-1]
    recent = processes.mean(torch.stack(run.recent)).tolist()
    for place, value in enumerate(recent):
        if not math.isfinite(value):
            raise _diverged(desc, f"the loss is {value} at step {run.step - len(recent) + 1 + place}", lr, checkpoints)
    value = sum(recent) / len(recent)
    if close:
        run.recent.clear()
        run.history.steps.append(run.step)
        run.history.losses.append(value)
    return value


def _resume(run: _Run, checkpoints: Checkpoints, own: Mapping[str, Any]) -> None:
    found = checkpoints.newest() if processes.is_main() else None
    step = processes.from_main(found and found[1]["step"])  # all take the same, or none does
    if step is None:
        return
    tensors, note = found or checkpoints.read(step)
    theirs, own = note["settings"], json.loads(json.dumps(own))
    different = [key for key in {**theirs, **own} if theirs.get(key) != own.get(key)]
    if different:
        listed = ", ".join(f"{key}: {theirs.get(key)} there, {own.get(key)} now" for key in sorted(different))
        raise CannotResume(
            f"{checkpoints.folder} holds another training ({listed}); choose another folder or delete it"
        )
    run.restore(tensors, note)


class _Tracker:
    """Losses, learning rate and samples for TensorBoard, or nothing at all."""

    def __init__(self, tracker: TensorBoardTracker | None) -> None:
        self.tracker = tracker

    def __call__(self, run: _Run, loss: float, rate: float, batch_size: int) -> None:
        if self.tracker:
            values: dict[str, Any] = {"loss": loss, "learning rate": rate, "images": run.step * batch_size}
            means = _means_over_time(run.over_time)
            window = next((row for row in reversed(means) if any(value is not None for value in row)), [])
            for place, value in enumerate(window):
                if value is not None:
                    values[f"loss over t/{(place + 0.5) / BINS:.3f}"] = value
            self.tracker.log(values, step=run.step)

    def pictures(self, run: _Run, make: Callable[[nn.Module], Tensor]) -> None:
        if self.tracker:
            images = make(run.average.module).float().cpu().clamp(-1, 1).numpy() / 2 + 0.5
            self.tracker.log_images({"samples": images.astype(np.float32)}, step=run.step)


@contextlib.contextmanager
def _tracker(machinery: Machinery, folder: Path | None, step: int) -> Iterator[_Tracker]:
    if not (machinery.tensorboard and folder and processes.is_main()):
        yield _Tracker(None)
        return
    tracker = TensorBoardTracker("tensorboard", folder.parent, purge_step=step + 1)
    tracker.start()
    try:
        yield _Tracker(tracker)
    finally:
        tracker.finish()
