"""The prices behind the arena's budgets: what a derivative along a direction and LPIPS cost beside a pass.

``rfpp.arena.methods.JVP`` and ``rfpp.studies.arena.LPIPS`` are these ratios as they were when the budgets were set.
"""

from __future__ import annotations

import torch

from rfpp.arena import average
from rfpp.pipeline import networks, shipped


def _rows(size):
    n = size(32, 4)
    generator = torch.Generator().manual_seed(0)
    x, v = torch.randn((2, n, 1, 8, 8), generator=generator)
    t = torch.rand(n, generator=generator) * 0.8 + 0.1
    return x, t, torch.arange(n) % 10, t / 2, v


def _passes(flow, x, t, labels, r):
    """A pass forwards, without gradients, and one forwards and backwards."""

    @torch.no_grad()
    def forward():
        flow.average(x, t, labels, r)

    return forward, lambda: flow.average(x, t, labels, r).square().mean().backward()


def bench_derivative_along_a_direction(compare, teacher, size):
    flow, (x, t, labels, r, v) = average.initial(teacher, 0.0, 0), _rows(size)
    forward, _ = _passes(flow, x, t, labels, r)

    @torch.no_grad()
    def derivative():
        flow.change(x, t, labels, r, v)

    compare(derivative, forward, question="MeanFlow's derivative, with its value", baseline="a pass", price=True)


def bench_forward_and_backward(compare, teacher, size):
    *rows, _ = _rows(size)
    forward, both = _passes(average.initial(teacher, 0.0, 0), *rows)
    compare(both, forward, question="a pass forwards and backwards", baseline="a pass", price=True)


def bench_lpips(compare, teacher, size):
    *rows, v = _rows(size)
    _, both = _passes(average.initial(teacher, 0.0, 0), *rows)
    perceptual = networks.perceptual_distance(shipped.load("digits-perceptual"))

    def with_lpips():
        both()
        image = v.clone().requires_grad_(True)
        perceptual(image, rows[0]).sum().backward()

    compare(with_lpips, both, question="LPIPS beside a training step's passes", baseline="without it", price=True)
