"""``DiffusersUNet``: a network of the diffusers library with our interface."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rfpp.base import rng, torchvision_shim


class DiffusersUNet(nn.Module):
    """A ``UNet2DModel`` of the diffusers library, called like the networks of this package.

    ``noise_labels`` are its timesteps, integer or fractional; one-hot class labels are converted to indices. ``config``
    is the configuration of ``UNet2DModel``; ``generator`` decides the initial weights (fresh entropy if ``None``).
    Raises ``ImportError`` if diffusers is not installed, and ``ValueError`` unless the model is a plain VP model of
    square images.
    """

    def __init__(self, generator: torch.Generator | None = None, **config: Any) -> None:
        super().__init__()
        torchvision_shim.ensure()
        try:
            from diffusers import UNet2DModel
        except ImportError as error:
            raise ImportError("diffusers is not installed; run: pip install 'rfpp[diffusers]'") from error
        seed = int(torch.randint(1 << 62, (), generator=rng.fresh(generator), device="cpu"))
        with rng.scoped(seed, "initialisation"):  # diffusers draws from torch's global generator
            self.unet = UNet2DModel.from_config(config)
        found = dict(self.unet.config)
        self.config = {key: value for key, value in found.items() if not key.startswith("_")}
        for key, allowed in {"time_embedding_type": ("positional",), "class_embed_type": (None,)}.items():
            if found[key] not in allowed:
                raise ValueError(f"{key}={found[key]!r} is not supported; allowed: {', '.join(map(repr, allowed))}")
        if found["in_channels"] != found["out_channels"]:
            raise ValueError(
                f"in_channels={found['in_channels']}, out_channels={found['out_channels']}: they must agree "
                "(a model that also predicts variances is not supported)"
            )
        if not isinstance(found["sample_size"], int):
            raise ValueError(f"sample_size={found['sample_size']!r}; a whole number, for square images, is needed")
        self.img_resolution, self.in_channels = found["sample_size"], found["in_channels"]
        self.label_dim, self.augment_dim = found["num_class_embeds"] or 0, 0

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        if self.label_dim and (class_labels is None or not bool(class_labels.any(dim=1).all())):
            raise ValueError(
                "labels=None or a row of zeros: this model has no unconditional mode; pass a class for each image"
            )
        classes = None if class_labels is None or not self.label_dim else class_labels.argmax(dim=1)
        output: Tensor = self.unet(x, noise_labels, class_labels=classes, return_dict=False)[0]
        return output
