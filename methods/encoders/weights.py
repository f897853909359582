"""Weights of an encoder from a file, and what all of timm's networks share when they are made by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

State = dict[str, Tensor]


def load_weights(
    network: nn.Module, path: Path, channels: int, fit: Callable[[State, Any], State] | None = None
) -> None:
    """Load a .safetensors file with timm's parameter names; its head is left out.

    `fit(state, network)` adapts the file to the network (positions resized); a first convolution on three channels
    is summed over them where the images have one, as timm does. Raises FileNotFoundError, or ValueError where names or
    shapes do not fit.
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
            f"weights in {path} can't be read ({error}): give a .safetensors file; others, which may hold pickled "
            "objects, are never loaded."
        ) from error
    try:
        if fit is not None:
            state = fit(state, network)
        first = next(name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)) + ".weight"
        if first in state and state[first].shape[1] == 3 != channels:
            state[first] = adapt_input_conv(channels, state[first])
        missing, unexpected = network.load_state_dict(state, strict=False)
    except Exception as error:  # what adapts shapes takes them for granted
        why = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ValueError(f"weights in {path} do not fit the encoder: {why}; give those of this encoder.") from error
    others = [name for name in unexpected if not name.startswith(("head", "fc"))]
    if missing or others:
        odd = ", ".join([*missing, *others][:5])
        raise ValueError(
            f"weights in {path} do not fit the encoder: {odd} missing or unexpected; give those of this encoder."
        )


def check_tiling(name: str, image_size: int, patch: int) -> None:
    """Raises ValueError for a size that is no multiple of the patches."""
    if image_size % patch:
        raise ValueError(f"image size {image_size} is no multiple of the {patch}-pixel patches of '{name}'.")
