"""Attention variants that strategies need, computed with the projections of timm's blocks.

`run_block` calls timm's own block (fused SDPA) unless it is given a `core`, a function that replaces fused attention.
`run_attention` and `run_mlp` are the two halves of a block, for strategies that reduce tokens between them.

A bias on the keys is appended as one more head dimension: it then has a gradient and stays on the fused path. A
constant bias is passed as an attention mask, which is fused too. A policy (DynamicViT, eq. 11) multiplies the softmax,
so it has to compute the attention map. A backend with block-diagonal masks (xformers, on a GPU) runs images that keep
different numbers of tokens without padding.
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

HIDDEN = -1e4  # key bias whose softmax weight is exactly 0 in float32 and bfloat16
BACKENDS = ("sdpa", "xformers")

Core = Callable[[Tensor, Tensor, Tensor, float], Tensor]


@runtime_checkable
class RaggedCore(Protocol):
    """Attention core that also runs images of different lengths, concatenated without padding."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float, /) -> Tensor:
        """Attend over queries, keys and values (B, heads, N, d); the result has the same shape."""

    def ragged(self, lengths: Sequence[int]) -> Core:
        """Return a core for (1, heads, sum of lengths, d) in which tokens attend only within their own image."""


def run_block(block: nn.Module, x: Tensor, core: Core | None = None) -> Tensor:
    """Run a timm transformer block on tokens (B, N, C), with `core` instead of fused attention if given."""
    if core is None:
        return block(x)  # type: ignore[no-any-return]
    return run_mlp(block, run_attention(block, x, core)[0])


def run_attention(block: nn.Module, x: Tensor, core: Core | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Run the first half of a block, residual included, on tokens (B, N, C).

    Returns the tokens (B, N, C) and the queries and keys (B, heads, N, d).
    """
    assert isinstance(block, Block)
    assert isinstance(block.attn, Attention)
    mixed, q, k = attend(block.attn, block.norm1(x), core or fused)
    return x + block.drop_path1(block.ls1(mixed)), q, k


def run_mlp(block: nn.Module, x: Tensor) -> Tensor:
    """Run the second half of a block (the MLP), residual included, on tokens (B, N, C)."""
    assert isinstance(block, Block)
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))  # type: ignore[no-any-return]


def attend(attn: Attention, x: Tensor, core: Core) -> tuple[Tensor, Tensor, Tensor]:
    """Apply self-attention to tokens (B, N, C), using `core(q, k, v, scale)` on (B, heads, N, d).

    Returns the projected result (B, N, C) and the queries and keys (B, heads, N, d).
    """
    b, n, _ = x.shape
    q, k, v = attn.qkv(x).reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    out = attn.norm(core(q, k, v, attn.scale).transpose(1, 2).reshape(b, n, attn.attn_dim))
    return attn.proj_drop(attn.proj(out)), q, k


def fused(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attend with torch's fused kernel."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def constant_bias_core(bias: Tensor) -> Core:
    """Return fused attention with `bias` (B, N) added to the logits of the keys, for all queries and heads.

    The bias receives no gradient, so that it can be passed as a mask.
    """

    def core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mask = bias.detach().to(q.dtype)[:, None, None, :]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    return core


def key_bias_core(bias: Tensor, core: Core | None = None) -> Core:
    """Return fused attention (or `core`) with `bias` (B, N) added to the logits of the keys, for all queries and heads.

    The bias receives a gradient.
    """
    return partial(_key_bias_attention, bias, core or fused)


def _key_bias_attention(bias: Tensor, core: Core, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    d = q.shape[-1]
    more = -d % 8 or 8  # one column for the bias, and zeros up to the next multiple of 8
    q = torch.cat([q, q.new_full((*q.shape[:-1], 1), 1.0 / scale), q.new_zeros(*q.shape[:-1], more - 1)], -1)
    column = bias.to(k.dtype)[:, None, :, None].expand(-1, k.shape[1], -1, -1)  # (B, heads, N, 1)
    k = torch.cat([k, column, k.new_zeros(*k.shape[:-1], more - 1)], -1)
    return core(q, k, F.pad(v, (0, more)), scale)[..., :d]


def trimmed_core(index: Tensor, bias: Tensor | None = None) -> Core:
    """Return attention in which every query sees only the keys `index` (B, k), with `bias` (B, k) on their logits."""

    def core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        at = index[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[-1])
        k, v = k.gather(2, at), v.gather(2, at)
        if bias is None:
            return fused(q, k, v, scale)
        return _key_bias_attention(bias, fused, q, k, v, scale)

    return core


def policy_core(policy: Tensor) -> Core:
    """Return attention whose softmax is multiplied by `policy` (B, N) and renormalised (DynamicViT, eq. 10-11).

    A token always sees itself.
    """
    return partial(_policy_attention, policy)


def _policy_attention(policy: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    logits = (q * scale) @ k.transpose(-2, -1)
    n = logits.shape[-1]
    eye = torch.eye(n, dtype=policy.dtype, device=policy.device)
    visible = policy[:, None, None, :] * (1 - eye) + eye  # (B, 1, N, N)
    weights = (logits - logits.amax(-1, keepdim=True)).exp() * visible
    total = weights.sum(-1, keepdim=True).clamp_min(1e-6)  # avoids 0 / 0 where a hidden key has by far the top logit
    return (weights / total) @ v


def block_diagonal(lengths: Sequence[int], device: torch.device) -> BlockDiagonalMask:
    """Return xformers' mask for concatenated images with `lengths` tokens each: images do not see each other."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens(list(lengths), device=device)


class XformersCore:
    """Memory-efficient attention of xformers. Raises ValueError on a CPU, for which xformers has no kernels."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"attention backend 'xformers' needs a CUDA GPU, but this run uses '{device.type}': "
                "use --set train.attention=sdpa."
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
    """Return the core of an attention backend, or None for timm's own fused path ("sdpa").

    Raises ValueError for an unknown name and for a backend that cannot run on `device`.
    """
    if name == "sdpa":
        return None
    if name == "xformers":
        return XformersCore(device)
    raise ValueError(f"unknown attention backend '{name}': use one of {', '.join(BACKENDS)}.")
