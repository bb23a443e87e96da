"""The layers of the U-Nets: convolutions that resample, group norms, embeddings, and initialisers.

Parameter names are those of EDM checkpoints (Karras et al., 2022). Shapes: images ``(B, C, H, W)``, embeddings
``(B, E)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfpp.base import rng

Init = Callable[[tuple[int, ...], int, int], Tensor]
"""Draws a tensor from its shape, fan-in and fan-out."""


class Initialiser:
    """Xavier and Kaiming initialisation from one generator, so that a seed determines a network.

    On the meta device, where weights are only shapes, nothing is drawn.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = None if torch.get_default_device().type == "meta" else rng.fresh(generator)

    def _uniform(self, shape: tuple[int, ...], bound: float) -> Tensor:
        return (2 * torch.rand(shape, generator=self.generator) - 1) * bound

    def xavier(self, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float = 1.0) -> Tensor:
        return self._uniform(shape, gain * (6 / (fan_in + fan_out)) ** 0.5)

    def kaiming(self, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float = 1.0) -> Tensor:
        return self._uniform(shape, gain * (3 / fan_in) ** 0.5)

    def kaiming_normal(self, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * gain * (1 / fan_in) ** 0.5


def zeros(shape: tuple[int, ...], fan_in: int, fan_out: int) -> Tensor:
    """Initialise a layer with zeros."""
    return torch.zeros(shape)


class Linear(nn.Module):
    """A linear layer, ``(..., in) -> (..., out)``."""

    def __init__(self, n_in: int, n_out: int, init: Init, bias_init: Init | None = zeros) -> None:
        super().__init__()
        self.weight = nn.Parameter(init((n_out, n_in), n_in, n_out))
        self.bias = nn.Parameter(bias_init((n_out,), n_in, n_out)) if bias_init else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _bordered(x: Tensor, dim: int, width: int) -> Tensor:
    """Add zeros at both ends of the rows (``dim=-1``) or columns (``dim=-2``)."""
    return F.pad(x, [width, width] if dim == -1 else [0, 0, width, width])


def downsampled(x: Tensor, taps: Tensor, padding: int) -> Tensor:
    """Filter rows and columns with ``taps``, and keep every second: ``(B, C, H, W) -> (B, C, H', W')``.

    ``padding``: zeros at each border. It is a sum of shifted images, because a convolution with one filter for each
    channel is several times slower on a GPU, forwards and backwards.
    """
    for dim in (-2, -1):
        wide = _bordered(x, dim, padding)
        size = (wide.shape[dim] - len(taps)) // 2 + 1
        steps = [wide.narrow(dim, place, 2 * size - 1) for place in range(len(taps))]
        x = _weighted([step[..., ::2] if dim == -1 else step[..., ::2, :] for step in steps], taps)
    return x


def upsampled(x: Tensor, taps: Tensor) -> Tensor:
    """Put zeros between rows and columns, and filter with twice ``taps``: ``(B, C, H, W) -> (B, C, 2H, 2W)``.

    The number of ``taps`` is even. It is a sum of shifted images, like :func:`downsampled`.
    """
    reach, middle = len(taps) // 4, len(taps) // 2 - 1
    for dim in (-2, -1):
        wide, size, halves = _bordered(x, dim, reach), x.shape[dim], []
        for parity in (0, 1):  # even and odd places see every second tap
            own = range((parity + middle) % 2, len(taps), 2)
            shifted = [wide.narrow(dim, reach + (parity + middle - place) // 2, size) for place in own]
            halves.append(_weighted(shifted, 2 * taps[own.start :: 2]))
        x = torch.stack(halves, dim=x.ndim + dim + 1).flatten(x.ndim + dim, x.ndim + dim + 1)
    return x


def _weighted(images: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = weights[0] * images[0]
    for weight, image in zip(weights[1:], images[1:], strict=True):
        total = total + weight * image
    return total


class Conv2d(nn.Module):
    """A convolution that may filter and resample by two, up or down, before it convolves.

    ``kernel=0`` only resamples. ``filter_last`` convolves first, then filters and downsamples, as the residual encoder
    of NCSN++ does on the image pyramid. The filter is the outer product of ``resample_filter`` and sums to one.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        init: Init = zeros,
        bias_init: Init = zeros,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        filter_last: bool = False,
    ) -> None:
        super().__init__()
        self.n_in, self.n_out, self.up, self.down, self.filter_last = n_in, n_out, up, down, filter_last
        fans = n_in * kernel**2, n_out * kernel**2
        self.weight = nn.Parameter(init((n_out, n_in, kernel, kernel), *fans)) if kernel else None
        self.bias = nn.Parameter(bias_init((n_out,), *fans)) if kernel else None
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        kernel2d = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("resample_filter", kernel2d[None, None] if up or down else None)

    def _filter(self, x: Tensor, gain: float = 1.0) -> Tensor:
        assert self.resample_filter is not None
        return (gain * self.resample_filter).to(x.dtype).expand(x.shape[1], 1, -1, -1)

    def _taps(self, x: Tensor) -> Tensor | None:
        """The filter of one dimension, where sums of shifted images are the faster way: on GPUs."""
        assert self.resample_filter is not None
        is_even = self.resample_filter.shape[-1] % 2 == 0
        return self.resample_filter[0, 0].sum(dim=0).to(x.dtype) if x.is_cuda and is_even else None

    def _up(self, x: Tensor, pad: int) -> Tensor:
        if (taps := self._taps(x)) is not None:
            return upsampled(x, taps)
        return F.conv_transpose2d(x, self._filter(x, 4.0), groups=x.shape[1], stride=2, padding=pad)

    def _down(self, x: Tensor, pad: int) -> Tensor:
        if (taps := self._taps(x)) is not None:
            return downsampled(x, taps, pad)
        return F.conv2d(x, self._filter(x), groups=x.shape[1], stride=2, padding=pad)

    def _resample(self, x: Tensor, pad: int) -> Tensor:
        if self.up:
            x = self._up(x, pad)
        return self._down(x, pad) if self.down else x

    def forward(self, x: Tensor) -> Tensor:
        filter_pad = 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2
        if self.weight is None or self.bias is None:
            return self._resample(x, filter_pad)
        weight, bias, pad = self.weight.to(x.dtype), self.bias.to(x.dtype), self.weight.shape[-1] // 2
        if self.filter_last:
            # The filter sums to one and sees no padding, so the bias passes through it unchanged.
            x = F.conv2d(x, weight, bias, padding=pad + filter_pad)
            return self._down(x, 0)
        return F.conv2d(self._resample(x, filter_pad), weight, bias, padding=pad)


def normalised_by_channel(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation of ``x`` ``(B, C, H, W)``, with the statistics of a group taken from those of its channels.

    The variance of a group is the mean of its channels' variances plus the variance of their means. So nothing is
    reshaped, and ``channels_last`` stays as it is: on an H200 a compiled step of CIFAR-10's network in bf16 takes 98 ms
    instead of 112 (``benchmarks/gpu/norms.py``). Computed at least in float32, and returned in the type of ``x``.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = (each.unflatten(1, (groups, -1)) for each in torch.var_mean(wide, (2, 3), correction=0))
    centre = mean.mean(dim=2, keepdim=True)
    spread = (variance + (mean - centre).square()).mean(dim=2, keepdim=True)
    scale = (spread + eps).rsqrt().expand_as(mean).flatten(1) * weight
    shift = bias - centre.expand_as(mean).flatten(1) * scale
    return (wide * scale[:, :, None, None] + shift[:, :, None, None]).to(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation over ``min(32, channels // 4)`` groups."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = max(1, min(32, channels // 4)), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and torch.compiler.is_compiling():  # uncompiled, its operations would each pass through memory
            return normalised_by_channel(x, self.groups, self.weight, self.bias, self.eps)
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class PositionalEmbedding(nn.Module):
    """``(B,) -> (B, channels)``: cosines, then sines, with geometrically spaced frequencies from 1 down to 1/10000."""

    def __init__(self, channels: int, endpoint: bool = False) -> None:
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device) / (half - (1 if self.endpoint else 0))
        angles = torch.outer(x, (1 / 10000) ** steps)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """``(B,) -> (B, channels)``: cosines, then sines, with fixed random frequencies of standard deviation 16."""

    freqs: Tensor

    def __init__(self, channels: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * torch.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)
