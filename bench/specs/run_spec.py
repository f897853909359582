"""The spec of one run: data, encoder, views, training; and separately, what is evaluated and measured.

A `RunSpec` holds everything that determines the weights of one pre-training; its hash names the run. What is evaluated
(`EvaluationSpec`) and how cost is measured (`MeasureSpec`) are not part of it, so that changing them retrains nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from bench.specs.frozen import Frozen, file_sha256
from methods import Inference, Value
from methods.names import Method, parse_methods

SCIENCE_VERSION = 2
"""Raised whenever the same spec would give other weights; a test with golden losses fails until it is."""

OPTIMIZER, BETAS = "AdamW", (0.9, 0.95)  # of every pre-training
CONTINUED = 3  # a run that continues a finished one takes one part in so many of the epochs
FOLDS = 3  # of the cross-validation of a probe

Number = Annotated[float, Field(strict=True)]  # strict: true is not a number
Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Positive = Annotated[float, Field(gt=0.0, strict=True)]
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Pair = Annotated[int, Field(ge=2, le=1_000_000, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
Range = tuple[Number, Number]
Probe = Literal["linear", "knn", "finetune"]


def once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """The values without repetitions, in their order."""
    return tuple(dict.fromkeys(values))


class DataSpec(Frozen):
    """Which images, and how patients are split. `options` are those of the data set (see `bench.list`)."""

    name: str = "phantom"
    root: str = ""  # folder of the files; not part of a run's identity, which has the fingerprint of their contents
    publish: bool = True  # whether pixels may appear in records and reports; not part of a run's identity either
    options: dict[str, Value] = {}
    split_seed: Seed = 0
    val: Share = 0.15  # of the patients, where there is no official split
    test: Share = 0.25


class EncoderSpec(Frozen):
    name: str = "vit_small_patch16_224"
    image_size: Annotated[int, Field(ge=16, le=4096, strict=True)] = 224
    channels: Literal[1, 3] = 1
    positions: Literal["sincos", "learned"] = "sincos"
    weights: str = ""  # "", "timm", or a .safetensors file

    def weights_digest(self) -> str:
        """SHA-256 of the file that `weights` names; "" if it names none, or one that does not exist."""
        return file_sha256(path) if (path := Path(self.weights)).is_file() else ""


class ViewSpec(Frozen):
    """Ranges from which the parameters of each view of each image are drawn."""

    crop_area: Range = (0.45, 1.0)
    crop_aspect: Range = (0.9, 1.1)
    flip: Share = 0.5
    rotation: Number = 10.0  # degrees, either way
    brightness: Number = 0.2
    contrast: Number = 0.2
    gamma: Range = (0.8, 1.25)
    blur: Range = (0.1, 1.0)  # standard deviation in pixels
    blur_probability: Share = 0.5
    noise: Number = 0.03  # standard deviation, as a share of the grey range


class TrainSpec(Frozen):
    epochs: Count = 10
    batch: Pair = 64  # images over all ranks; each gives two views
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0, strict=True)] = 0.05
    warmup: Share = 0.1  # of the steps
    ramp: Share = 0.3  # of the run, during which the keep ratio goes from 1 to its target
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    attention: Literal["sdpa", "xformers"] = "sdpa"


class RunSpec(Frozen):
    """One pre-training."""

    method: str  # canonical name
    data: DataSpec
    encoder: EncoderSpec
    views: ViewSpec
    train: TrainSpec
    seed: Seed
    labels: float | None = None  # per cent, for `supervised` only, whose weights depend on them
    finetune: FinetuneSpec | None = None  # for `supervised` only
    fingerprint: str = ""  # of the images and labels of `data`, once they have been read
    code: str = ""  # hash of the plug-in that defines the method, if one does
    weights_sha256: str = Field(default="", exclude_if=lambda said: not said)  # of the file that `encoder` starts from
    start: RunSpec | None = Field(default=None, exclude_if=lambda said: said is None)  # finished run it continues
    preset: str = ""  # where the settings came from; not part of the run's identity
    evidence: bool = True  # as in the grid; not part of the run's identity either

    @property
    def parsed(self) -> Method:
        return parse_methods(self.method)[0]

    def identity(self) -> dict[str, Any]:
        """Everything that determines the weights."""
        dump = self.model_dump(mode="json", exclude={"preset": True, "evidence": True, "data": {"root", "publish"}})
        if self.start is not None:
            dump["start"] = self.start.run_id
        return {**dump, "science_version": SCIENCE_VERSION}

    @property
    def settings(self) -> str:
        """Hash of what all runs of a comparison share: the identity without method, seed, learning rate, labels, and
        the run that it continues."""
        dump = self.identity()
        for key in ("method", "seed", "labels", "finetune", "code"):
            dump.pop(key)
        dump.pop("start", None)
        dump["train"].pop("lr")
        return _hash(dump)[:10]

    @property
    def epochs(self) -> int:
        """Epochs of this training: those of the settings, or a third of them for a run that continues another."""
        return self.train.epochs if self.start is None else max(1, round(self.train.epochs / CONTINUED))

    @property
    def run_id(self) -> str:
        labels = "" if self.labels is None else f"-{self.labels:g}pct"
        readable = f"{self.method}{labels}-{self.data.name}-{self.encoder.name}-s{self.seed}"
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", readable).strip("-")[:90]
        return f"{slug}-{_hash(self.identity())[:10]}"


class FinetuneSpec(Frozen):
    """End-to-end training on labels: `epochs` passes, but between `min_steps` and `max_steps` steps."""

    epochs: Count = 20
    batch: Count = 64
    lr: Positive = 5e-4
    weight_decay: Annotated[float, Field(ge=0.0, strict=True)] = 0.05
    min_steps: Count = 100
    max_steps: Count = 1000

    @model_validator(mode="after")
    def _steps_are_possible(self) -> FinetuneSpec:
        if self.min_steps > self.max_steps:
            raise ValueError(
                f"min_steps {self.min_steps} is above max_steps {self.max_steps}: lower one or raise the other"
            )
        return self


class EvaluationSpec(Frozen):
    """How a finished run is evaluated.

    `c` are the inverse regularisations from which cross-validation inside the label fraction chooses, extended beyond
    an end that is chosen; a single one is fixed. `repeats` is the number of times that cross-validation divides the
    patients into folds. `draws` are made of each fraction below 100 %.
    """

    labels: Annotated[tuple[Number, ...], AfterValidator(once)] = (1.0, 10.0, 100.0)
    probes: Annotated[tuple[Probe, ...], AfterValidator(once)] = ("linear", "knn")
    draws: Annotated[int, Field(ge=1, le=1000, strict=True)] = 5
    c: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1e-3, 1e-2, 1e-1, 1.0)
    repeats: Annotated[int, Field(ge=1, le=100, strict=True)] = 1
    neighbours: Count = 20
    resamples: Count = 1000
    split: Literal["test", "val"] = "test"

    def settings_of(self, probe: Probe, tuning: FinetuneSpec) -> str:
        """Hash of how a probe is evaluated, which does not change with new label fractions and probes; `tuning` is part
        of it for the probe `finetune`."""
        unsaid = {"repeats"} if self.repeats == 1 else set()  # as hashed before there was a choice
        how = self.model_dump(mode="json", exclude={"labels", "probes"} | unsaid)
        return _hash({**how, "finetune": tuning.model_dump(mode="json")} if probe == "finetune" else how)[:10]

    @model_validator(mode="after")
    def _labels_are_per_cent(self) -> EvaluationSpec:
        what = "label fractions (--labels)"
        for percent in self.labels:
            if not 0 < percent <= 100:
                raise ValueError(f"{what} are per cent, above 0 and up to 100, and {percent:g} is not")
            if float(f"{percent:g}") != percent:
                raise ValueError(f"{what} have at most six digits, and {percent!r} has more: write {percent:g}")
        return self


class EvaluationKey(NamedTuple):
    """Which evaluation of a run: a probe, a label fraction in per cent, and how the strategy runs at inference."""

    probe: Probe
    labels: float
    inference: Inference

    @property
    def name(self) -> str:
        """The stem of its files, e.g. `linear-10-dense`."""
        return f"{self.probe}-{self.labels:g}-{self.inference}"


class MeasureSpec(Frozen):
    """Rounds and batch size of the paired measurement of a grid's methods."""

    rounds: Count = 15
    batch: Pair = 32


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


RunSpec.model_rebuild()
