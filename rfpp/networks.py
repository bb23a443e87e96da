"""The U-Nets of the paper: ``SongUNet`` (NCSN++ and DDPM++) and ``DhariwalUNet`` (ADM).

A network maps a scaled noisy image to an image, given the noise level and, where it has classes, a label:
``network(x, noise_labels, class_labels=None, augment_labels=None)``. Parameter names are those of EDM checkpoints
(Karras et al., 2022), so a published state dict loads unchanged. The networks know nothing of flows or noise schedules:
:mod:`rfpp.denoisers` wraps them.

Shapes: images ``(B, C, H, W)``, noise labels ``(B,)``, class labels one-hot ``(B, label_dim)``, embeddings ``(B, E)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfpp.base import rng, torchvision_shim
from rfpp.base.checks import one_of

Init = Callable[[tuple[int, ...], int, int], Tensor]
"""Draws a tensor of a given shape, from fan-in and fan-out."""


class _Initialiser:
    """Xavier and Kaiming draws from one generator, so that a seed fixes a network.

    On the meta device, where weights are shapes only, nothing is drawn.
    """

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = None if torch.get_default_device().type == "meta" else rng.fresh(generator)

    def _uniform(self, shape: tuple[int, ...], bound: float) -> Tensor:
        return (2 * torch.rand(shape, generator=self.generator) - 1) * bound

    def xavier(self, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float = 1.0) -> Tensor:
        return self._uniform(shape, gain * (6 / (fan_in + fan_out)) ** 0.5)

    def kaiming(self, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float = 1.0) -> Tensor:
        return self._uniform(shape, gain * (3 / fan_in) ** 0.5)

    def kaiming_normal(self, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * gain * (1 / fan_in) ** 0.5


def zeros(shape: tuple[int, ...], fan_in: int, fan_out: int) -> Tensor:
    """The initialiser that starts a layer at nought."""
    return torch.zeros(shape)


class Linear(nn.Module):
    """``(..., in) -> (..., out)``."""

    def __init__(self, n_in: int, n_out: int, init: Init, bias_init: Init | None = zeros) -> None:
        super().__init__()
        self.weight = nn.Parameter(init((n_out, n_in), n_in, n_out))
        self.bias = nn.Parameter(bias_init((n_out,), n_in, n_out)) if bias_init else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """A convolution that may filter and resample by two: up before it, or down before it.

    ``kernel=0`` only resamples. ``filter_last`` convolves first and filters while downsampling last, as the residual
    encoder of NCSN++ does on the image pyramid. The filter is the outer product of ``resample_filter``, with sum one.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        kernel: int,
        init: Init = zeros,
        bias_init: Init = zeros,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        filter_last: bool = False,
    ) -> None:
        super().__init__()
        self.n_in, self.n_out, self.up, self.down, self.filter_last = n_in, n_out, up, down, filter_last
        fans = n_in * kernel**2, n_out * kernel**2
        self.weight = nn.Parameter(init((n_out, n_in, kernel, kernel), *fans)) if kernel else None
        self.bias = nn.Parameter(bias_init((n_out,), *fans)) if kernel else None
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        kernel2d = torch.outer(taps, taps) / taps.sum() ** 2
        self.register_buffer("resample_filter", kernel2d[None, None] if up or down else None)

    def _filter(self, x: Tensor, gain: float = 1.0) -> Tensor:
        assert self.resample_filter is not None
        return (gain * self.resample_filter).to(x.dtype).expand(x.shape[1], 1, -1, -1)

    def _resample(self, x: Tensor, pad: int) -> Tensor:
        if self.up:
            x = F.conv_transpose2d(x, self._filter(x, 4.0), groups=x.shape[1], stride=2, padding=pad)
        if self.down:
            x = F.conv2d(x, self._filter(x), groups=x.shape[1], stride=2, padding=pad)
        return x

    def forward(self, x: Tensor) -> Tensor:
        filter_pad = 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2
        if self.weight is None or self.bias is None:
            return self._resample(x, filter_pad)
        weight, bias, pad = self.weight.to(x.dtype), self.bias.to(x.dtype), self.weight.shape[-1] // 2
        if self.filter_last:
            # The filter sums to one and sees no padding, so that the bias passes through it unchanged.
            x = F.conv2d(x, weight, bias, padding=pad + filter_pad)
            return F.conv2d(x, self._filter(x), groups=x.shape[1], stride=2)
        return F.conv2d(self._resample(x, filter_pad), weight, bias, padding=pad)


