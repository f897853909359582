"""Slow reference of a vision transformer, written from the equations: one image at a time, one softmax row at a time.

It shares only the weights (timm's parameters by name) with the package, so that gradients can be compared too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.encoders.vit import geometry_of
from methods.strategies.strategy import Encoding, Geometry

Reduce = Callable[[Tensor, Tensor, list[int], int], tuple[Tensor, list[int]]]


def tiny_vit(
    depth: int = 4, dim: int = 16, prefix: str = "", image_size: int = 32, channels: int = 1, seed: int = 0
) -> VisionTransformer:
    """Build timm's ViT with a 4x4 grid at 32 px; `prefix` is "", "cls" or "cls+reg".

    All parameters are moved off their initial values, so that weights of one and biases of zero hide no mistake.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vit = VisionTransformer(
            img_size=image_size,
            patch_size=8,
            in_chans=channels,
            num_classes=0,
            global_pool="",
            embed_dim=dim,
            depth=depth,
            num_heads=2,
            class_token="cls" in prefix,
            reg_tokens=2 if "reg" in prefix else 0,
            pos_embed="learn",
        )
        shake(vit)
    return vit


def shake(module: nn.Module, scale: float = 0.2) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))


def tiny(prefix: str = "", **options: int) -> tuple[VisionTransformer, Geometry]:
    vit = tiny_vit(prefix=prefix, **options)
    return vit, geometry_of(vit)


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / (variance + norm.eps) ** 0.5 * norm.weight + norm.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def embed(vit: VisionTransformer, image: Tensor) -> Tensor:
    """Compute the tokens (prefix + patches, C) of one image (channels, H, W), patch by patch."""
    assert isinstance(vit.patch_embed, PatchEmbed)
    size, conv = vit.patch_embed.patch_size[0], vit.patch_embed.proj
    tokens = []
    for top in range(0, image.shape[1], size):
        for left in range(0, image.shape[2], size):
            pixels = image[:, top : top + size, left : left + size].flatten()
            tokens.append(conv.weight.flatten(1) @ pixels + conv.bias)
    patches = torch.stack(tokens)
    prefix = [t[0] for t in (vit.cls_token, vit.reg_token) if t is not None]
    if vit.no_embed_class:
        return torch.cat([*prefix, patches + vit.pos_embed[0]])
    return torch.cat([*prefix, patches]) + vit.pos_embed[0]


def attention(
    attn: nn.Module, x: Tensor, bias: Tensor | None = None, policy: Tensor | None = None, keys: list[int] | None = None
) -> Tensor:
    """Apply self-attention to tokens (N, C).

    bias: (N) added to the logits of the keys. policy: (N) factors on the exponentials of the softmax, except on that of
    the token itself. keys: the only keys that are visible.
    """
    n, heads, d = x.shape[0], attn.num_heads, attn.head_dim
    q, k, v = linear(attn.qkv, x).split(heads * d, dim=1)
    seen = list(range(n)) if keys is None else keys
    rows = []
    for i in range(n):
        row = []
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            logits = k[seen][:, part] @ q[i, part] / math.sqrt(d)
            if bias is not None:
                logits = logits + bias[seen]
            weights = (logits - logits.max().detach()).exp()
            if policy is not None:
                itself = torch.tensor([j == i for j in seen])
                weights = weights * torch.where(itself, 1.0, policy[seen])
            row.append((weights / weights.sum()) @ v[seen][:, part])
        rows.append(torch.cat(row))
    return linear(attn.proj, torch.stack(rows))


def received(attn: nn.Module, x: Tensor, queries: list[int]) -> Tensor:
    """Compute the attention (N) that each token (N, C) receives, averaged over `queries` and heads."""
    n, heads, d = x.shape[0], attn.num_heads, attn.head_dim
    q, k, _ = linear(attn.qkv, x).split(heads * d, dim=1)
    total: Tensor = torch.zeros(n)
    for i in queries:
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            logits = torch.stack([q[i, part] @ k[j, part] / math.sqrt(d) for j in range(n)])
            total = total + logits.exp() / logits.exp().sum()
    return total / (len(queries) * heads)


