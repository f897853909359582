"""Factors on the learning rate: who gets them, that the schedule applies them, and that without any nothing changes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.specs.run_spec import EncoderSpec
from bench.training.build import build, optimizer_of, schedule_of
from methods.names import parse_methods

ENCODER = EncoderSpec(name="vit_stem_d64_l4_patch8", image_size=32)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fast(self.slow(x))


def test_scaled_parameters_train_as_with_an_optimizer_of_their_own() -> None:
    """Five steps of warm-up and cosine against two AdamWs of torch, one at four times the learning rate."""
    torch.manual_seed(0)
    mine, theirs = Two(), Two()
    theirs.load_state_dict(mine.state_dict())
    optimizer = optimizer_of(mine, 1e-2, 0.1, {"fast.": 4.0})
    schedule = schedule_of(optimizer, 5, 0.4)
    plain = [
        torch.optim.AdamW(
            [
                {"params": [layer.bias], "weight_decay": 0.0},
                {"params": [layer.weight], "weight_decay": 0.1},
            ],
            betas=(0.9, 0.95),
        )
        for layer in (theirs.slow, theirs.fast)
    ]
    x = torch.randn(8, 3)
    for step in range(5):
        schedule.step_update(step)
        for one, factor in zip(plain, (1.0, 4.0), strict=True):
            for group in one.param_groups:
                group["lr"] = factor * optimizer.param_groups[0]["lr"]  # the rate of the history
        for model, optimizers in ((mine, [optimizer]), (theirs, plain)):
            model.zero_grad()
            (model(x) ** 2).mean().backward()
            for one in optimizers:
                one.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_only_the_predictor_gets_its_factor() -> None:
    (method,) = parse_methods("sparsecontrast[predictor_lr=0.1]")
    objective = build(method, ENCODER, 0)
    optimizer = optimizer_of(objective, 1e-3, 0.05, objective.lr_factors)
    scaled = {id(p) for group in optimizer.param_groups if group.get("lr_scale") == 0.1 for p in group["params"]}
    assert scaled == {id(p) for p in objective.encoder.strategy.predictor.parameters()}
    assert "lr_scale" not in optimizer.param_groups[0]
    everyone = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(everyone) == sorted(id(p) for p in objective.parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        assert all((p.ndim <= 1) == (group["weight_decay"] == 0) for p in group["params"])


@pytest.mark.parametrize("name", ["dense", "sparsecontrast", "frozen"])
def test_without_a_factor_the_groups_are_timms(name: str) -> None:
    objective = build(parse_methods(name)[0], ENCODER, 0)
    assert objective.lr_factors == {}
    optimizer = optimizer_of(objective, 1e-3, 0.05, objective.lr_factors)
    assert len(optimizer.param_groups) == 2
    assert not any("lr_scale" in group for group in optimizer.param_groups)
