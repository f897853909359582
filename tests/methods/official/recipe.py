"""The recipe of the reference outputs: weights and inputs that depend on a seed and a name alone.

NumPy's legacy generator is frozen, so the files beside this one hold outputs and no weights. Weights and inputs are
made in float32, in which the authors' code ran, and then widened: ours runs in float64, so that what is compared
differs by the rounding of the committed numbers and not by that of the processor which runs the test.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.encoders.vit import geometry_of
from methods.noise import Noise
from methods.strategies.strategy import Call, Geometry, Strategy

ROUNDING = 2e-5  # of the references, which are float32 through 12 blocks; a wrong formula shows from 1e-2 on
GRADIENT_ROUNDING = 2e-4  # relative
TRAINING = Call(noise=Noise(0, 0, 3, views=1))
POSITIONS = ("pos_embed", "cls_token", "dist_token", "reg_token")


def same(name: str) -> str:
    return name


def reference(name: str) -> NpzFile:
    return np.load(Path(__file__).with_name(f"{name}.npz"))


def generator(key: str, seed: int) -> np.random.RandomState:
    return np.random.RandomState((zlib.crc32(key.encode()) + 7919 * seed) % 2**32)


def normal(key: str, seed: int, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.from_numpy(generator(key, seed).standard_normal(shape))


def narrow(x: Tensor) -> Tensor:
    """The numbers as float32 has them, in float64."""
    return x.to(torch.float32).double()


@torch.no_grad()
def fill(module: nn.Module, seed: int, named: Callable[[str], str] = same) -> None:
    """Give every parameter its numbers, by its name in the authors' code (`named`), and make the module float64.

    Matrices are N(0, 1 / fan-in), those of queries, keys and values 1.5 times as large; biases and scales are about
    their usual values.
    """
    for name, parameter in module.named_parameters():
        name = named(name)
        n = normal(name, seed, *parameter.shape).to(torch.float32)
        last = name.split(".")[-1]
        if last in POSITIONS:
            values = 0.5 * n
        elif last == "bias":
            values = 0.1 * n
        elif n.ndim == 1:
            values = 1 + 0.1 * n
        else:
            values = n * (1.5 if "qkv" in name else 1.0) / n[0].numel() ** 0.5
        parameter.copy_(values)
    module.double()


def images(seed: int, batch: int = 3, size: int = 224) -> Tensor:
    """Images (batch, 3, size, size), smooth and rough at once, so that patches differ and resemble each other."""
    coarse = normal("coarse", seed, batch, 3, size // 32, size // 32)
    smooth = coarse.repeat_interleave(32, 2).repeat_interleave(32, 3)
    return narrow(0.5 * normal("images", seed, batch, 3, size, size) + smooth)


def transformer(seed: int, prefix: str = "cls") -> tuple[VisionTransformer, Geometry]:
    """timm's transformer of 12 blocks and 4 heads, 64 wide, with 196 patches; `prefix` "", "cls" or "dist" (a class
    and a distillation token)."""
    kind: Any = VisionTransformerDistilled if prefix == "dist" else VisionTransformer
    options = {} if prefix == "dist" else {"class_token": prefix == "cls", "global_pool": ""}
    vit = kind(
        img_size=224,
        patch_size=16,
        embed_dim=64,
        depth=12,
        num_heads=4,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        **options,
    )
    fill(vit, seed)
    return vit, geometry_of(vit)


def final_tokens(vit: VisionTransformer) -> list[Tensor]:
    """A list that gets the tokens after the final norm, of every pass."""
    seen: list[Tensor] = []
    vit.norm.register_forward_hook(lambda module, given, out: seen.append(out))
    return seen


def watch(monkeypatch: Any, module: Any, function: str) -> list[Any]:
    """A list that gets all that `function` of `module` returns."""
    found: list[Any] = []
    real = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *given: found.append(real(*given)) or found[-1])
    return found


def kept_alike(kept: list[Any], reference: NpzFile, key: str) -> np.ndarray:
    """The patches that remain after three stages (images, patches), the same as in the reference after each.

    `kept`: for each stage the positions, ascending, among the patches of the stage before. The reference has them in
    the order of attention."""
    ours = theirs = np.tile(np.arange(196), (3, 1))
    for stage, best in enumerate(kept):
        ours = np.take_along_axis(ours, best.numpy(), 1)
        theirs = np.take_along_axis(theirs, reference[f"idx{stage}_{key}"].astype(int), 1)
        assert (ours == np.sort(theirs, 1)).all()
    assert len(kept) == 3
    return ours


def loss_of(features: Tensor, seed: int) -> Tensor:
    """A loss that depends on all features: their product with fixed numbers."""
    return (features * narrow(normal("probe", seed, *features.shape))).sum()


def check_gradients(strategy: type[Strategy], rho: float, seed: int, reference: NpzFile, key: str) -> None:
    """Gradients of all parameters of a transformer that `strategy` trains with this `rho`."""
    vit, geometry = transformer(seed)
    loss_of(strategy(geometry, rho=rho)(vit, images(seed), TRAINING).features, seed).backward()  # type: ignore[call-arg]
    assert gradient_gap(vit, reference["names"], reference[key], seed) < GRADIENT_ROUNDING


def gap(mine: Tensor, theirs: np.ndarray) -> float:
    """The largest difference."""
    assert tuple(mine.shape) == theirs.shape
    return float(np.abs(mine.detach().double().numpy() - theirs).max())


def gradient_gap(
    module: nn.Module, names: Iterable[str], theirs: np.ndarray, seed: int, ours: Callable[[str], str] = same
) -> float:
    """The largest difference of gradients, each in units of its norm.

    `theirs` (parameters, 2): of each parameter of `names` the gradient's component along a random direction, and its
    norm. Of a gradient that is zero but for rounding the unit is 1e-5 of the largest norm.
    """
    mine = np.zeros_like(theirs)
    for row, name in zip(mine, names, strict=True):
        gradient = module.get_parameter(ours(str(name))).grad
        if gradient is not None:
            row[:] = float((gradient * normal("g" + str(name), seed, *gradient.shape)).sum()), float(gradient.norm())
    unit = np.maximum(theirs[:, 1:], 1e-5 * theirs[:, 1].max())
    return float((np.abs(mine - theirs) / unit).max())
