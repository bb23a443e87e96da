"""Checks of pairs: for sound pairs, the number of each check follows a known distribution.

``z`` should be standard normal, and ``x`` be made from it. Each check of ``z`` tests one property: its mean, its
variance, its shape once both are corrected, and the correlation of its pixels. The pairs alone show whether their rows
belong together, by the correlation of ``z`` with ``x``. Given ``x``, and if ``z`` were independent of it,

    T = sum_i <z_i, x_i - mean x> / (sum_i ||x_i - mean x||^2)^(1/2)

would be standard normal for any images. A flow takes noise to an image near it, so ``T`` of its own pairs grows with
the square root of their number: on digits it is 2.7 times that root.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from scipy import stats
from torch import Tensor

from rfpp import metrics, samplers
from rfpp.doctor.findings import ALPHA, FOUND, Finding
from rfpp.doctor.material import Pairs

BLOCK = 32
"""Consecutive rows whose pairing is tested together: few enough that one lost image shows wherever it is missing."""
FEWEST = 16
"""The fewest pairs whose pairing can be tested."""
SOLVED, FINE = 16, 36
"""How many pairs are solved again, and in how many steps at least. Heun's error falls with the square of the steps."""
TEACHER_ERROR = 0.1
"""The largest error of the solver over the spread of the images: a hundredth of their variance. A convention."""
CELLS = 5
"""Pairs per class that the chi-squared law of counts needs (Cochran, 1954)."""


def neighbours(images: Tensor) -> tuple[float, float]:
    """The correlation of neighbouring pixels of ``(n, C, H, W)`` farthest from 0, and its bound for white noise.

    Neighbours are next to each other in a row, a column, or the channels. Each pixel is centred and scaled first.
    The mean of ``m`` products of independent numbers of variance 1 is nearly normal with variance ``1 / m``.
    """
    if len(images) < 2:
        return 0.0, 0.0
    scaled = images - images.mean(dim=0)
    scaled = scaled / scaled.std(dim=0).clamp(min=1e-12)
    means, bounds = [0.0], [0.0]
    sides = [axis for axis in (1, 2, 3) if images.shape[axis] > 1]
    for axis in sides:
        length = images.shape[axis] - 1
        products = scaled.narrow(axis, 0, length) * scaled.narrow(axis, 1, length)
        means.append(float(products.mean()))
        bounds.append(float(stats.norm.isf(ALPHA / len(sides) / 2)) / math.sqrt(products.numel()))
    worst = max(range(len(means)), key=lambda place: abs(means[place]) / (bounds[place] or 1))
    return means[worst], bounds[worst]


def _finite(pairs: Pairs) -> tuple[Finding, Tensor]:
    """How many rows hold NaN or infinity, and a mask of the rows that do not."""
    whole = torch.stack([part.flatten(1).isfinite().all(dim=1) for part in (pairs.x, pairs.z)]).all(dim=0)
    remedy = "leave these rows out, and look for an overflow in whatever made them"
    return Finding("finite", "rows with NaN or infinity", remedy, float((~whole).sum()), 0, 0), whole


def _is_blank(x: Tensor) -> bool:
    """Whether all images have a single value. They correlate with nothing, like noise."""
    return not bool((x.flatten(1) != x.flatten(1)[:, :1]).any())


def _swapped(x: Tensor, z: Tensor) -> Finding:
    """Whether ``z`` looks like images and ``x`` like noise: the smaller bound is that of white noise."""
    (of_x, bound), (of_z, _) = neighbours(x), neighbours(z)
    is_swapped = not _is_blank(x) and abs(of_x) <= bound < abs(of_z)
    what = f"1 if x is white noise and z is not (neighbouring pixels correlate by {of_x:.2g} in x, {of_z:.2g} in z)"
    return Finding("swapped", what, "exchange x and z: x is the image, z the noise", float(is_swapped), 0, 0, ALPHA)


def _noise(z: Tensor, inverted: bool) -> Iterator[Finding]:
    """Mean, variance, norms, neighbours and repetitions of noise ``(n, C, H, W)``."""
    remedy = "invert with more evaluations or a better teacher" if inverted else "draw z from a standard normal law"
    n, flat = len(z), z.flatten(1).double()
    d = flat.shape[1]
    if n > 1:
        mean = flat.mean(dim=0)
        centred, freedom = flat - mean, (n - 1) * d
        variance = float(centred.square().sum()) / freedom
        limit = math.sqrt(stats.f.isf(ALPHA, d, freedom) * variance / n)
        value, what = float(mean.square().mean().sqrt()), "root mean square of the pixels' means"
        yield Finding("noise mean", what, f"{remedy}, without an offset", value, 0, limit, ALPHA)
        low, high = (stats.chi2.ppf(p, freedom) / freedom for p in (ALPHA / 2, 1 - ALPHA / 2))
        wide = f"{remedy}; z is {math.sqrt(variance):.3g} times as wide"
        yield Finding("noise variance", "variance around the pixels' means", wide, variance, low, high, ALPHA)
        value = metrics.norm_distance(centred / math.sqrt(variance * (1 - 1 / n)))
        what, limit = "Kolmogorov distance of norms to chi's law", float(stats.kstwo.isf(ALPHA, n))
        yield Finding("noise norms", what, f"{remedy}; the shape of z is another", value, 0, limit, ALPHA)
        value, bound = neighbours(z)
        what = "correlation of neighbouring pixels that is farthest from 0"
        yield Finding("noise correlation", what, f"{remedy}, each pixel by itself", value, -bound, bound, ALPHA)
    repeated = n - len({row.tobytes() for row in z.contiguous().numpy()})
    what = "rows whose noise another row has"
    yield Finding("noise repeated", what, "give each process and each shard a seed of its own", repeated, 0, 0)


