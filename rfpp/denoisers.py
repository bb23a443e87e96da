"""Denoisers: ``denoiser(x, sigma, labels=None) -> E[x0 | x0 + sigma * eps = x]``.

Every model of the book has this interface, with ``x`` at the scale where noise of standard deviation ``sigma`` was
added to unscaled data. A trained U-Net gets it from :class:`EDMPrecond` or, if it was trained on a variance-preserving
(VP) process, from :class:`VPPrecond`. A mixture of Gaussians has it in closed form, which gives tests and pictures an
exactly known answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfpp.base.checks import one_of


def expand(scalar: float | Tensor, x: Tensor) -> Tensor:
    """Reshape a number or ``(B,)`` tensor to float ``(B, 1, ..., 1)``, to multiply ``x`` of shape ``(B, ...)``.

    Raises ``ValueError`` for any other shape.
    """
    value = torch.as_tensor(scalar, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device).flatten()
    if value.numel() not in (1, len(x)):
        raise ValueError(
            f"a time or noise level of shape {tuple(value.shape)} does not fit a batch of {len(x)}; "
            f"allowed: one number or shape ({len(x)},)"
        )
    return value.expand(len(x)).reshape(-1, *[1] * (x.ndim - 1))


class _Precond(nn.Module):
    """A network as a denoiser: it prepares labels and augmentation for the network, and subclasses add the scaling."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model = network

    @property
    def label_dim(self) -> int:
        return int(getattr(self.model, "label_dim", 0))

    def _one_hot(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        dtype = torch.promote_types(x.dtype, torch.float32)
        if labels is None:
            return x.new_zeros(len(x), self.label_dim, dtype=dtype)
        if labels.shape == (len(x),):
            # Reading the values would split a compiled graph and synchronise a GPU.
            looked_at = labels.numel() and labels.device.type == "cpu" and not torch.compiler.is_compiling()
            if looked_at and not 0 <= int(labels.min()) <= int(labels.max()) < self.label_dim:
                raise ValueError(
                    f"labels span {int(labels.min())}..{int(labels.max())}; allowed: 0..{self.label_dim - 1}"
                )
            labels = F.one_hot(labels.long(), self.label_dim)
        if labels.shape != (len(x), self.label_dim):
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}; allowed: ({len(x)},) or {(len(x), self.label_dim)}"
            )
        return labels.to(x.device, dtype)

    def _network(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augmentation: Tensor | None = None) -> Tensor:
        """Return ``F(x; c_noise)`` for a scaled input, in the precision of ``x``; no ``augmentation`` means zeros."""
        augment_dim = getattr(self.model, "augment_dim", 0)
        if augmentation is None and augment_dim:
            augmentation = c_noise.new_zeros(len(x), augment_dim)
        output: Tensor = self.model(x, c_noise, self._one_hot(labels, x), augmentation)
        return output.to(x.dtype)


