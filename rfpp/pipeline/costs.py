"""The cost of training: forward passes as the paper counts them (Table 6), operations, and seconds on this machine."""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rfpp import data, engine, features, networks, pairs, premetrics, training
from rfpp.base import downloads, paths, processes, rng, torchvision_shim
from rfpp.base.checks import one_of
from rfpp.configurations import CONFIGURATIONS
from rfpp.denoisers import EDMPrecond
from rfpp.flow import interpolate
from rfpp.pipeline.grades import SAMPLES
from rfpp.pipeline.networks import STATES, VGG, Published, perceptual_distance
from rfpp.pipeline.plan import Plan
from rfpp.pipeline.steps import Cost, Run, Size, Step
from rfpp.presets import Preset, PresetError

METHODS = {"reflow": 1, "consistency distillation": 4, "consistency training": 2}
"""Forward passes per image of a training step: for reflow, the student; for distillation, the student, the average, and
two for a Heun step of the teacher; for consistency training, the student and the average (Section 5.2)."""


@dataclass(frozen=True)
class Training:
    """The size of a training: ``pairs`` of ``nfe_per_pair`` evaluations, then ``steps`` of ``batch`` images."""

    pairs: int
    nfe_per_pair: int
    steps: int
    batch: int

    @staticmethod
    def of(plan: Plan) -> Training:
        """Return the size of configuration F's training at the plan's preset."""
        pairs, best = plan.pairs(), CONFIGURATIONS["F"]
        return Training(pairs.n, 2 * pairs.num_steps - 1, plan.optimisation(best).steps, plan.batch_size(best))


def forward_passes(size: Training, method: str) -> dict[str, int]:
    """Count the forward passes of a method of :data:`METHODS` with the steps of ``size``; only reflow makes pairs."""
    one_of("method", method, METHODS)
    passes = {"making pairs": size.pairs * size.nfe_per_pair} if method == "reflow" else {}
    return {**passes, "training": size.steps * size.batch * METHODS[method]}


@dataclass(frozen=True)
class Pace:
    """Images per second on one machine: ``forward`` through the teacher, in a training ``step`` of configuration F, and
    in one of D, which is the same without LPIPS (``plain``); ``memory``: the peak of bytes in use during the
    measurement; ``parameters``: the network's parameters."""

    forward: float
    step: float
    plain: float
    device: str
    memory: int = 0
    parameters: int = 0

    @property
    def lpips(self) -> float:
        """The extra time of a training step with LPIPS, as a share of a step without."""
        return self.plain / self.step - 1

    def __str__(self) -> str:
        return f"{self.forward:,.0f} images a second forward, {self.step:,.0f} in a training step, on {self.device}"


def expected(preset: Preset) -> data.Dataset | None:
    """Return blank images in the number and size of a preset's; ``None`` if the preset's own are already here.

    They take no memory. Raises :class:`rfpp.presets.PresetError` if the preset does not give their number or size.
    """
    settings = preset.data
    place = downloads.kept(data.CIFAR10_URL, data.CIFAR10_SHA256) if settings.path is None else None
    if settings.name not in ("cifar10", "images") or (place or paths.datasets(settings.path or "")).exists():
        return None
    if settings.name == "cifar10":
        side, train, held_out, classes = 32, 50_000, 10_000, 10
    elif settings.resolution is None or settings.count is None:
        raise PresetError(
            f"data.path={settings.path!r} does not exist; to plan without the images, set data.resolution "
            f"and data.count, which are {settings.resolution} and {settings.count}"
        )
    else:
        side, held_out = settings.resolution, max(1, round(settings.count * settings.held_out))
        train, classes = settings.count - held_out, _network(preset).get("label_dim", 0)

    def blank(n: int) -> data.Images:
        return data.Images(
            torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(n, -1, -1, -1), torch.zeros(n).long()
        )

    return data.Dataset(settings.name, blank(train), blank(held_out), classes)


def _network(preset: Preset) -> dict[str, Any]:
    """The arguments of a teacher's network that are known before its file is here."""
    name = preset.teacher.network
    return {} if name is None else networks.PAPER[name][1]


def _teacher(plan: Plan) -> Any:
    """Return the untrained teacher, or a network of its size if its file is not here yet."""
    name, teacher = plan.preset.teacher.network, plan.teacher
    if name is not None and isinstance(teacher, Published) and _is_missing(teacher.file, teacher.sha256):
        return EDMPrecond(networks.paper(name))
    return teacher.untrained()


def _is_missing(file: str, sha256: str | None) -> bool:
    """Whether a file is at a URL and was not downloaded yet."""
    return downloads.is_address(file) and not downloads.kept(file, sha256).exists()


def _perceptual(plan: Plan) -> Any:
    """Return the network of LPIPS, with random weights if VGG-16's are not here yet."""
    source = plan.perceptual
    if isinstance(source, VGG) and _is_missing(source.file or features.VGG_URL, features.VGG_SHA256):
        return features.VGGLPIPS(_vgg16().state_dict())
    return source.untrained()


