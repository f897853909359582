"""What to run: one run's spec, the suite that expands into a grid of them, and presets.

A `RunSpec` holds all that determines the weights of one pre-training; its hash names the run. What is evaluated on
the weights (`EvaluationSpec`) and how cost is measured (`MeasureSpec`) stand beside it and never retrain anything.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from bench.record import Frozen
from methods import STRATEGIES, Value, code_of
from methods.names import Method, parse_methods, suggest

SCIENCE_VERSION = 1
"""Raised whenever the same spec would give other weights; a test with golden losses fails until it is."""

PRESETS = Path(__file__).parent / "presets"

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Range = tuple[float, float]
Probe = Literal["linear", "knn", "finetune"]


class DataSpec(Frozen):
    """Which images, and how patients are split. `options` are the data set's own (see `bench.list`)."""

    name: str = "phantom"
    root: str = ""  # where the files lie; no part of a run's identity, which holds the fingerprint of what they are
    publish: bool = True  # may pixels stand in records and reports? no part of a run's identity either
    options: dict[str, Value] = {}
    split_seed: int = 0
    val: Share = 0.15  # of the patients, where there is no official split
    test: Share = 0.25


class EncoderSpec(Frozen):
    name: str = "vit_small_patch16_224"
    image_size: Annotated[int, Field(ge=16, le=4096)] = 224
    channels: Literal[1, 3] = 1
    positions: Literal["sincos", "learned"] = "sincos"
    weights: str = ""  # "", "timm", or a .safetensors file


class ViewSpec(Frozen):
    """Ranges from which every view of every image draws its own parameters."""

    crop_area: Range = (0.45, 1.0)
    crop_aspect: Range = (0.9, 1.1)
    flip: Share = 0.5
    rotation: float = 10.0  # degrees, either way
    brightness: float = 0.2
    contrast: float = 0.2
    gamma: Range = (0.8, 1.25)
    blur: Range = (0.1, 1.0)  # standard deviation in pixels
    blur_probability: Share = 0.5
    noise: float = 0.03  # standard deviation, of the grey range


class TrainSpec(Frozen):
    epochs: Count = 10
    batch: Annotated[int, Field(ge=2)] = 64  # global, in images; each gives two views
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    warmup: Share = 0.1  # of the steps
    ramp: Share = 0.3  # of the run in which the keep ratio goes from 1 to its target
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    attention: Literal["sdpa", "xformers"] = "sdpa"


class RunSpec(Frozen):
    """One pre-training."""

    method: str  # canonical name
    data: DataSpec
    encoder: EncoderSpec
    views: ViewSpec
    train: TrainSpec
    seed: int
    labels: float | None = None  # per cent, for `supervised` alone: its weights depend on them
    finetune: FinetuneSpec | None = None  # likewise
    fingerprint: str = ""  # of the images and labels that `data` names, once they have been read
    code: str = ""  # hash of the plug-in that defines the method, if one does
    preset: str = ""  # where it came from; no part of its identity
    evidence: bool = True  # likewise

    @property
    def parsed(self) -> Method:
        return parse_methods(self.method)[0]

    def identity(self) -> dict[str, Any]:
        """All that determines the weights."""
        dump = self.model_dump(mode="json", exclude={"preset": True, "evidence": True, "data": {"root", "publish"}})
        return {**dump, "science_version": SCIENCE_VERSION}

    @property
    def settings(self) -> str:
        """Hash of what all runs of one comparison share: the identity without method, seed, learning rate, labels."""
        dump = self.identity()
        for key in ("method", "seed", "labels", "finetune", "code"):
            dump.pop(key)
        dump["train"].pop("lr")
        return _hash(dump)[:10]

    @property
    def run_id(self) -> str:
        labels = "" if self.labels is None else f"-{self.labels:g}pct"
        readable = f"{self.method}{labels}-{self.data.name}-{self.encoder.name}-s{self.seed}"
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", readable).strip("-")[:90]
        return f"{slug}-{_hash(self.identity())[:10]}"


