"""SparseContrast (arXiv 2605.00887): a saliency predictor chooses patches, and the encoder runs on those only.

The abstract describes dynamic sparse attention in contrastive learning, a compact saliency predictor that directs the
trimming during training, and joint optimisation of sparsity and feature quality. The review page (machine-written,
unverified) adds a three-layer CNN with 0.8 M parameters, L = L_contrastive + lambda L_sparsity with lambda 0.1, and a
cosine sparsity schedule. The layers, L_sparsity, the gradient through the selection and the attention code are not
published. This module is our interpretation, in which every choice is an option (docs/sparsecontrast.md).

The control `frozen` is the same strategy with a predictor that is never trained.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from methods import Value
from methods.ranks import gather_views, mean_over_ranks
from methods.schedule import kept_tokens
from methods.strategies.predictor import Predictor, bounded, predictor_width, standardised
from methods.strategies.selection import Choice, Selection, highest
from methods.strategies.strategy import Call, Geometry, as_mask

Select = Literal["topk", "budget", "threshold"]
Gate = Literal["token", "key_bias"]
Logits = Literal["raw", "standardised", "bounded"]


class SparseContrast(Selection):
    """Saliency-guided selection. Below, s is the sigmoid of a patch's logit.

    keep: target keep ratio.
    select: "topk" keeps exactly k patches per image. "budget" keeps the B x k highest scores of the batch (of all
        ranks) in training, and at inference what exceeds a stored threshold, so that an image does not depend on the
        others of its batch. "threshold" keeps logits above 0; only L_sparsity controls their number.
    gate: path of the gradient to the predictor, with a straight-through gate g = 1 + s - stopgrad(s). "token"
        multiplies a kept token by g. "key_bias" adds log g to the attention logits of the kept keys and weights them by
        g in the pooling, which is the effect of dropping a token on the others. With log s instead of log g, the
        gradient on the logit of a kept token would never vanish; logits then grew to hundreds and noise had no effect.
    lambda_sparsity: weight of L_sparsity = (mean(s) - keep)^2. For "threshold" the mean is over the decisions.
    noise: scale of the Gumbel noise on the logits in training, annealed to 0 along half a cosine.
    logits: "raw"; "standardised" per image; or "bounded" by a tanh. Raw logits can grow until their sigmoid is 0 or 1:
        then gradients and noise no longer change the selection. Standardised logits carry no difference between images,
        so that "budget" compares shapes alone, and L_sparsity hardly depends on them.
    predictor_lr: factor on the learning rate of the predictor.
    width: of the predictor; 0 for the relative cost of the paper.
    fuse: add the weighted mean of the dropped tokens as one token.
    trim: "tokens" drops queries, keys and MLPs; "keys" drops only keys and computes all tokens.
    execution: as in `Selection`.

    On a ConvNeXt, the gate multiplies what the MLPs of a kept patch add in every block, and its weight in the pooling
    (`methods/convolution.py`). Raises ValueError there for options that concern keys or tokens.
    """

    trained = True

    def __init__(
        self,
        geometry: Geometry,
        keep: float = 0.5,
        select: Select = "topk",
        gate: Gate = "token",
        lambda_sparsity: float = 0.1,
        predictor_lr: float = 1.0,
        noise: float = 1.0,
        logits: Logits = "raw",
        width: int = 0,
        fuse: bool = False,
        trim: Literal["tokens", "keys"] = "tokens",
        execution: str = "gathered",
    ) -> None:
        super().__init__(geometry, keep, execution)
        for_tokens = {"gate=key_bias": gate == "key_bias", "fuse=true": fuse, "trim=keys": trim == "keys"}
        if geometry.family != "vit" and any(for_tokens.values()):
            option = next(option for option, given in for_tokens.items() if given)
            raise ValueError(
                f"SparseContrast's {option} is not defined on a CNN, which has neither keys nor tokens: leave it out."
            )
        if logits == "standardised" and select == "threshold":
            raise ValueError(
                "SparseContrast's logits=standardised can't be combined with select=threshold: their mean is 0 in "
                "every image, so L_sparsity could not control how many lie above 0. Use logits=bounded, or another "
                "select."
            )
        self.select, self.gate, self.lambda_sparsity, self.noise = select, gate, lambda_sparsity, noise
        self.logits, self.predictor_lr = logits, predictor_lr
        self.fuse, self.trim = fuse, trim
        self.width = width or predictor_width(geometry)
        self.predictor = Predictor(geometry, self.width)
        self.predictor.requires_grad_(self.trained)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(0.0))

    @property
    def lr_factors(self) -> dict[str, float]:
        return {} if self.predictor_lr == 1 else {"strategy.predictor.": self.predictor_lr}

    @property
    def computed(self) -> dict[str, Value]:
        return {"width": self.width}

    @property
    def adaptive(self) -> bool:
        return self.select != "topk"

    @torch.no_grad()
    def calibrate(self, images: Tensor) -> bool:
        """Set the threshold of "budget" so that `images` keep their budget; what "threshold" keeps must be learned."""
        if self.select == "budget":
            logits = self._logits(images)
            self.threshold.copy_(_budget_cut(logits, kept_tokens(self.geometry.patches, self.keep)))
        return self.select != "threshold"

    def choose(self, images: Tensor, call: Call) -> Choice | None:
        k = self.count(call)
        if call.training and k == self.geometry.patches and self.select != "threshold":
            return None  # the schedule has not begun to trim
        if call.kept is not None:
            return self._choice(call.kept, k, self._logits(images) if self.fuse else None)
        logits = self._logits(images)
        if not call.training:
            choice = self._choice(self._kept(logits, k, training=False), k, logits)
            choice.scores = logits
            return choice
        noise = self._noise(logits, call)
        kept = self._kept(logits.detach() + noise, k, training=True)
        if self.select == "budget":
            self._update_threshold(logits.detach(), k)
        choice = self._choice(kept, k, logits)
        choice.stats = self._stats(logits, noise, kept, k)
        if self.trained:
            self._attach_gradients(choice, logits, kept, call.keep)
        return choice

    def _logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, patches) from which selection, gates and noise follow."""
        logits = self.predictor(images).float()
        if self.logits == "standardised":
            return standardised(logits)
        return bounded(logits) if self.logits == "bounded" else logits

    def _noise(self, logits: Tensor, call: Call) -> Tensor:
        """Draw Gumbel noise, with which the top k are a sample without replacement.

        For "threshold", where every patch is decided separately, it is the difference of two, which is logistic.
        """
        assert call.noise is not None
        patches = self.geometry.patches
        noise = call.noise.gumbel("selection", patches, device=logits.device)
        if self.select == "threshold":
            noise = noise - call.noise.gumbel("selection, against", patches, device=logits.device)
        return self.noise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, call.progress))) * noise

    def _kept(self, scores: Tensor, k: int, training: bool) -> Tensor:
        """Return a mask (B, patches) of the kept patches, at least the best one of every image."""
        if self.select == "topk":
            return as_mask(highest(scores, k), self.geometry.patches)
        if self.select == "budget" and training:
            kept = scores >= _budget_cut(scores, k)
        else:
            kept = scores > self.threshold  # stays 0 for "threshold"
        return kept | as_mask(highest(scores, 1), self.geometry.patches)

    def _choice(self, kept: Tensor, k: int, logits: Tensor | None) -> Choice:
        """Turn a mask (B, patches) into a choice with ascending indices, padded if images keep different numbers.

        `logits` weight the dropped tokens where these are fused.
        """
        most = k if self.select == "topk" else int(kept.sum(1).max())
        order = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        return Choice(
            order,
            valid=None if self.select == "topk" else kept.gather(1, order),
            fuse=logits.sigmoid() * ~kept if self.fuse and logits is not None else None,
            keys_only=self.trim == "keys",
        )

    def _update_threshold(self, logits: Tensor, k: int) -> None:
        """Update the running quantile of the noise-free logits above which the budget of the batch lies."""
        self.threshold.lerp_(_budget_cut(logits, k).to(self.threshold.dtype), 0.1)

    def _attach_gradients(self, choice: Choice, logits: Tensor, kept: Tensor, keep: float) -> None:
        """Add the gates and the sparsity loss, through which gradients reach the logits, to a choice."""
        at = logits.gather(1, choice.index)
        s = at.sigmoid()
        hard = 1 + s - s.detach()  # 1, with the gradient of s
        if self.gate == "token":
            choice.token_scale = hard
        else:
            choice.key_bias = hard.log()
        mean = mean_over_ranks(logits.sigmoid())
        if self.select == "threshold":
            mean = mean + (mean_over_ranks(kept.float()) - mean).detach()  # the actual share, straight-through
        choice.losses["sparsity"] = self.lambda_sparsity * (mean - keep) ** 2

    def _stats(self, logits: Tensor, noise: Tensor, kept: Tensor, k: int) -> dict[str, Tensor]:
        """Return diagnostics of a training selection, all scalars.

        They are the standard deviations of logits and noise within an image, the mean slope s (1 - s) of the sigmoid
        (0.25 at a logit of 0, 0 where it is saturated), the share of the selection that inference would select too
        (with the current threshold), and the share of the patches that is kept.
        """
        with torch.no_grad():
            clean = self._kept(logits, k, training=False)
            return {
                "logit_spread": logits.std(1).mean(),
                "noise_spread": noise.std(1).mean(),
                "slope": (logits.sigmoid() * (-logits).sigmoid()).mean(),
                "overlap": (kept & clean).sum() / kept.sum(),
                "kept_share": kept.float().mean(),
            }


def _budget_cut(scores: Tensor, k: int) -> Tensor:
    """Return the lowest of the B x k highest `scores` (B, patches) of the global batch."""
    everyone = gather_views(scores)
    return everyone.flatten().topk(k * everyone.shape[0]).values[-1]


class Frozen(SparseContrast):
    """SparseContrast with an untrained predictor: the control for learning the selection."""

    trained = False
