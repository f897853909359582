"""SimCLR's loss against the outputs of lightly-ai/lightly @e8d317f, whose NTXentLoss is an independent one."""

from __future__ import annotations

import pytest

from methods.objectives.simclr import nt_xent
from tests.methods.official import recipe

REFERENCE = recipe.reference("ntxent")


@pytest.mark.parametrize(("batch", "dim"), [(2, 8), (16, 32), (64, 128)])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 0.2, 0.5])
def test_loss_and_gradient_agree(temperature: float, batch: int, dim: int) -> None:
    key = f"{temperature}_{batch}_{dim}"
    projections = recipe.narrow(recipe.normal(f"z{batch}", 0, 2, batch, dim)).requires_grad_()
    loss = nt_xent(projections.flatten(0, 1), temperature)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(REFERENCE[f"loss_{key}"]), abs=recipe.ROUNDING)
    theirs = REFERENCE[f"grad_{key}"]
    assert projections.grad is not None
    assert recipe.gap(projections.grad, theirs) < recipe.GRADIENT_ROUNDING * abs(theirs).max()
