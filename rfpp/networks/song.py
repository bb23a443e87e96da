"""``SongUNet``: NCSN++ and DDPM++."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfpp.base.checks import one_of
from rfpp.networks.layers import Conv2d, FourierEmbedding, GroupNorm, Initialiser, Linear, PositionalEmbedding
from rfpp.networks.unet import UNet, UNetBlock


class SongUNet(UNet):
    """NCSN++ and DDPM++ (Song et al., 2021) as used by EDM (Karras et al., 2022, Table 7).

    NCSN++: ``embedding_type="fourier", encoder_type="residual", resample_filter=[1, 3, 3, 1], channel_mult_noise=2``.
    DDPM++: the defaults. ``generator`` draws the initial weights (fresh entropy if ``None``).
    Raises ``ValueError`` for an unknown type, or a resolution that cannot be halved as often as there are levels.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
        generator: torch.Generator | None = None,
    ) -> None:
        config = {key: value for key, value in locals().items() if key not in ("self", "generator", "__class__")}
        one_of("embedding_type", embedding_type, ["positional", "fourier"])
        one_of("encoder_type", encoder_type, ["standard", "residual"])
        one_of("decoder_type", decoder_type, ["standard"])
        super().__init__(config)
        initialiser = Initialiser(generator)
        xavier = initialiser.xavier
        nearly_zero = partial(xavier, gain=1e-5)
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise

        def block(n_in: int, n_out: int, *, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            return UNetBlock(
                n_in, n_out, emb, xavier, nearly_zero, partial(xavier, gain=0.2**0.5),
                up=up, down=down, heads=int(attention), dropout=dropout, skip_scale=0.5**0.5, eps=1e-6,
                resample_filter=resample_filter, resample_projection=True, adaptive_scale=False,
            )  # fmt: skip

        def aux(n_in: int, n_out: int) -> Conv2d:
            return Conv2d(n_in, n_out, 3, xavier, down=True, resample_filter=resample_filter, filter_last=True)

        self.map_noise = (
            PositionalEmbedding(noise, endpoint=True)
            if embedding_type == "positional"
            else FourierEmbedding(noise, initialiser.generator)
        )
        self.map_label = Linear(label_dim, noise, xavier) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, xavier, bias_init=None) if augment_dim else None
        self.map_layer0 = Linear(noise, emb, xavier)
        self.map_layer1 = Linear(emb, emb, xavier)
        width = self._build(
            model_channels,
            lambda n_in, n_out: Conv2d(n_in, n_out, 3, xavier),
            block,
            aux if encoder_type == "residual" else None,
            attend_everywhere=False,
        )
        self._name = f"{img_resolution}x{img_resolution}"
        self.dec[f"{self._name}_aux_norm"] = GroupNorm(width, eps=1e-6)
        self.dec[f"{self._name}_aux_conv"] = Conv2d(width, out_channels, 3, nearly_zero)

    def _head(self) -> tuple[nn.Module, nn.Module]:
        return self.dec[f"{self._name}_aux_norm"], self.dec[f"{self._name}_aux_conv"]

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels)
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(emb.shape)  # sines before cosines
        if self.map_label is not None:
            emb = emb + self.map_label(self._classes(class_labels, noise_labels) * self.label_dim**0.5)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
