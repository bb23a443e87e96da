"""Premetrics ``m(a, b)``: the training losses (Section 4.2). Non-negative, and zero if and only if ``a = b``.

``a = z - x`` is the velocity of a pair, ``b = v(x_t, t)`` the model's. All are called as ``m(a, b, x_t, t)`` and give
one value per sample, ``(B,)``; the plain ones need neither ``x_t`` nor ``t``. ``d`` is the number of elements of an
image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rfpp.denoisers import expand

Premetric = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
PerceptualDistance = Callable[[Tensor, Tensor], Tensor]

HUBER_SCALE = 0.00054
"""Pseudo-Huber's ``c`` per dimension, so that ``c = 0.00054 d`` (Section 4.2)."""


def squared_l2(a: Tensor, b: Tensor, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
    """``||a - b||^2 / d``."""
    return (a - b).square().flatten(1).mean(dim=1)


def pseudo_huber(a: Tensor, b: Tensor, x_t: Tensor | None = None, t: Tensor | None = None) -> Tensor:
    """``(sqrt(||a - b||^2 + c^2) - c) / d`` with ``c = 0.00054 d``: quadratic below ``c``, linear above it."""
    d = a[0].numel()
    c = HUBER_SCALE * d
    squared = (a - b).square().flatten(1).sum(dim=1)
    # The difference of two nearly equal roots, rationalised: exact where a and b nearly agree.
    return squared / ((squared + c**2).sqrt() + c) / d


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Turn off autocast and, in convolutions, TensorFloat-32; kernels stay as deterministic as they are."""
    casts = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
    whole = torch.autocast(device, enabled=False) if casts else nullcontext()
    cudnn = torch.backends.cudnn
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    with cudnn.flags(**kept, allow_tf32=False), whole:
        yield


class _Perceptual(torch.autograd.Function):
    """A perceptual distance with its gradient, both in full precision: near ``t = 0`` the two images differ by less
    than the resolution of others, and 1/t amplifies the error. The gradient is computed in the forward pass, because a
    later backward pass would run under the outer precision settings. Returns distances ``(B,)``, each of which depends
    only on its own two images."""

    @staticmethod
    def forward(ctx: Any, distance: PerceptualDistance, *images: Tensor) -> Tensor:
        wanted = ctx.needs_input_grad[1:]
        with full_precision(images[0].device.type), torch.set_grad_enabled(any(wanted)):
            images = tuple(image.detach().requires_grad_(want) for image, want in zip(images, wanted, strict=True))
            found = distance(*images).flatten()
            variables = [image for image in images if image.requires_grad]
            gradients = iter(torch.autograd.grad(found.sum(), variables) if variables else ())
        ctx.save_for_backward(*(next(gradients) if want else None for want in wanted))
        return found.detach()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        scale = upstream.reshape(-1, 1, 1, 1)
        return None, *(None if gradient is None else gradient * scale for gradient in ctx.saved_tensors)


class LPIPSHuber:
    """``(1 - t) pseudo_huber(a, b) + LPIPS(x_t - t a, x_t - t b)``: the pair's image against the predicted one.

    ``perceptual(image, image)`` gives one distance per sample, of any shape with ``B`` elements.
    """

    def __init__(self, perceptual: PerceptualDistance) -> None:
        self.perceptual = perceptual

    def weight(self, t: Tensor) -> Tensor | float:
        """The weight of the perceptual term at ``t``."""
        return 1.0

    def __call__(self, a: Tensor, b: Tensor, x_t: Tensor, t: Tensor | float) -> Tensor:
        times = expand(t, x_t)
        perceptual: Tensor = _Perceptual.apply(self.perceptual, x_t - times * a, x_t - times * b)
        times = times.flatten()
        return (1 - times) * pseudo_huber(a, b) + self.weight(times) * perceptual


class LPIPSHuberOverT(LPIPSHuber):
    """``(1 - t) pseudo_huber(a, b) + LPIPS(x_t - t a, x_t - t b) / t``.

    The weight makes up for one of the two factors of ``t`` that the gradient of LPIPS has near ``t = 0``.
    """

    def weight(self, t: Tensor) -> Tensor | float:
        return 1 / t


def bind(premetric: Any, perceptual: Callable[[], PerceptualDistance]) -> Premetric:
    """Return a configuration's premetric ready for use: a class, or a ``partial`` of one, gets the perceptual distance.

    ``perceptual()`` loads that distance; it is called only if it is needed.
    """
    made = premetric.func if isinstance(premetric, partial) else premetric
    found: Premetric = premetric(perceptual()) if isinstance(made, type) else premetric
    return found
