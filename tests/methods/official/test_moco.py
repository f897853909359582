"""MoCo v3 against the outputs of its authors' code, facebookresearch/moco-v3 @c349e6e: four steps of plain gradient
descent, 8 images of 64 px, on a transformer of 12 blocks.

`*_0_*` in the file are outputs of the code as published; `*_1_*`, which are not used, of the heads seeing both views at
once.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from methods.encoders.encoder import Encoder
from methods.encoders.vit import _fix_positions, geometry_of
from methods.noise import Noise
from methods.objectives import moco
from methods.strategies.dense import Dense
from methods.strategies.strategy import Call
from tests.methods.official import recipe

REFERENCE = recipe.reference("moco")
STEPS = 4
AFTER_STEPS = 5e-5  # training magnifies the references' rounding: by 2.5e-5 in the loss of the last step


def transformer() -> VisionTransformer:
    vit = VisionTransformer(
        img_size=64,
        patch_size=16,
        embed_dim=64,
        depth=12,
        num_heads=4,
        num_classes=0,
        global_pool="",
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    _fix_positions(vit)
    return vit


def objective(seed: int) -> moco.MoCo:
    vit = transformer()
    built = moco.MoCo(Encoder(vit, Dense(geometry_of(vit))), temperature=0.2, momentum=0.99, hidden=128, out=32)
    recipe.fill(built, seed)
    with torch.no_grad():
        vit.pos_embed.copy_(torch.from_numpy(REFERENCE["pos"]))
    moco.follow(built.teacher_encoder, built.encoder, 0.0)
    moco.follow(built.teacher_projector, built.projector, 0.0)
    return built.train()


@pytest.mark.parametrize("seed", [0, 1])
def test_losses_gradients_and_teacher_of_four_steps_agree(seed: int) -> None:
    """After the last step the authors' teacher has not followed yet; it does before the keys of the next one."""
    built = objective(seed)
    optimizer = torch.optim.SGD([p for p in built.parameters() if p.requires_grad], lr=0.05)
    for step in range(STEPS):
        views = torch.stack([recipe.images(100 * seed + 10 * step + view, 8, 64) for view in (0, 1)])
        loss = built(views, Call(noise=Noise(seed, step, 8))).total
        optimizer.zero_grad()
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(REFERENCE[f"loss_0_{seed}_{step}"]), abs=AFTER_STEPS)
        if step == 0:
            theirs = REFERENCE[f"grads_0_{seed}"]
            assert recipe.gradient_gap(built, REFERENCE["names"], theirs, seed) < recipe.GRADIENT_ROUNDING
        optimizer.step()
        if step + 1 < STEPS:
            built.after_step((step + 1) / STEPS)
    teacher = dict(built.teacher_encoder.vit.named_parameters())
    teacher |= {f"head.{name}": p for name, p in built.teacher_projector.named_parameters()}
    names = [str(name) for name in REFERENCE["teacher_names"]]
    ours = [float((teacher[name] * recipe.normal("t" + name, seed, *teacher[name].shape)).sum()) for name in names]
    assert ours == pytest.approx(REFERENCE[f"teacher_0_{seed}"], abs=AFTER_STEPS)


def test_the_momentum_of_every_step_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    built, momenta = objective(0), []
    monkeypatch.setattr(moco, "follow", lambda teacher, student, momentum: momenta.append(momentum))
    for progress in np.linspace(0, 1, 61):
        built.after_step(float(progress))
    assert momenta[::2] == momenta[1::2] == pytest.approx(REFERENCE["schedule"], abs=1e-12)  # encoder and projector


def test_positions_agree() -> None:
    """The same channels in another order: there sin and cos of x come before those of y, here the sines first."""
    mine = transformer().pos_embed.detach().unflatten(2, (4, 16))[:, :, [0, 2, 1, 3]].flatten(2)
    assert recipe.gap(mine, REFERENCE["pos"]) < recipe.ROUNDING
