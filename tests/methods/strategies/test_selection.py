"""The code shared by all strategies that choose patches before block 0, with given choices."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from methods.attention import Core, block_diagonal
from methods.noise import Noise
from methods.strategies.selection import Choice, Selection, highest
from methods.strategies.strategy import Call, Geometry
from tests.methods import slow

TRAIN = Call(keep=0.5, noise=Noise(0, 0, 3, views=1))
RAGGED = torch.tensor([[0, 3, 5, 9], [1, 2, 15, 0], [4, 0, 1, 2]])
VALID = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
EXACT = torch.tensor([[0, 3, 5, 9], [1, 2, 14, 15], [4, 5, 6, 7]])


class Given(Selection):
    """Selection of given patches."""

    def __init__(self, geometry: Geometry, choice: Choice, execution: str = "gathered") -> None:
        super().__init__(geometry, 0.25, execution)
        self.choice = choice

    def choose(self, images: Tensor, call: Call) -> Choice:
        return self.choice


def a_choice(gate: str = "", ragged: bool = False, fuse: bool = False, keys_only: bool = False) -> Choice:
    generator = torch.Generator().manual_seed(1)
    choice = Choice(RAGGED if ragged else EXACT, VALID if ragged else None, keys_only=keys_only)
    amount = torch.rand(3, 4, generator=generator).requires_grad_()
    if gate == "token":
        choice.token_scale = 0.5 + amount
    elif gate == "key_bias":
        choice.key_bias = amount - 1.0
    if fuse:
        kept = torch.zeros(3, 16).scatter(1, choice.index, (VALID if ragged else torch.ones(3, 4)).float())
        choice.fuse = torch.rand(3, 16, generator=generator) * (1 - kept)
    return choice


def slowly(vit: torch.nn.Module, images: Tensor, choice: Choice, prefix: int) -> Tensor:
    """Compute features image by image, with a plain list of the kept tokens."""
    rows = []
    for i, image in enumerate(images):
        tokens = slow.embed(vit, image)
        front, patches = list(tokens[:prefix]), tokens[prefix:]
        slots = [s for s in range(4) if choice.valid is None or choice.valid[i, s]]
        where = [int(choice.index[i, s]) for s in slots]
        bias = {p: 0.0 if choice.key_bias is None else choice.key_bias[i, s] for p, s in zip(where, slots, strict=True)}
        scale = {
            p: 1.0 if choice.token_scale is None else choice.token_scale[i, s]
            for p, s in zip(where, slots, strict=True)
        }
        if choice.fuse is not None:
            weight = choice.fuse[i]
            front.append(sum(weight[p] * patches[p] for p in range(16)) / weight.sum())
        run = list(range(16)) if choice.keys_only else where
        x = torch.stack([*front, *(patches[p] * scale.get(p, 1.0) for p in run)])
        logit = torch.stack([torch.tensor(0.0)] * len(front) + [torch.as_tensor(bias.get(p, 0.0)) for p in run])
        keys = [*range(len(front)), *(len(front) + j for j, p in enumerate(run) if p in where)]
        out = slow.blocks(vit, x, bias=logit, keys=keys)[len(front) :]
        share = torch.ones(len(run)) if choice.keys_only else logit[len(front) :].exp()
        rows.append((share[:, None] * out).sum(0) / share.sum())
    return torch.stack(rows)


KINDS = [
    pytest.param({}, "", id="topk"),
    pytest.param({"gate": "token"}, "cls", id="token-gate"),
    pytest.param({"gate": "key_bias"}, "cls+reg", id="key-bias-gate"),
    pytest.param({"ragged": True}, "cls", id="ragged"),
    pytest.param({"ragged": True, "gate": "token"}, "", id="ragged-token-gate"),
    pytest.param({"ragged": True, "gate": "key_bias"}, "cls+reg", id="ragged-key-bias-gate"),
    pytest.param({"fuse": True, "gate": "key_bias"}, "cls", id="fused"),
    pytest.param({"fuse": True, "ragged": True, "gate": "token"}, "", id="fused-ragged"),
]
TRIMS = [
    pytest.param({"keys_only": True}, "", id="keys"),
    pytest.param({"keys_only": True, "gate": "token"}, "cls", id="keys-token-gate"),
    pytest.param({"keys_only": True, "gate": "key_bias", "ragged": True}, "cls+reg", id="keys-ragged-key-bias-gate"),
    pytest.param({"keys_only": True, "gate": "token", "ragged": True, "fuse": True}, "cls", id="keys-fused"),
]


@pytest.mark.parametrize(("how", "prefix"), KINDS + TRIMS)
def test_gathered_equals_the_slow_version(how: dict[str, object], prefix: str) -> None:
    vit, geometry = slow.tiny(prefix, depth=2)
    images, choice = torch.randn(3, 1, 32, 32), a_choice(**how)  # type: ignore[arg-type]
    encoding = Given(geometry, choice)(vit, images, TRAIN)
    expected = slowly(vit, images, choice, geometry.prefix)
    slow.assert_same(encoding.features, expected, [vit])
    gates = [g for g in (choice.token_scale, choice.key_bias) if g is not None]
    probe = torch.randn(3, 16)
    for gate in gates:
        got, want = (
            torch.autograd.grad((f * probe).sum(), gate, retain_graph=True)[0] for f in (encoding.features, expected)
        )
        used = torch.ones_like(gate) if choice.valid is None else choice.valid
        torch.testing.assert_close(got * used, want * used, rtol=1e-3, atol=1e-4)
        assert want.abs().max() > 1e-3
    kept = [set(row.nonzero().flatten().tolist()) for row in encoding.kept]
    assert kept == [{0, 3, 5, 9}, {1, 2, 15}, {4}] if how.get("ragged") else [set(r.tolist()) for r in EXACT]


@pytest.mark.parametrize(("how", "prefix"), KINDS)
def test_masked_execution_of_the_same_decisions_agrees_with_gathered(how: dict[str, object], prefix: str) -> None:
    vit, geometry = slow.tiny(prefix, depth=3)
    images, choice = torch.randn(3, 1, 32, 32), a_choice(**how)  # type: ignore[arg-type]
    gathered = Given(geometry, choice)(vit, images, TRAIN)
    masked = Given(geometry, choice, "masked")(vit, images, TRAIN)
    torch.testing.assert_close(masked.features, gathered.features, rtol=1e-5, atol=1e-5)
    slow.assert_same(masked.features, gathered.features, [vit])
    assert torch.equal(masked.kept, gathered.kept)


class Materialised:
    """Substitute for xformers without a GPU that uses its block-diagonal mask, materialised as numbers."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return scaled_dot_product_attention(q, k, v, scale=scale)

    def ragged(self, lengths: Sequence[int]) -> Core:
        self.lengths = list(lengths)
        total = sum(lengths)
        mask = block_diagonal(lengths, torch.device("cpu")).materialize((total, total))

        def core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            assert q.shape[0] == 1
            assert q.shape[2] == total
            return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

        return core