def mlp(b: nn.Module, x: Tensor) -> Tensor:
    """Apply the second half of a block."""
    return x + linear(b.mlp.fc2, gelu(linear(b.mlp.fc1, layer_norm(b.norm2, x))))


def block(b: nn.Module, x: Tensor, **how: Tensor | list[int] | None) -> Tensor:
    return mlp(b, x + attention(b.attn, layer_norm(b.norm1, x), **how))  # type: ignore[arg-type]


def blocks(vit: VisionTransformer, x: Tensor, **how: Tensor | list[int] | None) -> Tensor:
    """Apply all blocks and the final norm."""
    for b in vit.blocks:
        x = block(b, x, **how)
    return layer_norm(vit.norm, x)


def gradients(output: Tensor, modules: Iterable[nn.Module]) -> dict[str, Tensor]:
    """Compute the gradients of a fixed random projection of `output`, for every parameter that it depends on."""
    seed = torch.Generator().manual_seed(7)
    named = {f"{i}.{n}": p for i, m in enumerate(modules) for n, p in m.named_parameters() if p.requires_grad}
    target = (output * torch.randn(output.shape, generator=seed)).sum()
    found = torch.autograd.grad(target, list(named.values()), allow_unused=True, retain_graph=True)
    return {name: g if g is not None else torch.zeros_like(named[name]) for name, g in zip(named, found, strict=True)}


def assert_same(
    fast: Tensor, slow: Tensor, modules: Iterable[nn.Module], tolerance: float = 1e-4, gradient: bool = True
) -> None:
    """Check that values, and gradients of every parameter of `modules`, are the same."""
    torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance)
    if gradient:
        modules = list(modules)
        expected = gradients(slow, modules)
        assert any(g.abs().max() > 1e-3 for g in expected.values())
        for name, got in gradients(fast, modules).items():
            size = max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(
                got / size, expected[name] / size, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
            )


def pruned(vit: VisionTransformer, image: Tensor, reduce: Reduce) -> tuple[Tensor, list[list[int]]]:
    """Compute the features of one image on a 4x4 grid, with tokens dropped between attention and MLP of three blocks.

    `reduce(patch tokens, the attention that each receives, their patches, stage)` returns the remaining tokens and
    patches. Returns the features and the patches that remain after each stage.
    """
    prefix, depth = vit.num_prefix_tokens, len(vit.blocks)
    x, left, history = embed(vit, image), list(range(16)), []
    for i, block in enumerate(vit.blocks):
        normed = layer_norm(block.norm1, x)
        x = x + attention(block.attn, normed)
        if i in [depth // 4, depth // 2, 3 * depth // 4]:
            share = received(block.attn, normed, [0] if prefix else list(range(len(x))))[prefix:]
            tokens, left = reduce(x[prefix:], share, left, len(history))
            x = torch.cat([x[:prefix], tokens])
            history.append(left)
        x = mlp(block, x)
    return layer_norm(vit.norm, x)[prefix:].mean(0), history


def assert_prunes_alike(
    encoding: Encoding, vit: VisionTransformer, expected: Iterable[tuple[Tensor, list[list[int]]]], counts: list[int]
) -> None:
    """Check an encoding of several images against what `pruned` gives for each: features, gradients, kept patches.

    `counts` are the tokens that remain after each stage; a fused one stands as a negative patch. Not all images keep
    the same.
    """
    features, histories = zip(*expected, strict=True)
    for kept, history in zip(encoding.kept, histories, strict=True):
        assert [len(left) for left in history] == counts
        assert kept.nonzero().flatten().tolist() == [j for j in history[-1] if j >= 0]
    assert len({tuple(history[-1]) for history in histories}) > 1
    assert_same(encoding.features, torch.stack(features), [vit])
