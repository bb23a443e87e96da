"""Make pairs: images from noise, with a teacher or another sampler, and noise from images, by inversion."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rfpp import samplers
from rfpp.base.checks import at_least
from rfpp.data import to_float, to_uint8
from rfpp.flow import Denoiser, RectifiedFlow, interpolate
from rfpp.pairs.generators import GENERATOR, noise
from rfpp.pairs.store import SHARD_SIZE, fill
from rfpp.samplers import edm_sample


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
    only: int | None = None,
) -> Path:
    """Make ``n`` pairs with EDM's Heun sampler, ``2 num_steps - 1`` evaluations each, and return ``out_dir``.

    ``sampler(z, labels) -> x`` replaces it, for a flow whose ODE is better solved in another way. Give each sampler,
    and each denoiser without weights, a folder of its own, since a folder does not tell which one filled it.
    ``advance`` is called with the number of pairs made, in place of a progress bar. Existing shards are kept, and
    several processes with the same call share the others; ``only``: the one shard to make, by its number from 0.
    ``shape`` ``(C, H, W)`` and ``classes`` are the network's, if there is one; labels are ``index mod classes``.

    Raises ``ValueError`` for ``n`` or ``batch_size`` below 1, ``classes`` that the network does not have, or a folder
    of other settings or weights, and ``ArithmeticError`` for an image that is not finite.
    """
    for name, value in (("n", n), ("batch_size", batch_size), ("shard_size", shard_size)):
        at_least(name, value, 1)
    at_least("num_steps", num_steps, 2)
    at_least("seed", seed, 0)
    network = getattr(denoiser, "model", None)
    if shape is None:
        if network is None:
            raise ValueError("shape=None, and the denoiser has no network to read it from; pass shape=(C, H, W)")
        shape = (network.in_channels, network.img_resolution, network.img_resolution)
    if classes is None:
        classes = getattr(network, "label_dim", 0)
    elif classes and network is not None and classes != getattr(network, "label_dim", classes):
        raise ValueError(
            f"classes={classes}, but the denoiser's network has label_dim={network.label_dim}; leave classes out"
        )
    index = {
        "n": n, "seed": seed, "num_steps": None if sampler else num_steps, "shape": list(shape), "classes": classes,
        "shard_size": shard_size, "generator": GENERATOR, "denoiser": _fingerprint(denoiser),
    }  # fmt: skip

    def make(indices: Tensor, advance: Callable[[int], Any]) -> dict[str, Tensor]:
        images = torch.empty((len(indices), *shape), dtype=torch.uint8)
        for chunk, rows in zip(indices.split(batch_size), images.split(batch_size), strict=True):
            z = noise(seed, chunk, shape, device)
            labels = (chunk % classes).to(device) if classes else None
            x = sampler(z, labels) if sampler else edm_sample(denoiser, z, num_steps, labels=labels)
            _check_finite(x, chunk)
            rows.copy_(to_uint8(x))
            advance(len(chunk))
        return {"images": images, "indices": indices}

    desc = "pairs" if sampler else f"pairs, {2 * num_steps - 1} NFE"
    return fill(Path(out_dir), index, make, desc, advance, only)


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
    only: int | None = None,
) -> Path:
    """Make pairs of real images and the noise that ``flow`` carries them to (Section 4.4), and return ``out_dir``.

    ``images``: 8-bit pixels ``(N, C, H, W)``; ``labels``: ``(N,)`` or ``None``. The noise itself is stored. The small
    noise that inversion starts with is a function of ``(seed, i)``. Existing shards are kept;
    ``only``: the one shard to make, by its number from 0.
    Raises ``ValueError`` for images that are no 8-bit pixels, or if ``out_dir`` holds pairs made with other settings or
    by another flow; pairs of other images are not detected.
    """
    samplers.steps_for(nfe, "euler")
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}; 8-bit pixels (N, C, H, W) are needed, "
            "which rfpp.data.to_uint8 makes of images in [-1, 1]"
        )
    classes = 0 if labels is None else int(labels.max()) + 1
    shape = list(images.shape[1:])
    index = {
        "n": len(images), "seed": seed, "nfe": nfe, "shape": shape, "classes": classes,
        "shard_size": shard_size, "generator": GENERATOR, "noise": "stored", "denoiser": _fingerprint(flow),
    }  # fmt: skip

    def make(indices: Tensor, advance: Callable[[int], Any]) -> dict[str, Tensor]:
        found = torch.empty((len(indices), *shape))
        for chunk, rows in zip(indices.split(batch_size), found.split(batch_size), strict=True):
            x = to_float(images[chunk]).to(device)
            start = interpolate(x, noise(seed, chunk, shape, device), samplers.INVERSION_START)
            given = None if labels is None else labels[chunk].to(device)
            with torch.no_grad():
                rows.copy_(samplers.integrate(flow, start, samplers.inversion_times(nfe), labels=given)[-1])
            _check_finite(rows, chunk)
            advance(len(chunk))
        shard = {"images": images[indices], "indices": indices, "noise": found}
        return shard if labels is None else {**shard, "labels": labels[indices]}

    return fill(Path(out_dir), index, make, f"inverting images, {nfe} NFE", only=only)


def _check_finite(x: Tensor, indices: Tensor) -> None:
    whole = x.isfinite().flatten(1).all(dim=1).cpu()
    if not whole.all():
        raise ArithmeticError(
            f"pair {int(indices[~whole][0])} is not finite; finished pairs are kept. Check the weights and the "
            "sampler, then run again"
        )


def _fingerprint(denoiser: Denoiser) -> str | None:
    """Return the SHA-256 of a denoiser's weights, whatever their names; ``None`` for a denoiser without weights."""
    tensors = list(denoiser.state_dict().values()) if isinstance(denoiser, nn.Module) else []
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest() if tensors else None
