"""One thing that was looked at, and what came of it."""

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

TOLERANCE = 1e-6  # of a number that is computed again from the same inputs, relative or absolute
LONG = 120  # characters of a value that is shown whole, of one word (a hash) 40
SHOWN = 3  # differences that are named


@dataclass(frozen=True)
class Check:
    """`what` was looked at, the verdict, and why it is that one."""

    what: str
    verdict: Verdict
    why: str


def compare(what: str, recorded: Any, found: Any, said: str) -> Check:
    """Holds, with `said`, where both are the same (numbers within TOLERANCE); else names what differs."""
    return judged(what, list(differences(recorded, found)), said)


def judged(what: str, found: Sequence[str], said: str, verdict: Verdict = FAILS) -> Check:
    """Holds, with `said`, where nothing was `found`; else `verdict`, with what was found."""
    if not found:
        return Check(what, HOLDS, said)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return Check(what, verdict, "; ".join(found[:SHOWN]) + more)


def differences(recorded: Any, found: Any, at: str = "") -> Iterator[str]:
    """Where two values of models, mappings, sequences and scalars differ, one text a place."""
    recorded, found = _plain(recorded), _plain(found)
    if isinstance(recorded, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*recorded, *found]):
            place = f"{at}.{key}" if at else str(key)
            if key not in recorded or key not in found:
                yield f"{place} is {'not recorded' if key not in recorded else 'recorded, and not found'}"
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
        return one == other  # counts have no rounding, and may be larger than any float
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
