"""Denoisers: ``denoiser(x, sigma, labels=None) -> E[x0 | x0 + sigma * eps = x]``.

Every model of the book enters through this contract, with ``x`` at the scale where noise of standard deviation
``sigma`` was added to unscaled data. A trained U-Net meets it through :class:`EDMPrecond`; a mixture of Gaussians meets
it in closed form and gives tests and pictures an answer that is known exactly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def expand(scalar: float | Tensor, x: Tensor) -> Tensor:
    """A number or ``(B,)`` tensor as float ``(B, 1, ..., 1)``, ready to multiply ``x`` of shape ``(B, ...)``.

    Raises ``ValueError`` for any other shape.
    """
    value = torch.as_tensor(scalar, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device).flatten()
    if value.numel() not in (1, len(x)):
        raise ValueError(
            f"a time or noise level of shape {tuple(value.shape)} does not fit a batch of {len(x)}; "
            f"allowed: one number or shape ({len(x)},)"
        )
    return value.expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))


class EDMPrecond(nn.Module):
    """EDM's preconditioning (Karras et al., 2022, Eq. 7): ``D(x; s) = c_skip x + c_out F(c_in x; c_noise)``.

    ``network`` is a :class:`rfpp.networks.SongUNet` or ``DhariwalUNet``; ``sigma_data`` the standard deviation of the
    data. ``labels``: class indices ``(B,)`` or one-hot ``(B, label_dim)``; ``None`` gives a conditional network zeros.
    Networks with ``augment_dim`` get zeros as augmentation labels.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.model = network
        self.sigma_data = sigma_data

    @property
    def label_dim(self) -> int:
        return int(getattr(self.model, "label_dim", 0))

    def _one_hot(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        if labels is None:
            return x.new_zeros(len(x), self.label_dim, dtype=torch.float32)
        if labels.shape == (len(x),):
            if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.label_dim:
                raise ValueError(
                    f"labels span {int(labels.min())}..{int(labels.max())}; allowed: 0..{self.label_dim - 1}"
                )
            labels = F.one_hot(labels.long(), self.label_dim)
        if labels.shape != (len(x), self.label_dim):
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; allowed: ({len(x)},) or {(len(x), self.label_dim)}"
            )
        return labels.to(x.device, torch.float32)

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``E[x0 | x]`` for noisy images ``x`` ``(B, C, H, W)`` and noise levels ``sigma``, a number or ``(B,)``."""
        sigma = expand(sigma, x)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        c_skip, c_out, c_in = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total
        c_noise = sigma.flatten().log() / 4
        augment_dim = getattr(self.model, "augment_dim", 0)
        augmentation = c_noise.new_zeros(len(x), augment_dim) if augment_dim else None
        output = self.model(c_in * x, c_noise, self._one_hot(labels, x), augmentation)
        return c_skip * x + c_out * output.to(x.dtype)


class GaussianMixtureDenoiser(nn.Module):
    """Closed-form denoiser of the mixture ``sum_k w_k N(mean_k, std^2 I)``.

    With ``std=0`` and the training images as means it is the optimal denoiser of the empirical distribution.
    ``means``: ``(K, ...)``; ``weights``: ``(K,)``, uniform by default. With ``classes`` ``(K,)``, integer ``labels``
    restrict each sample to the components of its class.
    """

    def __init__(
        self, means: Tensor, std: float = 0.0, weights: Tensor | None = None, classes: Tensor | None = None
    ) -> None:
        super().__init__()
        self.means: Tensor
        self.log_weights: Tensor
        self.classes: Tensor | None
        self.register_buffer("means", means)
        weights = torch.full((len(means),), 1 / len(means), dtype=means.dtype) if weights is None else weights
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("classes", classes)
        self.std = std

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Posterior mean: components weighted by their responsibility for ``x``, each shrunk towards its mean."""
        sigma = expand(sigma, x)
        variance = (sigma**2 + self.std**2).flatten()[:, None].to(x.dtype)
        flat, means = x.flatten(1), self.means.flatten(1).to(x.dtype)
        logits = self.log_weights.to(x.dtype) - torch.cdist(
            flat, means, compute_mode="donot_use_mm_for_euclid_dist"
        ) ** 2 / (2 * variance)
        if labels is not None and self.classes is not None:
            missing = labels[~torch.isin(labels, self.classes)]
            if len(missing):
                raise ValueError(f"labels contain {missing[0].item()}, a class of no component")
            logits = logits.masked_fill(self.classes[None] != labels[:, None], -torch.inf)
        mean = (logits.softmax(dim=1) @ means).reshape(x.shape)
        shrink = self.std**2 / (sigma**2 + self.std**2) if self.std else torch.zeros_like(sigma)
        return mean + shrink * (x - mean)
