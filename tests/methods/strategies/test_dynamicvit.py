"""DynamicViT against the paper's equations, image by image, with gradients."""

import math

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.noise import Noise
from methods.strategies.dynamicvit import DynamicViT
from methods.strategies.strategy import Call, Geometry
from tests.methods import slow

CALL = Call(1.0, noise=Noise(0, 0, 3, views=1))


def make(prefix: str = "cls", depth: int = 4, **options: float) -> tuple[VisionTransformer, DynamicViT]:
    vit, geometry = slow.tiny(prefix, depth=depth)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        strategy = DynamicViT(geometry, **options)
        slow.shake(strategy)
    for predictor in strategy.predictors:  # keep most patches: a small grid would soon be empty
        predictor.decide[4].bias.data[0] += 1.0
    return vit, strategy


def log_probabilities(predictor: nn.Module, tokens: Tensor, policy: Tensor) -> Tensor:
    """Return, for one image, the local half of the features and the policy-weighted mean of the other half."""
    norm, first = predictor.enter[0], predictor.enter[1]
    z = slow.gelu(slow.linear(first, slow.layer_norm(norm, tokens)))
    half = z.shape[1] // 2
    whole = sum(policy[j] * z[j, half:] for j in range(len(z))) / sum(policy)
    second, third, last = (layer for layer in predictor.decide if isinstance(layer, nn.Linear))
    out = []
    for row in z:
        h = torch.cat([row[:half], whole])
        logits = slow.linear(last, slow.gelu(slow.linear(third, slow.gelu(slow.linear(second, h)))))
        out.append(logits - (logits.exp().sum()).log())
    return torch.stack(out)


