"""TokenLearner against the outputs of its authors' code, google-research/scenic @4a38d47: whole encoders of versions
1.1 and 1, with and without TokenFuser, from tokens to features. GELU is made the tanh approximation that is used there.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.noise import Noise
from methods.strategies import tokenlearner
from methods.strategies.strategy import Call
from methods.strategies.tokenlearner import TokenLearner
from tests.methods.official import recipe

REFERENCE = recipe.reference("tokenlearner")
Arrays = dict[str, Tensor]


def parameters(key: str, seed: int) -> Arrays:
    """By their names and in their shapes in flax, by the same rule as `recipe.fill`."""
    found = {}
    for line in map(str, REFERENCE[f"names_{key}"]):
        name, shape = line.split(" ", 1)
        sizes = [int(size) for size in re.findall(r"\d+", shape)]
        n, last = recipe.normal(name, seed, *sizes), name.split("/")[-1]
        into_heads = any(part in name for part in ("/query/", "/key/", "/value/"))
        if last == "kernel":
            n = n / (sizes[0] if into_heads else np.prod(sizes[:-1])) ** 0.5
        elif last == "bias":
            n = 0.1 * n
        elif last == "scale":
            n = 1 + 0.1 * n
        else:
            n = 0.5 * n
        found[name] = recipe.narrow(n)
    return found


@torch.no_grad()
def load(vit: VisionTransformer, strategy: TokenLearner, arrays: Arrays) -> None:
    def norm(layer: Any, at: str) -> None:
        layer.weight.copy_(arrays[f"{at}/scale"])
        layer.bias.copy_(arrays[f"{at}/bias"])

    def dense(layer: Any, at: str) -> None:
        layer.weight.copy_(arrays[f"{at}/kernel"].T)
        layer.bias.copy_(arrays[f"{at}/bias"])

    vit.pos_embed.copy_(arrays["posembed_input/pos_embedding"])
    norm(vit.norm, "encoder_norm")
    for i, block in enumerate(vit.blocks):
        at = f"encoderblock_{i}"
        norm(block.norm1, f"{at}/LayerNorm_0")
        norm(block.norm2, f"{at}/LayerNorm_1")
        dense(block.mlp.fc1, f"{at}/MlpBlock_0/Dense_0")
        dense(block.mlp.fc2, f"{at}/MlpBlock_0/Dense_1")
        heads = [f"{at}/MultiHeadDotProductAttention_0/{part}" for part in ("query", "key", "value", "out")]
        block.attn.qkv.weight.copy_(torch.cat([arrays[f"{head}/kernel"].flatten(1).T for head in heads[:3]]))
        block.attn.qkv.bias.copy_(torch.cat([arrays[f"{head}/bias"].flatten() for head in heads[:3]]))
        block.attn.proj.weight.copy_(arrays[f"{heads[3]}/kernel"].flatten(0, 1).T)
        block.attn.proj.bias.copy_(arrays[f"{heads[3]}/bias"])
    for i, learner in enumerate(strategy.learners):
        v11 = isinstance(learner, tokenlearner.MlpWeights)
        at = f"TokenLearnerModule{'V11' if v11 else ''}_{i}"
        norm(learner.norm, f"{at}/LayerNorm_0")
        if v11:
            dense(learner.mlp[0], f"{at}/token_masking/Dense_0")
            dense(learner.mlp[2], f"{at}/token_masking/Dense_1")
        else:
            for j, conv in enumerate(layer for layer in learner.convs if isinstance(layer, nn.Conv2d)):
                conv.weight.copy_(arrays[f"{at}/Conv_{j}/kernel"].permute(3, 2, 0, 1))
    for i, fuser in enumerate(strategy.fusers or []):
        at = f"TokenFuser_{i}"
        norm(fuser.norm_in, f"{at}/fuser_mix_norm1")
        norm(fuser.norm_out, f"{at}/fuser_mix_norm2")
        norm(fuser.norm_positions, f"{at}/LayerNorm_0")
        dense(fuser.across, f"{at}/Dense_0")
        dense(fuser.mlp[0], f"{at}/token_masking/Dense_0")
        dense(fuser.mlp[2], f"{at}/token_masking/Dense_1")


def approximate(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.GELU):
            layer.approximate = "tanh"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("version", ["v1.1", "v1"])
@pytest.mark.parametrize("fuser", [False, True])
def test_tokens_features_and_gradients_agree(
    fuser: bool, version: tokenlearner.Version, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{int(fuser)}_{int(version == 'v1.1')}_{seed}"
    vit, geometry = recipe.transformer(seed, prefix="")
    strategy = TokenLearner(geometry, tokens=8, at=0.75, version=version, fuser=fuser).double()
    load(vit, strategy, parameters(key, seed))
    approximate(vit)
    approximate(strategy)
    monkeypatch.setattr(tokenlearner, "embed", lambda vit, tokens: tokens + vit.pos_embed)
    out = recipe.final_tokens(vit)
    tokens = recipe.narrow(recipe.normal("tokens", seed, 2, 196, 64)).requires_grad_()
    features = strategy(vit, tokens, Call(noise=Noise(0, 0, 2, views=1))).features
    recipe.loss_of(features, seed).backward()
    assert recipe.gap(out[0][:, :: 7 if fuser else 1], REFERENCE[f"out_{key}"]) < recipe.ROUNDING
    assert recipe.gap(features, REFERENCE[f"feature_{key}"]) < recipe.ROUNDING
    theirs = REFERENCE[f"gradient_{key}"]
    assert tokens.grad is not None
    assert recipe.gap(tokens.grad[:, ::7], theirs) < recipe.GRADIENT_ROUNDING * abs(theirs).max()