def _images(x: Tensor) -> Iterator[Finding]:
    """The range of pixels ``(n, C, H, W)``, and images of a single value."""
    low, high = float(x.min()), float(x.max())
    if max(-low, high) > 1:
        remedy = "scale 8-bit pixels by x / 127.5 - 1" if high > 2 else "clamp images to [-1, 1]"
        yield Finding("pixel range", "pixel farthest from 0", remedy, max(low, high, key=abs), -1, 1)
    else:
        what = "least pixel; images in [0, 1] have none below 0"
        yield Finding("pixel range", what, "scale pixels by 2 x - 1", low, -1, -1e-3)
    constant = int((x.flatten(1).amax(dim=1) == x.flatten(1).amin(dim=1)).sum())
    yield Finding(
        "constant images", "images of one value", "make these pairs again: the sampler failed", constant, 0, 0
    )


def alignment(x: Tensor, z: Tensor) -> float:
    """The least ``T`` of the module's formula over blocks of rows."""
    centred, worst = x - x.mean(dim=0), math.inf
    for images, noises in zip(*(part.tensor_split(max(1, len(x) // BLOCK)) for part in (centred, z)), strict=True):
        worst = min(worst, float((images * noises).sum() / images.square().sum().sqrt().clamp(min=1e-12)))
    return worst


def _aligned(x: Tensor, z: Tensor) -> Finding:
    if len(x) < FEWEST:
        return Finding("alignment", "", reason=f"needs {FEWEST} pairs")
    if _is_blank(x):
        return Finding("alignment", "", reason="after constant images is repaired")
    what = f"least correlation of z with x in {BLOCK} rows, in units of its deviation were they unrelated"
    value, bound = alignment(x, z), float(stats.norm.isf(ALPHA))
    shuffled = "find where rows were shuffled, lost or shifted; row i of z must be the noise of row i of x"
    return Finding("alignment", what, "change the sign of x or of z" if value < -bound else shuffled, value, bound)


def _labels(labels: Tensor, classes: int) -> Iterator[Finding]:
    """Labels outside the classes, and whether the classes are equally frequent."""
    known = labels[(labels >= 0) & (labels < classes)]
    remedy = f"number the classes from 0 to {classes - 1}"
    yield Finding("labels", f"labels outside 0 to {classes - 1}", remedy, len(labels) - len(known), 0, 0)
    if len(known) < CELLS * classes or classes < 2:
        yield Finding("class balance", "", reason=f"needs {CELLS} pairs of each of {classes} classes")
        return
    counts = torch.bincount(known, minlength=classes).double()
    share = len(known) / classes
    value = float((counts - share).square().sum() / share)
    what = f"chi-squared of counts from {int(counts.min())} to {int(counts.max())}"
    remedy = "draw labels evenly, unless the images' own classes are as uneven"
    yield Finding("class balance", what, remedy, value, 0, float(stats.chi2.isf(ALPHA, classes - 1)), ALPHA)


def _teacher(pairs: Pairs) -> Finding:
    """How far the teacher's images in more steps are from the stored ones."""
    if pairs.teacher is None:
        return Finding("teacher error", "", reason="the teacher is not at hand; name its file by --teacher")
    steps = max(FINE, 2 * (pairs.num_steps or 0))
    x, z = pairs.x[:SOLVED], pairs.z[:SOLVED]
    labels = None if pairs.labels is None else pairs.labels[:SOLVED]
    finer = samplers.edm_sample(pairs.teacher, z, steps, labels=labels).clamp(-1, 1)
    spread = (pairs.x - pairs.x.mean(dim=0)).square().flatten(1).sum(dim=1).mean()
    value = float(((finer - x).square().flatten(1).sum(dim=1).mean() / spread).sqrt())
    what = f"distance to its images in {steps} steps, over the spread of images"
    more = f"make the pairs with more than {pairs.num_steps} steps" if pairs.num_steps else "solve the ODE more finely"
    remedy = f"{more}; if that does not help, the teacher or the labels are others than the images'"
    return Finding("teacher error", what, remedy, value, 0, TEACHER_ERROR)


def examine(pairs: Pairs) -> list[Finding]:
    """All checks of some pairs; those that another finding makes meaningless are skipped."""
    finite, whole = _finite(pairs)
    found, x, z = [finite], pairs.x[whole], pairs.z[whole]
    labels = None if pairs.labels is None else pairs.labels[whole]
    if not len(x):
        return found
    found.append(_swapped(x, z))
    if found[-1].status == FOUND:
        rest = ("noise", "pixel range", "constant images", "alignment", "teacher error")
        found += [Finding(check, "", reason="after x and z are exchanged") for check in rest]
    else:
        found += [*_noise(z, pairs.inverted), *_images(x), _aligned(x, z)]
    if pairs.classes and labels is not None:
        found += _labels(labels, pairs.classes)
    if not any(finding.check == "teacher error" for finding in found):
        first = next((each.check for each in found if each.status == FOUND and each.check != "class balance"), None)
        kept = replace(pairs, x=x, z=z, labels=labels)
        # After another finding, a distance to the teacher's images would only be a further sign of it.
        found.append(Finding("teacher error", "", reason=f"after {first} is repaired") if first else _teacher(kept))
    return found
