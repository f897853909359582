"""Seals: the field `digest` of a record, a SHA-256 over the canonical JSON of all its other fields.

A seal finds slips: a number changed by hand, a bad disk, files of two runs mixed up. It is no signature. Who changes a
record and makes its digest anew is not found out by it; that is what running a record again is for (`bench.verify`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from bench.records.record import CostTable, Evaluation, Record

Sealed = TypeVar("Sealed", Record, Evaluation, CostTable)
State = Literal["whole", "broken", "none"]  # none: there is no digest


def digest_of(plain: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all fields but `digest`, as JSON with sorted keys and no blanks: layout does not matter. Raises
    ValueError for numbers that JSON has not."""
    inside = {key: value for key, value in plain.items() if key != "digest"}
    return sha256(json.dumps(inside, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def seal(model: Sealed) -> Sealed:
    """The same with its digest."""
    return model.model_copy(update={"digest": digest_of(model.model_dump(mode="json"))})


def state_of(plain: Mapping[str, Any]) -> State:
    """Whether the digest of a record, as it was read from its JSON, is that of the other fields."""
    said = plain.get("digest", "")
    if said == "":
        return "none"
    try:
        return "whole" if said == digest_of(plain) else "broken"
    except ValueError:
        return "broken"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
