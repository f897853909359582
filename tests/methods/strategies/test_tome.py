"""ToMe against the paper's steps written out, image by image, with gradients."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from methods.noise import Noise
from methods.strategies.strategy import Call
from methods.strategies.tome import Matching, ToMe
from tests.methods import slow

TRAIN = Call(1.0, noise=Noise(0, 0, 3, views=1))
Members = list[list[int]]  # the patches in each token


def slow_keys(attn: torch.nn.Module, x: Tensor) -> Tensor:
    heads, d = attn.num_heads, attn.head_dim
    k = slow.linear(attn.qkv, x)[:, heads * d : 2 * heads * d]
    return sum(k[:, h * d : (h + 1) * d] for h in range(heads)) / heads


def slow_tome(vit: VisionTransformer, image: Tensor, r: int, proportional: bool = True) -> tuple[Tensor, list[Members]]:
    """Features of one image, and after each block the patches in each token."""
    prefix = vit.num_prefix_tokens
    x, members, history = slow.embed(vit, image), [[j] for j in range(16)], []
    for block in vit.blocks:
        size = torch.tensor([1.0] * prefix + [float(len(m)) for m in members])
        normed = slow.layer_norm(block.norm1, x)
        x = x + slow.attention(block.attn, normed, bias=size.log() if proportional else None)
        keys = slow_keys(block.attn, normed)[prefix:]
        dealt = [("A", "B")[place % 2] for place in range(len(x))][prefix:]  # prefix tokens take a place each
        a, b = ([i for i, to in enumerate(dealt) if to == which] for which in "AB")
        pairs = []
        for i in a:  # draw one edge from each token of A to its most similar one in B
            cosine = {j: float((keys[i] @ keys[j] / keys[i].norm() / keys[j].norm()).detach()) for j in b}
            if cosine:
                j = max(cosine, key=lambda j: cosine[j])
                pairs.append((cosine[j], i, j))
        merged = sorted(pairs, reverse=True)[: min(r, len(members) // 2)]
        gone = [i for _, i, _ in merged]
        tokens, sets = [], []
        for j in [i for i in a if i not in gone] + b:
            group = [j] + [i for _, i, partner in merged if partner == j]
            weight = sum(len(members[g]) for g in group)
            tokens.append(sum(len(members[g]) * x[prefix + g] for g in group) / weight)
            sets.append(sorted(p for g in group for p in members[g]))
        x, members = torch.stack([*x[:prefix], *tokens]), sets
        history.append(members)
        x = slow.mlp(block, x)
    x = slow.layer_norm(vit.norm, x)[prefix:]
    return sum(len(m) * token for m, token in zip(members, x, strict=True)) / 16, history


@pytest.mark.parametrize("call", [TRAIN, Call()], ids=["training", "inference"])
@pytest.mark.parametrize(("prefix", "r"), [("", 3), ("cls", 3), ("cls+reg", 2), ("cls", 13)])
def test_equals_the_paper_written_out_with_gradients(prefix: str, r: int, call: Call) -> None:
    vit, geometry = slow.tiny(prefix, depth=4)
    images = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    features, histories = zip(*(slow_tome(vit, image, r) for image in images), strict=True)
    for history in histories:
        counts = {3: [13, 10, 7, 4], 2: [14, 12, 10, 8], 13: [8, 4, 2, 1]}[r]
        assert [len(members) for members in history] == counts
    assert any(len(m) > 3 for history in histories for m in history[-1])  # tokens that were merged were merged again
    encoding = ToMe(geometry, r=r)(vit, images, call)
    assert encoding.kept is None  # every patch is in some token
    slow.assert_same(encoding.features, torch.stack(features), [vit])


@pytest.mark.parametrize(("option", "in_training"), [("inference", False), ("never", False), ("always", True)])
def test_when_attention_is_proportional(option: str, in_training: bool) -> None:
    vit, geometry = slow.tiny("cls", depth=4)
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    plain, weighed = (slow_tome(vit, image[0], 3, proportional)[0] for proportional in (False, True))
    assert (plain - weighed).abs().max() > 1e-3
    strategy = ToMe(geometry, r=3, proportional=option)  # type: ignore[arg-type]
    for call, expected in ((TRAIN, in_training), (Call(), option != "never")):
        features = strategy(vit, image, call).features[0]
        torch.testing.assert_close(features, weighed if expected else plain, rtol=1e-4, atol=1e-5)


def test_no_patch_is_lost_and_the_prefix_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks that do nothing, the tokens that come out are the means of the patches that went in."""
    vit, geometry = slow.tiny("cls+reg", depth=4)
    for block in vit.blocks:
        for last in (block.attn.proj, block.mlp.fc2):
            torch.nn.init.zeros_(last.weight)
            torch.nn.init.zeros_(last.bias)
    images, seen = torch.randn(2, 1, 32, 32), []
    vit.norm.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    strategy = ToMe(geometry, r=4)
    features = strategy(vit, images, Call()).features
    before = torch.stack([slow.embed(vit, image) for image in images])
    assert seen[0].shape == (2, 3 + 2, 16)  # 16, 12, 8, 4, and then half of 4
    torch.testing.assert_close(seen[0][:, :3], before[:, :3])
    sizes = [len(m) for m in slow_tome(vit, images[0], 4)[1][-1]]
    weighted = sum(n * token for n, token in zip(sizes, seen[0][0, 3:], strict=True)) / 16
    torch.testing.assert_close(weighted, before[0, 3:].mean(0))
    assert features.shape == (2, 16)