class FinetuneSpec(Frozen):
    """End-to-end training on labels: `epochs` passes, but at least and at most so many steps."""

    epochs: Count = 20
    batch: Count = 64
    lr: Positive = 5e-4
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.05
    min_steps: Count = 100
    max_steps: Count = 1000


class EvaluationSpec(Frozen):
    """What is asked of a finished run. `c` are the inverse regularisations among which cross-validation inside the
    label fraction chooses; a single one is fixed. `draws` of each fraction below 100 %."""

    labels: tuple[float, ...] = (1.0, 10.0, 100.0)
    probes: tuple[Probe, ...] = ("linear", "knn")
    draws: Count = 5
    c: tuple[Positive, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    neighbours: Count = 20
    resamples: Count = 1000
    split: Literal["test", "val"] = "test"

    def settings_of(self, probe: Probe, tuning: FinetuneSpec) -> str:
        """Hash of how, not of what, is evaluated: new fractions and probes leave it alone. `tuning` is in it for the
        probe that it is about."""
        how = self.model_dump(mode="json", exclude={"labels", "probes"})
        return _hash({**how, "finetune": tuning.model_dump(mode="json")} if probe == "finetune" else how)[:10]

    @model_validator(mode="after")
    def _labels_are_per_cent(self) -> EvaluationSpec:
        for percent in self.labels:
            if not 0 < percent <= 100:
                raise ValueError(f"labels are per cent, above 0 and up to 100, and {percent:g} is not")
        return self


class MeasureSpec(Frozen):
    """The paired measurement at the trained scale that goes with a grid."""

    rounds: Count = 15
    batch: Annotated[int, Field(ge=2)] = 32


class Suite(Frozen):
    """A whole comparison: methods x keep ratios x seeds on one data set with one encoder."""

    preset: str = ""
    evidence: bool = True  # False: a test of the machinery, whose numbers say nothing
    methods: str = "all"
    floors: tuple[Literal["untrained", "supervised"], ...] = ("untrained", "supervised")
    seeds: tuple[int, ...] = (0, 1, 2)
    keep: tuple[Share, ...] = ()
    data: DataSpec = DataSpec()
    encoder: EncoderSpec = EncoderSpec()
    views: ViewSpec = ViewSpec()
    train: TrainSpec = TrainSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    measure: MeasureSpec = MeasureSpec()
    tuned: dict[str, Positive] = {}  # learning rate by `objective/strategy`, from `make tune`

    def parsed_methods(self) -> list[Method]:
        """Methods of the grid, in order: a keep ratio asked for goes to those that have one and don't name it."""
        methods: list[Method] = []
        for method in parse_methods(self.methods):
            named = dict(method.options)
            option = STRATEGIES[method.strategy].options.get("keep") if method.strategy in STRATEGIES else None
            if option is None or "keep" in named or not self.keep:
                methods.append(method)
                continue
            for keep in self.keep:
                inside = ",".join(f"{k}={v}" for k, v in {"keep": keep, **named}.items())
                methods += parse_methods(f"{method.objective}/{method.strategy}[{inside}]")
        floors = [Method("none", floor) for floor in self.floors]
        return list(dict.fromkeys([*methods, *floors]))

    def runs(self, fingerprint: str = "") -> list[RunSpec]:
        """The grid on data of this fingerprint, seed by seed: the first is whole before the second begins."""
        runs = [run for seed in self.seeds for method in self.parsed_methods() for run in self._runs_of(method, seed)]
        return [run.model_copy(update={"fingerprint": fingerprint}) for run in runs]

    def _learning_rate(self, method: Method) -> float:
        """The method's own tuned rate; else that of the strategy it is a control or a variant of; else the preset's."""
        entry = STRATEGIES.get(method.strategy)
        names = [method.name, f"{method.objective}/{method.strategy}"]
        if entry is not None:
            names += [f"{method.objective}/{entry.tuned_as}", f"{method.objective}/dense", f"simclr/{method.strategy}"]
        return next((self.tuned[name] for name in names if name in self.tuned), self.train.lr)

    def _runs_of(self, method: Method, seed: int) -> list[RunSpec]:
        lr = self._learning_rate(method)
        run = RunSpec(
            method=method.name,
            data=self.data,
            encoder=self.encoder,
            views=self.views,
            train=self.train.model_copy(update={"lr": lr}),
            seed=seed,
            code=code_of(method.objective, method.strategy),
            preset=self.preset,
            evidence=self.evidence,
        )
        if method.strategy != "supervised":
            return [run]
        return [
            run.model_copy(update={"labels": percent, "finetune": self.finetune}) for percent in self.evaluation.labels
        ]


def load_suite(preset: str, spec: Path | None = None, changes: dict[str, Any] | None = None) -> Suite:
    """A preset by name, overridden by a TOML file of the same form, then by dotted keys (`train.epochs`: 5).

    Options of a data set go with it: who names another one does not inherit them. Raises ValueError, which says where
    and what would be right, for unknown presets, keys and values, and FileNotFoundError for a missing file.
    """
    known = sorted(path.stem for path in PRESETS.glob("*.toml"))
    if preset not in known:
        raise ValueError(f"unknown preset '{preset}': {suggest(preset, known)}")
    tuning = read_tuning(preset)
    tuned = {"tuned": tuning["chosen"]} if tuning else {}
    values = {"preset": preset, **tuned, **_read_toml(PRESETS / f"{preset}.toml")}
    if spec is not None:
        values = _override(values, _read_toml(spec))
    given: dict[str, Any] = {}
    for key, value in (changes or {}).items():
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        given = _merge(given, nested)
    values = _override(values, given)
    suite: Suite = validated(Suite, values, where=str(spec) if spec else "options")
    return suite


def read_tuning(preset: str) -> dict[str, Any] | None:
    """What `bench.tune` wrote of a preset: the learning rates tried and chosen, and the account of it."""
    path = PRESETS / f"{preset}.tuning.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def validated(model: type[Any], values: dict[str, Any], where: str) -> Any:
    """`model` from plain values; pydantic's errors become one sentence a mistake."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for e in error.errors(include_url=False):
            key = ".".join(str(part) for part in e["loc"])
            if e["type"] == "extra_forbidden":
                lines.append(f"unknown key '{key}': {suggest(str(e['loc'][-1]), _keys(model, e['loc'][:-1]))}")
            else:
                given = "" if isinstance(e["input"], dict) else f" (given: {e['input']!r})"
                lines.append(f"{key or 'spec'}: {e['msg'].removeprefix('Value error, ')}{given}")
        raise ValueError(f"{where}: " + "; ".join(lines)) from None


def read_change(text: str) -> tuple[str, Any]:
    """`key=value` of `--set`, the value read as TOML where it can be, else as text."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set '{text}' can't be read: write key=value, e.g. train.epochs=5.")
    try:
        return key.strip(), tomllib.loads(f"x = {value.strip()}")["x"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def _keys(model: type[Any], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not isinstance(field.annotation, type):
            return []
        model = field.annotation
    return list(getattr(model, "model_fields", {}))


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no spec at {path}: --spec takes a TOML file of the form of bench/presets/quick.toml.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None


def _override(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`_merge`, without the options of a data set that is not used any more."""
    old, new = base.get("data"), over.get("data")
    if isinstance(old, dict) and isinstance(new, dict) and new.get("name", old.get("name")) != old.get("name"):
        base = {**base, "data": {key: value for key, value in old.items() if key != "options"}}
    return _merge(base, over)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = _merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) else value
    return merged


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


RunSpec.model_rebuild()
Suite.model_rebuild()
