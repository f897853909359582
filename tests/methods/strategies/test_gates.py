"""Whether the gates tell the predictor what a token is worth.

The negative gradient of the loss with respect to the logit of a kept token is compared with the increase of the loss
when that token is left out, on small dense networks that were trained first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.encoders.vit import geometry_of
from methods.noise import Noise
from methods.objectives.simclr import nt_xent
from methods.strategies.sparsecontrast import SparseContrast
from methods.strategies.strategy import Call, embed

CLASSES, KEPT, IMAGES = 4, 12, 256


def task(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Make images of noise with one of four textures in one or two of the 16 patches; the texture is the class."""
    generator = torch.Generator().manual_seed(seed)
    fine, coarse = torch.arange(8) % 2 * 2 - 1, torch.arange(8) // 4 * 2 - 1
    textures = [t.float() for line in (fine, coarse) for t in (line[:, None].expand(8, 8), line[None].expand(8, 8))]
    images = 0.7 * torch.randn(count, 1, 32, 32, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        for patch in torch.randperm(16, generator=generator)[
            : 1 + int(torch.rand((), generator=generator) < 0.5)
        ].tolist():
            r, c = patch // 4 * 8, patch % 4 * 8
            image[0, r : r + 8, c : c + 8] += 0.8 * textures[label]
    return images, labels


@dataclass
class Trained:
    vit: VisionTransformer
    images: Tensor
    losses: Callable[[Tensor], Tensor]  # features (B, C) -> one loss per image (B,)


def descend(steps: int, loss: Callable[[VisionTransformer, nn.Module, slice], Tensor], head: Callable[[], nn.Module]):  # type: ignore[no-untyped-def]
    """Train a dense network and a head on mean-pooled features, on batches of 64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(
            img_size=32, patch_size=8, in_chans=1, num_classes=0, global_pool="", embed_dim=32, depth=3, num_heads=4,
            class_token=False,
        )  # fmt: skip
        top = head()
        optimizer = torch.optim.AdamW([*vit.parameters(), *top.parameters()], 2e-3)
        for step in range(steps):
            value = loss(vit, top, slice(step % 32 * 64, step % 32 * 64 + 64))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return vit.requires_grad_(False), top.requires_grad_(False).eval()


def pooled(vit: VisionTransformer, images: Tensor) -> Tensor:
    return vit.forward_features(images).mean(1)


@pytest.fixture(scope="module")
def supervised() -> Trained:
    images, labels = task(2048, 1)
    test, truth = task(IMAGES, 2)
    vit, head = descend(
        60,
        lambda vit, head, at: F.cross_entropy(head(pooled(vit, images[at])), labels[at]),
        lambda: nn.Linear(32, CLASSES),
    )
    assert (
        head(pooled(vit, test)).argmax(1) == truth
    ).float().mean() > 0.8  # otherwise no token would be worth anything
    return Trained(vit, test, lambda features: F.cross_entropy(head(features), truth, reduction="none"))


@pytest.fixture(scope="module")
def contrastive() -> Trained:
    images, _ = task(2048, 1)
    test, _ = task(IMAGES, 2)
    generator = torch.Generator().manual_seed(5)

    def view(of: Tensor) -> Tensor:
        return of + 0.3 * torch.randn(of.shape, generator=generator)

    def loss(vit: VisionTransformer, head: nn.Module, at: slice) -> Tensor:
        return nt_xent(head(pooled(vit, torch.cat([view(images[at]), view(images[at])]))), 0.2)

    def projector() -> nn.Module:
        return nn.Sequential(
            nn.BatchNorm1d(32), nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 32), nn.BatchNorm1d(32)
        )

    vit, head = descend(120, loss, projector)
    keys = F.normalize(head(pooled(vit, view(test))), dim=1)

    def losses(features: Tensor) -> Tensor:
        logits = F.normalize(head(features), dim=1) @ keys.T / 0.2
        return F.cross_entropy(logits, torch.arange(IMAGES), reduction="none")

    assert losses(pooled(vit, test)).mean() < 3.5  # of log 256 = 5.5 on the plateau
    return Trained(vit, test, losses)


class Logits(nn.Module):
    """Replacement of the predictor whose logits are leaves of the graph."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits.requires_grad_()

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


@torch.no_grad()
def left_out(net: Trained, kept: Tensor) -> Tensor:
    """Compute the loss without each kept token minus the loss with all of them, (images, KEPT), by running both."""

    def losses(index: Tensor) -> Tensor:
        x = embed(net.vit, net.images)[torch.arange(IMAGES)[:, None], index]
        return net.losses(net.vit.norm(net.vit.blocks(x)).mean(1))

    whole = losses(kept)
    others = [torch.cat([kept[:, :j], kept[:, j + 1 :]], 1) for j in range(KEPT)]
    return torch.stack([losses(index) - whole for index in others], 1)


@pytest.mark.parametrize(
    ("network", "gate", "correlation", "agreement"),
    [
        ("supervised", "token", 0.2, 0.55),
        ("supervised", "key_bias", 0.7, 0.8),
        ("contrastive", "token", 0.45, 0.65),
        ("contrastive", "key_bias", 0.6, 0.68),
    ],
)
def test_minus_the_gradient_follows_leaving_the_token_out(
    network: str, gate: str, correlation: float, agreement: float, request: pytest.FixtureRequest
) -> None:
    net: Trained = request.getfixturevalue(network)
    predictor = Logits(0.01 * torch.randn(IMAGES, 16, generator=torch.Generator().manual_seed(4)))
    strategy = SparseContrast(geometry_of(net.vit), KEPT / 16, gate=gate, lambda_sparsity=0.0, noise=0.0)  # type: ignore[arg-type]
    strategy.predictor = predictor  # type: ignore[assignment]
    encoding = strategy(net.vit, net.images, Call(KEPT / 16, 0.0, Noise(0, 0, IMAGES, views=1)))
    net.losses(encoding.features).sum().backward()
    gradient = predictor.logits.grad
    assert gradient is not None
    assert encoding.kept is not None
    kept = encoding.kept.nonzero()[:, 1].reshape(IMAGES, KEPT)
    says, true = -gradient.gather(1, kept).flatten(), left_out(net, kept).flatten()
    ranks = torch.stack([says.argsort().argsort(), true.argsort().argsort()]).float()
    found = float(torch.corrcoef(ranks)[0, 1])
    signs = float((says.sign() == true.sign()).float().mean())
    chance = 4 * len(true) ** -0.5  # four standard errors
    print(f"{network}, {gate}: rank correlation {found:.2f} (chance {chance:.2f}), same sign {signs:.2f}")
    assert found > max(correlation, chance)
    assert signs > max(agreement, 0.5 + chance / 2)
    assert (gradient[~encoding.kept] == 0).all()  # dropped tokens get none, which is why noise is needed
