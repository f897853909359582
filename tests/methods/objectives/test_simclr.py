import math

import pytest
import torch
from torch import Tensor

from methods import build_encoder, build_objective
from methods.noise import Noise
from methods.objectives.simclr import SimCLR, nt_xent
from methods.strategies.strategy import Call


def by_pairs(z: Tensor, temperature: float) -> Tensor:
    """Eq. 1 of the paper: mean over the positive pairs of -log(exp(s_ij / T) / sum_{k != i} exp(s_ik / T))."""
    n = len(z)

    def similarity(i: int, k: int) -> Tensor:
        return (z[i] * z[k]).sum() / (z[i].norm() * z[k].norm())

    losses = []
    for i in range(n):
        j = i + n // 2 if i < n // 2 else i - n // 2
        below = sum((similarity(i, k) / temperature).exp() for k in range(n) if k != i)
        losses.append(-((similarity(i, j) / temperature).exp() / below).log())
    return torch.stack(losses).mean()


def by_two_halves(z: Tensor, temperature: float) -> Tensor:
    """As in the authors' code: contrast a with b and a with a except its diagonal, then do the same for b."""
    a, b = (z / z.norm(dim=1, keepdim=True)).chunk(2)
    hide = torch.eye(len(a)) * 1e9
    ab, aa, bb = a @ b.T / temperature, a @ a.T / temperature - hide, b @ b.T / temperature - hide
    loss_a = (torch.cat([ab, aa], 1).logsumexp(1) - ab.diagonal()).mean()
    loss_b = (torch.cat([ab.T, bb], 1).logsumexp(1) - ab.diagonal()).mean()
    return (loss_a + loss_b) / 2


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("slow", [by_pairs, by_two_halves])
def test_nt_xent_with_gradient(temperature: float, slow: object) -> None:
    torch.manual_seed(0)
    z = torch.randn(10, 6, requires_grad=True)
    fast, expected = nt_xent(z, temperature), slow(z, temperature)  # type: ignore[operator]
    torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-5)
    got, want = torch.autograd.grad(fast, z)[0], torch.autograd.grad(expected, z)[0]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_loss_is_between_perfect_and_the_plateau() -> None:
    same = torch.ones(8, 4)
    assert float(nt_xent(same, 0.2)) == pytest.approx(math.log(7), rel=1e-5)
    encoder = build_encoder("vit_stem_d64_l4_patch8", "dense", {}, image_size=32, channels=1, seed=0)
    assert SimCLR(encoder).plateau(4) == pytest.approx(math.log(7))
    apart = torch.eye(4).repeat(2, 1)
    assert float(nt_xent(apart, 0.05)) < 1e-6


def test_views_of_a_sample_are_the_positives() -> None:
    """The loss of aligned views is lower than that of the same views in another order."""
    torch.manual_seed(0)
    z = torch.randn(8, 16)
    aligned = torch.cat([z, z + 0.1 * torch.randn(8, 16)])
    crossed = torch.cat([z, aligned[8:].roll(1, 0)])
    assert nt_xent(aligned, 0.2) < nt_xent(crossed, 0.2) - 1


def test_the_projector_is_normed_before_inside_and_after() -> None:
    encoder = build_encoder("vit_stem_d64_l4_patch8", "dense", {}, image_size=32, channels=1, seed=0)
    projector = build_objective("simclr", encoder, {}, seed=0).projector
    kinds = [type(layer).__name__ for layer in projector]
    assert kinds == [
        "BatchNorm1d",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
        "ReLU",
        "Linear",
        "BatchNorm1d",
    ]
    assert [layer.out_features for layer in projector if isinstance(layer, torch.nn.Linear)] == [256, 256, 128]
    big = build_encoder("vit_small_patch16_224", "dense", {}, image_size=32, channels=1, seed=0)
    wide = build_objective("simclr", big, {}, seed=0).projector
    assert [layer.out_features for layer in wide if isinstance(layer, torch.nn.Linear)] == [2048, 2048, 128]


def test_the_whole_step_is_encoder_projector_loss_and_the_strategys_own() -> None:
    encoder = build_encoder("vit_stem_d64_l4_patch8", "sparsecontrast", {}, image_size=32, channels=1, seed=0)
    objective = build_objective("simclr", encoder, {"temperature": 0.3}, seed=0)
    views, call = torch.randn(2, 5, 1, 32, 32), Call(0.5, 0.0, Noise(0, 0, 5))
    loss = objective(views, call)
    stacked = torch.cat([views[0], views[1]])
    expected = by_pairs(objective.projector(encoder(stacked, call).features), 0.3)
    torch.testing.assert_close(loss.contrastive, expected, rtol=1e-4, atol=1e-5)
    assert loss.parts.keys() == {"sparsity"}
    torch.testing.assert_close(loss.total, expected + loss.parts["sparsity"], rtol=1e-4, atol=1e-5)
