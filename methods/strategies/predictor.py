"""Saliency predictor of SparseContrast: a three-layer CNN that outputs one logit per patch.

The review page of the paper (machine-written, unverified) describes it as a "three-layer lightweight CNN" with 0.8 M
parameters. The choice of layers is ours: a patchify convolution, a 3x3 convolution, and a 3x3 convolution with one
output channel.
"""

from __future__ import annotations

from torch import Tensor, nn

from methods.strategies.strategy import Geometry

PAPER_WIDTH = 258  # gives 0.800 M parameters with 16-pixel patches and 3 channels
PAPER_PARAMETERS = 800_059  # number of parameters at that width
PAPER_SHARE = 0.0341  # its MACs as a share of those of a dense ViT-S/16 at 224 px


def predictor_macs(geometry: Geometry, width: int) -> int:
    """Return the MACs of the predictor per image."""
    patchify = width * geometry.channels * geometry.patch**2
    return geometry.patches * (patchify + 9 * width * width + 9 * width)


def predictor_width(geometry: Geometry) -> int:
    """Return the width at which the predictor's share of the encoder's dense MACs is that of ViT-S/16; at most 258.

    A predictor with 0.8 M parameters would outweigh a small encoder. From ViT-S/16 on, the width is that of the paper,
    unless larger patches (32 pixels in a ConvNeXt) would give the predictor more parameters than in the paper.
    """
    budget = PAPER_SHARE * geometry.macs(geometry.patches)
    width = PAPER_WIDTH
    while width > 1 and (predictor_macs(geometry, width) > budget or _parameters(geometry, width) > PAPER_PARAMETERS):
        width -= 1
    return width


def _parameters(geometry: Geometry, width: int) -> int:
    """Return the number of weights (equal to the MACs per patch) and biases."""
    return predictor_macs(geometry, width) // geometry.patches + 2 * width + 1


BOUND = 4.0
"""Bound of `logits=bounded`: where a logit reaches it, sigmoid's slope is 0.018, a fourteenth of its largest."""


def standardised(logits: Tensor) -> Tensor:
    """Shift and scale the logits (B, patches) of each image to mean 0 and standard deviation 1; equal ones become 0."""
    centred = logits - logits.mean(1, keepdim=True)
    return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


def bounded(logits: Tensor) -> Tensor:
    """Limit logits to (-BOUND, BOUND) by a tanh that leaves small ones as they are."""
    return BOUND * (logits / BOUND).tanh()


class Predictor(nn.Module):
    """Map images (B, channels, H, W) to one logit per patch (B, patches)."""

    def __init__(self, geometry: Geometry, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(geometry.channels, width, geometry.patch, geometry.patch),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(1)  # type: ignore[no-any-return]
