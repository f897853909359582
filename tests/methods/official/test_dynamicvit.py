"""DynamicViT against the outputs of its authors' code, raoyongming/DynamicViT @1322e62, given the same Gumbel noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.noise import Noise
from methods.strategies import dynamicvit
from methods.strategies.dynamicvit import DynamicViT
from methods.strategies.strategy import Call
from tests.methods.official import recipe

REFERENCE = recipe.reference("dynamicvit")


class Given(Noise):
    def gumbel(self, name: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        stage = int(name.split()[-1]) - 1
        uniform = recipe.generator(f"gumbel {stage}", self.seed).uniform(1e-9, 1, (self.batch, *shape))
        return torch.from_numpy(-np.log(-np.log(uniform))).to(torch.float32)


def official(name: str) -> str:
    """The authors' name of a parameter."""
    if name.startswith("vit."):
        return name.removeprefix("vit.")
    name = name.removeprefix("strategy.").replace("predictors", "score_predictor")
    return name.replace("enter", "in_conv").replace("decide", "out_conv")


def built(rho: float, seed: int) -> tuple[VisionTransformer, DynamicViT, nn.Module]:
    """Transformer and strategy, and both as one module."""
    vit, geometry = recipe.transformer(seed)
    strategy = DynamicViT(geometry, rho=rho)
    both = nn.ModuleDict({"vit": vit, "strategy": strategy})
    recipe.fill(both, seed, official)
    return vit, strategy, both


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("rho", [0.7, 0.5])
def test_inference_keeps_the_same_patches_and_the_features_agree(
    rho: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{rho}_{seed}"
    vit, strategy, _ = built(rho, seed)
    tokens, kept = recipe.final_tokens(vit), recipe.watch(monkeypatch, dynamicvit, "highest")
    with torch.no_grad():
        features = strategy(vit, recipe.images(seed), Call()).features
    recipe.kept_alike(kept, REFERENCE, key)
    assert recipe.gap(features, REFERENCE[f"infer_{key}"]) < recipe.ROUNDING
    assert recipe.gap(tokens[0][:, 0], REFERENCE[f"infercls_{key}"]) < recipe.ROUNDING


@pytest.mark.parametrize(("rho", "seed"), [(0.7, 0), (0.7, 1), (0.5, 2)])
def test_decisions_tokens_losses_and_gradients_in_training_agree(
    rho: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = f"{rho}_{seed}"
    vit, strategy, both = built(rho, seed)
    masked = recipe.watch(monkeypatch, strategy, "_mask")
    encoding = strategy(vit, recipe.images(seed), Call(noise=Given(seed, 0, 3, views=1)))
    for stage, policy in enumerate(masked[0].policies):
        assert ((policy.detach().numpy() > 0.5) == REFERENCE[f"policy{stage}_{key}"]).all()
    assert recipe.gap(masked[0].tokens[:, 1::7], REFERENCE[f"tokens_{key}"]) < recipe.ROUNDING
    losses = [encoding.losses[name] for name in ("ratio", "distil_tokens")]
    assert [float(loss.detach()) for loss in losses] == pytest.approx(REFERENCE[f"losses_{key}"], rel=recipe.ROUNDING)
    sum(losses).backward()
    theirs = REFERENCE[f"grads_{key}"]

    def ours(name: str) -> str:
        return next(own for own, _ in both.named_parameters() if official(own) == name)

    assert recipe.gradient_gap(both, REFERENCE["names"], theirs, seed, ours) < recipe.GRADIENT_ROUNDING
