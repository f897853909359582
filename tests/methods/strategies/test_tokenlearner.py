"""TokenLearner against the equations of the paper, computed one token at a time, with gradients."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.noise import Noise
from methods.strategies.strategy import Call, Geometry
from methods.strategies.tokenlearner import TokenLearner
from tests.methods import slow

S = 3


def make(prefix: str, **options: object) -> tuple[VisionTransformer, TokenLearner]:
    vit, geometry = slow.tiny(prefix, depth=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        strategy = TokenLearner(geometry, tokens=S, at=0.4, **options)  # type: ignore[arg-type]
        slow.shake(strategy)
    return vit, strategy


def by_mlp(learner: nn.Module, x: Tensor) -> Tensor:
    """v1.1: token s = sum_i softmax_i(MLP(LN(x_i))_s) x_i."""
    first, _, second = learner.mlp
    scores = torch.stack(
        [slow.linear(second, slow.gelu(slow.linear(first, row))) for row in slow.layer_norm(learner.norm, x)]
    )
    tokens = []
    for s in range(S):
        weight = scores[:, s].exp() / scores[:, s].exp().sum()
        tokens.append(sum(weight[i] * x[i] for i in range(len(x))))
    return torch.stack(tokens)


def convolve(image: Tensor, weight: Tensor) -> Tensor:
    """Apply a 3x3 convolution with padding 1 and without bias: (H, W, in) -> (H, W, out)."""
    h, w, _ = image.shape
    rows = []
    for r in range(h):
        for c in range(w):
            total = torch.zeros(weight.shape[0])
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    if 0 <= r + dr < h and 0 <= c + dc < w:
                        total = total + weight[:, :, dr + 1, dc + 1] @ image[r + dr, c + dc]
            rows.append(total)
    return torch.stack(rows).reshape(h, w, -1)


def by_convolution(learner: nn.Module, x: Tensor) -> Tensor:
    """v1: token s = sum_i sigmoid(conv(gelu(conv(gelu(conv(gelu(conv(LN(x)))))))))_is x_i."""
    weights = [layer.weight for layer in learner.convs if isinstance(layer, nn.Conv2d)]
    assert [w.shape[:2] for w in weights] == [(S, 16), (S, S), (S, S), (S, S)]
    image = slow.layer_norm(learner.norm, x).reshape(4, 4, -1)
    for weight in weights[:-1]:
        image = slow.gelu(convolve(image, weight))
    alpha = 1 / (1 + (-convolve(image, weights[-1])).exp())
    return torch.stack([sum(alpha[i // 4, i % 4, s] * x[i] for i in range(16)) for s in range(S)])


def fuse(fuser: nn.Module, learnt: Tensor, x: Tensor) -> Tensor:
    """Position i gets sum_s sigmoid(MLP(LN(x_i)))_s LN(W LN(learnt))_s."""
    y = slow.layer_norm(fuser.norm_in, learnt)
    mixed = torch.stack(
        [sum(fuser.across.weight[s, t] * y[t] for t in range(S)) + fuser.across.bias[s] for s in range(S)]
    )
    mixed = slow.layer_norm(fuser.norm_out, mixed)
    first, _, second = fuser.mlp
    out = []
    for row in slow.layer_norm(fuser.norm_positions, x):
        share = slow.linear(second, slow.gelu(slow.linear(first, row))).sigmoid()
        out.append(sum(share[s] * mixed[s] for s in range(S)))
    return torch.stack(out)


def slowly(vit: VisionTransformer, strategy: TokenLearner, image: Tensor, version: str, fuser: bool) -> Tensor:
    learn = by_mlp if version == "v1.1" else by_convolution
    prefix, x = strategy.geometry.prefix, slow.embed(vit, image)
    x = slow.block(vit.blocks[0], x)
    if not fuser:
        x = torch.cat([x[:prefix], learn(strategy.learners[0], x[prefix:])])
        x = slow.block(vit.blocks[2], slow.block(vit.blocks[1], x))
    else:
        for k, block in enumerate((vit.blocks[1], vit.blocks[2])):
            few = slow.block(block, torch.cat([x[:prefix], learn(strategy.learners[k], x[prefix:])]))
            patches = fuse(strategy.fusers[k], few[prefix:], x[prefix:]) + x[prefix:]
            x = torch.cat([few[:prefix], patches])
    return slow.layer_norm(vit.norm, x)[prefix:].mean(0)


@pytest.mark.parametrize("fuser", [False, True])
@pytest.mark.parametrize(("version", "prefix"), [("v1.1", ""), ("v1.1", "cls+reg"), ("v1", ""), ("v1", "cls")])
def test_it_equals_the_equations_with_gradients(version: str, prefix: str, fuser: bool) -> None:
    vit, strategy = make(prefix, version=version, fuser=fuser)
    images = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    encoding = strategy(vit, images, Call(noise=Noise(0, 0, 1)))
    expected = torch.stack([slowly(vit, strategy, image, version, fuser) for image in images])
    slow.assert_same(encoding.features, expected, [vit, strategy])
    assert encoding.kept is None
    assert not encoding.losses
    assert strategy.target is None


@pytest.mark.parametrize(("at", "before"), [(0.0, 0), (0.25, 3), (0.75, 9), (1.0, 12)])
def test_later_blocks_see_only_the_learnt_tokens(at: float, before: int) -> None:
    vit, geometry = slow.tiny("cls", depth=12)
    strategy = TokenLearner(geometry, tokens=S, at=at)
    seen: list[int] = []
    for block in vit.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    features = strategy(vit, torch.randn(2, 1, 32, 32), Call()).features
    assert seen == [17] * before + [1 + S] * (12 - before)
    assert features.shape == (2, 16)


def test_the_published_width_and_the_fusers_zero_start() -> None:
    strategy = TokenLearner(Geometry(224, 3, 16, 384, 12, 0), fuser=True)
    assert len(strategy.learners) == 3
    assert sum(p.numel() for p in strategy.learners[0].parameters()) == 2 * 384 + 384 * 64 + 64 + 64 * 8 + 8
    learnt, positions = torch.randn(2, 8, 384), torch.randn(2, 196, 384)
    assert torch.equal(strategy.fusers[0](learnt, positions), torch.zeros(2, 196, 384))


def test_convolutions_keep_rows_and_columns_apart() -> None:
    """A 1 x n strip of evidence must not wrap into the next row."""
    vit, strategy = make("", version="v1")
    x = torch.zeros(1, 16, 16)
    with torch.no_grad():
        for conv in (layer for layer in strategy.learners[0].convs if isinstance(layer, nn.Conv2d)):
            conv.weight.zero_()
            conv.weight[0, 0, 1, 2] = 5.0  # reads the right neighbour
        strategy.learners[0].norm.weight.fill_(1.0)
        strategy.learners[0].norm.bias.zero_()
        x[0, 4, 0] = 1.0  # the first patch of row 1, which has no left neighbour
        weights = strategy.learners[0](x)[0, 0]
    assert torch.allclose(weights, torch.full((16,), 0.5))