class EDMPrecond(_Precond):
    """EDM's preconditioning (Karras et al., 2022, Eq. 7): ``D(x; s) = c_skip x + c_out F(c_in x; c_noise)``.

    ``network`` is a :class:`rfpp.networks.SongUNet` or ``DhariwalUNet``; ``sigma_data`` the standard deviation of the
    data. ``labels``: class indices ``(B,)`` or one-hot ``(B, label_dim)``; ``None`` gives a conditional network zeros.
    Networks with ``augment_dim`` get zeros as augmentation labels.
    """

    def __init__(self, network: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__(network)
        self.sigma_data = sigma_data

    def around(self, network: nn.Module) -> EDMPrecond:
        """Return the same preconditioning around another network."""
        return EDMPrecond(network, self.sigma_data)

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``E[x0 | x]`` for noisy images ``x`` ``(B, C, H, W)`` and noise levels ``sigma``, a number or ``(B,)``."""
        return self._preconditioned(x, expand(sigma, x), labels, None)

    def _preconditioned(self, x: Tensor, sigma: Tensor, labels: Tensor | None, augmentation: Tensor | None) -> Tensor:
        total = (sigma**2 + self.sigma_data**2).sqrt()
        c_skip, c_out, c_in = (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total
        return c_skip * x + c_out * self._network(c_in * x, sigma.flatten().log() / 4, labels, augmentation)


class LinearSchedule:
    """The VP process with ``beta(t) = beta_min + beta_d t`` on ``t`` in [0, 1] (Song et al., 2021).

    Its state is ``alpha(t) x0 + sqrt(1 - alpha(t)^2) eps`` with ``alpha(t) = exp(-beta_d t^2 / 4 - beta_min t / 2)``.
    Networks see the time as a step number: ``c_noise = (steps - 1) t``. Beyond ``sigma(1) = 152`` the time exceeds 1,
    as in Eq. 29; a trained network must extrapolate there.
    """

    def __init__(self, beta_min: float = 0.1, beta_d: float = 19.9, steps: int = 1000) -> None:
        self.beta_min, self.beta_d, self.steps = beta_min, beta_d, steps

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "LinearSchedule", "beta_min": self.beta_min, "beta_d": self.beta_d, "steps": self.steps}

    def sigma(self, t: Tensor) -> Tensor:
        """The ratio of noise to signal at time ``t``: ``sqrt(1 / alpha(t)^2 - 1)``."""
        return (self.beta_d * t**2 / 2 + self.beta_min * t).expm1().sqrt()

    def time(self, sigma: Tensor) -> Tensor:
        """The time of a noise level, the positive root of Eq. 29, in a form that loses no digits at small ``sigma``."""
        log = (sigma**2).log1p()
        return 2 * log / (self.beta_min + (self.beta_min**2 + 2 * self.beta_d * log).sqrt())

    def noise_label(self, sigma: Tensor) -> Tensor:
        """``c_noise`` for the network."""
        return (self.steps - 1) * self.time(sigma)


class DiscreteSchedule:
    """A VP process defined at integer steps only, such as DDPM's (Ho et al., 2020): ``alphas_cumprod[k] = alpha_k^2``.

    Between two steps, the step number is linear in ``log sigma``; beyond the first and the last it is constant.
    Raises ``ValueError`` unless ``alphas_cumprod`` decreases within (0, 1).
    """

    def __init__(self, alphas_cumprod: Sequence[float] | Tensor) -> None:
        squared = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu")
        if (
            squared.ndim != 1
            or len(squared) < 2
            or not (squared.diff() < 0).all()
            or not 0 < squared[-1] < squared[0] < 1
        ):
            raise ValueError("alphas_cumprod must be a list of at least two numbers that fall within (0, 1)")
        self.alphas_cumprod = squared
        self.log_sigmas = ((1 - squared) / squared).log() / 2

    @property
    def config(self) -> dict[str, Any]:
        return {"type": "DiscreteSchedule", "alphas_cumprod": self.alphas_cumprod.tolist()}

    def noise_label(self, sigma: Tensor) -> Tensor:
        """The step number of a noise level, fractional between two steps."""
        known = self.log_sigmas.to(sigma.device)
        log = sigma.double().log().clamp(known[0], known[-1])
        upper = torch.searchsorted(known, log).clamp(1, len(known) - 1)
        below, above = known[upper - 1], known[upper]
        return (upper - 1 + (log - below) / (above - below)).to(sigma.dtype)


PREDICTIONS = ("epsilon", "sample", "v_prediction")


class VPPrecond(_Precond):
    """A VP diffusion model as a denoiser: the network was trained on ``y = alpha x0 + sqrt(1 - alpha^2) eps``.

    With ``sigma = sqrt(1 - alpha^2) / alpha``, this is ``y = x / sqrt(1 + sigma^2)``. The network's ``prediction`` is
    ``eps`` (DDPM, score SDE), ``x0``, or ``alpha eps - sqrt(1 - alpha^2) x0`` (Salimans and Ho, 2022).
    ``schedule`` converts ``sigma`` to the network's time; labels are as for :class:`EDMPrecond`.
    Raises ``ValueError`` for an unknown prediction.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: LinearSchedule | DiscreteSchedule | None = None,
        prediction: str = "epsilon",
    ) -> None:
        one_of("prediction", prediction, PREDICTIONS)
        super().__init__(network)
        self.schedule, self.prediction = schedule or LinearSchedule(), prediction

    def around(self, network: nn.Module) -> VPPrecond:
        """Return the same preconditioning around another network."""
        return VPPrecond(network, self.schedule, self.prediction)

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """``E[x0 | x]`` for noisy images ``x`` ``(B, C, H, W)`` and noise levels ``sigma``, a number or ``(B,)``."""
        sigma = expand(sigma, x)
        alpha = 1 / (1 + sigma**2).sqrt()
        output = self._network(alpha * x, self.schedule.noise_label(sigma.flatten()), labels)
        if self.prediction == "epsilon":
            return x - sigma * output
        if self.prediction == "sample":
            return output
        return alpha**2 * x - alpha * sigma * output


class GaussianMixtureDenoiser(nn.Module):
    """The closed-form denoiser of the mixture ``sum_k w_k N(mean_k, std^2 I)``.

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
        weights = means.new_full((len(means),), 1 / len(means)) if weights is None else weights
        self.register_buffer("log_weights", weights.log())
        self.register_buffer("classes", classes)
        self.std = std

    def forward(self, x: Tensor, sigma: float | Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the posterior mean: components weighted by their responsibility for ``x``, each shrunk to its mean."""
        sigma = expand(sigma, x)
        variance = (sigma**2 + self.std**2).flatten()[:, None].to(x.dtype)
        flat, means = x.flatten(1), self.means.flatten(1).to(x.dtype)
        logits = self.log_weights.to(x.dtype) - torch.cdist(
            flat, means, compute_mode="donot_use_mm_for_euclid_dist"
        ) ** 2 / (2 * variance)
        if labels is not None and self.classes is not None:
            missing = labels[~torch.isin(labels, self.classes)]
            if len(missing):
                raise ValueError(f"labels contain {missing[0].item()}, which is the class of no component")
            logits = logits.masked_fill(self.classes[None] != labels[:, None], -torch.inf)
        mean = (logits.softmax(dim=1) @ means).reshape(x.shape)
        shrink = self.std**2 / (sigma**2 + self.std**2) if self.std else torch.zeros_like(sigma)
        return mean + shrink * (x - mean)
