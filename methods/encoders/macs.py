"""Multiply-accumulates of a CNN by layer, counted without running it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.func import functional_call


def layer_macs(network: nn.Module, images: Tensor) -> dict[str, int]:
    """Count the MACs per image of every convolution and linear layer in a forward pass; return them by module name.

    images: (B, channels, H, W) on the meta device, where only shapes are computed. B must be above 1, because batch
    norm in training mode rejects a single value per channel. The network itself is not changed.
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
