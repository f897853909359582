"""Attention over timm's own projections, where a strategy needs more than timm's block offers.

`run_block` with nothing but tokens calls timm's block itself (fused SDPA); `run_attention` and `run_mlp` are its two
halves, for what happens between them. A bias on the keys rides along as one more head dimension, so that it has a
gradient and stays on the fused path; one that is a constant stays there as a mask. A policy (DynamicViT, eq. 11)
multiplies the softmax and therefore pays for the attention map in sight. A backend that has block-diagonal masks
(xformers, on a GPU) runs images that keep different numbers of tokens without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

if TYPE_CHECKING:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

HIDDEN = -1e4  # a key bias that leaves exactly no weight after the softmax, in float32 and bfloat16
BACKENDS = ("sdpa", "xformers")

Core = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@runtime_checkable
class RaggedCore(Protocol):
    """A core that can also run over images of different lengths laid end to end, without padding."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float, /) -> Tensor:
        """(B, heads, N, d) -> the same."""

    def ragged(self, lengths: Sequence[int]) -> Core:
        """The core for (1, heads, sum of lengths, d) in which tokens of one image see each other alone."""


def run_block(block: nn.Module, x: Tensor, core: Core | None = None) -> Tensor:
    """One timm transformer block on tokens (B, N, C), with `core` in the place of fused attention if given."""
    if core is None:
        return block(x)  # type: ignore[no-any-return]
    return run_mlp(block, run_attention(block, x, core)[0])


def run_attention(block: nn.Module, x: Tensor, core: Core | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The first half of a block: tokens (B, N, C) with what they attend to added; queries and keys (B, heads, N, d)."""
    assert isinstance(block, Block)
    assert isinstance(block.attn, Attention)
    mixed, q, k = attend(block.attn, block.norm1(x), core or fused)
    return x + block.drop_path1(block.ls1(mixed)), q, k


def run_mlp(block: nn.Module, x: Tensor) -> Tensor:
    """The second half of a block on tokens (B, N, C)."""
    assert isinstance(block, Block)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def attend(attn: Attention, x: Tensor, core: Core) -> tuple[Tensor, Tensor, Tensor]:
    """Self-attention of `attn` on (B, N, C) where `core(q, k, v, scale)` maps (B, heads, N, d) to the same; and its
    queries and keys."""
    b, n, _ = x.shape
    q, k, v = attn.qkv(x).reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    out = attn.norm(core(q, k, v, attn.scale).transpose(1, 2).reshape(b, n, attn.attn_dim))
    return attn.proj_drop(attn.proj(out)), q, k


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """torch's fused attention."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def constant_bias_core(bias: Tensor) -> Core:
    """Fused attention with `bias` (B, N) added to the logits of the keys, for all queries and heads; without a gradient
    of its own it needs no more than a mask."""

    def core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mask = bias.detach().to(q.dtype)[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    return core


def key_bias_core(bias: Tensor, core: Core | None = None) -> Core:
    """Fused attention (or another `core`) with `bias` (B, N) added to the logits of the keys, for all queries and
    heads."""
    return partial(_key_bias_attention, bias, core or fused)


def _key_bias_attention(bias: Tensor, core: Core, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    d = q.shape[-1]
    more = -d % 8 or 8  # room for the constant, up to the next multiple of 8
    q = torch.cat([q, q.new_full((*q.shape[:-1], 1), 1.0 / scale), q.new_zeros(*q.shape[:-1], more - 1)], -1)
    column = bias.to(k.dtype)[:, None, :, None].expand(-1, k.shape[1], -1, -1)  # (B, heads, N, 1)
    k = torch.cat([k, column, k.new_zeros(*k.shape[:-1], more - 1)], -1)
    return core(q, k, F.pad(v, (0, more)), scale)[..., :d]


def trimmed_core(index: Tensor, bias: Tensor | None = None) -> Core:
    """Attention in which every query sees the keys `index` (B, k) only, with `bias` (B, k) added to their logits."""

    def core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        at = index[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[-1])
        k, v = k.gather(2, at), v.gather(2, at)
        if bias is None:
            return fused(q, k, v, scale)
        return _key_bias_attention(bias, fused, q, k, v, scale)

    return core


def policy_core(policy: Tensor) -> Core:
    """Softmax multiplied by `policy` (B, N) and renormalised (DynamicViT, eq. 10-11): a token always sees itself."""
    return partial(_policy_attention, policy)


def _policy_attention(policy: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    logits = (q * scale) @ k.transpose(-2, -1)
    n = logits.shape[-1]
    eye = torch.eye(n, dtype=policy.dtype, device=policy.device)
    visible = policy[:, None, None, :] * (1 - eye) + eye  # (B, 1, N, N)
    weights = (logits - logits.amax(-1, keepdim=True)).exp() * visible
    total = weights.sum(-1, keepdim=True).clamp_min(1e-6)  # a hidden key may be the highest by far; then no 0 / 0
    return (weights / total) @ v


def block_diagonal(lengths: Sequence[int], device: torch.device) -> BlockDiagonalMask:
    """xformers' mask for images of these numbers of tokens laid end to end: each sees itself alone."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens(list(lengths), device=device)


class XformersCore:
    """xformers' memory-efficient attention.

    Raises ValueError where it cannot run: on a CPU, for xformers has kernels for GPUs alone.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"attention backend 'xformers' needs a CUDA GPU, and this run is on '{device.type}': "
                "xformers has no CPU kernels. Use --set train.attention=sdpa."
            )
        self.device = device

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return self._attention(None, q, k, v, scale)

    def ragged(self, lengths: Sequence[int]) -> Core:
        return partial(self._attention, block_diagonal(lengths, self.device))

    @staticmethod
    def _attention(mask: BlockDiagonalMask | None, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        from xformers import ops

        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # xformers wants (B, N, heads, d)
        out = ops.memory_efficient_attention(q, k, v, attn_bias=mask, scale=scale)
        return out.transpose(1, 2)  # type: ignore[no-any-return]


def backend_core(name: str, device: torch.device) -> Core | None:
    """The core of an attention backend asked for by name; None means timm's own fused path (SDPA)."""
    if name == "sdpa":
        return None
    if name == "xformers":
        return XformersCore(device)
    raise ValueError(f"unknown attention backend '{name}': use one of {', '.join(BACKENDS)}.")
