"""Seals records, evaluations and cost tables, and reads them: the one reader of sealed JSON.

The seal is the field `digest`, a SHA-256 over the canonical JSON of all other fields. It finds slips: a number changed
by hand, a bad disk, files of two runs mixed up. It is not a signature: it does not detect an edit whose digest was
recomputed. Rerunning the record detects that (`bench.verify`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError

from bench.records.record import SCHEMA_VERSION, CostTable, Evaluation, Record
from bench.specs.frozen import mistakes
from datasets.limits import RECORD_BYTES, read_within

Sealed = TypeVar("Sealed", Record, Evaluation, CostTable)
DigestState = Literal["whole", "broken", "none"]  # none: there is no digest
State = Literal["missing", "unreadable", "other schema", "changed", "invalid", "unsealed", "whole"]
NOUNS: dict[type, str] = {Record: "a record", Evaluation: "an evaluation", CostTable: "a cost table"}


def digest_of(plain: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all fields but `digest`, as JSON with sorted keys and no blanks: layout does not matter. Raises
    ValueError for numbers that JSON does not have."""
    inside = {key: value for key, value in plain.items() if key != "digest"}
    return sha256(json.dumps(inside, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def seal(model: Sealed) -> Sealed:
    """The same content with its digest."""
    return model.model_copy(update={"digest": digest_of(model.model_dump(mode="json"))})


@dataclass(frozen=True)
class Reading(Generic[Sealed]):
    """What a sealed file turned out to be.

    `why` says it in words that follow the file's name, such as "has schema 2, and this code reads 1". `model` is the
    content where it is valid, also of a file that was changed after it was written.
    """

    path: Path
    state: State
    why: str
    model: Sealed | None = None

    @property
    def intact(self) -> Sealed | None:
        """The content, unless its digest contradicts it; content without a digest is accepted."""
        return self.model if self.state in ("whole", "unsealed") else None


def read_sealed(kind: type[Sealed], path: Path) -> Reading[Sealed]:
    """Read a record, an evaluation or a cost table; whatever is wrong with the file is told by the result.

    The first rule that is broken decides: at most RECORD_BYTES, JSON, this code's schema, a digest that fits where
    there is one, valid content.
    """
    cannot = f"can't be read as {NOUNS[kind]}"
    try:
        content = read_within(path, RECORD_BYTES)
        plain, digest = parse(content)
    except FileNotFoundError:
        if path.exists():
            return Reading(path, "unreadable", f"{cannot} (it is not a regular file)")
        return Reading(path, "missing", "is not there")
    except OSError as error:
        return Reading(path, "unreadable", f"{cannot} ({error.strerror or error})")
    except ValueError as error:
        return Reading(path, "unreadable", f"{cannot} ({error})")
    schema = plain.get("schema_version", SCHEMA_VERSION) if isinstance(plain, dict) else SCHEMA_VERSION
    if schema != SCHEMA_VERSION:
        return Reading(path, "other schema", f"has schema {schema!r}, and this code reads {SCHEMA_VERSION}")
    model, wrong = None, ""
    try:
        model = kind.model_validate_json(content)
    except ValidationError as error:
        wrong = mistakes(error)
    if digest == "broken":
        return Reading(path, "changed", "was changed after it was written (its digest does not fit)", model)
    if model is None:
        return Reading(path, "invalid", f"{cannot} ({wrong})")
    if digest == "none":
        why = "has no digest: it was written before there were digests, or the digest was removed"
        return Reading(path, "unsealed", why, model)
    return Reading(path, "whole", "is as it was written (its digest fits)", model)


def parse(content: bytes) -> tuple[Any, DigestState]:
    """The plain values of sealed JSON, and the state of their digest. Raises ValueError for what is not JSON."""
    try:
        plain = json.loads(content)
        return plain, state_of(plain) if isinstance(plain, dict) else "none"
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error


def state_of(plain: Mapping[str, Any]) -> DigestState:
    """Whether the digest in the plain values of a record is that of the other fields."""
    recorded = plain.get("digest", "")
    if recorded == "":
        return "none"
    try:
        return "whole" if recorded == digest_of(plain) else "broken"
    except ValueError:
        return "broken"


def sha256(content: bytes) -> str:
    """SHA-256 (hex) of some bytes."""
    return hashlib.sha256(content).hexdigest()
