"""A whole comparison: the grid of methods, keep ratios and seeds, from presets, TOML files and options."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from bench.messages import plain
from bench.specs.frozen import Frozen
from bench.specs.run_spec import (
    DataSpec,
    EncoderSpec,
    EvaluationSpec,
    FinetuneSpec,
    MeasureSpec,
    Positive,
    RunSpec,
    Seed,
    Share,
    TrainSpec,
    ViewSpec,
    once,
)
from datasets.limits import SPEC_BYTES, read_within
from methods import DEFAULT_OBJECTIVE, REFERENCE, STRATEGIES, SUPERVISED, UNTRAINED, BaselineName, code_of
from methods.names import Method, parse_methods, split_outside_brackets, suggest

PRESETS = Path(__file__).parents[1] / "presets"
SEEDS = 1000  # at most
DEPTH = 8  # of keys
MISTAKES = 5  # reported in one message
KINDS = ("bool", "int", "float", "str")  # of an option of a data set


class GridSpec(Frozen):
    """A whole comparison: methods x keep ratios x seeds on one data set with one encoder."""

    preset: str = ""
    evidence: bool = True  # False: a test of the software, whose numbers mean nothing
    methods: str = "all"
    baselines: tuple[BaselineName, ...] = (UNTRAINED, SUPERVISED)
    seeds: Annotated[tuple[Seed, ...], Field(max_length=SEEDS), AfterValidator(once)] = (0, 1, 2)
    keep: Annotated[tuple[Share, ...], AfterValidator(once)] = ()
    data: DataSpec = DataSpec()
    encoder: EncoderSpec = EncoderSpec()
    views: ViewSpec = ViewSpec()
    train: TrainSpec = TrainSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    finetune: FinetuneSpec = FinetuneSpec()
    measure: MeasureSpec = MeasureSpec()
    tuned: dict[str, Positive] = {}  # learning rate by `objective/strategy`, from bench.tune

    @model_validator(mode="after")
    def _tuned_rates_are_of_methods(self) -> GridSpec:
        for name in self.tuned:
            try:
                parse_methods(name)
            except ValueError as error:
                raise ValueError(f"tuned: {error}") from None
        return self

    def parsed_methods(self) -> list[Method]:
        """Methods of the grid, in order. `keep` applies to methods with an option `keep` whose name does not set it."""
        methods: list[Method] = []
        for method, takes_keep in self._asked():
            if not takes_keep or not self.keep:
                methods.append(method)
                continue
            for keep in self.keep:
                inside = ",".join(f"{k}={v}" for k, v in {"keep": keep, **dict(method.options)}.items())
                methods += parse_methods(f"{method.objective}/{method.strategy}[{inside}]")
        baselines = [Method("none", baseline) for baseline in self.baselines]
        return list(dict.fromkeys([*methods, *baselines]))

    def _asked(self) -> list[tuple[Method, bool]]:
        """The methods as named, each with whether the grid's keep ratios apply: it has the option and doesn't set
        it."""
        parse_methods(self.methods)  # raises where there are none at all, or far too many
        asked = []
        for part in split_outside_brackets(self.methods):
            named = re.search(r"[\[,]\s*keep\s*=", part) is not None
            for method in parse_methods(part):
                has = method.strategy in STRATEGIES and "keep" in STRATEGIES[method.strategy].options
                asked.append((method, has and not named))
        return asked

    def check_keep(self) -> None:
        """Raise ValueError if the grid has keep ratios that apply to no method."""
        asked = self._asked()
        if not self.keep or any(takes for _, takes in asked):
            return
        ratios = ",".join(f"{keep:g}" for keep in self.keep)
        names = ", ".join(method.name for method, _ in asked)
        rho = [m.strategy for m, _ in asked if m.strategy in STRATEGIES and "rho" in STRATEGIES[m.strategy].options]
        takers = [name for name, entry in STRATEGIES.items() if "keep" in entry.options]
        meant = f"; for {rho[0]} write {rho[0]}[rho={self.keep[0]:g}]" if rho else ""
        raise ValueError(
            f"--keep {ratios} applies to no method: {names} has no option 'keep' or sets it already; leave --keep out, "
            f"or add a method that has it, e.g. {' or '.join(takers[:2])}{meant}."
        )

    def runs(self, fingerprint: str = "") -> list[RunSpec]:
        """The runs on data of this fingerprint, with those that some of them continue. All runs of a seed precede those
        of the next seed."""
        runs: dict[str, RunSpec] = {}
        for seed in self.seeds:
            for method in self.parsed_methods():
                for run in self._runs_of(method, seed, fingerprint):
                    for one in (run.start, run):  # the run that it continues comes before it
                        if one is not None:
                            runs.setdefault(one.run_id, one)
        return list(runs.values())

    def _learning_rate(self, method: Method) -> float:
        """The method's own tuned rate; or that of its strategy, then of the strategy that trains the same (`tuned_as`),
        each with its own objective before SimCLR; or that of dense. Without any of them the preset's `train.lr`.

        The strategy comes before the objective, because it decides what is trained: an encoder on all tokens, on a
        subset, or together with a predictor.
        """
        entry = STRATEGIES.get(method.strategy)
        names = [method.name]
        for strategy in (method.strategy, entry.tuned_as, REFERENCE) if entry is not None else ():
            names += [f"{objective}/{strategy}" for objective in (method.objective, DEFAULT_OBJECTIVE)]
        return next((self.tuned[name] for name in names if name in self.tuned), self.train.lr)

    def _runs_of(self, method: Method, seed: int, fingerprint: str) -> list[RunSpec]:
        lr = self._learning_rate(method)
        start = None if method.continues is None else self._runs_of(method.continues, seed, fingerprint)[0]
        run = RunSpec(
            method=method.name,
            data=self.data,
            encoder=self.encoder,
            views=self.views,
            train=self.train.model_copy(update={"lr": lr}),
            seed=seed,
            start=start,
            fingerprint=fingerprint,
            weights_sha256=self.encoder.weights_digest(),
            code=code_of(method.objective, method.strategy),
            preset=self.preset,
            evidence=self.evidence,
        )
        if method.strategy != SUPERVISED:
            return [run]
        return [
            run.model_copy(update={"labels": percent, "finetune": self.finetune}) for percent in self.evaluation.labels
        ]


def load_grid(preset: str, spec: Path | None = None, changes: dict[str, Any] | None = None) -> GridSpec:
    """Load a preset by name, overridden by a TOML file of the same form, then by dotted keys (`train.epochs`: 5).

    Where another data set is named, the options of the preset's data set are dropped. `train.lr` replaces the tuned
    rates of the preset. Raises ValueError, which says where the mistake is and what would be right, for unknown
    presets, keys and values, and FileNotFoundError for a missing file.
    """
    known = sorted(path.stem for path in PRESETS.glob("*.toml"))
    if preset not in known:
        raise ValueError(f"unknown preset '{preset}': {suggest(preset, known)}")
    tuning = read_tuning(preset)
    tuned = {"tuned": tuning["chosen"]} if tuning else {}
    values = {"preset": preset, **tuned, **_read_toml(PRESETS / f"{preset}.toml")}
    file = _read_toml(spec) if spec is not None else {}
    values = _override(values, file)
    given: dict[str, Any] = {}
    for key, value in (changes or {}).items():
        if key.count(".") > DEPTH:
            raise ValueError(f"options: unknown key '{key}': known are {', '.join(GridSpec.model_fields)}.")
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        given = _merge(given, nested)
    if "preset" in file or "preset" in given:
        raise ValueError(f"{spec or 'options'}: a preset can't be set in a spec: choose it with --preset.")
    values = _override(values, given)
    own = [part for part in (file, given) if isinstance(part.get("train"), dict) and "lr" in part["train"]]
    if own:  # a rate that the user gives replaces the preset's tuned ones
        values["tuned"] = _merge(
            *(part["tuned"] if isinstance(part.get("tuned"), dict) else {} for part in (file, given))
        )
    grid: GridSpec = validated(GridSpec, values, where=str(spec) if spec else "options")
    if "keep" in file or "keep" in given:
        grid.check_keep()
    return grid


def read_tuning(preset: str) -> dict[str, Any] | None:
    """What `bench.tune` wrote for a preset: the learning rates tried and chosen, and how; None if it was not tuned."""
    path = PRESETS / f"{preset}.tuning.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def validated(model: type[Any], values: dict[str, Any], where: str) -> Any:
    """Make a `model` from plain values. Raises ValueError with a sentence for each of pydantic's errors."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines: dict[str, None] = {}
        for e in error.errors(include_url=False):
            place, message = e["loc"], e["msg"].removeprefix("Value error, ")
            if len(place) > 1 and place[-1] in KINDS:  # pydantic has one error for each type of the union
                place, message = place[:-1], "Input should be true, false, a number or a text"
            key = plain(".".join(str(part) for part in place), 100)
            if e["type"] == "extra_forbidden":
                lines[f"unknown key '{key}': {suggest(str(place[-1]), _keys(model, place[:-1]))}"] = None
            else:
                given = "" if isinstance(e["input"], dict) else f" (given: {plain(repr(e['input']), 100)})"
                lines[f"{key or 'spec'}: {message}{given}"] = None
        more = f"; and {len(lines) - MISTAKES:,} more" if len(lines) > MISTAKES else ""
        raise ValueError(f"{where}: " + "; ".join(list(lines)[:MISTAKES]) + more) from None


def read_change(text: str) -> tuple[str, Any]:
    """Read `key=value` of `--set`: the value as TOML where possible, else as text. Raises ValueError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set '{text}' can't be read: write key=value, e.g. train.epochs=5.")
    try:
        read = tomllib.loads(f"x = {value.strip()}")
    except (ValueError, RecursionError):
        read = {}
    return key.strip(), read["x"] if len(read) == 1 else value.strip()


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
    content = read_within(path, SPEC_BYTES)
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise ValueError(f"{path} can't be read as a spec: it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"{path} is not TOML: {error}.") from None


def _override(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`_merge`, which drops the options of the data set if another one is named."""
    old, new = base.get("data"), over.get("data")
    if isinstance(old, dict) and isinstance(new, dict) and new.get("name", old.get("name")) != old.get("name"):
        base = {**base, "data": {key: value for key, value in old.items() if key != "options"}}
    return _merge(base, over)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
