"""SparseContrast (arXiv 2605.00887): a saliency predictor chooses the patches, the encoder runs on those alone.

The abstract says: dynamic sparse attention in contrastive learning, a compact saliency predictor that directs the
trimming during training, sparsity and feature quality optimised together. Its review page (machine-written,
unverified) adds: a three-layer CNN of 0.8 M parameters, L = L_contrastive + lambda L_sparsity with lambda 0.1, a
cosine sparsity schedule. The exact layers, L_sparsity, how gradients cross the selection and the attention code are
published nowhere: what stands here is our interpretation, each choice a named option (docs/sparsecontrast.md).

`frozen` is the same with a predictor that is never trained.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from methods.ranks import gather_views, mean_over_ranks
from methods.schedule import kept_tokens
from methods.strategies.predictor import Predictor, predictor_width
from methods.strategies.selection import Choice, Selection, highest
from methods.strategies.strategy import Call, Geometry, as_mask

Select = Literal["topk", "budget", "threshold"]
Gate = Literal["token", "key_bias"]


class SparseContrast(Selection):
    """Saliency-guided selection.

    `select`: "topk" keeps exactly k patches an image; "budget" keeps the B x k highest scores of the batch, of all
    ranks, in training and what exceeds a stored threshold at inference (an image never depends on its neighbours
    there); "threshold" keeps logits above 0, whose number only L_sparsity controls.
    `gate`: how the loss reaches the predictor, with straight-through values: "token" scales a kept token by
    g = 1 + s - stopgrad(s), "key_bias" adds log g to the attention logits of the kept keys and weighs them by g in the
    pooling: what dropping a token does to the others. (log s in the place of log g would push a kept token's logit with
    a force that never fades; measured, logits then grew to hundreds and the noise meant nothing.)
    `lambda_sparsity` weighs L_sparsity = (mean(s) - keep)^2, where for "threshold" the mean is of the decisions.
    `noise` scales Gumbel noise on the logits in training, annealed to 0 along half a cosine.
    `width` of the predictor, 0 for the paper's relative cost. `fuse` adds the dropped tokens as one weighted mean.
    `trim` "tokens" drops queries, keys and MLPs together; "keys" trims the keys only and computes all tokens.

    On a ConvNeXt a kept patch's gate multiplies what its MLPs add, in every block, and its weight in the pooling
    (`methods/convolution.py`). Raises ValueError there for options that speak of keys or tokens.
    """

    trained = True

    def __init__(
        self,
        geometry: Geometry,
        keep: float = 0.5,
        select: Select = "topk",
        gate: Gate = "token",
        lambda_sparsity: float = 0.1,
        noise: float = 1.0,
        width: int = 0,
        fuse: bool = False,
        trim: Literal["tokens", "keys"] = "tokens",
        execution: str = "gathered",
    ) -> None:
        super().__init__(geometry, keep, execution)
        spoken = {"gate=key_bias": gate == "key_bias", "fuse=true": fuse, "trim=keys": trim == "keys"}
        if geometry.family != "vit" and any(spoken.values()):
            asked = next(option for option, given in spoken.items() if given)
            raise ValueError(
                f"SparseContrast's {asked} is not defined on a CNN, which has neither keys nor tokens: leave it out."
            )
        self.select, self.gate, self.lambda_sparsity, self.noise = select, gate, lambda_sparsity, noise
        self.fuse, self.trim = fuse, trim
        self.predictor = Predictor(geometry, width or predictor_width(geometry))
        self.predictor.requires_grad_(self.trained)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(0.0))

    @property
    def adaptive(self) -> bool:
        return self.select != "topk"

    @torch.no_grad()
    def meet_target(self, images: Tensor) -> bool:
        """The threshold of "budget" is put where the images' budget lies; what "threshold" keeps is learnt."""
        if self.select == "budget":
            logits = self.predictor(images).float()
            self.threshold.copy_(_budget_cut(logits, kept_tokens(self.geometry.patches, self.keep)))
        return self.select != "threshold"

    def choose(self, images: Tensor, call: Call) -> Choice | None:
        k = self.count(call)
        if call.training and k == self.geometry.patches and self.select != "threshold":
            return None  # the schedule has not begun to trim
        logits = self.predictor(images).float()
        if not call.training:
            return self._choice(logits, self._kept(logits, k, training=False), k)
        noise = self._noise(logits, call)
        kept = self._kept(logits.detach() + noise, k, training=True)
        if self.select == "budget":
            self._remember_threshold(logits.detach(), k)
        choice = self._choice(logits, kept, k)
        choice.stats = self._stats(logits, noise, kept, k)
        if self.trained:
            self._let_gradients_cross(choice, logits, kept, call.keep)
        return choice

    def _noise(self, logits: Tensor, call: Call) -> Tensor:
        """Gumbel noise, whose top k are a sample without replacement; for decisions of their own the logistic
        difference of two."""
        assert call.noise is not None
        patches = self.geometry.patches
        noise = call.noise.gumbel("selection", patches, device=logits.device)
        if self.select == "threshold":
            noise = noise - call.noise.gumbel("selection, against", patches, device=logits.device)
        return self.noise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, call.progress))) * noise

    def _kept(self, scores: Tensor, k: int, training: bool) -> Tensor:
        """Boolean mask (B, patches) of what is kept; at least the best patch of every image."""
        if self.select == "topk":
            return as_mask(highest(scores, k), self.geometry.patches)
        if self.select == "budget" and training:
            kept = scores >= _budget_cut(scores, k)
        else:
            kept = scores > self.threshold  # stays 0 for "threshold"
        return kept | as_mask(highest(scores, 1), self.geometry.patches)

    def _choice(self, logits: Tensor, kept: Tensor, k: int) -> Choice:
        """Indices of the kept patches, ascending: k an image, or padded where images keep different numbers."""
        most = k if self.select == "topk" else int(kept.sum(1).max())
        order = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return Choice(
            order,
            valid=None if self.select == "topk" else kept.gather(1, order),
            fuse=logits.sigmoid() * ~kept if self.fuse else None,
            keys_only=self.trim == "keys",
        )

    def _remember_threshold(self, logits: Tensor, k: int) -> None:
        """Running quantile of the noise-free logits above which the batch's budget lies."""
        self.threshold.lerp_(_budget_cut(logits, k).to(self.threshold.dtype), 0.1)

    def _let_gradients_cross(self, choice: Choice, logits: Tensor, kept: Tensor, keep: float) -> None:
        at = logits.gather(1, choice.index)
        s = at.sigmoid()
        hard = 1 + s - s.detach()  # 1, with the gradient of s
        if self.gate == "token":
            choice.token_scale = hard
        else:
            choice.key_bias = hard.log()
        mean = mean_over_ranks(logits.sigmoid())
        if self.select == "threshold":
            mean = mean + (mean_over_ranks(kept.float()) - mean).detach()  # the count itself, straight-through
        choice.losses["sparsity"] = self.lambda_sparsity * (mean - keep) ** 2

    def _stats(self, logits: Tensor, noise: Tensor, kept: Tensor, k: int) -> dict[str, Tensor]:
        """Spread of the logits within an image against the noise's; share of the training selection that inference
        (with the threshold as it is) would select too."""
        with torch.no_grad():
            clean = self._kept(logits, k, training=False)
            return {
                "logit_spread": logits.std(1).mean(),
                "noise_spread": noise.std(1).mean(),
                "overlap": (kept & clean).sum() / kept.sum(),
                "kept_share": kept.float().mean(),
            }


def _budget_cut(scores: Tensor, k: int) -> Tensor:
    """The lowest of the B x k highest `scores` (B, patches) of the batch, which is that of all ranks."""
    everyone = gather_views(scores)
    return everyone.flatten().topk(k * everyone.shape[0]).values[-1]


class Frozen(SparseContrast):
    """The same network with an untrained predictor: what does learning the selection add?"""

    trained = False
