"""DynamicViT (Rao et al., NeurIPS 2021, arXiv 2106.02034): three stages of token pruning by small predictors.

Before the blocks at 1/4, 1/2 and 3/4 of the depth (3, 6, 9 of 12) a predictor gives every token the
log-probabilities of being kept and dropped. Training is masked: decisions are hard Gumbel-softmax samples
times the previous decision, all tokens are computed, and attention is a softmax multiplied by the policy,
which lets gradients reach dropped tokens. Inference is gathered: the best int(patches x rho^stage) tokens
stay. Prefix tokens are always kept and never scored.

In the paper it is a fine-tuning of a trained network under a frozen dense teacher. `init=dense` does the same: training
continues from the network of the finished dense run of the same objective and seed, with its learning rate times 0.01
(predictors and heads have all of it), for a third of the epochs, and distils that network.

Departures. By default training is from scratch, and the teacher is the same encoder without pruning, at its present
weights, without gradient. The heads of the objective are new also with `init=dense`, whose third of the epochs is ours
(30 epochs after 300 in the paper). The KL between logits becomes 1 - cosine between pooled features, for there are no
logits; tokens are compared by MSE, as in the paper. Pooling is the mean of the kept patch tokens. An image that would
lose all its tokens, as random decisions can do to a small grid, keeps the one with the best margin.

To know when reading its results: training only pulls the shares kept after each stage towards rho, rho^2, rho^3, and
in a short one from scratch the decisions keep more than that, while inference keeps the exact counts: every record has
both, and the report's selection diagnostics show them side by side. And where teacher and student share their
weights, the distillation is small throughout.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.attention import policy_core, run_block
from methods.ranks import mean_over_ranks
from methods.strategies.selection import highest
from methods.strategies.strategy import Call, Encoding, Geometry, Strategy, as_mask, embed, gather, pool, stages

BACKBONE = 0.01  # of the learning rate, for a network that is already trained


class TokenPredictor(nn.Module):
    """Tokens (B, N, C) and their policy (B, N) -> log-probabilities (B, N, 2) of being kept and dropped."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.decide = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
            nn.LogSoftmax(dim=-1),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, policy: Tensor) -> Tensor:
        x = self.enter(x)
        half = x.shape[-1] // 2
        local, rest = x[..., :half], x[..., half:]
        weight = policy.to(x.dtype)[..., None]
        mean = (rest * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)  # of the tokens still kept
        return self.decide(torch.cat([local, mean.expand_as(rest)], -1))  # type: ignore[no-any-return]


@dataclass
class _Pruned:
    """A masked pass: final `tokens` (B, prefix + patches, C), `start` the tokens before the first stage, and
    `policies`, one (B, patches) a stage."""

    tokens: Tensor
    start: Tensor
    policies: list[Tensor]


