"""``DhariwalUNet``: ADM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfpp.networks.layers import Conv2d, GroupNorm, Initialiser, Linear, PositionalEmbedding, zeros
from rfpp.networks.unet import UNet, UNetBlock


class DhariwalUNet(UNet):
    """ADM (Dhariwal and Nichol, 2021) as used by EDM on ImageNet (Karras et al., 2022, Table 7).

    Attention has one head per 64 channels; a block with fewer channels has none, whatever ``attn_resolutions`` says.
    ``generator`` draws the initial weights (fresh entropy if ``None``).
    Raises ``ValueError`` for a resolution that cannot be halved as often as there are levels.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        config = {key: value for key, value in locals().items() if key not in ("self", "generator", "__class__")}
        super().__init__(config)
        initialiser = Initialiser(generator)
        kaiming = partial(initialiser.kaiming, gain=(1 / 3) ** 0.5)
        emb = model_channels * channel_mult_emb

        def block(n_in: int, n_out: int, *, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            heads = n_out // 64 if attention else 0  # below 64 channels there is no head, so no attention
            return UNetBlock(
                n_in, n_out, emb, kaiming, zeros, kaiming, kaiming, up=up, down=down, heads=heads, dropout=dropout
            )  # fmt: skip

        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, zeros, bias_init=None) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb, kaiming, kaiming)
        self.map_layer1 = Linear(emb, emb, kaiming, kaiming)
        # Unit-variance weights for one-hot inputs: Kaiming with the fan-in scaled away.
        label_init = partial(initialiser.kaiming_normal, gain=label_dim**0.5)
        self.map_label = Linear(label_dim, emb, label_init, bias_init=None) if label_dim else None
        width = self._build(
            model_channels * channel_mult[0],
            lambda n_in, n_out: Conv2d(n_in, n_out, 3, kaiming, kaiming),
            block,
            attend_everywhere=True,
        )
        self.out_norm = GroupNorm(width)
        self.out_conv = Conv2d(width, out_channels, 3, zeros)

    def _head(self) -> tuple[nn.Module, nn.Module]:
        return self.out_norm, self.out_conv

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(self._classes(class_labels, noise_labels))
        return F.silu(emb)
