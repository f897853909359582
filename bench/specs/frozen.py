"""The base of every spec and record, and the digest of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A model that can't be changed. Unknown keys are errors and never ignored; NaN and infinity are no valid
    numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, read piece by piece."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
