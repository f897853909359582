import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from methods import STRATEGIES, build_encoder, build_objective
from methods.noise import Noise
from methods.objectives.moco import MoCo
from methods.strategies.strategy import Call

STEM = "vit_stem_d64_l4_patch8"
CALL = Call(0.5, 0.0, Noise(0, 0, 5))


def make(strategy: str = "dense", encoder: str = STEM, **options: object) -> MoCo:
    built = build_encoder(encoder, strategy, {}, image_size=32, channels=1, seed=0)
    return build_objective("moco", built, options, seed=0)  # type: ignore[arg-type, return-value]


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def slow_contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """2 T x mean over i of -log(exp(q_i k_i / T) / sum_j exp(q_i k_j / T))."""
    losses = []
    for i in range(len(q)):
        logits = torch.stack([(unit(q[i]) * unit(k[j])).sum() / temperature for j in range(len(k))])
        losses.append(logits.exp().sum().log() - logits[i])
    return 2 * temperature * torch.stack(losses).mean()


@pytest.mark.parametrize("strategy", ["dense", "random", "sparsecontrast"])
def test_the_symmetric_loss_with_gradient(strategy: str) -> None:
    objective = make(strategy)
    with torch.no_grad():  # as after some steps: the teacher is another network
        for p in objective.teacher_encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    views = torch.randn(2, 5, 1, 32, 32)
    loss = objective(views, CALL)
    stacked = torch.cat([views[0], views[1]])
    features = objective.encoder(stacked, CALL).features
    queries = [objective.predictor(objective.projector(one)) for one in (features[:5], features[5:])]
    teacher_call = Call(0.5, 0.0, Noise(0, 0, 5, role="teacher"))
    with torch.no_grad():
        features = objective.teacher_encoder(stacked, teacher_call).features
        keys = [objective.teacher_projector(one) for one in (features[:5], features[5:])]
    expected = slow_contrast(queries[0], keys[1], 0.2) + slow_contrast(queries[1], keys[0], 0.2)
    torch.testing.assert_close(loss.contrastive, expected, rtol=1e-4, atol=1e-5)
    weight = objective.encoder.vit.blocks[0].attn.qkv.weight
    got, want = (torch.autograd.grad(term, weight, retain_graph=True)[0] for term in (loss.contrastive, expected))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-5)
    assert want.abs().max() > 1e-4


def test_the_teacher_gets_no_gradient_and_is_no_parameter_to_train() -> None:
    objective = make("dynamicvit")
    objective(torch.randn(2, 5, 1, 32, 32), CALL).total.backward()
    teachers = [*objective.teacher_encoder.parameters(), *objective.teacher_projector.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in teachers)
    students = [p for p in objective.parameters() if p.requires_grad]
    assert not {id(p) for p in students} & {id(p) for p in teachers}


def test_it_starts_as_a_copy_and_follows_by_the_formula() -> None:
    objective = make("sparsecontrast", momentum=0.9)
    pairs = [
        (objective.teacher_encoder, objective.encoder),
        (objective.teacher_projector, objective.projector),
    ]
    for teacher, student in pairs:
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            assert torch.equal(t, s)
            assert t is not s
    with torch.no_grad():
        for p in [*objective.encoder.parameters(), *objective.projector.parameters()]:
            p.add_(torch.randn_like(p))
    for progress in (0.0, 0.25, 0.7, 1.0):
        before = [copy.deepcopy(list(teacher.parameters())) for teacher, _ in pairs]
        objective.after_step(progress)
        m = 1 - 0.1 * (1 + math.cos(math.pi * progress)) / 2
        for (teacher, student), old in zip(pairs, before, strict=True):
            for t, o, s in zip(teacher.parameters(), old, student.parameters(), strict=True):
                torch.testing.assert_close(t, m * o + (1 - m) * s, rtol=1e-5, atol=1e-6)


def test_momentum_ends_at_one() -> None:
    objective = make()
    before = copy.deepcopy(objective.teacher_encoder.state_dict())
    with torch.no_grad():
        for p in objective.encoder.parameters():
            p.add_(1.0)
    objective.after_step(1.0)
    assert all(torch.equal(v, before[k]) for k, v in objective.teacher_encoder.state_dict().items())


def test_a_patchify_embedding_is_frozen_and_a_convolutional_stem_is_not() -> None:
    patchify = make(encoder="vit_tiny_patch16_224")
    assert not any(p.requires_grad for p in patchify.encoder.vit.patch_embed.parameters())
    assert patchify.encoder.vit.blocks[0].attn.qkv.weight.requires_grad
    stem = make()
    assert all(p.requires_grad for p in stem.encoder.vit.patch_embed.parameters())


def test_heads_are_those_of_the_paper() -> None:
    objective = make(encoder="vit_small_patch16_224")
    linear = [m for m in objective.projector if isinstance(m, nn.Linear)]
    assert [m.out_features for m in linear] == [4096, 4096, 256]
    assert [m.out_features for m in objective.predictor if isinstance(m, nn.Linear)] == [4096, 256]
    for head in (objective.projector, objective.predictor):
        assert all(m.bias is None for m in head if isinstance(m, nn.Linear))
        norms = [m for m in head if isinstance(m, nn.BatchNorm1d)]
        assert isinstance(head[-1], nn.BatchNorm1d)
        assert not head[-1].affine
        assert all(m.affine for m in norms[:-1])


@pytest.mark.parametrize(("teacher", "tokens"), [("same", 8), ("dense", 16)])
def test_the_teacher_runs_the_same_strategy_or_all_tokens(teacher: str, tokens: int) -> None:
    built = build_encoder(STEM, "random", {"equal_macs": False}, image_size=32, channels=1, seed=0)
    objective = build_objective("moco", built, {"teacher": teacher}, seed=0)
    seen: dict[str, int] = {}
    for name in ("encoder", "teacher_encoder"):
        block = getattr(objective, name).vit.blocks[0]
        block.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].shape[1]}))
    objective(torch.randn(2, 5, 1, 32, 32), CALL)
    assert seen == {"encoder": 8, "teacher_encoder": tokens}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_dense_teacher_is_one_under_every_strategy(strategy: str) -> None:
    objective, dense = make(strategy, teacher="dense"), make("dense")
    features: list[Tensor] = []
    objective.teacher_encoder.register_forward_hook(lambda module, given, out: features.append(out.features))
    views = torch.randn(2, 5, 1, 32, 32)
    with torch.no_grad():
        objective(views, replace(CALL, lesions=torch.rand(10, 16)))
        expected = dense.teacher_encoder(views.flatten(0, 1), replace(CALL, noise=None)).features
    torch.testing.assert_close(features[0], expected)


def test_the_plateau_is_the_loss_of_features_that_tell_nothing() -> None:
    objective = make()
    q = torch.ones(6, 4)
    both = objective.contrast(q, q) + objective.contrast(q, q)
    assert float(both) == pytest.approx(objective.plateau(6), rel=1e-5)


def test_the_teacher_runs_on_the_same_attention_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def backend(name: str, device: torch.device):
        def core(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            calls.append(len(q))
            return nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

        return core

    monkeypatch.setattr("methods.encoders.encoder.backend_core", backend)
    objective = make()
    objective.use_attention("fast", torch.device("cpu"))
    objective(torch.randn(2, 5, 1, 32, 32), CALL)
    depth = objective.encoder.geometry.depth
    assert len(calls) == 2 * depth  # the student's blocks and the teacher's