def measure(plan: Plan, repeats: int = 20, lpips: bool = True) -> Pace:
    """Time the preset's network forward, and forward and backward with the losses of configurations F and D.

    This works before anything was made, since the weights do not matter. ``lpips=False`` leaves out the perceptual
    network; training steps are then timed without it.
    """
    machinery, best = plan.preset.machinery, CONFIGURATIONS["F"]
    device, share = processes.device(), max(1, plan.batch_size(best) // processes.count())
    batch = min(share, machinery.micro_batch or share)
    rows, teacher = range(batch), copy.deepcopy(_teacher(plan))
    student = training.initial_flow(teacher, "teacher", plan.preset.training.dropout, 0).train().to(device)
    if machinery.channels_last:
        student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if machinery.compile and device.type == "cuda":  # elsewhere compiling can take longer than the measurement
        student.compile()
    teacher = teacher.to(device)
    z = pairs.noise(0, rows, plan.images.load().train.shape).to(device)
    x, t = z.clamp(-1, 1), best.timesteps.sample(batch, generator=rng.generator(0, "pace")).to(device)
    labels = torch.arange(batch, device=device) % teacher.label_dim if teacher.label_dim else None
    x_t, precision = interpolate(x, z, t), engine.PRECISIONS[machinery.precision]
    without: premetrics.Premetric = premetrics.pseudo_huber
    with_lpips = without
    if lpips:
        with_lpips = premetrics.bind(best.premetric, lambda: perceptual_distance(_perceptual(plan)))

    def forward(step: int) -> None:
        with torch.no_grad():
            teacher(z, 1.0, labels)

    def train(premetric: premetrics.Premetric) -> Callable[[int], None]:
        def work(step: int) -> None:
            with rng.scoped(0, "pace", step), torch.autocast(device.type, precision, enabled=precision is not None):
                premetric(z - x, student(x_t, t, labels), x_t, t).mean().backward()

        return work

    def pace(work: Callable[[int], None]) -> float:
        for step in range(3):
            work(step)
        _rest(device)
        start = time.perf_counter()
        for step in range(repeats):
            work(step)
        _rest(device)
        return repeats * batch / (time.perf_counter() - start)

    name = torch.cuda.get_device_name() if device.type == "cuda" else device.type
    paces = pace(forward), pace(train(with_lpips)), pace(train(without))
    return Pace(*paces, name, _peak_memory(device), sum(parameter.numel() for parameter in teacher.parameters()))


def _rest(device: torch.device) -> None:
    """Wait until the GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@dataclass(frozen=True)
class Forecast:
    """The progress of a step: its whole ``cost``, and the share of it that is ``done``."""

    step: Step
    cost: Cost
    done: float

    @property
    def state(self) -> str:
        """The state in a word or two."""
        return "finished" if self.done == 1 else "started" if self.done else "to do"

    def seconds(self, pace: Pace) -> float:
        """The seconds that the rest takes at this pace, on one device."""
        training_pace = pace.step if self.cost.with_lpips else pace.plain
        return (1 - self.done) * (self.cost.passes / pace.forward + self.cost.trained / training_pace)


def size_of(plan: Plan) -> Size:
    """Return the size on which the costs of a plan's steps depend."""
    dataset = plan.images.load()
    parameters = sum(parameter.numel() for parameter in _teacher(plan).parameters())
    return Size(math.prod(dataset.train.shape), parameters, len(dataset.train))


def forecast(plan: Plan, run: Run, steps: Sequence[Step]) -> list[Forecast]:
    """Return the progress of each of a plan's steps: finished, or the share that its folder holds."""
    size = size_of(plan)

    def done(step: Step) -> float:
        if run.find(step) is not None:
            return 1.0
        folder = run.store.partial(step.name, step.key)
        states = engine.Checkpoints(folder / STATES).steps()
        if states and (note := engine.Checkpoints(folder / STATES).note(states[-1])):
            return min(0.999, states[-1] / note["settings"]["steps"])
        for place in (folder, folder / SAMPLES):
            if (place / pairs.INDEX).is_file():
                return min(0.999, pairs.share_done(place))
        return 0.0

    return [Forecast(step, step.cost(size), done(step)) for step in steps]


def duration(seconds: float) -> str:
    """Format a duration, e.g. ``"3 h 20 min"``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    days, hours = divmod(minutes // 60, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def size(number: float) -> str:
    """Format a number of bytes, e.g. ``"12.3 GB"``."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def report(forecasts: Sequence[Forecast], pace: Pace | None) -> str:
    """Return a line per step with its progress and remaining cost, and the sums of passes, disk, memory and time."""
    head = f"{'step':<36}{'state':<10}{'done':>6}{'passes left':>15}{'disk':>10}{'time left':>14}"
    lines = [head]
    left = passes = 0.0
    for entry in forecasts:
        step = entry.step
        count = (1 - entry.done) * entry.cost.in_all
        seconds = entry.seconds(pace) if pace else 0.0
        left, passes = left + seconds, passes + count
        shown = duration(seconds) if pace and entry.done < 1 else ""
        stored = size(entry.cost.stored) if entry.cost.stored else ""
        lines.append(f"{step.title:<36}{entry.state:<10}{entry.done:>6.0%}{count:>15,.0f}{stored:>10}{shown:>14}")
    disk = sum(entry.cost.stored for entry in forecasts if entry.done < 1)
    lines.append(f"left: {passes:,.0f} forward passes (a training step of an image counts three), {size(disk)} of disk")
    if pace:
        shared = processes.count()
        lines.append(f"at {pace}: {duration(left / shared)}" + (f" on {shared} devices alike" if shared > 1 else ""))
        lines.append(
            f"memory: {size(20 * pace.parameters)} for weights, average, gradients and Adam's moments; "
            f"{size(pace.memory)} at most were in use while this was measured"
        )
    return "\n".join(lines)


def _vgg16() -> nn.Module:
    """Return VGG-16 with random weights."""
    torchvision_shim.ensure()
    from torchvision.models import vgg16

    with rng.scoped(0, "vgg16"):
        made: nn.Module = vgg16(weights=None, init_weights=False)
    return made


def _vgg() -> nn.Module:
    """Return the trunk of LPIPS, without weights."""
    trunk: nn.Module = _vgg16().features  # type: ignore[assignment]
    return trunk.requires_grad_(False)


def _count(loss: Any) -> int:
    """Count the multiplications and additions of ``loss()``, a scalar, and of its gradient."""
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    return int(counter.get_total_flops())


def step_operations(name: str, resolution: int = 224) -> tuple[int, int, int]:
    """Count a network's parameters, and the operations per image of a training step.

    ``name``: one of :data:`rfpp.networks.PAPER`. Returns ``(parameters, network, lpips)``: ``network`` counts its
    forward and backward pass, ``lpips`` VGG-16's forward pass on both images at ``resolution`` and the backward pass to
    one of them. On the meta device, where nothing but the counts is computed.
    """
    with torch.device("meta"):
        denoiser = EDMPrecond(networks.paper(name))
        size, trunk = int(networks.PAPER[name][1]["img_resolution"]), _vgg()
        x, target = torch.empty(1, 3, size, size), torch.empty(1, 3, resolution, resolution)
        image = torch.empty(1, 3, resolution, resolution, requires_grad=True)
        sigma = torch.ones(1)

        def lpips() -> Tensor:
            return (trunk(image) - trunk(target)).square().sum()

        network = _count(lambda: denoiser(x, sigma).square().sum())
        return sum(p.numel() for p in denoiser.parameters()), network, _count(lpips)


@dataclass(frozen=True)
class Bill:
    """The cost of A to G at a preset, before anything is computed: ``parameters`` of the network, forward ``passes`` (a
    training step of an image counts three), ``operations``, multiplications and additions, and ``stored`` bytes."""

    parameters: int
    passes: int
    operations: int
    stored: int

    @property
    def memory(self) -> int:
        """Bytes of weights, average, gradients and Adam's moments, without activations."""
        return 20 * self.parameters


def bill(plan: Plan) -> Bill:
    """Compute the bill from networks of the plan's sizes with random weights.

    Nothing is timed. Nothing is downloaded if ``teacher.network`` names the network of a published teacher.
    """
    name, shape = plan.preset.teacher.network, plan.images.load().train.shape
    if name is not None:
        parameters, training, lpips = step_operations(name)
        with torch.device("meta"):
            forward = _count_forward(EDMPrecond(networks.paper(name)), torch.empty(1, *shape))
    else:
        network, distance = copy.deepcopy(_teacher(plan)), copy.deepcopy(_perceptual(plan))
        if isinstance(distance, features.Classifier):
            distance = features.FeatureLPIPS(distance)
        # Not on this process's device: what is placed there takes its inputs along, and these have no content.
        network, distance = network.to("meta").requires_grad_(True), distance.to("meta")
        parameters = sum(parameter.numel() for parameter in network.parameters())
        with torch.device("meta"):
            image, changed = torch.zeros(1, *shape), torch.zeros(1, *shape, requires_grad=True)
            forward = _count_forward(network, image)
            training = _count(lambda: network(image, torch.ones(1)).square().sum())
            lpips = _count(lambda: distance(changed, image).sum())
    size = Size(math.prod(shape), parameters, len(plan.images.load().train))
    costs = [step.cost(size) for step in plan.steps()]
    return Bill(
        parameters,
        sum(cost.in_all for cost in costs),
        sum(cost.passes * forward + cost.trained * (training + cost.with_lpips * lpips) for cost in costs),
        sum(cost.stored for cost in costs),
    )


def _count_forward(network: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image, torch.ones(1, device=image.device))
    return int(counter.get_total_flops())


def spent(plan: Plan, run: Run) -> float | None:
    """Return the total seconds that the plan's steps took; ``None`` unless all are finished."""
    found = [run.find(step) for step in plan.steps()]
    seconds = [artifact.manifest["seconds"] for artifact in found if artifact is not None]
    return sum(seconds) if len(seconds) == len(found) else None
