import math

import pytest
import torch
from torch import Tensor

from methods.attention import (
    HIDDEN,
    Core,
    backend_core,
    block_diagonal,
    key_bias_core,
    policy_core,
    run_block,
    trimmed_core,
)
from tests.methods import slow

B, H, N, D = 2, 3, 7, 5
SCALE = 1 / math.sqrt(D)


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return tuple(torch.randn(B, H, N, D, requires_grad=True) for _ in range(3))  # type: ignore[return-value]


def by_rows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, times: Tensor) -> Tensor:
    """sum_j t_ij exp(q_i k_j / sqrt(d) + b_j) v_j / sum_j t_ij exp(...), row by row; `times` (B, N, N)."""
    out = torch.zeros(B, H, N, D)
    for b in range(B):
        for h in range(H):
            for i in range(N):
                weights = torch.stack([(q[b, h, i] @ k[b, h, j] * SCALE + bias[b, j]).exp() for j in range(N)])
                weights = weights * times[b, i]
                out[b, h, i] = (weights / weights.sum()) @ v[b, h]
    return out


def same(core: Core, qkv: tuple[Tensor, ...], slow_out: Tensor, wrt: tuple[Tensor, ...]) -> None:
    fast = core(*qkv, SCALE)
    torch.testing.assert_close(fast, slow_out, rtol=1e-5, atol=1e-5)
    probe = torch.randn(fast.shape)
    expected = torch.autograd.grad((slow_out * probe).sum(), wrt)
    got = torch.autograd.grad((fast * probe).sum(), wrt)
    for g, e in zip(got, expected, strict=True):
        assert e.abs().max() > 1e-3
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


def test_key_bias_is_exact_with_a_gradient_to_the_bias(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    bias = torch.randn(B, N, requires_grad=True)
    same(key_bias_core(bias), qkv, by_rows(*qkv, bias, torch.ones(B, N, N)), (*qkv, bias))


@pytest.mark.parametrize("head", [8, 12, 16])
def test_key_bias_at_head_widths_that_are_and_are_not_multiples_of_8(head: int) -> None:
    q, k, v = torch.randn(3, B, H, N, head)
    bias = torch.randn(B, N)
    logits = q @ k.mT / math.sqrt(head) + bias[:, None, None, :]
    out = key_bias_core(bias)(q, k, v, 1 / math.sqrt(head))
    assert out.shape == v.shape
    torch.testing.assert_close(out, logits.softmax(-1) @ v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hidden_key_has_exactly_no_weight(dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, B, H, N, 16).to(dtype)
    bias = torch.zeros(B, N)
    bias[:, 4] = HIDDEN
    v[:, :, 4] = 1e4  # would be visible in the result
    changed = v.clone()
    changed[:, :, 4] = -1e4
    core = key_bias_core(bias)
    assert torch.equal(core(q, k, v, 0.25), core(q, k, changed, 0.25))


def test_trimmed_keys_with_and_without_bias(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    index = torch.tensor([[0, 2, 5], [1, 2, 6]])
    bias = torch.randn(B, 3, requires_grad=True)
    seen = torch.zeros(B, N).scatter(1, index, 1.0)[:, None].expand(-1, N, -1)
    none = torch.zeros(B, N)
    same(trimmed_core(index), qkv, by_rows(*qkv, none, seen), qkv)
    spread = none.scatter(1, index, bias)
    same(trimmed_core(index, bias), qkv, by_rows(*qkv, spread, seen), (*qkv, bias))


def test_policy_multiplies_the_softmax_and_leaves_a_token_to_itself(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    policy = torch.rand(B, N)
    policy[:, 3] = 0.0
    policy.requires_grad_()
    eye = torch.eye(N, dtype=torch.bool)
    times = torch.where(eye, 1.0, policy[:, None, :].expand(-1, N, -1))
    same(policy_core(policy), qkv, by_rows(*qkv, torch.zeros(B, N), times), (*qkv, policy))
    grad = torch.autograd.grad(policy_core(policy)(*qkv, SCALE).square().sum(), policy)[0]
    assert grad[:, 3].abs().min() > 0  # a dropped token still has a gradient


def test_policy_stays_finite_where_a_hidden_key_is_the_highest_by_far() -> None:
    q = torch.ones(1, 1, 2, 4)
    k = torch.stack([torch.full((4,), -100.0), torch.full((4,), 100.0)])[None, None]
    policy = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = policy_core(policy)(q, k, torch.randn(1, 1, 2, 4), 1.0)
    out.sum().backward()
    assert out.isfinite().all()
    assert policy.grad is not None
    assert policy.grad.isfinite().all()


def test_a_block_with_a_core_equals_the_block_written_out() -> None:
    vit = slow.tiny_vit(depth=1)
    x, bias = torch.randn(2, 9, 16), torch.randn(2, 9)
    fast = run_block(vit.blocks[0], x, key_bias_core(bias))
    expected = torch.stack([slow.block(vit.blocks[0], x[i], bias=bias[i]) for i in range(2)])
    slow.assert_same(fast, expected, [vit.blocks[0]])


def test_a_block_with_layer_scale_and_normed_queries_equals_timms() -> None:
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    block = Block(16, 2, qkv_bias=True, qk_norm=True, init_values=0.3)
    slow.shake(block)
    x = torch.randn(2, 9, 16)
    torch.testing.assert_close(run_block(block, x, key_bias_core(torch.zeros(2, 9))), block(x), rtol=1e-5, atol=1e-5)


def test_key_bias_rides_on_any_core(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    """Tested with a core that sees only the first four tokens."""
    bias = torch.randn(B, N, requires_grad=True)
    seen = (torch.arange(N) < 4).float()[None, None].expand(B, N, -1)

    def first_four(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return ((q @ k[:, :, :4].mT) * scale).softmax(-1) @ v[:, :, :4]

    same(key_bias_core(bias, first_four), qkv, by_rows(*qkv, bias, seen), (*qkv, bias))


def test_the_block_diagonal_mask_lets_an_image_see_itself_alone() -> None:
    pytest.importorskip("xformers")
    mask = block_diagonal([3, 1, 2], torch.device("cpu")).materialize((6, 6))
    image = torch.tensor([0, 0, 0, 1, 2, 2])
    assert torch.equal(mask == 0, image[:, None] == image[None])
    assert torch.equal(mask == float("-inf"), image[:, None] != image[None])


def test_backends_by_name() -> None:
    cpu = torch.device("cpu")
    assert backend_core("sdpa", cpu) is None
    with pytest.raises(ValueError, match=r"needs a CUDA GPU, but this run uses 'cpu'.*sdpa"):
        backend_core("xformers", cpu)
    with pytest.raises(ValueError, match="unknown attention backend 'flash': use one of sdpa, xformers"):
        backend_core("flash", cpu)
