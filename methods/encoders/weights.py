"""Loading of encoder weights, and the check of image sizes that all families share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

State = dict[str, Tensor]


def load_weights(
    network: nn.Module, path: Path, channels: int, fit: Callable[[State, Any], State] | None = None
) -> None:
    """Load a .safetensors file with timm's parameter names into a network, without the weights of a head.

    `fit(state, network)` adapts the file to the network, for example by resizing position embeddings. If the images
    have one channel and the first convolution of the file three, it is summed over them, as in timm.

    Raises FileNotFoundError for a missing file, ValueError for names or shapes that do not match the network.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no encoder weights at {path}: give a .safetensors file with timm's parameter names.")
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from timm.models import adapt_input_conv

    try:
        state: State = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"weights in {path} can't be read ({error}): give a .safetensors file. Other formats are not loaded, "
            "because they may hold pickled objects."
        ) from error
    try:
        if fit is not None:
            state = fit(state, network)
        first = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)) + ".weight"
        if first in state and state[first].shape[1] == 3 != channels:
            state[first] = adapt_input_conv(channels, state[first])
        missing, unexpected = network.load_state_dict(state, strict=False)
    except Exception as error:  # functions that adapt shapes fail in any way on unexpected ones
        why = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ValueError(f"weights in {path} do not fit the encoder: {why}; give weights of this encoder.") from error
    others = [name for name in unexpected if not name.startswith(("head", "fc"))]
    if missing or others:
        odd = ", ".join([*missing, *others][:5])
        raise ValueError(
            f"weights in {path} do not fit the encoder: {odd} missing or unexpected; give weights of this encoder."
        )


def check_tiling(name: str, image_size: int, patch: int) -> None:
    """Raise ValueError if the image size is not a multiple of the patch size."""
    if image_size % patch:
        raise ValueError(
            f"image size {image_size} is not a multiple of the patch size of '{name}', {patch} pixels: "
            f"use e.g. {max(1, round(image_size / patch)) * patch}."
        )
