"""A check with its verdict, and the comparison of recorded with found values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

Verdict = Literal["holds", "does not hold", "can't be compared"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "can't be compared"

TOLERANCE = 1e-6  # relative or absolute, of a number that is computed again from the same inputs
LONG = 120  # characters of a value that is shown in full; 40 for a single word, such as a hash
SHOWN = 3  # differences that a check lists


@dataclass(frozen=True)
class Check:
    """What was checked, the verdict, and the reason for it."""

    what: str
    verdict: Verdict
    why: str


def compare(what: str, recorded: Any, found: Any, why: str) -> Check:
    """A check that holds, for the reason `why`, if both are the same (numbers within TOLERANCE); else it fails and
    lists the differences."""
    return judged(what, list(differences(recorded, found)), why)


def judged(what: str, found: Sequence[str], why: str, verdict: Verdict = FAILS) -> Check:
    """A check that holds, for the reason `why`, if nothing was `found`; else it has `verdict` and lists what was."""
    if not found:
        return Check(what, HOLDS, why)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Check(what, verdict, "; ".join(found[:SHOWN]) + more)


def differences(recorded: Any, found: Any, at: str = "") -> Iterator[str]:
    """The places where two values differ (models, mappings, sequences or scalars), one text for each."""
    recorded, found = _plain(recorded), _plain(found)
    if isinstance(recorded, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*recorded, *found]):
            place = f"{at}.{key}" if at else str(key)
            if key not in recorded or key not in found:
                yield f"{place} is {'not recorded' if key not in recorded else 'recorded, but not found'}"
            else:
                yield from differences(recorded[key], found[key], place)
    elif isinstance(recorded, list | tuple) and isinstance(found, list | tuple):
        if len(recorded) != len(found):
            yield f"{at}: {len(recorded)} recorded, {len(found)} found"
            return
        for number, (one, other) in enumerate(zip(recorded, found, strict=True)):
            yield from differences(one, other, f"{at}[{number}]")
    elif not _same(recorded, found):
        yield f"{at}: {_shown(recorded)} recorded, {_shown(found)} found".removeprefix(": ")


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, int) and isinstance(other, int):
        return one == other  # counts are not rounded, and may be larger than any float
    if _number(one) and _number(other):
        try:
            return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (one != one and other != other)
        except OverflowError:
            return False
    return bool(one == other)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = f"{value:.8g}" if isinstance(value, float) else str(value)
    return f"{text[:16]}..." if len(text) > (LONG if " " in text else 40) else text
