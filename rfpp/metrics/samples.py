"""How good samples are: their labels, their place among real images, and the norms of noises."""

from __future__ import annotations

import torch
from scipy import stats
from torch import Tensor, nn

from rfpp.base import torchvision_shim


@torch.no_grad()
def label_agreement(images: Tensor, labels: Tensor, classifier: nn.Module, batch_size: int = 1024) -> float:
    """Share of images ``(N, C, H, W)`` that ``classifier`` recognises as their label ``(N,)``."""
    found = torch.cat([classifier(batch).argmax(dim=1) for batch in images.split(batch_size)])
    return float((found == labels).float().mean())


@torch.no_grad()
def precision_recall(real: Tensor, generated: Tensor, embedding: nn.Module, neighbours: int = 3) -> tuple[float, float]:
    """Precision, the share of generated images within the real ones' manifold, and recall, the converse.

    The manifold is made of balls around the ``embedding`` of each image that reach to its ``neighbours``-th neighbour
    (Kynkäänniemi et al., 2019); computed by torch-fidelity. ``real``, ``generated``: ``(N, ...)``, what ``embedding``
    takes; ``torch.nn.Identity()`` takes features.
    """
    found = torchvision_shim.load("torch_fidelity.metric_prc").prc_features_to_metric(
        embedding(generated).float(),
        embedding(real).float(),
        prc_neighborhood=neighbours,
        prc_batch_size=10_000,
        save_cpu_ram=True,
        verbose=False,
    )
    return found["precision"], found["recall"]


def norm_distance(z: Tensor) -> float:
    """How far the norms of noises ``z`` ``(N, ...)`` are from those of standard normal noise: Kolmogorov's distance.

    Between 0 and 1: the largest gap between the norms' distribution function and that of the chi distribution with
    ``d`` degrees of freedom. ``N`` Gaussian noises stay below ``1.36 / sqrt(N)`` in 95 % of all cases.
    """
    norms = z.flatten(1).double().norm(dim=1).numpy()
    return float(stats.kstest(norms, stats.chi(z[0].numel()).cdf).statistic)