class GroupNorm(nn.Module):
    """Group normalisation over ``min(32, channels // 4)`` groups."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = max(1, min(32, channels // 4)), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class UNetBlock(nn.Module):
    """Residual block with the noise-level embedding, optional resampling by two, and optional self-attention.

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
        query, key, value = (part.transpose(-1, -2) for part in qkv.unbind(3))
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(-1, -2).reshape(x.shape))


class PositionalEmbedding(nn.Module):
    """``(B,) -> (B, channels)``: cosines, then sines, of geometrically spaced frequencies from 1 down to 1/10000."""

    def __init__(self, channels: int, endpoint: bool = False) -> None:
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device) / (half - (1 if self.endpoint else 0))
        angles = torch.outer(x, (1 / 10000) ** steps)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """``(B,) -> (B, channels)``: cosines, then sines, of fixed random frequencies with standard deviation 16."""

    freqs: Tensor

    def __init__(self, channels: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * torch.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class _UNet(nn.Module):
    """What the two U-Nets share: the order of their levels, and the way through them.

    A subclass says in its ``__init__`` what a block is, makes its embedding layers, and calls :meth:`_build`.
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
        down)``; ``aux(n_in, n_out)``: a step of the residual encoder. In the decoder, levels at ``attn_resolutions``
        attend in all their blocks (``attend_everywhere``) or in the last one.
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
        """One-hot labels: zeros where there are none, and for those that label dropout forgets while training."""
        if class_labels is None:
            return noise_labels.new_zeros(len(noise_labels), self.label_dim)
        if self.training and self.label_dropout:
            kept = torch.rand(class_labels.shape[0], 1, device=class_labels.device) >= self.label_dropout
            class_labels = class_labels * kept.to(class_labels.dtype)
        return class_labels

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """Noise level, class and augmentation as one vector ``(B, E)``."""
        raise NotImplementedError

    def _head(self) -> tuple[nn.Module, nn.Module]:
        """The last normalisation and convolution."""
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


class SongUNet(_UNet):
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
        initialiser = _Initialiser(generator)
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


class DhariwalUNet(_UNet):
    """ADM (Dhariwal and Nichol, 2021) as used by EDM on ImageNet (Karras et al., 2022, Table 7).

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
        initialiser = _Initialiser(generator)
        kaiming = partial(initialiser.kaiming, gain=(1 / 3) ** 0.5)
        emb = model_channels * channel_mult_emb

        def block(n_in: int, n_out: int, *, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            heads = (n_out // 64 or 1) if attention else 0
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


_NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
    "augment_dim": 9,
}  # fmt: skip
_SIXTY_FOUR = {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.25, **_NCSNPP}

PAPER: dict[str, tuple[type[_UNet], dict[str, Any]]] = {
    "cifar10": (SongUNet, {"img_resolution": 32, "channel_mult": [2, 2, 2], "dropout": 0.13, **_NCSNPP}),
    "afhq": (SongUNet, _SIXTY_FOUR),
    "ffhq": (SongUNet, _SIXTY_FOUR),
    "imagenet64": (DhariwalUNet, {"img_resolution": 64, "label_dim": 1000}),
}
"""The paper's networks (Table 7, and the released configurations), by data set: what differs from the defaults."""


def paper(name: str, **changes: Any) -> SongUNet | DhariwalUNet:
    """One of the networks of :data:`PAPER` with fresh weights; ``changes`` such as ``label_dim=10`` or ``generator``.

    Raises ``ValueError`` for an unknown name.
    """
    one_of("name", name, PAPER)
    kind, config = PAPER[name]
    made = kind(**{"in_channels": 3, "out_channels": 3, **config, **changes})
    assert isinstance(made, SongUNet | DhariwalUNet)
    return made


class DiffusersUNet(nn.Module):
    """A ``UNet2DModel`` of the diffusers library behind the call of this module's networks.

    ``noise_labels`` are its timesteps, whole or not; class labels come one-hot and go in as numbers. ``config`` is that
    of ``UNet2DModel``; ``generator`` decides the initial weights (fresh entropy if ``None``).
    Raises ``ImportError`` where diffusers is not installed, ``ValueError`` for a model that is no plain VP model of
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
            raise ValueError("labels=None: this model has no unconditional mode; pass a class for each image")
        classes = None if class_labels is None or not self.label_dim else class_labels.argmax(dim=1)
        output: Tensor = self.unet(x, noise_labels, class_labels=classes, return_dict=False)[0]
        return output