@pytest.mark.parametrize(("how", "prefix"), [kind for kind in KINDS if kind.values[0].get("ragged")])
def test_ragged_batches_under_a_block_diagonal_mask_equal_padded_ones(how: dict[str, object], prefix: str) -> None:
    pytest.importorskip("xformers")
    vit, geometry = slow.tiny(prefix, depth=2)
    images, choice = torch.randn(3, 1, 32, 32), a_choice(**how)  # type: ignore[arg-type]
    padded = Given(geometry, choice)(vit, images, TRAIN).features
    strategy = Given(geometry, choice)
    strategy.core = Materialised()
    ragged = strategy(vit, images, TRAIN).features
    front = geometry.prefix + bool(how.get("fuse"))
    assert strategy.core.lengths == [front + 4, front + 3, front + 1]
    slow.assert_same(ragged, padded, [vit])
    for gate in (choice.token_scale, choice.key_bias):
        if gate is not None:
            probe = torch.randn(3, 16)
            got, want = (torch.autograd.grad((f * probe).sum(), gate, retain_graph=True)[0] for f in (ragged, padded))
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
            assert want.abs().max() > 1e-3


def test_equal_numbers_of_tokens_need_no_ragged_batch() -> None:
    vit, geometry = slow.tiny("", depth=2)
    strategy = Given(geometry, a_choice())
    strategy.core = Materialised()
    strategy(vit, torch.randn(3, 1, 32, 32), TRAIN)
    assert strategy.core.lengths == []


def test_pixels_of_dropped_patches_have_no_influence() -> None:
    vit, geometry = slow.tiny("cls", depth=2)
    images = torch.randn(3, 1, 32, 32)
    changed = images.clone()
    changed[:, :, 24:, :8] += 10.0  # patch 12, which no image keeps
    strategy = Given(geometry, a_choice())
    assert torch.equal(strategy(vit, images, TRAIN).features, strategy(vit, changed, TRAIN).features)


def test_dense_inference_runs_all_tokens() -> None:
    vit, geometry = slow.tiny("cls", depth=2)
    images = torch.randn(3, 1, 32, 32)
    features = Given(geometry, a_choice())(vit, images, Call(inference="dense")).features
    assert torch.equal(features, vit.forward_features(images)[:, 1:].mean(1))


def test_highest_is_ascending_and_takes_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    assert highest(scores, 2).tolist() == [[1, 3], [0, 1]]
    assert highest(scores, 3).tolist() == [[1, 2, 3], [0, 1, 2]]