class DynamicViT(Strategy):
    """`rho`: share of the tokens that each stage keeps; `ratio_weight` of the loss on the kept ratio;
    `distil_weight` of the two losses against the dense branch, 0 for none; `init` "dense" to continue a dense run.

    Raises ValueError for encoders of fewer than four blocks.
    """

    train_execution: ClassVar[Literal["gathered", "masked"]] = "masked"

    def __init__(
        self,
        geometry: Geometry,
        rho: float = 0.7,
        ratio_weight: float = 2.0,
        distil_weight: float = 0.5,
        init: Literal["scratch", "dense"] = "scratch",
    ) -> None:
        super().__init__(geometry)
        self.init = init
        self._teacher: list[VisionTransformer] = []  # frozen, and no submodule: it is in no checkpoint
        self.rho, self.ratio_weight, self.distil_weight = rho, ratio_weight, distil_weight
        self.before = stages(geometry, "dynamicvit")
        self.predictors = nn.ModuleList(TokenPredictor(geometry.dim) for _ in self.before)

    @property
    def target(self) -> float:
        return self.rho

    @property
    def lr_factors(self) -> dict[str, float]:
        return {"vit.": BACKBONE} if self.init == "dense" else {}

    def start_from(self, network: nn.Module) -> None:
        assert isinstance(network, VisionTransformer)
        self._teacher = [copy.deepcopy(network).requires_grad_(False).eval()]

    def kept_after(self, stage: int) -> int:
        """Patch tokens that are left after `stage` (0-based) at inference."""
        return max(1, int(self.geometry.patches * self.rho ** (stage + 1)))

    @property
    def stage_shares(self) -> tuple[float, ...]:
        return tuple(self.kept_after(stage) / self.geometry.patches for stage in range(len(self.before)))

    def forward(self, vit: VisionTransformer, images: Tensor, call: Call) -> Encoding:
        if call.training:
            return self._train(vit, images, call)
        if call.inference == "dense":
            return super().forward(vit, images, call)
        return self._infer(vit, images)

    def _infer(self, vit: VisionTransformer, images: Tensor) -> Encoding:
        """Gathered: every stage computes, and predicts from, the tokens that are left."""
        x, prefix = embed(vit, images), self.geometry.prefix
        index = torch.arange(self.geometry.patches, device=x.device).expand(x.shape[0], -1)  # of the patches left
        for i, block in enumerate(vit.blocks):
            if i in self.before:
                stage = self.before.index(i)
                scores = self.predictors[stage](x[:, prefix:], torch.ones_like(index))[..., 0]
                best = highest(scores, self.kept_after(stage))
                index, x = index.gather(1, best), gather(x, best, prefix)
            x = run_block(block, x, self.core)
        return Encoding(pool(vit.norm(x), prefix), kept=as_mask(index, self.geometry.patches))

    def _train(self, vit: VisionTransformer, images: Tensor, call: Call) -> Encoding:
        prefix = self.geometry.prefix
        masked = self._mask(vit, images, call)
        kept = masked.policies[-1]
        encoding = Encoding(pool(masked.tokens, prefix, kept), kept=kept.detach() > 0.5)
        for stage, policy in enumerate(masked.policies):
            encoding.stats[f"kept_share_{stage + 1}"] = policy.detach().mean()
        if torch.is_grad_enabled():  # a teacher descends no loss, and pays for none
            encoding.losses["ratio"] = self.ratio_weight * self._ratio_loss(masked.policies)
            if self.distil_weight:
                self._distil(self._dense_tokens(vit, images, masked), masked, encoding)
        return encoding

    def _mask(self, vit: VisionTransformer, images: Tensor, call: Call) -> _Pruned:
        """All tokens through all blocks; from the first stage on, attention under the policy."""
        x, prefix = embed(vit, images), self.geometry.prefix
        start, policies = x, [x.new_ones(x.shape[0], self.geometry.patches, dtype=torch.float32)]
        core = self.core
        for i, block in enumerate(vit.blocks):
            if i in self.before:
                if len(policies) == 1:
                    start = x
                policies.append(self._decide(x[:, prefix:], policies[-1], len(policies), call))
                core = policy_core(F.pad(policies[-1], (prefix, 0), value=1.0))
            x = run_block(block, x, core)
        return _Pruned(vit.norm(x), start, policies[1:])

    def _decide(self, patches: Tensor, before: Tensor, stage: int, call: Call) -> Tensor:
        """Policy (B, patches): hard Gumbel-softmax samples, straight-through, times the decision `before`."""
        assert call.noise is not None
        logits = self.predictors[stage - 1](patches, before).float()
        logits = logits + call.noise.gumbel(f"dynamicvit {stage}", logits.shape[1], 2, device=logits.device)
        soft = logits.softmax(-1)[..., 0]  # temperature 1
        with torch.no_grad():
            margin = logits[..., 0] - logits[..., 1]
            best = highest(margin.masked_fill(before < 0.5, float("-inf")), 1)
            hard = (margin >= 0) | as_mask(best, self.geometry.patches)
        policy: Tensor = (hard.to(soft.dtype) - soft.detach() + soft) * before
        return policy

    def _ratio_loss(self, policies: list[Tensor]) -> Tensor:
        """Mean over the stages of (kept share of an image - rho^stage)^2."""
        misses = [(policy.mean(1) - self.rho ** (k + 1)).square().mean() for k, policy in enumerate(policies)]
        return torch.stack(misses).mean()

    @torch.no_grad()
    def _dense_tokens(self, vit: VisionTransformer, images: Tensor, masked: _Pruned) -> Tensor:
        """Tokens (B, prefix + patches, C) of the teacher, which computes all of them.

        The network itself as a teacher shares everything before the first stage with the student.
        """
        teacher, x, blocks = vit, masked.start, vit.blocks[self.before[0] :]
        if self.init == "dense":
            teacher = self._teacher[0].to(images.device) if self._teacher else vit  # none yet: cost is the same
            x, blocks = embed(teacher, images), teacher.blocks
        for block in blocks:
            x = run_block(block, x, self.core)
        return teacher.norm(x)  # type: ignore[no-any-return]

    def _distil(self, dense: Tensor, masked: _Pruned, encoding: Encoding) -> None:
        """Losses against the tokens of the teacher."""
        prefix, kept = self.geometry.prefix, masked.policies[-1].detach() > 0.5
        cosine = F.cosine_similarity(encoding.features.float(), pool(dense, prefix).float(), dim=1)
        encoding.losses["distil"] = self.distil_weight * (1 - cosine).mean()
        apart = (masked.tokens[:, prefix:].float() - dense[:, prefix:].float()).square().mean(-1)  # (B, patches)
        encoding.losses["distil_tokens"] = self.distil_weight * mean_over_ranks(apart, kept)
