"""Checks of a training: its files, its pairs, the direction of its flow, its averaged weights, and its course."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from rfpp.base import rng
from rfpp.doctor import curves, of_pairs
from rfpp.doctor.findings import ALPHA, Finding
from rfpp.doctor.material import Pairs, Training
from rfpp.engine import Optimisation
from rfpp.flow import RectifiedFlow, interpolate
from rfpp.pipeline.sampling import Sampler

COMPARED = 500
"""How many pairs of each kind a flow is tested on."""
FIRST_TIME = 0.999
SHORTEST, LONGEST = 0.005, 0.25
"""Limits of the mean age of the averaged weights, relative to the length of the training: half the smallest and twice
the largest among the presets. A convention."""


def one_step_errors(flow: RectifiedFlow, pairs: Pairs) -> Tensor:
    """``||sample(z) - x||^2 / d`` of each of the first pairs, in one step: ``(n,)``."""
    x, z = pairs.x[:COMPARED], pairs.z[:COMPARED]
    labels = None if pairs.labels is None else pairs.labels[:COMPARED]
    return (Sampler(1, first_time=FIRST_TIME)(flow, z, labels) - x).square().flatten(1).mean(dim=1)


def enough(flow: RectifiedFlow, seen: Pairs, held_out: Pairs) -> Finding:
    """Whether the flow fits its training pairs better than others: Welch's test, one-sided."""
    own, other = (one_step_errors(flow, pairs).double() for pairs in (seen, held_out))
    spread = math.sqrt(float(own.var()) / len(own) + float(other.var()) / len(other))
    limit = 1 + float(stats.norm.isf(ALPHA)) * spread / float(own.mean())
    ratio = float(other.mean() / own.mean())
    remedy = f"make more pairs than {seen.total or len(seen):,}, or train for fewer steps"
    return Finding("enough pairs", "held-out over training error in one step", remedy, ratio, 0, limit, ALPHA)


_READINGS = {
    "as it is": (1, False),
    "with time reversed": (1, True),
    "with its sign changed": (-1, False),
    "with time reversed and its sign changed": (-1, True),
}


@torch.no_grad()
def direction(flow: RectifiedFlow, pairs: Pairs) -> Finding:
    """Whether ``v(x_t, t)`` predicts ``z - x`` better than ``v(x_t, 1 - t)``, ``-v(x_t, t)`` and ``-v(x_t, 1 - t)``.

    Times avoid the middle, where ``t`` and ``1 - t`` are close. The squared errors are compared pair by pair.
    """
    x, z = pairs.x[:COMPARED], pairs.z[:COMPARED]
    labels = None if pairs.labels is None else pairs.labels[:COMPARED]
    draws = torch.rand(len(x), generator=rng.generator(0, "doctor", "times"))
    t = torch.where(draws < 0.5, 0.1 + 0.6 * draws, 0.3 + 0.6 * draws)
    x_t = interpolate(x, z, t)
    velocities = {is_reversed: flow.velocity(x_t, 1 - t if is_reversed else t, labels) for is_reversed in (False, True)}
    losses = {
        reading: (z - x - sign * velocities[is_reversed]).square().flatten(1).mean(dim=1).double()
        for reading, (sign, is_reversed) in _READINGS.items()
    }
    own = losses.pop("as it is")
    best = min(losses, key=lambda reading: float(losses[reading].mean()))
    spread = float((own - losses[best]).std()) / math.sqrt(len(own))
    limit = 1 + float(stats.norm.isf(ALPHA)) * spread / float(losses[best].mean())
    value = float(own.mean() / losses[best].mean())
    remedy = f"read the flow {best}: here data lie at t = 0, noise at t = 1, and v = z - x"
    return Finding("direction", f"loss over that of the flow {best}", remedy, value, 0, limit, ALPHA)


def age(optimisation: Optimisation) -> float:
    """The mean age of the averaged weights in steps: each step adds one to it and multiplies the sum by the decay."""
    found = 0.0
    for step in range(1, optimisation.steps):
        decay = min(optimisation.ema, (step + 1) / (step + 10)) if optimisation.growing else optimisation.ema
        found = decay * (found + 1)
    return found


def average(optimisation: Optimisation) -> Finding:
    """Whether the moving average of the weights suits the length of the training."""
    share = age(optimisation) / optimisation.steps
    other = "smaller, or let it grow" if share > LONGEST else "larger"
    remedy = f"choose an ema {other}, instead of {optimisation.ema:g}"
    what = f"mean age of the averaged weights over {optimisation.steps:,} steps"
    return Finding("average", what, remedy, share, SHORTEST, LONGEST)


def course(training: Training, known: Mapping[str, Any]) -> Iterator[Finding]:
    """The quality of the training at each fraction of its steps, against others with the same settings."""
    found, steps = curves.like(training.inputs, known), training.optimisation.steps
    if found is None:
        yield Finding("on course", "", reason="no curves are kept of trainings with these settings")
        return
    name, values = found
    are_whole = not any(file.startswith("samples-") for file in training.damaged)
    images = None if training.teacher is None or not are_whole else curves.targets(training.teacher)
    for place, fraction in enumerate(curves.FRACTIONS):
        own: dict[str, float | None] = {"loss": curves.loss_at(training.history, steps, fraction)}
        if images is not None:
            own["pictures"] = curves.picture_error(training.folder, steps, fraction, images)
        if fraction == 1:
            if training.flow is not None and training.held_out is not None:
                own["pair_error"] = float(one_step_errors(training.flow, training.held_out).mean())
            own["frechet"] = training.frechet
            if training.flow is not None and training.frechet is None:
                how = "python -m rfpp evaluate grades it; then examine it by --preset, --config and --seed"
                yield Finding("on course", "", reason=f"the Fréchet distance is not at hand: {how}")
        for quantity, value in own.items():
            limits = curves.expected(values[quantity][place])
            if value is not None and limits is not None:
                what = f"{curves.QUANTITIES[quantity]}, at {fraction:.0%} of {name}"
                remedy = "compare learning rate, pairs and code with those of the preset"
                yield Finding("on course", what, remedy, value, *limits, curves.ALPHA)


def examine(training: Training, known: Mapping[str, Any] | None = None) -> list[Finding]:
    """All checks of a training and of its pairs; ``known``: the curves it is compared with, by default the book's."""
    remedy = f"delete {training.folder.name} and train again: {', '.join(training.damaged)}"
    found = [Finding("files", "files that differ from their checksums", remedy, len(training.damaged), 0, 0)]
    if training.pairs is None:
        found.append(Finding("pairs", "", reason="the pairs of this training are not at hand"))
    else:
        found += of_pairs.examine(training.pairs)
    if training.flow is None:
        why = "its file is damaged" if training.damaged else "the training has not ended"
        found += [Finding(check, "", reason=why) for check in ("enough pairs", "direction")]
    elif training.pairs is not None:
        compared = [training.pairs] if training.held_out is None else [training.pairs, training.held_out]
        if min(map(len, compared)) < 2:
            few = "a spread needs two pairs; raise rows"
            found += [Finding(check, "", reason=few) for check in ("enough pairs", "direction")]
        elif training.held_out is None:
            found.append(Finding("enough pairs", "", reason="no other pairs of this teacher are at hand"))
            found.append(direction(training.flow, training.pairs))
        else:
            found.append(enough(training.flow, training.pairs, training.held_out))
            found.append(direction(training.flow, training.held_out))
    found.append(average(training.optimisation))
    return [*found, *course(training, curves.read() if known is None else known)]
