"""Features for grading images: Inception-v3, the TensorFlow port with TensorFlow's own resizing, by torch-fidelity."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from rfpp.base import downloads, files, pickles, progress, rng, torchvision_shim
from rfpp.base.checks import at_least

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""The SHA-256 of the weights behind published FIDs, in the file that torch-fidelity and pytorch-fid offer
(95,628,359 bytes)."""


class Extractor(nn.Module):
    """A network for comparing images: uint8 ``(B, C, H, W)`` to features ``(B, num_features)`` and logits ``(B, K)``.

    The logits, which the inception score is computed from, may be ``None``. ``name`` and the ``sha256`` of the weights'
    file identify the extractor.
    """

    name: str
    num_features: int
    sha256: str | None = None

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))


class Inception(Extractor):
    """torch-fidelity's Inception-v3: uint8 ``(B, 1 or 3, H, W)`` to features ``(B, 2048)`` and logits ``(B, 1008)``.

    Grey images are repeated to three channels. The logits are without biases, as in the published inception score.
    Made by :func:`inception`.
    """

    num_features = 2048

    def __init__(self, weights: dict[str, Tensor], name: str, sha256: str) -> None:
        super().__init__()
        self.name, self.sha256 = name, sha256
        # torch-fidelity unpickles the file that it is given, so this is a new one, made from checked tensors.
        file = io.BytesIO()
        torch.save(weights, file)
        file.seek(0)
        kind = torchvision_shim.load("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3
        with rng.scoped(0, "inception"):  # initial weights are drawn before they are replaced
            self.network = kind("inception-v3-compat", ["2048", "logits_unbiased"], file)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # By default, convolutions on a GPU round to the three decimal digits of TensorFloat-32.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            features, logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits


def inception(weights: str | Path = INCEPTION_URL, device: torch.device | str = "cpu") -> Inception:
    """The Inception-v3 of published FIDs, in eval mode.

    ``weights``: the address of the published file or of a mirror, fetched once and checked against
    :data:`INCEPTION_SHA256`; or a local file, whose checksum is kept in ``sha256``. Numbers from other than the
    published weights come with a caveat.

    Raises ``OSError`` when the download fails, with the place to put the file by hand, ``FileNotFoundError`` when a
    local file does not exist, and ``ValueError`` for another checksum or weights that do not fit.
    """
    path = downloads.weights(weights, INCEPTION_URL, INCEPTION_SHA256)
    state = pickles.read_torch(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights={str(weights)!r} is not a dictionary of tensors; {INCEPTION_URL} is")
    sha256 = files.sha256(path)
    name = "inception-v3-2015-12-05" if sha256 == INCEPTION_SHA256 else f"inception-v3 with {path.name}"
    try:
        extractor = Inception(state, name, sha256)
    except RuntimeError as error:
        raise ValueError(f"weights={str(weights)!r} does not fit Inception-v3; {INCEPTION_URL} does") from error
    return extractor.eval().to(device)


def embed(
    images: Tensor | Iterable[Tensor], extractor: Extractor, batch_size: int = 64
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Features ``(B, num_features)`` and logits ``(B, K)`` of all images in turn, on the CPU, with a progress bar.

    ``images``: uint8 ``(N, 1 or 3, H, W)``, or an iterable of such batches, for example a generator.
    ``extractor`` sees ``batch_size`` of them at a time, on its own device. Raises ``ValueError`` for other images.
    """
    at_least("batch_size", batch_size, 1)
    extractor.eval()
    given = images.split(batch_size) if isinstance(images, Tensor) else images
    for group in progress.bar(given, desc="features", unit="batch"):
        check_images(group)
        for batch in group.split(batch_size):
            with torch.no_grad():
                features, logits = extractor(batch.to(extractor.device))
            yield features.cpu(), None if logits is None else logits.cpu()


def check_images(images: object) -> None:
    """Raise ``ValueError`` unless ``images`` are uint8 ``(N, 1 or 3, H, W)``."""
    wanted = "uint8 (N, 3, H, W) or (N, 1, H, W) is needed; rfpp.data.to_uint8 makes it from floats in [-1, 1]"
    if not isinstance(images, Tensor):
        raise ValueError(f"images is or yields a {type(images).__name__}; {wanted}")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images is or yields {images.dtype} of shape {tuple(images.shape)}; {wanted}")
