"""The U-Nets of the paper, ``SongUNet`` (NCSN++ and DDPM++) and ``DhariwalUNet`` (ADM), and ``DiffusersUNet``, a
network of the diffusers library.

A network maps a scaled noisy image to an image, given the noise level and, if it has classes, a label:
``network(x, noise_labels, class_labels=None, augment_labels=None)``. Parameter names of the
first two are those of EDM checkpoints (Karras et al., 2022), so a published state dict loads unchanged. The networks
know nothing of flows or noise schedules: :mod:`rfpp.denoisers` wraps them.

Shapes: images ``(B, C, H, W)``, noise labels ``(B,)``, class labels one-hot ``(B, label_dim)``, embeddings ``(B, E)``.
"""

from rfpp.networks.dhariwal import DhariwalUNet
from rfpp.networks.diffusers import DiffusersUNet
from rfpp.networks.layers import Conv2d, FourierEmbedding, GroupNorm, Linear, PositionalEmbedding, zeros
from rfpp.networks.published import PAPER, paper
from rfpp.networks.song import SongUNet
from rfpp.networks.unet import UNetBlock

__all__ = [
    "PAPER",
    "Conv2d",
    "DhariwalUNet",
    "DiffusersUNet",
    "FourierEmbedding",
    "GroupNorm",
    "Linear",
    "PositionalEmbedding",
    "SongUNet",
    "UNetBlock",
    "paper",
    "zeros",
]
