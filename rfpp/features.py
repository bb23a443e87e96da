"""The networks whose features images are compared in.

On digits two small classifiers stand in for the paper's pretrained networks: ``classifier`` (in place of Inception)
grades samples, ``perceptual`` (in place of VGG-16) is the trunk of the LPIPS loss. They differ in architecture, in
activation, in seed and in training augmentation, so that the metric does not grade its own loss. Both ship with the
package; :mod:`rfpp.shipped` holds the recipe.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rfpp import rng, torchvision_shim
from rfpp.checks import one_of

torchvision_shim.ensure()
import lpips  # noqa: E402 (needs torchvision)


class DigitNet(nn.Module):
    """A small convolutional classifier of 8x8 grey images with named feature maps.

    ``widths``: channels of each stage; a stage is two 3x3 convolutions, and average pooling follows all but the last.
    ``activation``: ``"relu"`` or ``"silu"``. ``seed`` decides the initial weights. ``num_features``: length of the
    vector under the logits.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64),
        activation: str = "relu",
        classes: int = 10,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        one_of("activation", activation, ["relu", "silu"])
        self.config = {"widths": list(widths), "activation": activation, "classes": classes, "dropout": dropout}
        self.widths, self.dropout = tuple(widths), dropout
        self.activation = F.relu if activation == "relu" else F.silu
        self.num_features = widths[-1]
        self.convolutions = nn.ModuleList()
        with rng.scoped(seed, "initialisation"):
            for n_in, width in zip((1, *widths), widths, strict=False):
                self.convolutions += [nn.Conv2d(n_in, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]
            self.head = nn.Linear(self.num_features, classes)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """The activations after each stage, finest first."""
        maps = []
        for index, convolution in enumerate(self.convolutions):
            if index and index % 2 == 0:
                x = F.avg_pool2d(x, 2)
            x = self.activation(convolution(x))
            if index % 2:
                maps.append(x)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """``(B, 1, 8, 8)`` in [-1, 1] to ``(B, num_features)``: the last stage, averaged over positions."""
        return self.feature_maps(x)[-1].mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits ``(B, classes)``."""
        return self.head(F.dropout(self.features(x), self.dropout, self.training))


class Embedding(nn.Module):
    """A classifier's ``features`` as a module of its own, in the form ``torchmetrics`` takes."""

    def __init__(self, network: DigitNet) -> None:
        super().__init__()
        self.network, self.num_features = network, network.num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


class _Trunk(nn.Module):
    """A digit network's feature maps, in the form ``lpips`` asks of its trunk."""

    def __init__(self, network: DigitNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.network.feature_maps(x)


class DigitLPIPS(lpips.LPIPS):
    """The ``lpips`` package's distance on a digit network's feature maps: two ``(B, 1, 8, 8)`` to ``(B, 1, 1, 1)``.

    All channels count the same (the package's ``lpips=False``): there are no human judgments of 8x8 digits to
    calibrate them with.
    """

    def __init__(self, network: DigitNet) -> None:
        # The package builds a trunk of its own before it can be given another: from torch's global generator, and with
        # arguments that torchvision calls deprecated.
        with rng.scoped(0, "lpips"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
            super().__init__(net="squeeze", pnet_rand=True, lpips=False, verbose=False)
        self.net = _Trunk(network)
        self.chns, self.L = list(network.widths), len(network.widths)
        self.scaling_layer = nn.Identity()  # ImageNet's channel statistics do not apply
        self.requires_grad_(False).eval()
