"""The base of every spec and record, what is wrong with values that are not one, and the digest of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """A model that can't be changed. Unknown keys are errors and never ignored; NaN and infinity are no valid
    numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def mistakes(error: ValidationError, at: str = "", most: int = 3) -> str:
    """The first mistakes in values that are not a valid model, each with its place (below `at`) and what is wrong:
    "train.lr: Input should be a valid number"."""
    found = []
    for one in error.errors(include_url=False)[:most]:
        place = ".".join(str(part) for part in (*([at] if at else []), *one["loc"]))
        found.append(f"{place}{': ' if place else ''}{one['msg'].removeprefix('Value error, ')}")
    return "; ".join(found)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
