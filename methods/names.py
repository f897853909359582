"""Parsing of method names: `objective/strategy[option=value,...]`, the syntax of `--methods`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from methods import BASELINES, DEFAULT_OBJECTIVE, HEADLINE, INITIAL, OBJECTIVES, REFERENCE, STRATEGIES, Option, Value

MAX_CHARACTERS = 10_000  # of --methods


@dataclass(frozen=True)
class Method:
    """Pair of objective and strategy with the options that differ from their defaults, or a baseline."""

    objective: str  # "none" for a baseline
    strategy: str  # "untrained" or "supervised" for a baseline
    options: tuple[tuple[str, Value], ...] = field(default=())

    @property
    def name(self) -> str:
        """Canonical name: options in the order of the registry, without those at their defaults."""
        base = self.strategy if self.objective == "none" else f"{self.objective}/{self.strategy}"
        inside = ",".join(f"{key}={_show(value)}" for key, value in self.options)
        return f"{base}[{inside}]" if inside else base

    def _among(self, known: dict[str, Option]) -> dict[str, Value]:
        return {key: value for key, value in self.options if key in known}

    @property
    def strategy_options(self) -> dict[str, Value]:
        """Options of the strategy that differ from their defaults."""
        return self._among(STRATEGIES[self.strategy].options) if self.strategy in STRATEGIES else {}

    @property
    def all_options(self) -> dict[str, Value]:
        """All options of objective and strategy with their values, in the order of the registry."""
        known = {
            **(OBJECTIVES[self.objective].options if self.objective in OBJECTIVES else {}),
            **(STRATEGIES[self.strategy].options if self.strategy in STRATEGIES else {}),
        }
        return {key: option.default for key, option in known.items()} | dict(self.options)

    @property
    def continues(self) -> Method | None:
        """The method whose finished run, of the same seed, this one continues; None if it starts from scratch."""
        strategy = self.all_options.get(INITIAL)
        return Method(self.objective, strategy) if isinstance(strategy, str) and strategy in STRATEGIES else None

    @property
    def keep(self) -> float | None:
        """Requested keep ratio (`keep`, or the `rho` of each stage); None if the strategy has neither option."""
        known = STRATEGIES[self.strategy].options if self.strategy in STRATEGIES else {}
        given = dict(self.options)
        return next((float(given.get(o, known[o].default)) for o in ("keep", "rho") if o in known), None)

    @property
    def objective_options(self) -> dict[str, Value]:
        """Options of the objective that differ from their defaults.

        If the strategy has an option of the same name, the value is the strategy's and is left out here.
        """
        if self.objective not in OBJECTIVES:
            return {}
        mine = {
            k: o for k, o in OBJECTIVES[self.objective].options.items() if k not in STRATEGIES[self.strategy].options
        }
        return self._among(mine)


REFERENCE_METHOD = Method(DEFAULT_OBJECTIVE, REFERENCE)
"""The method that times are relative to."""


def parse_methods(text: str) -> list[Method]:
    """Parse a comma-separated list of methods; keep its order and drop duplicates.

    `all` stands for the headline set, a strategy without objective for `simclr/<strategy>`, and globs match the part
    before `[`. Raises ValueError for an unknown name or option and for an invalid value; the message suggests what is
    valid.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"--methods has {len(text):,} characters, but the limit is {MAX_CHARACTERS:,}: name fewer methods."
        )
    found: list[Method] = []
    for part in split_outside_brackets(text):
        found += _parse_one(part)
    if not found:
        raise ValueError("--methods is empty: use e.g. --methods all, or --methods simclr/dense,simclr/sparsecontrast.")
    return list(dict.fromkeys(found))


def _parse_one(part: str) -> list[Method]:
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", part)
    if match is None:
        raise ValueError(f"method '{part}' can't be read: write objective/strategy[option=value,...].")
    base, inside = match.group(1).strip(), match.group(2) or ""
    if base == "all":
        if inside:
            raise ValueError("'all' takes no options: give them to a named method.")
        return [method for name in HEADLINE for method in _parse_one(name)]
    if base in BASELINES:
        if inside:
            raise ValueError(f"'{base}' takes no options.")
        return [Method("none", base)]
    if "/" not in base:
        base = f"{DEFAULT_OBJECTIVE}/{base}"
    known = [f"{objective}/{strategy}" for objective in OBJECTIVES for strategy in STRATEGIES]
    names = [name for name in known if fnmatchcase(name, base)]
    if not names:
        raise ValueError(f"unknown method '{part}': {suggest(base, [*known, *BASELINES])}")
    return [_with_options(name, inside) for name in names]


def _with_options(name: str, inside: str) -> Method:
    objective, strategy = name.split("/")
    known = {**OBJECTIVES[objective].options, **STRATEGIES[strategy].options}
    given: dict[str, Value] = {}
    for item in filter(None, (piece.strip() for piece in inside.split(","))):
        key, equals, text = (piece.strip() for piece in item.partition("="))
        if not equals:
            raise ValueError(f"option '{item}' of {name} has no value: write [{item}=...].")
        if key not in known:
            raise ValueError(f"{name} has no option '{key}': {suggest(key, list(known))}")
        if key in given:
            raise ValueError(f"option '{key}' of {name} is given twice: give it once.")
        given[key] = read_value(f"option '{key}' of {name}", text, known[key])
    ordered = tuple((key, given[key]) for key in known if key in given and given[key] != known[key].default)
    return Method(objective, strategy, ordered)


def read_value(what: str, text: str, option: Option) -> Value:
    """Convert `text` to a value of `option`.

    Raises ValueError for a value of another type or outside the allowed range; the message begins with `what` and
    lists what is allowed.
    """
    if isinstance(option.default, bool):
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise ValueError(f"{what} is '{text}': it must be true or false.")
    if isinstance(option.default, str):
        if option.choices and text not in option.choices:
            raise ValueError(f"{what} is '{text}': {suggest(text, list(option.choices))}")
        return text
    try:
        number = int(text) if isinstance(option.default, int) else float(text)
    except ValueError:
        kind = "a whole number" if isinstance(option.default, int) else "a number"
        raise ValueError(f"{what} is '{text}': it must be {kind}.") from None
    low, high = option.low, option.high
    finite = not isinstance(number, float) or math.isfinite(number)
    if finite and (low is None or number >= low) and (high is None or number <= high):
        return number
    rules = {"finite": not finite, f"at least {low}": low is not None, f"at most {high}": high is not None}
    raise ValueError(f"{what} is {text}: it must be {' and '.join(rule for rule, holds in rules.items() if holds)}.")


def suggest(word: str, known: list[str]) -> str:
    """Return "did you mean ...?" if `known` has a close match, else a list of what is known."""
    close = get_close_matches(word, known, n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(known)}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "did you mean ...? Otherwise " if `known` has a close match, else ""; callers continue the sentence."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}? Otherwise " if close else ""


def split_outside_brackets(text: str) -> list[str]:
    """Split a text at the commas that are not inside brackets, and drop empty parts."""
    parts = re.split(r",(?![^\[]*\])", text)
    return [part.strip() for part in parts if part.strip()]


def _show(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
