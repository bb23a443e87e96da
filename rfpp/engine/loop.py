"""The training loop."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rfpp.base import processes, progress, rng
from rfpp.base.processes import Stopped
from rfpp.engine.history import WINDOWS, History, board, means_over_time
from rfpp.engine.machinery import PRECISIONS, Machinery, Optimisation, check, pieces
from rfpp.engine.objectives import Batch, Objective
from rfpp.engine.run import Run
from rfpp.engine.states import Checkpoints

SKIPPED = 10
"""The number of skipped steps in a row at which a training with a loss scale counts as diverged."""


class Diverged(ArithmeticError):
    """Raised when a loss or the weights are not finite."""


class CannotResume(ValueError):
    """Raised when the checkpoints in a folder belong to another training."""


def fit(
    model: nn.Module,
    objective: Objective,
    optimisation: Optimisation,
    *,
    seed: int = 0,
    desc: str = "training",
    machinery: Machinery | None = None,
    folder: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    on_step: Callable[[int, nn.Module], None] | None = None,
    pictures: Callable[[nn.Module], Tensor] | None = None,
) -> tuple[nn.Module, History]:
    """Train ``model`` and return its exponential moving average with the losses; all processes take part.

    ``folder``: the folder of checkpoints, from which an interrupted training continues to the same weights bit for bit
    (on a CPU, or with deterministic kernels); ``identity``: further settings that distinguish this training from
    others. ``on_step(step, average)`` is called after each step in the first process; ``pictures(average)`` makes
    images in [-1, 1] for TensorBoard at each checkpoint but the last. The losses over time in TensorBoard are those of
    the first process's rows.

    Raises :class:`Diverged` when a loss or, at a checkpoint, the weights are not finite (in fp16, several losses in a
    row), :class:`CannotResume` when ``folder`` holds another training, and :class:`rfpp.base.processes.Stopped` after
    SIGINT or SIGTERM, with a checkpoint written. ``model`` is left untouched.
    """
    machinery = machinery or Machinery()
    check(objective.batch_size, machinery)
    loop = _Loop(model, objective, optimisation, machinery, seed, desc, folder)
    loop.resume(identity or {})
    run, steps = loop.run, optimisation.steps
    with (
        processes.stoppable() as stop,
        board(machinery, folder, run.step) as shown,
        progress.bar(total=steps, desc=desc, initial=run.step) as bar,
    ):
        ask, batches = processes.Poll(), loop.batches()
        while run.step < steps:
            rate = optimisation.learning_rate(run.step)
            loop.step(batches, rate)
            bar.update()
            if on_step is not None and processes.is_main():
                on_step(run.step, run.average.module)
            if run.step % machinery.log_every == 0 or run.step == steps:
                value = loop.log()
                bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
                shown.values(run.step, run.step * objective.batch_size, value, rate, run.over_time)
            if run.step % machinery.save_every == 0 or run.step == steps:
                loop.save()
                if pictures is not None and run.step < steps:
                    shown.pictures(run.step, pictures, run.average.module)
            if ask(bool(stop)) or (run.step == steps and processes.any_of(bool(stop))):
                loop.save()
                processes.wait()
                raise Stopped(loop.farewell(stop.asked or "another process"))
    run.history.over_time = means_over_time(processes.mean(run.over_time.sums))
    return run.average.module.cpu().eval().requires_grad_(False), run.history


class _Loop:
    """One training: its fixed settings, and the :class:`Run` that changes."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimisation: Optimisation,
        machinery: Machinery,
        seed: int,
        desc: str,
        folder: Path | None,
    ) -> None:
        self.objective, self.optimisation, self.machinery = objective, optimisation, machinery
        self.seed, self.desc = seed, desc
        self.run = Run(model, optimisation, machinery)
        self.checkpoints = Checkpoints(folder, machinery.keep, machinery.keep_every) if folder else None
        self.pieces = pieces(objective.batch_size, machinery.micro_batch)
        self.dtype = next(self.run.model.parameters()).dtype
        self.saved = 0

    def resume(self, identity: Mapping[str, Any]) -> None:
        """Continue from the newest state; raises :class:`CannotResume` if it belongs to another training."""
        self.identity = {
            **identity, **vars(self.optimisation), "batch_size": self.objective.batch_size, "seed": self.seed,
            "precision": self.machinery.precision,
            "parameters": sum(parameter.numel() for parameter in self.run.model.parameters()),
        }  # fmt: skip
        if self.checkpoints is None:
            return
        found = self.checkpoints.newest() if processes.is_main() else None
        step = processes.from_main(found and found[1]["step"])  # all processes take the same state, or none does
        if step is None:
            return
        tensors, note = found or self.checkpoints.read(step)
        theirs, own = note["settings"], json.loads(json.dumps(self.identity))
        different = [key for key in {**theirs, **own} if theirs.get(key) != own.get(key)]
        if different:
            listed = ", ".join(f"{key}: {theirs.get(key)} there, {own.get(key)} now" for key in sorted(different))
            raise CannotResume(
                f"{self.checkpoints.folder} holds another training ({listed}); choose another folder or delete it"
            )
        self.run.restore(tensors, note)
        self.saved = self.run.step

    def batches(self) -> Iterator[Batch]:
        """Return this process's pieces of the remaining steps, drawn ahead if there are workers."""
        places = ((step, rows) for step in range(self.run.step, self.optimisation.steps) for rows in self.pieces)
        # Forked workers share the objective; others would get a pickled copy, including the networks of its loss.
        forks = self.machinery.workers and "fork" in multiprocessing.get_all_start_methods()
        return iter(
            DataLoader(
                _Drawn(self.objective),
                batch_size=None,
                sampler=places,
                num_workers=self.machinery.workers,
                multiprocessing_context="fork" if forks else None,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_outlive_signals,
                generator=torch.Generator(),  # or it would draw from the global generator
            )
        )

    def _placed(self, batch: Batch) -> list[Tensor | None]:
        """Move a batch to the model's device and precision."""
        device, dtype = self.run.device, self.dtype
        return [
            part if part is None else part.to(device, dtype if part.is_floating_point() else None, non_blocking=True)
            for part in batch
        ]

    def step(self, batches: Iterator[Batch], rate: float) -> None:
        """Take one step of Adam and of the moving average, at the learning rate ``rate``."""
        run, autocast = self.run, PRECISIONS[self.machinery.precision]
        window = run.step * WINDOWS // self.optimisation.steps
        for group in run.optimiser.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=run.device)
        for rows in self.pieces:
            batch = self._placed(next(batches))
            last = rows is self.pieces[-1]
            with (
                rng.scoped(self.seed, "dropout", run.step, rows.start),
                contextlib.nullcontext() if last else run.accelerator.no_sync(run.wrapped),
            ):
                with torch.autocast(run.device.type, autocast, enabled=autocast is not None):
                    losses = self.objective.losses(run.wrapped, *batch)
                # Processes average their gradients, so this factor gives the mean over the whole step.
                loss = losses.sum() * (processes.count() / self.objective.batch_size)
                run.scaler.scale(loss).backward()
            total += loss.detach().float()
            run.over_time.add(self.objective.times(*batch), losses, window)
        run.scaler.step(run.optimiser)
        run.scaler.update()
        run.optimiser.zero_grad()
        run.average.update_parameters(run.model)
        run.recent.append(total)
        run.step += 1

    def _recent(self) -> tuple[list[float], int]:
        """Return the finite losses since the last history entry, and the number of latest steps in a row without one.

        Raises :class:`Diverged` for a loss that is not finite. A loss scale skips such steps; with one, it is raised
        for :data:`SKIPPED` of them in a row.
        """
        losses: list[float] = processes.mean(torch.stack(self.run.recent)).tolist() if self.run.recent else []
        allowed, in_a_row = SKIPPED if self.run.scaler.is_enabled() else 1, self.run.skipped
        for place, value in enumerate(losses):
            in_a_row = 0 if math.isfinite(value) else in_a_row + 1
            if in_a_row == allowed:
                which = f", the {allowed}th step in a row" if allowed > 1 else ""
                raise self._diverged(f"the loss is {value} at step {self.run.step - len(losses) + 1 + place}{which}")
        return [value for value in losses if math.isfinite(value)], in_a_row

    def log(self) -> float:
        """Append the mean of the recent losses to the history, and return it."""
        (losses, self.run.skipped), history = self._recent(), self.run.history
        self.run.recent.clear()
        if losses:
            history.steps.append(self.run.step)
            history.losses.append(sum(losses) / len(losses))
        return history.losses[-1] if history.losses else math.nan

    def save(self) -> None:
        """Write a state; raises :class:`Diverged` if losses or weights are not finite."""
        self._recent()
        checkpoints, run = self.checkpoints, self.run
        if checkpoints is None or run.step == self.saved:
            return
        self.saved, tensors = run.step, run.tensors()

        def write() -> None:
            if not all(t.isfinite().all() for name, t in tensors.items() if name.startswith("model/")):
                raise self._diverged(f"the weights are not finite after step {run.step}")
            note = {"settings": self.identity, "scaler": run.scaler.state_dict(), "history": vars(run.history)}
            checkpoints.save(run.step, tensors, {**note, "skipped": run.skipped})

        processes.by_main(write)

    def _diverged(self, what: str) -> Diverged:
        kept = self.checkpoints.steps() if self.checkpoints else []
        last = ""
        if kept and self.checkpoints:
            last = f"; the last good checkpoint is that of step {kept[-1]} in {self.checkpoints.folder}"
        return Diverged(f"{self.desc}: {what}{last}; lower the learning rate lr={self.optimisation.lr}")

    def farewell(self, cause: str) -> str:
        """Return the message for a training that a signal ended."""
        again = f", and run again to go on from step {self.run.step}"
        kept = again if self.checkpoints else "; nothing was to be kept"
        return f"{self.desc}: stopped by {cause} after step {self.run.step}{kept}"


class _Drawn(Dataset[Batch]):
    """The batches of a process, piece by piece, as items ``(step, rows)`` that a loader can draw ahead."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def __getitem__(self, place: tuple[int, range]) -> Batch:
        return self.objective.draw(*place)


def _outlive_signals(_: int) -> None:
    """Ignore signals in a worker: the training needs its workers until it has saved, and then ends them."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
