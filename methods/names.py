"""Names of methods: `objective/strategy[option=value,...]`, as `--methods` takes them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from methods import BASELINES, DEFAULT_OBJECTIVE, HEADLINE, OBJECTIVES, REFERENCE, STRATEGIES, Option, Value

LONGEST = 10_000  # characters of --methods


@dataclass(frozen=True)
class Method:
    """A named pair of objective and strategy with the options that differ from the defaults; or a baseline."""

    objective: str  # "none" for a baseline
    strategy: str  # "untrained" or "supervised" for a baseline
    options: tuple[tuple[str, Value], ...] = field(default=())

    @property
    def name(self) -> str:
        """Canonical: options in the registry's order, defaults left out."""
        base = self.strategy if self.objective == "none" else f"{self.objective}/{self.strategy}"
        inside = ",".join(f"{key}={_show(value)}" for key, value in self.options)
        return f"{base}[{inside}]" if inside else base

    def _among(self, known: dict[str, Option]) -> dict[str, Value]:
        return {key: value for key, value in self.options if key in known}

    @property
    def strategy_options(self) -> dict[str, Value]:
        return self._among(STRATEGIES[self.strategy].options) if self.strategy in STRATEGIES else {}

    @property
    def keep(self) -> float | None:
        """The keep ratio asked for (`keep`, or DynamicViT's `rho` a stage), None where the strategy has none."""
        known = STRATEGIES[self.strategy].options if self.strategy in STRATEGIES else {}
        given = dict(self.options)
        return next((float(given.get(o, known[o].default)) for o in ("keep", "rho") if o in known), None)

    @property
    def objective_options(self) -> dict[str, Value]:
        """Of an option that both have, the strategy's wins."""
        if self.objective not in OBJECTIVES:
            return {}
        mine = {
            k: o for k, o in OBJECTIVES[self.objective].options.items() if k not in STRATEGIES[self.strategy].options
        }
        return self._among(mine)


REFERENCE_METHOD = Method(DEFAULT_OBJECTIVE, REFERENCE)
"""The method that times are relative to."""


def parse_methods(text: str) -> list[Method]:
    """The methods that a comma list names, in its order, each once.

    `all` is the headline set; a bare strategy means `simclr/<strategy>`; globs match the part before `[`.
    Raises ValueError, which says what would be right, for a name or an option that is not known.
    """
    if len(text) > LONGEST:
        raise ValueError(
            f"--methods has {len(text):,} characters, and at most {LONGEST:,} are read: name fewer methods."
        )
    found: list[Method] = []
    for part in split_outside_brackets(text):
        found += _parse_one(part)
    if not found:
        raise ValueError("--methods names no method: use e.g. --methods all, or simclr/dense,simclr/sparsecontrast.")
    return list(dict.fromkeys(found))


def _parse_one(part: str) -> list[Method]:
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", part)
    if match is None:
        raise ValueError(f"method '{part}' can't be read: write objective/strategy[option=value,...].")
    base, inside = match.group(1).strip(), match.group(2) or ""
    if base == "all":
        if inside:
            raise ValueError("'all' takes no options: name the method that they are meant for.")
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
            raise ValueError(f"option '{key}' of {name} is given twice.")
        given[key] = read_value(f"option '{key}' of {name}", text, known[key])
    ordered = tuple((key, given[key]) for key in known if key in given and given[key] != known[key].default)
    return Method(objective, strategy, ordered)


def read_value(what: str, text: str, option: Option) -> Value:
    """`text` as a value of `option`; raises ValueError that says what it may be."""
    if isinstance(option.default, bool):
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise ValueError(f"{what} is '{text}': it is true or false.")
    if isinstance(option.default, str):
        if option.choices and text not in option.choices:
            raise ValueError(f"{what} is '{text}': {suggest(text, list(option.choices))}")
        return text
    try:
        number = int(text) if isinstance(option.default, int) else float(text)
    except ValueError:
        kind = "a whole number" if isinstance(option.default, int) else "a number"
        raise ValueError(f"{what} is '{text}': it is {kind}.") from None
    low, high = option.low, option.high
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{what} is {text}: it lies between {low} and {'any' if high is None else high}.")
    if not (low is None or number >= low) or not (high is None or number <= high):
        raise ValueError(f"{what} is {text}: it lies between {low} and {'any' if high is None else high}.")
    return number


def suggest(word: str, known: list[str]) -> str:
    """'did you mean ...?' if something is close, else all that is known."""
    close = get_close_matches(word, known, n=2, cutoff=0.7)
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}."


def meant(word: str, known: Iterable[str]) -> str:
    """'did you mean ...? Else ' if something is close, else nothing: the beginning of what would be right."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"did you mean {close[0]}? Else " if close else ""


def split_outside_brackets(text: str) -> list[str]:
    """The parts between commas that no bracket encloses."""
    parts = re.split(r",(?![^\[]*\])", text)
    return [part.strip() for part in parts if part.strip()]


def _show(value: Value) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
