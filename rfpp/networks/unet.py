"""The parts that NCSN++, DDPM++ and ADM share: the residual block, the order of levels, and the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from rfpp.networks.layers import Conv2d, GroupNorm, Init, Linear, zeros


class UNetBlock(nn.Module):
    """A residual block with the noise-level embedding, optional resampling by two, and optional self-attention.

    ``adaptive_scale``: the embedding scales and shifts the second normalisation (ADM) instead of being added before it.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        emb: int,
        init: Init,
        init_zero: Init,
        init_attention: Init,
        bias_init: Init = zeros,
        *,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[int] = (1, 1),
        resample_projection: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.skip_scale, self.adaptive_scale = heads, dropout, skip_scale, adaptive_scale
        resampling = partial(Conv2d, up=up, down=down, resample_filter=resample_filter)
        self.norm0 = GroupNorm(n_in, eps)
        self.conv0 = resampling(n_in, n_out, 3, init, bias_init)
        self.affine = Linear(emb, n_out * (2 if adaptive_scale else 1), init, bias_init)
        self.norm1 = GroupNorm(n_out, eps)
        self.conv1 = Conv2d(n_out, n_out, 3, init_zero)
        self.skip: Conv2d | None = None
        if n_out != n_in or up or down:
            kernel = 1 if resample_projection or n_out != n_in else 0
            self.skip = resampling(n_in, n_out, kernel, init, bias_init)
        if heads:
            self.norm2 = GroupNorm(n_out, eps)
            self.qkv = Conv2d(n_out, 3 * n_out, 1, init_attention, bias_init)
            self.proj = Conv2d(n_out, n_out, 1, init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = modulation.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + modulation))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (x + self._attention(x)) * self.skip_scale if self.heads else x

    def _attention(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        # The 1x1 convolution's channels read (head, channel within the head, {query, key, value}).
        qkv = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        # Fused kernels need the channels of a head to be contiguous in memory.
        query, key, value = qkv.permute(3, 0, 1, 4, 2).contiguous()
        with _differentiable_attention(query):
            attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(-1, -2).reshape(x.shape))


def _differentiable_attention(query: Tensor) -> AbstractContextManager[None]:
    """Use attention without fused kernels, which have no forward-mode derivative, where such a derivative is needed."""
    if torch.compiler.is_compiling() or forward_ad.unpack_dual(query).tangent is None:
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)


class UNet(nn.Module):
    """The parts that the two U-Nets share: the order of their levels, and the forward pass.

    A subclass defines its block in ``__init__``, makes its embedding layers, and calls :meth:`_build`.
    """

    enc: nn.ModuleDict
    dec: nn.ModuleDict

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.img_resolution, self.in_channels = config["img_resolution"], config["in_channels"]
        self.label_dim, self.augment_dim = config["label_dim"], config["augment_dim"]
        self.label_dropout = config["label_dropout"]
        mults = config["channel_mult"]
        coarsest = self.img_resolution / 2 ** (len(mults) - 1)
        if coarsest != int(coarsest) or coarsest < 1:
            raise ValueError(
                f"img_resolution={self.img_resolution} cannot be halved {len(mults) - 1} times; "
                f"shorten channel_mult={list(mults)} or change img_resolution"
            )

    def _build(
        self,
        width: int,
        first: Callable[[int, int], Conv2d],
        block: Callable[..., UNetBlock],
        aux: Callable[[int, int], Conv2d] | None = None,
        *,
        attend_everywhere: bool,
    ) -> int:
        """Make ``enc`` and ``dec``, and return the decoder's last width.

        ``first(n_in, n_out)``: the convolution that widens the image to ``width``; ``block(n_in, n_out, attention, up,
        down)``: a residual block; ``aux(n_in, n_out)``: a step of the residual encoder. In the decoder, levels at
        ``attn_resolutions`` have attention in all their blocks (``attend_everywhere``) or in the last one.
        """
        config = self.config
        num_blocks, attn_resolutions = config["num_blocks"], config["attn_resolutions"]
        levels = [
            (self.img_resolution >> level, config["model_channels"] * mult)
            for level, mult in enumerate(config["channel_mult"])
        ]
        self.enc = nn.ModuleDict()
        self.enc[f"{self.img_resolution}x{self.img_resolution}_conv"] = first(self.in_channels, width)
        skips, aux_width = [width], self.in_channels
        for level, (resolution, level_width) in enumerate(levels):
            name = f"{resolution}x{resolution}"
            if level > 0:
                self.enc[f"{name}_down"] = block(width, width, down=True)
                if aux is not None:
                    self.enc[f"{name}_aux_residual"], aux_width = aux(aux_width, width), width
                skips.append(width)
            for index in range(num_blocks):
                n_in, width = width, level_width
                self.enc[f"{name}_block{index}"] = block(n_in, width, attention=resolution in attn_resolutions)
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, (resolution, level_width) in reversed(list(enumerate(levels))):
            name = f"{resolution}x{resolution}"
            if level == len(levels) - 1:
                self.dec[f"{name}_in0"] = block(width, width, attention=True)
                self.dec[f"{name}_in1"] = block(width, width)
            else:
                self.dec[f"{name}_up"] = block(width, width, up=True)
            for index in range(num_blocks + 1):
                n_in, width = width + skips.pop(), level_width
                attention = resolution in attn_resolutions and (attend_everywhere or index == num_blocks)
                self.dec[f"{name}_block{index}"] = block(n_in, width, attention=attention)
        return width

    def _classes(self, class_labels: Tensor | None, noise_labels: Tensor) -> Tensor:
        """Return one-hot labels: zeros where there are none, and where label dropout removes them in training."""
        if class_labels is None:
            return noise_labels.new_zeros(len(noise_labels), self.label_dim)
        if self.training and self.label_dropout:
            kept = torch.rand(class_labels.shape[0], 1, device=class_labels.device) >= self.label_dropout
            class_labels = class_labels * kept.to(class_labels.dtype)
        return class_labels

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Embed noise level, class and augmentation as one vector ``(B, E)``."""
        raise NotImplementedError

    def _head(self) -> tuple[nn.Module, nn.Module]:
        """Return the last normalisation and convolution."""
        raise NotImplementedError

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        emb = self.embed(noise_labels, class_labels, augment_labels)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if "aux_residual" in name:
                aux = x = skips[-1] = (x + layer(aux)) * 0.5**0.5
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, emb)
        norm, conv = self._head()
        return conv(F.silu(norm(x)))
