"""The networks of the paper's experiments, by data set."""

from __future__ import annotations

from typing import Any

from rfpp.base.checks import one_of
from rfpp.networks.dhariwal import DhariwalUNet
from rfpp.networks.song import SongUNet
from rfpp.networks.unet import UNet

_NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
    "augment_dim": 9,
}  # fmt: skip

_SIXTY_FOUR = {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.25, **_NCSNPP}

PAPER: dict[str, tuple[type[UNet], dict[str, Any]]] = {
    "cifar10": (SongUNet, {"img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.13, **_NCSNPP}),
    "afhq": (SongUNet, _SIXTY_FOUR),
    "ffhq": (SongUNet, _SIXTY_FOUR),
    "imagenet64": (DhariwalUNet, {"img_resolution": 64, "label_dim": 1000}),
}
"""The paper's networks (Table 7, and the released configurations), by data set: arguments other than the defaults."""


def paper(name: str, **changes: Any) -> SongUNet | DhariwalUNet:
    """Make a network of :data:`PAPER` with new weights; ``changes``: arguments such as ``label_dim=10``, ``generator``.

    Raises ``ValueError`` for an unknown name.
    """
    one_of("name", name, PAPER)
    kind, config = PAPER[name]
    made = kind(**{"in_channels": 3, "out_channels": 3, **config, **changes})
    assert isinstance(made, SongUNet | DhariwalUNet)
    return made
