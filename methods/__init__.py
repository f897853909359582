"""Registry of objectives, strategies, baselines and encoders, with their options and sources.

A method is an objective combined with a strategy, such as `simclr/sparsecontrast` or `moco/dense`. To add a strategy
or an objective, write a module with one class and add an entry here, or put both into a plug-in file without changing
this package (`methods/plugins.py`). Importing this module does not import torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from methods.encoders.encoder import Encoder
    from methods.objectives.objective import Objective

Value = bool | int | float | str
Inference = Literal["pruned", "dense", "mean", "shuffled"]
"""What a strategy does at inference. pruned: it is active. dense: all tokens are computed. For strategies that select
patches of the image besides, mean: one mask for all images, the highest of their mean scores over training images;
shuffled: each image is given the selection of an image of another patient."""
Family = Literal["vit", "convnext", "resnet"]  # encoder families
BaselineName = Literal["untrained", "supervised"]

PRUNED: Inference = "pruned"
ALL_TOKENS: Inference = "dense"
MEAN: Inference = "mean"
SHUFFLED: Inference = "shuffled"
REFERENCE = "dense"  # strategy that the others are compared with, and that baselines use
INITIAL = "init"  # option that names the strategy whose finished run a method continues
CONTROL = "fixed"  # strategy with one mask for all images; a selection that depends on the image should beat it
DEFAULT_OBJECTIVE = "simclr"  # objective of methods named by their strategy alone, and of the reference for times
UNTRAINED: BaselineName = "untrained"
SUPERVISED: BaselineName = "supervised"


@dataclass(frozen=True)
class Option:
    """Option of a method: its default, a line of help, and the allowed values (`choices`, or `low` to `high`)."""

    default: Value
    help: str
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Entry:
    """Registry entry of an objective or a strategy. `target` locates its class as `module:Class`."""

    target: str
    summary: str
    source: str
    options: dict[str, Option] = field(default_factory=dict)
    inference: tuple[Inference, ...] = ("pruned",)  # modes in which a strategy is evaluated, the default one first
    encoders: tuple[Family, ...] = ("vit",)  # encoder families on which a strategy is defined
    tuned_as: str = "dense"  # strategy whose learning rate is used where a preset has none for this one
    colour: str = ""  # of a strategy in plots, "#RRGGBB"; blank, as in every plug-in: a spare colour
    marker: str = ""  # of an objective in plots, in matplotlib's notation; blank, as in every plug-in: a spare marker
    line: str = ""  # line style of an objective in plots, likewise
    diagnostics: dict[str, str] = field(default_factory=dict)  # a strategy's `stats` in tables: key -> column heading
    code: str = ""  # hash of the plug-in file, part of the run id because it determines the weights; blank if built in

    def load(self) -> Any:
        """Import the module and return the class."""
        module, name = self.target.split(":")
        return getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Baseline:
    """Registry entry of a baseline: the question that it answers, and its colour in plots."""

    question: str
    colour: str


KEEP = Option(0.5, "share of patches kept after the ramp", low=0.02, high=1.0)
EXECUTION = Option(
    "gathered", "compute only the kept tokens, or compute all tokens and hide the dropped ones", ("gathered", "masked")
)
PATCHES: tuple[Family, ...] = ("vit", "convnext")  # families with patches that can be dropped
EQUAL_MACS = Option(True, "keep more patches, until the MACs equal those of SparseContrast with its predictor")
SELECTION = {
    "select": Option(
        "topk",
        "keep exactly k patches per image, the best of the batch within a budget, or all with a logit above 0",
        ("topk", "budget", "threshold"),
    ),
    "noise": Option(1.0, "scale of the Gumbel noise on the logits in training, annealed to 0", low=0.0, high=10.0),
    "logits": Option(
        "raw",
        "use the logits as they are, standardised per image, or bounded, so that the sigmoid does not saturate",
        ("raw", "standardised", "bounded"),
    ),
    "width": Option(0, "width of the predictor; 0: same relative cost as at ViT-S/16 scale", low=0, high=4096),
    "fuse": Option(False, "add the weighted mean of the dropped tokens as one token"),
    "trim": Option("tokens", "drop whole tokens, or only their keys", ("tokens", "keys")),
}
OF_THE_IMAGE: tuple[Inference, ...] = (PRUNED, ALL_TOKENS, MEAN, SHUFFLED)  # of strategies that select by the image
SPREADS = {"logit_spread": "logit spread", "noise_spread": "noise spread", "slope": "mean s(1 − s)"}

OBJECTIVES: dict[str, Entry] = {
    "simclr": Entry(
        "methods.objectives.simclr:SimCLR",
        "contrasts every view with all other views of the batch (NT-Xent)",
        "Chen et al., ICML 2020, arXiv 2002.05709",
        {
            "temperature": Option(0.2, "temperature of the softmax", low=0.01, high=2.0),
            "hidden": Option(
                0, "width of the projector; 0: 2048, or 4x the feature width below ViT-S", low=0, high=16384
            ),
            "out": Option(128, "dimension of the contrasted vectors", low=8, high=4096),
        },
        marker="o",
        line="-",
    ),
    "moco": Entry(
        "methods.objectives.moco:MoCo",
        "contrasts queries with the keys of a momentum encoder (v3, without a queue)",
        "Chen, Xie, He, ICCV 2021, arXiv 2104.02057",
        {
            "temperature": Option(0.2, "temperature of the softmax", low=0.01, high=2.0),
            "momentum": Option(0.99, "momentum of the teacher at the start; rises to 1", low=0.0, high=1.0),
            "hidden": Option(0, "width of the heads; 0: 4096, or 4x the feature width below ViT-S", low=0, high=16384),
            "out": Option(256, "dimension of the contrasted vectors", low=8, high=4096),
            "teacher": Option(
                "same", "the momentum encoder runs the same strategy, or computes all tokens", ("same", "dense")
            ),
            "views": Option(
                "symmetric", "draw both views alike, or blur each as in the paper", ("symmetric", "asymmetric")
            ),
        },
        marker="s",
        line="--",
    ),
}

# Tables and plots show strategies and objectives in this order.
STRATEGIES: dict[str, Entry] = {
    "dense": Entry(
        "methods.strategies.dense:Dense",
        "computes all tokens in all blocks, with fused attention",
        "Dosovitskiy et al., ICLR 2021, arXiv 2010.11929",
        inference=("dense",),
        encoders=("vit", "convnext", "resnet"),
        colour="#000000",
    ),
    "sparsecontrast": Entry(
        "methods.strategies.sparsecontrast:SparseContrast",
        "keeps the patches that a saliency predictor chooses before block 0",
        "arXiv 2605.00887, our interpretation",
        {
            "keep": KEEP,
            "gate": Option("token", "path of the gradient from the loss to the predictor", ("token", "key_bias")),
            "lambda_sparsity": Option(0.1, "weight of the sparsity loss", low=0.0, high=100.0),
            "predictor_lr": Option(1.0, "factor on the learning rate of the predictor", low=0.0, high=100.0),
            **SELECTION,
            "execution": EXECUTION,
        },
        encoders=PATCHES,
        inference=OF_THE_IMAGE,
        colour="#D55E00",
        diagnostics=SPREADS,
    ),
    "dynamicvit": Entry(
        "methods.strategies.dynamicvit:DynamicViT",
        "prunes tokens in three stages with predictors; masked in training, gathered at inference",
        "Rao et al., NeurIPS 2021, arXiv 2106.02034",
        {
            "rho": Option(0.7, "share of the tokens that each stage keeps", low=0.05, high=1.0),
            "ratio_weight": Option(2.0, "weight of the loss on the kept ratio", low=0.0),
            "distil_weight": Option(0.5, "weight of the losses that distil the dense branch", low=0.0),
            INITIAL: Option(
                "scratch",
                "train from scratch, or as in the paper: continue the dense run of the same objective and seed",
                ("scratch", REFERENCE),
            ),
        },
        colour="#0072B2",
    ),
    "tokenlearner": Entry(
        "methods.strategies.tokenlearner:TokenLearner",
        "replaces the tokens with a few learned ones, late in the network",
        "Ryoo et al., NeurIPS 2021, arXiv 2106.11297",
        {
            "tokens": Option(8, "number of learned tokens", low=1, high=1024),
            "at": Option(0.75, "relative depth of the block before which tokens are learned", low=0.0, high=1.0),
            "version": Option("v1.1", "MLP with softmax (v1.1), or convolutions with sigmoid (v1)", ("v1.1", "v1")),
            "fuser": Option(False, "add a TokenFuser after every later block"),
        },
        colour="#009E73",
    ),
    "topk": Entry(
        "methods.strategies.topk:TopK",
        "keeps the tokens that receive most attention from the class token, in three stages",
        "Haurum et al., ICCV-W 2023, arXiv 2308.04657",
        {"rho": Option(0.7, "share of the tokens that each stage keeps", low=0.05, high=1.0)},
        colour="#1B7F8C",
    ),
    "evit": Entry(
        "methods.strategies.evit:EViT",
        "keeps the tokens that receive most attention, in three stages, and fuses the others into one",
        "Liang et al., ICLR 2022, arXiv 2202.07800",
        {"rho": Option(0.7, "share of the tokens that each stage keeps", low=0.05, high=1.0)},
        tuned_as="topk",
        colour="#A3195B",
    ),
    "tome": Entry(
        "methods.strategies.tome:ToMe",
        "merges the most similar tokens in every block",
        "Bolya et al., ICLR 2023, arXiv 2210.09461",
        {
            "r": Option(13, "number of tokens merged per block, at most half of them", low=0, high=4096),
            "proportional": Option(
                "always", "when attention counts a token by its size", ("always", "inference", "never")
            ),
        },
        colour="#6B8E23",
    ),
    "fixed": Entry(
        "methods.strategies.subset:Fixed",
        "control: one random mask for all images",
        "control: does the selection depend on the image?",
        {"keep": KEEP, "equal_macs": EQUAL_MACS, "execution": EXECUTION},
        encoders=PATCHES,
        inference=(PRUNED, ALL_TOKENS),
        colour="#CC79A7",
    ),
    "patchdropout": Entry(
        "methods.strategies.subset:PatchDropout",
        "control: a new random subset at every training step, all tokens at inference",
        "Liu et al., WACV 2023, arXiv 2208.07220",
        {"keep": KEEP, "equal_macs": EQUAL_MACS, "execution": EXECUTION},
        encoders=PATCHES,
        inference=("dense",),
        colour="#E69F00",
    ),
    "centre": Entry(
        "methods.strategies.subset:Centre",
        "control: the patches nearest to the image centre",
        "control: is the selection more than a crop?",
        {"keep": KEEP, "equal_macs": EQUAL_MACS, "execution": EXECUTION},
        encoders=PATCHES,
        inference=(PRUNED, ALL_TOKENS),
        tuned_as="fixed",
        colour="#8C6D31",
    ),
    "frozen": Entry(
        "methods.strategies.sparsecontrast:Frozen",
        "control: SparseContrast with an untrained predictor",
        "control: what does learning the selection add?",
        {"keep": KEEP, **SELECTION, "execution": EXECUTION},
        encoders=PATCHES,
        inference=OF_THE_IMAGE,
        tuned_as="fixed",
        colour="#7B4F9E",
        diagnostics=SPREADS,
    ),
    "oracle": Entry(
        "methods.strategies.oracle:Oracle",
        "diagnostic: lesion patches first, where masks exist",
        "control: a selection that knows where lesions are",
        {"keep": KEEP, "equal_macs": EQUAL_MACS, "execution": EXECUTION},
        encoders=PATCHES,
        tuned_as="fixed",
        colour="#B5A800",
    ),
    "random": Entry(
        "methods.strategies.subset:Random",
        "control: a new random subset every time, also at inference",
        "control: does the choice matter?",
        {"keep": KEEP, "equal_macs": EQUAL_MACS, "execution": EXECUTION},
        encoders=PATCHES,
        inference=("pruned", "dense"),
        tuned_as="patchdropout",
        colour="#56B4E9",
    ),
}


def place_in(registry: dict[str, Entry], name: str) -> tuple[int, str]:
    """Return the sort key of an entry in tables and plots: built-in entries in registry order, then plug-ins by name.

    The position of a plug-in does not depend on whether it is loaded, so that a report can be made without it.
    """
    built_in = [one for one, entry in registry.items() if not entry.code]
    return (built_in.index(name), "") if name in built_in else (len(built_in), name)


def family_of(encoder: str) -> Family:
    """Return the family of an encoder, given its name."""
    families: tuple[Family, ...] = ("convnext", "resnet")
    return next((family for family in families if encoder.startswith(family)), "vit")


def check_defined(strategy: str, encoder: str) -> None:
    """Raise ValueError if a strategy is not defined on an encoder; the message lists the strategies that are."""
    family = family_of(encoder)
    if family not in STRATEGIES[strategy].encoders:
        others = [name for name, entry in STRATEGIES.items() if family in entry.encoders]
        raise ValueError(
            f"strategy '{strategy}' is not defined on encoder '{encoder}', a CNN: "
            f"use {'only ' if others[1:] else ''}--methods {','.join(others)} with it, or use a vision transformer."
        )


def inference_modes(strategy: str) -> tuple[Inference, ...]:
    """Return the modes in which a strategy or a baseline is evaluated, the default one first."""
    return STRATEGIES[strategy].inference if strategy in STRATEGIES else (ALL_TOKENS,)


def code_of(objective: str, strategy: str) -> str:
    """Return the hash of the plug-in files that define a method, or "" for a built-in one."""
    found = (OBJECTIVES.get(objective), STRATEGIES.get(strategy))
    return "+".join(entry.code for entry in found if entry is not None and entry.code)


BASELINES: dict[str, Baseline] = {
    "untrained": Baseline("the same encoder with its initial weights: what does training contribute?", "#9A9A9A"),
    "supervised": Baseline(
        "trained from scratch on each label fraction: what does pre-training contribute?", "#5F5F5F"
    ),
}

HEADLINE = (
    "simclr/dense",
    "moco/dense",
    "simclr/dynamicvit",
    "simclr/tokenlearner",
    "simclr/sparsecontrast",
    "simclr/fixed",
    "simclr/patchdropout",
)

ENCODERS: dict[str, str] = {
    "vit_stem_d64_l4_patch8": "4 blocks of width 64, convolutional stem, 8-pixel patches; minutes on a laptop",
    "vit_stem_d96_l6_patch8": "6 blocks of width 96, convolutional stem, 8-pixel patches",
    "vit_stem_d192_l8_patch16": "8 blocks of width 192, convolutional stem, 16-pixel patches",
    "vit_tiny_patch16_224": "timm, same shape as DeiT-Ti",
    "vit_small_patch16_224": "timm, same shape as DeiT-S; the scale used in the papers",
    "vit_base_patch16_224": "timm, ViT-B/16",
    "deit_small_distilled_patch16_224": "timm, with a distillation token; every other plain ViT in timm works too",
    "convnext_d64_l6_patch8": "CNN: 6 ConvNeXt blocks of width 32 and 64, 8-pixel patches; minutes on a laptop",
    "convnext_tiny": "timm, a CNN of the size of ViT-S, 32-pixel patches; every other convnext_* works too",
    "resnet50": "timm, the standard CNN; only dense runs on it and on the other resnet*",
}


def build_encoder(
    encoder: str,
    strategy: str,
    options: dict[str, Value],
    *,
    image_size: int,
    channels: int,
    seed: int,
    positions: str = "sincos",
    weights: str = "",
) -> Encoder:
    """Build an encoder that runs a strategy.

    The initial weights of the network depend on `seed` and not on the strategy. Raises ValueError if the strategy is
    not defined on the encoder, and whatever `build_network` raises.
    """
    import inspect

    import torch

    from methods.encoders.encoder import Encoder, build_network

    check_defined(strategy, encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, geometry = build_network(encoder, image_size, channels, positions, weights)
        torch.manual_seed(seed)
        cls = STRATEGIES[strategy].load()
        if "seed" in inspect.signature(cls).parameters:
            options = {**options, "seed": seed}
        built = cls(geometry, **options)
        built.inference = STRATEGIES[strategy].inference
        return Encoder(network, built)


def build_objective(objective: str, encoder: Encoder, options: dict[str, Value], *, seed: int) -> Objective:
    """Build an objective around an encoder. The initial weights of its heads depend only on `seed` and their shapes."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        built: Objective = OBJECTIVES[objective].load()(encoder, **options)
    return built
