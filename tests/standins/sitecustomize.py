"""For kernels of tests with this folder on their PYTHONPATH: pooled colours stand in for Inception.

A Fréchet distance in Inception's 2,048 features takes seconds, and a notebook asks for dozens.
"""

import torch
from torch.nn import functional

from rfpp import metrics


class Colours(metrics.Extractor):
    """Mean colours of the quarters of an image, and of the image in place of logits."""

    name, num_features = "colours", 12

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = functional.adaptive_avg_pool2d(images.double(), 2)
        return pooled.flatten(1), pooled.mean(dim=(2, 3))


metrics.inception = lambda *_: Colours()