def test_matching_takes_the_closest_pairs_and_gives_several_one_partner() -> None:
    angles = torch.tensor([0.0, 0.1, 0.3, 2.0, 3.0, 5.0])  # A: 0.0, 0.3, 3.0; B: 0.1, 2.0, 5.0
    keys = torch.stack([angles.cos(), angles.sin()], -1)[None, None] * torch.rand(1, 1, 6, 1).add(0.5)
    source, partner, stay = Matching()(keys, 2)
    assert source.tolist() == [[0, 2]]
    assert partner.tolist() == [[1, 1]]
    assert stay.tolist() == [[4]]
    source, partner, stay = Matching(first=1)(keys, 1)  # the sets change places
    assert (source.tolist(), partner.tolist(), stay.tolist()) == ([[1]], [[0]], [[3, 5]])


def test_attention_counts_a_token_by_its_size() -> None:
    """Of a token that stands twice, merging the two changes nothing, and forgetting the size would."""
    q, k, v = torch.randn(3, 1, 2, 5, 8)
    from methods.attention import constant_bias_core, fused

    twice = [0, 1, 2, 3, 4, 4]
    expected = fused(q, k[:, :, twice], v[:, :, twice], 0.3)
    size = torch.tensor([[1.0, 1, 1, 1, 2]])
    torch.testing.assert_close(constant_bias_core(size.log())(q, k, v, 0.3), expected)
    assert (fused(q, k, v, 0.3) - expected).abs().max() > 1e-3


def test_the_constant_bias_stays_on_the_fused_path_in_training() -> None:
    from methods.attention import constant_bias_core

    q, k, v = (torch.randn(2, 2, 9, 16, requires_grad=True) for _ in range(3))
    out = constant_bias_core(torch.rand(2, 9))(q, k, v, 0.25)
    assert "FlashAttention" in type(out.grad_fn).__name__


def test_r_zero_merges_nothing() -> None:
    vit, geometry = slow.tiny("cls")
    images = torch.randn(3, 1, 32, 32)
    expected = vit.forward_features(images)[:, 1:].mean(1)
    for call in (TRAIN, Call(inference="dense")):
        assert torch.equal(ToMe(geometry, r=0)(vit, images, call).features, expected)
    assert ToMe(geometry).target is None
    assert not ToMe(geometry).ramps
