"""SparseContrast's saliency predictor: a three-layer CNN that reads the image once, on the patch grid.

"Three-layer lightweight CNN, 0.8 M parameters" is said by the paper's machine-written review page, unverified; the
layers are ours: patchify convolution, 3x3 convolution, 3x3 convolution with one output, the patch's logit.
"""

from __future__ import annotations

from torch import Tensor, nn

from methods.strategies.strategy import Geometry

PAPER_WIDTH = 258  # 0.800 M parameters at patch 16 with 3 channels
PAPER_PARAMETERS = 800_059  # those
PAPER_SHARE = 0.0341  # of a dense ViT-S/16's MACs at 224 px, which that width costs


def predictor_macs(geometry: Geometry, width: int) -> int:
    """MACs per image."""
    patchify = width * geometry.channels * geometry.patch**2
    return geometry.patches * (patchify + 9 * width * width + 9 * width)


def predictor_width(geometry: Geometry) -> int:
    """The width at which the predictor costs the share of a dense encoder that it costs at ViT-S/16 scale, at most 258.

    0.8 M parameters would outweigh a small encoder; from ViT-S/16 on it is the width of the paper. With patches of more
    pixels (a ConvNeXt's have 32 on a side) it is narrower, so that it has no more parameters than the paper's.
    """
    budget = PAPER_SHARE * geometry.macs(geometry.patches)
    width = PAPER_WIDTH
    while width > 1 and (predictor_macs(geometry, width) > budget or _parameters(geometry, width) > PAPER_PARAMETERS):
        width -= 1
    return width


def _parameters(geometry: Geometry, width: int) -> int:
    """Weights, as many as MACs a patch, and biases."""
    return predictor_macs(geometry, width) // geometry.patches + 2 * width + 1


class Predictor(nn.Module):
    """Images (B, channels, H, W) -> one logit a patch (B, patches)."""

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
