"""The networks in whose features images are compared.

At the paper's scale they are Inception, which grades samples (:func:`rfpp.metrics.inception`), and VGG-16, the trunk of
the LPIPS loss. At small scales, two small classifiers replace them: ``classifier`` grades, and ``perceptual`` is the
trunk. They differ in width, activation and seed, so that samples are not graded by the network of their own loss. The
classifiers for digits ship with the package (:mod:`rfpp.pipeline.shipped` holds the recipe); other presets train theirs
on their own data.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from rfpp.base import downloads, pickles, rng, torchvision_shim
from rfpp.base.checks import one_of
from rfpp.data import to_uint8


class Classifier(nn.Module):
    """A small convolutional classifier of images with ``channels`` channels, with named feature maps.

    ``widths``: channels of each stage; a stage is two 3x3 convolutions, and average pooling follows all but the last.
    ``activation``: ``"relu"`` or ``"silu"``. ``seed`` decides the initial weights. ``num_features``: length of the
    feature vector below the logits.
    """

    def __init__(
        self,
        widths: Sequence[int] = (32, 64),
        activation: str = "relu",
        classes: int = 10,
        dropout: float = 0.0,
        seed: int = 0,
        channels: int = 1,
    ) -> None:
        super().__init__()
        one_of("activation", activation, ["relu", "silu"])
        self.config = {
            "widths": list(widths), "activation": activation, "classes": classes, "dropout": dropout,
            "channels": channels,
        }  # fmt: skip
        self.widths, self.dropout = tuple(widths), dropout
        self.activation = F.relu if activation == "relu" else F.silu
        self.num_features = widths[-1]
        self.convolutions = nn.ModuleList()
        with rng.scoped(seed, "initialisation"):
            for n_in, width in zip((channels, *widths), widths, strict=False):
                self.convolutions += [nn.Conv2d(n_in, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]
            self.head = nn.Linear(self.num_features, classes)

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Return the activations after each stage, finest first."""
        maps = []
        for index, convolution in enumerate(self.convolutions):
            if index and index % 2 == 0:
                x = F.avg_pool2d(x, 2)
            x = self.activation(convolution(x))
            if index % 2:
                maps.append(x)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` in [-1, 1] to ``(B, num_features)``: the last stage, averaged over positions."""
        return self.feature_maps(x)[-1].mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return class logits ``(B, classes)``."""
        return self.head(F.dropout(self.features(x), self.dropout, self.training))


class Embedding(nn.Module):
    """A classifier's ``features`` as a separate module, with the ``num_features`` that :class:`rfpp.metrics.Moments`
    needs."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network, self.num_features = network, network.num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x)


class _Trunk(nn.Module):
    """A small network's feature maps, in the form that ``lpips`` needs for its trunk."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.network.feature_maps(x)


class EightBit(nn.Module):
    """The features ``(B, num_features)`` of a network for 8-bit images, such as Inception, from floats in [-1, 1]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.num_features = network, network.num_features

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(to_uint8(x))[0]
        return features


def _lpips(**options: Any) -> Any:
    """Make the ``lpips`` package's network. Its constructor draws weights from torch's global generator, and passes
    arguments that torchvision calls deprecated."""
    package = torchvision_shim.load("lpips")
    with rng.scoped(0, "lpips"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        return package.LPIPS(pnet_rand=True, verbose=False, **options)


class FeatureLPIPS(nn.Module):
    """The ``lpips`` package's distance on a small classifier's feature maps: two ``(B, C, H, W)`` to ``(B, 1, 1, 1)``.

    All channels have equal weight (the package's ``lpips=False``), because there are no human judgments of such images
    for calibration.
    """

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        self.distance = _lpips(net="squeeze", lpips=False)
        self.distance.net = _Trunk(network)
        self.distance.chns, self.distance.L = list(network.widths), len(network.widths)
        self.distance.scaling_layer = nn.Identity()  # ImageNet's channel statistics do not apply
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distance: Tensor = self.distance(a, b)
        return distance


VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"


class VGGLPIPS(nn.Module):
    """The paper's LPIPS: VGG-16 with average instead of maximum pooling, both images enlarged to 224x224.

    ``weights``: torchvision's state dict of VGG-16 trained on ImageNet; the channel calibration is the package's.
    Maps two images ``(B, 3, H, W)`` in [-1, 1] to ``(B, 1, 1, 1)``.
    """

    def __init__(self, weights: Mapping[str, Tensor], resolution: int = 224) -> None:
        super().__init__()
        self.distance, self.resolution = _lpips(net="vgg"), resolution
        for name, part in list(self.distance.net.named_modules()):
            if isinstance(part, nn.MaxPool2d):
                stage, _, place = name.rpartition(".")
                setattr(self.distance.net.get_submodule(stage), place, nn.AvgPool2d(part.kernel_size, part.stride))
        trunk = self.distance.net.state_dict()  # slice2.5.weight is torchvision's features.5.weight
        try:
            trunk = {name: weights[f"features.{name.partition('.')[2]}"] for name in trunk}
            self.distance.net.load_state_dict(trunk)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"these are not VGG-16's weights ({error}); {VGG_URL} has them") from error
        self.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        size = (self.resolution, self.resolution)
        a, b = (F.interpolate(image, size, mode="bilinear", align_corners=False) for image in (a, b))
        distance: Tensor = self.distance(a, b)
        return distance


def vgg_lpips(weights: str | Path = VGG_URL) -> VGGLPIPS:
    """Return the paper's LPIPS, with checked weights from a local file, or downloaded from their address or a mirror.

    Raises ``OSError`` if the download fails, naming the path for a manual copy, and ``ValueError`` if they do not fit.
    """
    path = downloads.weights(weights, VGG_URL, VGG_SHA256)
    state = pickles.read_torch(path)
    if not isinstance(state, dict):
        raise ValueError(f"{path} does not hold VGG-16's weights; {VGG_URL} has them")
    return VGGLPIPS(state)
