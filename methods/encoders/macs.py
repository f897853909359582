"""Multiply-accumulates of a CNN, layer by layer, without computing it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call


def layer_macs(network: nn.Module, images: Tensor) -> dict[str, int]:
    """MACs per image of every convolution and linear layer that a forward pass on `images` runs, by module name.

    `images` (B, channels, H, W) are on the meta device, where shapes are all there is; more than one, for batch norm in
    training refuses a single value a channel. The network stays as it is.
    """
    found: dict[str, int] = {}
    handles = []

    def note(name: str) -> object:
        def hook(layer: nn.Conv2d | nn.Linear, inputs: object, output: Tensor) -> None:
            found[name] = found.get(name, 0) + output[0].numel() * layer.weight[0].numel()

        return hook

    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            handles.append(layer.register_forward_hook(note(name)))  # type: ignore[arg-type]
    state = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    try:
        functional_call(network, {name: value.to("meta") for name, value in state.items()}, (images,))
    finally:
        for handle in handles:
            handle.remove()
    return found