def slow_training(
    vit: VisionTransformer, s: DynamicViT, image: Tensor, gumbel: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return tokens after the final norm and policies of three stages of one image; `gumbel` is (patches, 2) each."""
    prefix, depth = s.geometry.prefix, len(vit.blocks)
    x, policy, policies = slow.embed(vit, image), torch.ones(16), []
    for i, block in enumerate(vit.blocks):
        if i in [depth // 4, depth // 2, 3 * depth // 4]:
            stage = len(policies)
            noisy = log_probabilities(s.predictors[stage], x[prefix:], policy) + gumbel[stage]
            soft = noisy.exp() / noisy.exp().sum(1, keepdim=True)
            hard = torch.tensor([1.0 if row[0] >= row[1] else 0.0 for row in noisy])
            policy = (hard + soft[:, 0] - soft[:, 0].detach()) * policy
            policies.append(policy)
        if policies:
            x = slow.block(block, x, policy=torch.cat([torch.ones(prefix), policy]))
        else:
            x = slow.block(block, x)
    return slow.layer_norm(vit.norm, x), policies


def slow_losses(
    vit: VisionTransformer, s: DynamicViT, images: Tensor
) -> tuple[Tensor, dict[str, Tensor], list[list[Tensor]]]:
    gumbel = [CALL.noise.gumbel(f"dynamicvit {k}", 16, 2) for k in (1, 2, 3)]  # type: ignore[union-attr]
    prefix, features, decided, cosines, apart, kept = s.geometry.prefix, [], [], [], 0.0, 0
    for b, image in enumerate(images):
        tokens, policies = slow_training(vit, s, image, [g[b] for g in gumbel])
        patches, last = tokens[prefix:], policies[-1]
        features.append((patches * last[:, None]).sum(0) / last.sum())
        decided.append(policies)
        dense = slow.blocks(vit, slow.embed(vit, image)).detach()[prefix:]
        whole = dense.mean(0)
        cosines.append((features[-1] @ whole) / features[-1].norm() / whole.norm())
        for j in range(16):
            if last[j] > 0.5:
                apart, kept = apart + ((patches[j] - dense[j]) ** 2).sum(), kept + dense.shape[1]
    ratio = sum((d[k].mean() - s.rho ** (k + 1)) ** 2 for d in decided for k in range(3)) / (3 * len(images))
    losses = {
        "ratio": s.ratio_weight * ratio,
        "distil": s.distil_weight * (1 - torch.stack(cosines)).mean(),
        "distil_tokens": s.distil_weight * apart / kept,
    }
    return torch.stack(features), losses, decided


@pytest.mark.parametrize(("prefix", "depth"), [("", 4), ("cls", 5), ("cls+reg", 6)])
def test_training_equals_the_equations_with_gradients(prefix: str, depth: int) -> None:
    vit, strategy = make(prefix, depth, rho=0.8)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    encoding = strategy(vit, images, CALL)
    features, losses, decided = slow_losses(vit, strategy, images)
    assert all(d[-1].sum() >= 1 for d in decided)  # the guard against an empty image is not in the paper
    assert torch.equal(encoding.kept, torch.stack([d[-1] > 0.5 for d in decided]))
    slow.assert_same(encoding.features, features, [vit, strategy])
    assert encoding.losses.keys() == losses.keys()
    for name, loss in losses.items():
        slow.assert_same(encoding.losses[name], loss, [vit, strategy])
    for k in range(3):
        share = torch.stack([d[k].detach() for d in decided]).mean()
        assert float(encoding.stats[f"kept_share_{k + 1}"]) == pytest.approx(float(share), abs=1e-5)


def slow_inference(vit: VisionTransformer, s: DynamicViT, image: Tensor) -> tuple[Tensor, list[list[int]]]:
    """Return the features of one image and the patches that remain after each stage."""
    prefix, depth = s.geometry.prefix, len(vit.blocks)
    x, left, history = slow.embed(vit, image), list(range(16)), []
    for i, block in enumerate(vit.blocks):
        if i in [depth // 4, depth // 2, 3 * depth // 4]:
            scores = log_probabilities(s.predictors[len(history)], x[prefix:], torch.ones(len(left)))[:, 0].tolist()
            best = sorted(sorted(range(len(left)), key=lambda j: -scores[j])[: int(16 * s.rho ** (len(history) + 1))])
            x = torch.cat([x[:prefix], x[[prefix + j for j in best]]])
            left = [left[j] for j in best]
            history.append(left)
        x = slow.block(block, x)
    return slow.layer_norm(vit.norm, x)[prefix:].mean(0), history


@pytest.mark.parametrize(("prefix", "depth"), [("", 4), ("cls", 6)])
def test_inference_equals_the_slow_version(prefix: str, depth: int) -> None:
    vit, strategy = make(prefix, depth)
    images = torch.randn(4, 1, 32, 32)
    encoding = strategy(vit, images, Call())
    for i, image in enumerate(images):
        features, history = slow_inference(vit, strategy, image)
        assert [len(left) for left in history] == [11, 7, 5]
        assert encoding.kept[i].nonzero().flatten().tolist() == history[-1]
        torch.testing.assert_close(encoding.features[i], features, rtol=1e-5, atol=1e-5)
    assert not encoding.losses


class Decided(Noise):
    """Return how many patches of each image remain after a stage, with noise so strong that it decides."""

    left: list[list[list[int]]]

    def gumbel(self, name: str, *shape: int, device: torch.device | str = "cpu") -> Tensor:
        stage = int(name.split()[-1]) - 1
        noise = torch.zeros(len(self.left), *shape)
        noise[..., 1] = 1e4
        for b, history in enumerate(self.left):
            noise[b, history[stage]] = torch.tensor([1e4, 0.0])
        return noise


@pytest.mark.parametrize("prefix", ["", "cls+reg"])
def test_masked_and_gathered_agree_on_the_same_decisions(prefix: str) -> None:
    vit, strategy = make(prefix)
    images = torch.randn(3, 1, 32, 32)
    noise = Decided(0, 0, 3, views=1)
    object.__setattr__(noise, "left", [slow_inference(vit, strategy, image)[1] for image in images])
    gathered, masked = strategy(vit, images, Call()), strategy(vit, images, Call(noise=noise))
    assert torch.equal(gathered.kept, masked.kept)
    torch.testing.assert_close(gathered.features, masked.features, rtol=1e-5, atol=1e-5)


def test_published_counts_and_places() -> None:
    strategy = DynamicViT(Geometry(224, 3, 16, 384, 12, 1), rho=0.7)
    assert [strategy.kept_after(k) for k in range(3)] == [137, 96, 67]
    assert strategy.before == (3, 6, 9)
    assert strategy.target == 0.7
    assert strategy.train_execution == "masked"
    assert not strategy.ramps
    with pytest.raises(ValueError, match="at least 4 blocks; this one has 3"):
        DynamicViT(Geometry(32, 1, 8, 16, 3, 0))


def test_a_dropped_token_has_a_gradient_through_the_attention() -> None:
    """A mask of minus infinity would cut the gradient: the predictor could learn only from what it kept."""
    vit, strategy = make("cls", rho=0.7, ratio_weight=0.0, distil_weight=0.0)
    images = torch.randn(3, 1, 32, 32)
    logits: list[Tensor] = []
    strategy.predictors[2].register_forward_hook(lambda m, i, out: (out.retain_grad(), logits.append(out))[0])
    encoding = strategy(vit, images, CALL)
    encoding.features.square().sum().backward()
    last = encoding.kept
    before = torch.stack([d[1] > 0.5 for d in slow_losses(vit, strategy, images)[2]])
    dropped_here = before & ~last
    assert dropped_here.any()
    assert (logits[0].grad[dropped_here].abs().sum(-1) > 0).all()


def test_an_image_keeps_a_token_whatever_the_noise_says() -> None:
    vit, strategy = make("cls")
    noise = Decided(0, 0, 3, views=1)
    object.__setattr__(noise, "left", [[[], [], []]] * 3)
    images = torch.randn(3, 1, 32, 32)
    encoding = strategy(vit, images, Call(noise=noise))
    assert encoding.kept.sum(1).tolist() == [1, 1, 1]
    sum(encoding.losses.values(), encoding.features.sum()).backward()
    assert encoding.features.isfinite().all()
    assert all(p.grad.isfinite().all() for p in strategy.parameters())


def test_a_pass_without_gradients_pays_for_no_dense_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    vit, strategy = make("cls")
    images, runs = torch.randn(3, 1, 32, 32), []
    vit.blocks[-1].mlp.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        assert not strategy(vit, images, CALL).losses
    assert len(runs) == 1
    assert strategy(vit, images, CALL).losses.keys() == {"ratio", "distil", "distil_tokens"}
    assert len(runs) == 3
    strategy.distil_weight = 0.0
    assert strategy(vit, images, CALL).losses.keys() == {"ratio"}
    assert len(runs) == 4


def test_with_every_token_kept_nothing_is_left_to_distil() -> None:
    vit, strategy = make("cls")
    noise = Decided(0, 0, 3, views=1)
    object.__setattr__(noise, "left", [[list(range(16))] * 3] * 3)
    encoding = strategy(vit, torch.randn(3, 1, 32, 32), Call(noise=noise))
    losses = {name: float(loss.detach()) for name, loss in encoding.losses.items()}
    assert losses["distil_tokens"] < 1e-10
    assert losses["distil"] == pytest.approx(0.0, abs=1e-6)
    assert losses["ratio"] == pytest.approx(2.0 * sum((1 - 0.7**k) ** 2 for k in (1, 2, 3)) / 3, rel=1e-5)


def test_rho_one_keeps_all_tokens_at_inference() -> None:
    vit, strategy = make("cls", rho=1.0)
    images = torch.randn(3, 1, 32, 32)
    encoding = strategy(vit, images, Call())
    assert encoding.kept.all()
    torch.testing.assert_close(encoding.features, vit.forward_features(images)[:, 1:].mean(1), rtol=1e-5, atol=1e-5)
    assert math.prod(encoding.kept.shape) == 48


def test_dense_inference_is_timms_forward() -> None:
    vit, strategy = make("cls")
    images = torch.randn(3, 1, 32, 32)
    features = strategy(vit, images, Call(inference="dense")).features
    assert torch.equal(features, vit.forward_features(images)[:, 1:].mean(1))
